"""Who waits for a CPU: the decisions with made-up numbers, and what the kernel says of real processes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ringserve.cpu_waits import CpuTimes, CpuWaits, is_starved, read_cpu_times, waited_between

_S = 1_000_000_000
_MS = 1_000_000


def test_a_wait_that_is_over_is_what_the_kernel_says() -> None:
    before = CpuTimes(10, 100, 3, False)
    assert waited_between(before, CpuTimes(20, 150, 4, False), 1000) == 50
    assert waited_between(before, CpuTimes(10, 100, 3, False), 1000) == 0
    assert waited_between(before, CpuTimes(10, 100, 3, True), 1000) == 0, "since when it wants to run, nobody knows"


def test_who_wants_to_run_and_is_not_run_waits() -> None:
    before = CpuTimes(10, 100, 3, True)
    assert waited_between(before, CpuTimes(10, 100, 3, True), 1000) == 1000
    assert waited_between(before, CpuTimes(900, 100, 3, True), 1000) == 0, "it is run all the time"
    # What was seen as it went on is not counted again when the kernel tells of it.
    assert waited_between(before, CpuTimes(10, 5100, 4, True), 1000) == 1000


@pytest.mark.parametrize(
    ("silence_s", "waited_s", "ran_s", "starved"),
    [
        (10, 0, 0, False),  # blocked, or stopped
        (10, 2, 0, False),
        (10, 4, 0, True),  # it slept until it was to speak, and waits since
        (10, 5, 5, False),  # an endless loop beside another one
        (12, 9, 3, False),  # the same beside three
        (10, 9, 1, True),
        (17, 8, 0, True),
        (18, 8, 0, False),  # starved at first, and blocked since
        (29, 28, 0, True),
        (30, 29, 0, False),
    ],
)
def test_waiting_is_no_silence_within_bounds(silence_s: int, waited_s: int, ran_s: int, starved: bool) -> None:
    assert is_starved(silence_s * _S, waited_s * _S, ran_s * _S, 10 * _S) is starved


def test_each_silence_counts_by_itself_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    times = CpuTimes(1, 0, 1, True, "rs-broker")
    waits = CpuWaits(lambda pid: times)
    waits.look([(7, 1)], 1)
    waits.look([(7, 1)], 8 * _S)
    assert waits.excuse(7, 10 * _S, 10 * _S)
    assert waits.excuse(7, 12 * _S, 10 * _S)
    assert [each.getMessage() for each in caplog.records] == [
        "rs-broker (process 7) has been silent for 10.0 s and has waited for a CPU for 8.0 s of them: it is starved "
        "and gets up to 30 s, as this host has more to do than it can"
    ]
    waits.look([(7, 9 * _S)], 9 * _S)  # it spoke
    assert not waits.excuse(7, 10 * _S, 10 * _S)
    waits.look([(8, 1)], 20 * _S)
    assert not waits.excuse(7, 10 * _S, 10 * _S), "there is no such process any more"


def test_looks_in_a_rush_are_one() -> None:
    """Between two ticks of the kernel one that is on a CPU seems to stand still."""
    waits = CpuWaits(lambda pid: CpuTimes(now_ns // (10 * _MS), 0, 1, True))
    for now_ns in range(1, 10 * _S, _MS):
        waits.look([(7, 1)], now_ns)
    assert not waits.excuse(7, 10 * _S, 10 * _S)


@contextlib.contextmanager
def _running(code: str, count: int = 1) -> Iterator[list[int]]:
    """Processes on one and the same CPU."""
    cpu = min(os.sched_getaffinity(0))
    head = f"import os, signal, time; os.sched_setaffinity(0, [{cpu}]); "
    made = [subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for each in made:
            assert each.stdout is not None
            each.stdout.read(1)
        yield [each.pid for each in made]
    finally:
        for each in made:
            each.kill()
            each.communicate()


def _seems_starved(pid: int, seconds: float = 1.5) -> bool:
    """After that long, looked at as the supervisor looks."""
    waits, begun_ns = CpuWaits(), time.monotonic_ns()
    while (now_ns := time.monotonic_ns()) < begun_ns + seconds * _S:
        waits.look([(pid, begun_ns)], now_ns)
        time.sleep(0.3)  # looks are apart from each other, as the supervisor's are
    return waits.excuse(pid, now_ns - begun_ns, now_ns - begun_ns)


_READY = "os.write(1, b'.'); "
_SPIN = "\nwhile True: pass"
_BEAT = "\nwhile True: time.sleep(0.05)"
_IDLE = "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); "


def test_blocked_and_stopped_processes_are_not_starved() -> None:
    with _running(_READY + "signal.pause()") as (pid,):
        assert not _seems_starved(pid, 1.0)
    with _running(_READY + _BEAT) as (pid,):
        os.kill(pid, signal.SIGSTOP)
        assert not _seems_starved(pid, 1.0)


def test_one_whose_cpu_others_take_is_starved() -> None:
    with _running(_IDLE + _READY + _BEAT) as (pid,), _running(_READY + _SPIN, 3):
        assert _seems_starved(pid)


def test_who_is_not_there_is_not_read() -> None:
    assert read_cpu_times(-1) is None
    own = read_cpu_times(os.getpid())
    assert own is not None
    assert own.is_runnable
    assert own.ran_ns > 0
