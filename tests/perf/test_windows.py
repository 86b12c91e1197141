"""The measured window when somebody stands still: the generator itself, or the server for longer than all of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from perf import loadgen
from perf.series import found_rate
from perf.stand_in import Behaviour, StandIn
from tests.perf.test_loadgen import echo_load, standing_in


@pytest.mark.parametrize("deadline_ms", [0.0, 100.0])
def test_calls_that_were_due_while_the_generator_stood_still_are_charged(tmp_path: Path, deadline_ms: float) -> None:
    """It is stopped from the window's beginning until after its end, and finds all that it has not sent behind it."""
    with standing_in() as port:
        load = echo_load(port, rate=500.0, in_flight=2_000, count=0, duration_s=0.6, deadline_ms=deadline_ms)
        command = [str(loadgen.build(sanitized=True)), *loadgen.arguments(load, tmp_path)]
        result: dict[str, Any] = {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "measuring":
                    os.kill(process.pid, signal.SIGSTOP)
                    time.sleep(0.8)  # until the window is over: nothing else tells it of a process that stands still
                    os.kill(process.pid, signal.SIGCONT)
                if event["event"] == "result":
                    result = event
    assert 200 < result["due"] < 400  # Poisson: 300 ± 17 (one standard deviation)
    assert result["due"] == result["latency_us"]["count"] + result["late"]
    assert result["seconds"] == pytest.approx(0.6)
    assert result["calls"] <= result["latency_us"]["count"]
    assert set(result["failures_by_kind"]) <= {"late"}


class Held(StandIn):
    """Answers nothing until it may."""

    held = True

    def write(self) -> None:
        if not self.held:
            super().write()


@contextmanager
def holding() -> Iterator[tuple[int, Any]]:
    """(its port, what lets all answers go)"""
    loop = asyncio.new_event_loop()
    connections: list[Held] = []

    def connect() -> Held:
        connections.append(Held(Behaviour(echo=True)))
        return connections[-1]

    def let_go() -> None:
        for connection in connections:
            connection.held = False
            connection.write()

    server = loop.run_until_complete(loop.create_server(connect, "127.0.0.1", 0))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(let_go)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


@pytest.mark.parametrize("rate", [0.0, 500.0])
def test_answers_that_come_only_when_the_window_is_over_are_answers(rate: float) -> None:
    """Of the closed loop's no call has begun in the window; those of the open loop waited for it to end."""
    with holding() as (port, let_go):
        load = echo_load(port, rate=rate, in_flight=1_000 if rate else 8, count=0, warmup_s=0.1, duration_s=0.3)
        figures = loadgen.run(load, sanitized=True, at_end=let_go)
    assert figures.failures == 0
    assert figures.calls == 0
    assert figures.latency_us.count == figures.due
    assert (figures.due > 50) == bool(rate)


def test_an_open_loop_never_becomes_a_closed_one() -> None:
    assert found_rate(1000.0) == 1000.0
    with pytest.raises(loadgen.LoadError, match="no capacity"):
        found_rate(0.0)
