"""Runs one case of the matrix on a server that stays whole, and tells what clients saw of it.

The moment first (a process is held at it), then the fault, then everything is let go and watched until the server is
whole again. Cases that end their server are in endings.py.
"""

from __future__ import annotations

import errno
import functools
import signal
import time
from collections import Counter
from typing import NamedTuple

import psutil

from tests.e2e.operator import ask_json, state
from tests.e2e.server import wait_until
from tests.faults import oom
from tests.faults.cases import Case
from tests.faults.load import Load
from tests.faults.stage import Stage, clients_of

_NO_PROCESS = f"raise {errno.EAGAIN}"
_NO_ROOM = f"raise {errno.ENOSPC}"
_NO_MEMORY = f"raise {errno.ENOMEM}"

#: Faults that are ordered where they happen: (role, fault) -> (point, word).
_ORDERED = {
    ("worker", "start"): ("worker.start", "exit"),
    ("pool", "start"): ("pool.start", "exit"),
    ("broker", "start"): ("broker.start", "exit"),
    ("frontend", "start"): ("frontend.start", "exit"),
    ("author", "start"): ("author.start", "exit"),
    ("worker", "full"): ("segment", _NO_MEMORY),
    ("frontend", "full"): ("segment", _NO_MEMORY),
    ("pool", "fork"): ("pool.fork", _NO_PROCESS),
    ("pool", "full"): ("pool.vault", _NO_MEMORY),
    ("author", "full"): ("author.write", _NO_ROOM),
    ("broker", "full"): ("broker.save", _NO_ROOM),
    ("supervisor", "fork"): ("supervisor.start", _NO_PROCESS),
}
#: Who is ended so that an ordered fault comes about, where it is not the role itself.
_ENDED_FIRST = {("pool", "fork"): "worker", ("supervisor", "fork"): "broker"}
_HELD_AT = {"batch": "worker.batch", "result": "worker.result", "load": "worker.load"}
#: Workers that run batches still while one is held there.
_RUNNING = {"batch": 1, "result": 1, "load": 2}


class Outcome(NamedTuple):
    """sees: of CLASSES, or what else it was. gap_s: the longest time in which no client got an answer. slowest_s: the
    longest time that a call took."""

    sees: str
    gap_s: float
    slowest_s: float


def run(case: Case, stage: Stage, load: Load) -> Outcome:
    """The server and its clients are as before when this returns. Raises AssertionError when something is left."""
    load.forget()
    version = stage.version
    preferred = _preferred_worker(stage) if case.moment == "idle" and case.role == "worker" else None
    if case.moment == "idle":
        load.pause()
    try:
        if (case.role, case.fault) in _ORDERED:
            begun_ns, connections = _order(case, stage, load)
        else:
            begun_ns, connections = _strike(case, stage, load, preferred)
    finally:
        stage.orders.release()
        load.resume()
    load.wait_for_more(5)
    if case.role == "supervisor" and case.fault == "stop":
        stage.process.send_signal(signal.SIGCONT)
    given_up = _end_load(case, stage) if stage.version != version else False
    wait_until(lambda: not stage.stopped(), "the hung process to be ended")
    stage.wait_whole()
    load.wait_for_more(5)
    gap_s = load.longest_gap_s(begun_ns)
    wait_until(lambda: not stage.strange_files(), f"sockets of the dead to go: {stage.strange_files()}", 20)
    assert not stage.named_memory()
    return Outcome(_class(load, connections, given_up=given_up), gap_s, load.slowest_s())


def _preferred_worker(stage: Stage) -> psutil.Process:
    """The one that gets the next batch."""
    stage.orders.give("worker.batch", "hold")
    pid = stage.orders.wait_taken("worker.batch")
    stage.orders.release()
    return psutil.Process(pid)


