"""Runs the cases that end their server, or that never let it start, each on a server of its own. Nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.operator import state
from tests.e2e.server import wait_until
from tests.faults import oom
from tests.faults.cases import Case
from tests.faults.load import channel_to
from tests.faults.orders import Orders
from tests.faults.runner import Outcome, strike
from tests.faults.stage import Stage, clients_of

_CALLS = 8


class Flight:
    """Calls that are in flight at the same time, each on a connection of its own, and how each ended. The broker has
    all of them when this is made; both workers are held in a batch."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        channels = [stack.enter_context(channel_to(stage.grpc_target)) for _ in range(_CALLS)]
        for channel in channels:
            grpc.channel_ready_future(channel).result(30)
        stage.orders.give("worker.batch", "hold", 2)
        before = state(stage)["requests"]["submitted"]
        self._calls = []
        for number, channel in enumerate(channels):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            x = np.full(2, number, np.float32)
            self._calls.append((stub.Predict.future(make_request("m", x=x), timeout=60), x / 2 + 2))
        wait_until(lambda: state(stage)["requests"]["submitted"] == before + _CALLS, "all calls to be in flight")
        stage.orders.wait_taken("worker.batch", 2)

    def ends(self) -> Counter[str]:
        """`ok`, `WRONG` or the code, counted. Waits for all."""
        return Counter(_end(call, expected) for call, expected in self._calls)


def _end(call: Any, expected: np.ndarray[Any, Any]) -> str:
    try:
        return "ok" if np.array_equal(outputs_of(call.result())["y"], expected) else "WRONG"
    except grpc.RpcError as error:
        return str(error.code().name)


def run_alone(case: Case, folder: Path, models: Path) -> Outcome:
    """One of the cases with `own_server`. Raises AssertionError when anything is left of the server."""
    if case.sees == "refused":
        return _refused(case, folder, models)
    # Where all are answered the drain ends with the last, however long others keep the machine busy.
    flags = {"drain_ms_max": "60000"} if case.sees == "nothing" else {}
    with ExitStack() as stack, Stage(folder, models, None, **flags) as stage:
        stage.wait_ready()
        flight = _take_off(case, stage, stack)
        victim = _victim(case, stage)
        connections = len(clients_of(victim))
        began_ns = time.monotonic_ns()
        strike(case.fault, victim)
        victim.wait(30) if case.role != "supervisor" else stage.process.wait(30)
        stage.orders.release()
        ends = flight.ends()
        took_s = (time.monotonic_ns() - began_ns) / 1e9
        status = stage.process.wait(60)
        stage.assert_nothing_left()
        assert (status == 0) == (case.role != "supervisor"), stage.log
        return Outcome(_class(ends, connections, case), took_s, took_s)


def _take_off(case: Case, stage: Stage, stack: ExitStack) -> Flight:
    """Calls in flight at the moment."""
    if case.moment == "load":
        stage.orders.give("author.write", "hold")
        stage.put()
        stage.orders.wait_taken("author.write")
    flight = Flight(stage, stack)
    if case.moment == "drain":
        stage.process.send_signal(signal.SIGTERM)
        wait_until(lambda: stage.log.count(": stopping: SIGTERM") == 3, "supervisor and frontends to drain")
    return flight


def _victim(case: Case, stage: Stage) -> psutil.Process:
    if case.role == "supervisor":
        return psutil.Process(stage.process.pid)
    if case.role == "worker":
        return psutil.Process(stage.orders.taken("worker.batch")[-1])
    return stage.busiest(case.role)


def _class(ends: Counter[str], connections: int, case: Case) -> str:
    if set(ends) == {"ok"}:
        return "nothing"
    if set(ends) <= {"ok", "UNAVAILABLE"}:
        if case.role == "frontend":
            return "connections" if ends["UNAVAILABLE"] == connections else f"{dict(ends)} of {connections}"
        return "gone" if case.role == "supervisor" else f"{dict(ends)} when the drain was over"
    return str(dict(ends))


# ------------------------------------------------------------------------------------------------- never started


def _refused(case: Case, folder: Path, models: Path) -> Outcome:
    """The server ends by itself, with a status and a text that names the reason."""
    folder.mkdir(exist_ok=True)
    orders = Orders(folder / "orders")
    flags: dict[str, str] = {}
    began_ns = time.monotonic_ns()
    with ExitStack() as stack:
        if case.fault == "full":
            flags["run_dir"] = stack.enter_context(full_disk())
            expected, status = ("No space left on device",), 1
        else:
            orders.give(f"{case.role}.start", "exit", case.times)
            expected, status = (f"{case.role} failed to start 5 times in a row, at last with status 3",), 3
        stage = stack.enter_context(Stage(folder, models, orders, **flags))
        assert stage.process.wait(90) == status, stage.log
        took_s = (time.monotonic_ns() - began_ns) / 1e9
        last = stage.log.rstrip().splitlines()[-1]
        assert all(text in stage.log for text in expected), stage.log
        assert case.fault != "full" or last.startswith("ringserve: "), stage.log
    return Outcome("refused", took_s, took_s)


def why_impossible(case: Case) -> str:
    """Why this machine cannot do that to a process; empty when it can."""
    if case.fault == "oom":
        return oom.why_not()
    if case.fault == "full" and case.own_server and not (os.geteuid() == 0 and _mounts()):
        return "mounting a small file system is not allowed here"
    return ""


def _mounts() -> bool:
    try:
        with full_disk():
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def full_disk() -> Iterator[str]:
    """A folder on a file system with room for nothing but a few empty files."""
    with tempfile.TemporaryDirectory(prefix="rs-") as folder:
        mounted = ["mount", "-t", "tmpfs", "-o", "size=4k", "ringserve-faults", folder]
        subprocess.run(mounted, check=True, capture_output=True)
        try:
            (Path(folder) / "filling").write_bytes(bytes(4096))
            run_dir = Path(folder) / "run"
            run_dir.mkdir(mode=0o700)
            yield str(run_dir)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
