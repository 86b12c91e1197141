"""Who hangs: pure decisions, with made-up time. Silence, a start that takes too long, having been stopped oneself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ringserve.cpu_waits import CpuTimes, CpuWaits
from ringserve.hangs import Watchdog

_MS = 1_000_000


@dataclass
class _Child:
    """See `hangs.Watched`."""

    alive: bool = True
    ready: bool = True
    heard_ns: int = 1
    condemned: bool = False
    patience: int = 1
    pid: int = -1


def _first_overdue_ms(watchdog: Watchdog, children: list[_Child], until_ms: int, step_ms: int = 100) -> int:
    """When somebody is overdue for the first time, looked at often enough; -1: never."""
    for now_ms in range(0, until_ms, step_ms):
        if watchdog.overdue(children, now_ms * _MS + 1):
            return now_ms
    return -1


def test_one_that_is_silent_for_too_long_hangs_and_the_others_do_not() -> None:
    watchdog, silent, other = Watchdog(10_000, 0), _Child(), _Child()
    for now_ms in range(0, 10_000, 1000):
        other.heard_ns = now_ms * _MS + 1
        assert watchdog.overdue([silent, other], now_ms * _MS + 1) == []
    assert watchdog.overdue([silent, other], 10_000 * _MS + 1) == [silent]


@pytest.mark.parametrize(("ready", "at_ms"), [(True, 2_000), (False, 9_000)])
def test_one_that_starts_has_a_limit_of_its_own(ready: bool, at_ms: int) -> None:
    assert _first_overdue_ms(Watchdog(2_000, 9_000), [_Child(ready=ready)], 20_000) == at_ms


def test_one_may_be_given_more_time_than_the_others() -> None:
    assert _first_overdue_ms(Watchdog(2_000, 2_000), [_Child(patience=3)], 20_000) == 6_000
    assert _first_overdue_ms(Watchdog(2_000, 2_000), [_Child(patience=3, ready=False)], 20_000) == 2_000


@pytest.mark.parametrize(("hang_ms", "start_ms", "ready"), [(0, 9_000, True), (2_000, 0, False), (0, 0, True)])
def test_a_limit_of_0_is_none(hang_ms: int, start_ms: int, ready: bool) -> None:
    assert _first_overdue_ms(Watchdog(hang_ms, start_ms), [_Child(ready=ready)], 60_000) == -1


def test_without_limits_nobody_need_look() -> None:
    watchdog = Watchdog(0, 0)
    watchdog.overdue([_Child()], 5)
    assert watchdog.look_ns == 0


def test_one_that_has_no_process_or_was_killed_already_is_not_named() -> None:
    children = [_Child(alive=False), _Child(condemned=True)]
    assert _first_overdue_ms(Watchdog(2_000, 2_000), children, 10_000) == -1


def test_who_was_stopped_itself_gives_all_their_whole_time_again() -> None:
    watchdog, child = Watchdog(10_000, 0), _Child()
    assert watchdog.overdue([child], 1) == []
    hour_ns = 3_600_000 * _MS
    assert watchdog.overdue([child], hour_ns) == []
    assert watchdog.overdue([child], hour_ns + 1_000 * _MS) == []
    assert watchdog.look_ns <= hour_ns + 3_000 * _MS
    for ms in range(2_000, 10_000, 1_000):
        assert watchdog.overdue([child], hour_ns + ms * _MS) == []
    assert watchdog.overdue([child], hour_ns + 10_000 * _MS) == [child]


def test_one_that_was_stopped_together_with_its_supervisor_is_never_killed() -> None:
    """Whatever the moment and the length of the stop: it spoke in time before, and is to speak right after it."""
    for stopped_ms in range(0, 20_000, 250):
        for since_beat_ms in range(0, 5_001, 250):
            watchdog, child = Watchdog(10_000, 0), _Child()
            stop_ns = 100_000 * _MS
            for now_ns in (stop_ns - 2_000 * _MS, stop_ns):
                child.heard_ns = now_ns
                assert watchdog.overdue([child], now_ns) == []
            child.heard_ns = stop_ns - since_beat_ms * _MS
            # The supervisor wakes first, as soon as both go on: when it would have looked, or later.
            woken_ns = max(watchdog.look_ns, stop_ns + stopped_ms * _MS)
            assert watchdog.overdue([child], woken_ns) == []


def _first_overdue_with_ms(times_at: Callable[[int], CpuTimes | None]) -> int:
    """When one is overdue that speaks at first and then never again, by what is told of it at each millisecond."""
    now_ms = 0
    watchdog, child = Watchdog(10_000, 0, CpuWaits(lambda pid: times_at(now_ms))), _Child(pid=7)
    for now_ms in range(0, 100_000, 2_000):
        if watchdog.overdue([child], now_ms * _MS + 1):
            return now_ms
    return -1


@pytest.mark.parametrize(
    ("times_at", "overdue_ms"),
    [
        (lambda _: None, 10_000),  # nobody tells
        (lambda _: CpuTimes(5, 5, 5, False), 10_000),  # blocked or stopped
        (lambda ms: CpuTimes(ms * _MS, 0, ms, True), 10_000),  # an endless loop, alone on its CPU
        (lambda ms: CpuTimes(ms * _MS // 2, ms * _MS // 2, ms, True), 10_000),  # and with one other there
        (lambda _: CpuTimes(5, 5, 5, True), 30_000),  # never run
        (lambda ms: CpuTimes(ms * _MS // 20, ms * _MS * 19 // 20, ms, True), 30_000),  # run now and then
        (lambda ms: CpuTimes(5, max(min(ms, 15_000) - 5_000, 0) * _MS, ms, False), 20_000),  # blocked after ten seconds
    ],
)
def test_one_that_waits_for_a_cpu_is_waited_for_three_times_as_long(
    times_at: Callable[[int], CpuTimes | None], overdue_ms: int
) -> None:
    assert _first_overdue_with_ms(times_at) == overdue_ms