def _strike(case: Case, stage: Stage, load: Load, preferred: psutil.Process | None) -> tuple[int, int]:
    """The fault from outside, at the moment. Returns when it was, and how many clients' connections its victim had."""
    orders = stage.orders
    point = "author.write" if case.role == "author" else _HELD_AT.get(case.moment, "")
    if point:
        orders.give(point, "hold", case.times)
    if case.moment == "load":
        stage.put()
    begun_ns, connections = 0, 0
    for time_number in range(1, case.times + 1):
        held = orders.wait_taken(point, time_number) if point else 0
        if point == "worker.load":
            # It has said so, but a process that is killed at once may take its last message along.
            wait_until(functools.partial(_said_to_load, stage, held), f"the broker to know what {held} loads")
        if case.role == "frontend" and case.fault != "stop" and case.moment in _RUNNING:
            _hold_calls(case.moment, stage, load)
        victim = preferred or (psutil.Process(held) if case.role in ("worker", "author") else stage.busiest(case.role))
        ports = clients_of(victim)
        connections += len(ports)
        begun_ns = begun_ns or time.monotonic_ns()
        if case.fault == "hung":
            victim.send_signal(signal.SIGSTOP)  # or it would find the worker first
            psutil.Process(held).send_signal(signal.SIGSTOP)
        if case.fault == "abort":
            orders.tell_held(point, "abort")
        else:
            strike(case.fault, victim)
        if case.fault != "stop":
            wait_until(functools.partial(_gone, victim), f"the end of {case.role} {victim.pid}")
            wait_until(functools.partial(_closed, ports), "clients to see it")
    return begun_ns, connections


def _hold_calls(moment: str, stage: Stage, load: Load) -> None:
    """Every client waits for an answer: else it is chance whether the victim's clients have a call in flight."""
    before = len(stage.orders.taken("worker.batch"))
    stage.orders.give("worker.batch", "hold", _RUNNING[moment])
    stage.orders.wait_taken("worker.batch", before + _RUNNING[moment])
    wait_until(load.all_in_calls, "every client to be in a call")


def _said_to_load(stage: Stage, pid: int) -> bool:
    return any(worker["pid"] == pid and worker["loading"] for worker in state(stage)["workers"])


def strike(fault: str, victim: psutil.Process) -> None:
    """kill, stop or oom."""
    if fault == "oom":
        oom.kill(victim.pid)
    else:
        victim.send_signal(signal.SIGSTOP if fault == "stop" else signal.SIGKILL)


def _order(case: Case, stage: Stage, load: Load) -> tuple[int, int]:
    """The fault from inside, at the place where it comes about. Returns as `_strike`."""
    point, word = _ORDERED[case.role, case.fault]
    stage.orders.give(point, word, case.times)
    begun_ns, connections = time.monotonic_ns(), 0
    if case.role == "broker" and case.fault == "full":
        told = ask_json(stage, "batching", model="m", batching={"batch_rows_max": 64 + stage.version})
        assert told.code == 0, told
    elif case.moment == "load":
        stage.put()
    else:
        victim = stage.busiest(_ENDED_FIRST.get((case.role, case.fault), case.role))
        ports = clients_of(victim)
        connections = len(ports)
        victim.kill()
        wait_until(functools.partial(_closed, ports), "clients to see it")
        load.resume()
    stage.orders.wait_taken(point, case.times)
    return begun_ns, connections


def _end_load(case: Case, stage: Stage) -> bool:
    """Wait until the version is through, and remove the one that is not needed; True when it was given up."""
    version = stage.version
    for process in stage.stopped() if case.role in ("worker", "author") else ():
        process.send_signal(signal.SIGCONT)  # it would take half an hour

    def through() -> dict[str, str]:
        for found in stage.status("w"):
            if found["version"] == str(version) and found["state"] in ("AVAILABLE", "END"):
                return {"state": found["state"], **found["status"]}
        return {}

    end = wait_until(through, f"version {version} to be through")
    if end["state"] == "AVAILABLE":
        stage.drop(stage.serving)
        stage.serving = version
        return False
    assert "ended 2 worker processes" in end["error_message"], end
    stage.drop(version)
    return True


def _class(load: Load, connections: int, *, given_up: bool) -> str:
    """Which of CLASSES that was, strictly; anything else in words."""
    failures = load.failures()
    if not failures:
        return "version" if given_up else "nothing"
    broken = [client for client in load.clients if client.failures]
    once = all(len(client.failures) == 1 for client in broken)
    if set(failures) == {"UNAVAILABLE"} and not load.failures(retrying=True) and once and len(broken) <= connections:
        return "connections"
    retrying = Counter(load.failures(retrying=True))
    return f"{dict(failures)}, of them retrying clients {dict(retrying)}; its connections: {connections}"


def _closed(ports: list[int]) -> bool:
    """These connections of ours are closed on our side, too."""
    return not any(connection.laddr.port in ports for connection in psutil.Process().net_connections("tcp"))


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
