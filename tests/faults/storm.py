"""Storms: `kill -9` of one role, or of two at nearly the same time, again and again at random moments, while 500 calls
are in flight all the time."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
import time
from typing import NamedTuple

import psutil

from tests.e2e.server import wait_until
from tests.faults.cases import STORMS
from tests.faults.stage import Stage

CALLS = 500
_SEED = 20
#: A kill comes at a random moment within this time after the server was whole again.
_WITHIN_S = 0.5
#: The second of two comes within this time after the first: while that one's successor is about to take over.
_BETWEEN_S = 0.6

class Storm(NamedTuple):
    """answered: right answers. failures: all other ends of calls, counted. recoveries_s: after each kill, the longest
    time in which no client got an answer."""

    name: str
    answered: int
    failures: dict[str, int]
    recoveries_s: list[float]


def storm(stage: Stage, name: str, kills: int, calls: int = CALLS) -> Storm:
    """Kill processes of that storm's roles so often; the server is whole again when this returns. calls: in flight."""
    draw = random.Random(f"{name} {_SEED}")
    command = [sys.executable, "-m", "tests.faults.storm_clients", stage.grpc_target, str(calls)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        assert clients.stdout.readline() == "ready\n"
        moments_ns = []
        for _ in range(kills):
            # A random moment, which nothing waits for.
            time.sleep(draw.uniform(0, _WITHIN_S))
            victims = [
                draw.choice(sorted(stage.members(role), key=lambda process: int(process.pid))) for role in STORMS[name]
            ]
            moments_ns.append(time.monotonic_ns())
            victims[0].kill()
            for victim in victims[1:]:
                # Likewise: sooner or later than the successor is there.
                time.sleep(draw.choice((0, draw.uniform(0, _BETWEEN_S))))
                victim.kill()
            for victim in victims:
                wait_until(functools.partial(_gone, victim), "the victim's end")
            stage.wait_whole()
        clients.stdin.close()
        told = json.loads(clients.stdout.readline())
    ends, gaps = told["ends"], told["gaps"]
    answered = ends.pop("ok", 0)
    return Storm(name, answered, ends, _recoveries_s(moments_ns, gaps))


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _recoveries_s(moments_ns: list[int], gaps: list[list[int]]) -> list[float]:
    """For each kill the longest gap that had not ended before it and began before the next kill."""
    found = []
    for moment_ns, next_ns in zip(moments_ns, [*moments_ns[1:], 1 << 63], strict=True):
        lengths = [length for begin, length in gaps if begin < next_ns and begin + length > moment_ns]
        found.append(max(lengths, default=0) / 1e9)
    return found
