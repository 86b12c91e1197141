"""The wheel of deadlines and the grace after them, with time by hand: when they call, and how often they wake."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from ringserve.frontend.deadlines import DeadlineWheel, Grace

MS = 1_000_000
START_NS = 7_000_123_456_789


class Timer:
    def __init__(self, when_ns: int, callback: Callable[[], None]) -> None:
        self.when_ns = when_ns
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """A loop whose timers count whole milliseconds, as uvloop's do, and whose time the test moves."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.timers: list[Timer] = []
        self.wakes = 0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now_ns + round(delay_s * 1000) * MS, callback)
        self.timers.append(timer)
        return timer

    def pending(self) -> list[Timer]:
        self.timers = [timer for timer in self.timers if not timer.is_cancelled]
        return self.timers

    def run_until(self, when_ns: int, busy_ns: int = 0) -> None:
        """Let time pass. busy_ns: so much later than they should timers are looked at."""
        while due := [timer for timer in self.pending() if timer.when_ns + busy_ns <= when_ns]:
            timer = min(due, key=lambda timer: timer.when_ns)
            self.now_ns = max(self.now_ns, timer.when_ns + busy_ns)
            self.timers.remove(timer)
            self.wakes += 1
            timer.callback()
        self.now_ns = max(self.now_ns, when_ns)


class Bench:
    def __init__(self) -> None:
        self.loop = Loop()
        self.expired: list[tuple[int, int]] = []
        self.wheel = DeadlineWheel(
            cast(asyncio.AbstractEventLoop, self.loop), lambda: self.loop.now_ns, self._expire
        )

    def _expire(self, request_id: int) -> None:
        self.expired.append((request_id, self.loop.now_ns))

    def add(self, request_id: int, after_ns: int) -> dict[int, int]:
        return self.wheel.add(request_id, self.loop.now_ns + after_ns)


@pytest.mark.parametrize("after_ns", [1, 1000, 999_999, MS, 4 * MS, 4 * MS + 200_000, 50 * MS, 3_600_000 * MS])
def test_a_deadline_is_noticed_within_a_millisecond_and_never_early(after_ns: int) -> None:
    bench = Bench()
    bench.add(1, after_ns)
    bench.loop.run_until(START_NS + after_ns + 10 * MS)
    ((request_id, when_ns),) = bench.expired
    assert request_id == 1
    assert 0 <= when_ns - (START_NS + after_ns) <= MS
    assert bench.loop.wakes == 1
    assert not bench.loop.pending(), "nothing waits, so nothing wakes"


def test_deadlines_in_any_order() -> None:
    bench = Bench()
    rng = random.Random(4)
    deadlines = {number: rng.randrange(1, 300 * MS) for number in range(2000)}
    for number, after_ns in deadlines.items():
        bench.add(number, after_ns)
    bench.loop.run_until(START_NS + 400 * MS)
    assert sorted(number for number, _ in bench.expired) == list(range(2000))
    for number, when_ns in bench.expired:
        assert 0 <= when_ns - (START_NS + deadlines[number]) <= 1.01 * MS
    assert bench.loop.wakes <= 310, "not more often than once a millisecond"
    assert not bench.loop.pending()


def test_an_earlier_deadline_moves_the_timer() -> None:
    bench = Bench()
    bench.add(1, 1000 * MS)
    bench.add(2, 10 * MS)
    assert len(bench.loop.pending()) == 1
    bench.loop.run_until(START_NS + 20 * MS)
    assert [number for number, _ in bench.expired] == [2]


def test_an_answered_request_costs_nothing_more() -> None:
    """A minute's timeout at a high rate: requests answered at once leave neither entries nor buckets nor timers."""
    bench = Bench()
    buckets_max = 0
    for number in range(30_000):
        bucket = bench.add(number, 60_000 * MS)
        bucket.pop(number, None)
        bench.loop.run_until(bench.loop.now_ns + MS)
        buckets_max = max(buckets_max, len(bench.wheel._buckets))
    assert buckets_max <= 33
    assert bench.loop.wakes == 0, "the first one's timer has not come yet"
    assert len(bench.loop.pending()) == 1
    bench.loop.run_until(bench.loop.now_ns + 120_000 * MS)
    assert bench.loop.wakes <= 2
    assert not bench.expired
    assert not bench.loop.pending()


def test_short_deadlines_that_are_met_wake_seldom() -> None:
    bench = Bench()
    for number in range(10_000):
        bucket = bench.add(number, 100 * MS)
        bench.loop.run_until(bench.loop.now_ns + MS // 10)
        bucket.pop(number, None)
    assert bench.loop.wakes <= 12, "about once in a deadline's time"
    assert not bench.expired


def test_many_that_hang_do_not_make_the_others_dear() -> None:
    """10,000 requests that nobody answers have 2,400 buckets; these are not walked through for each of the others."""
    bench = Bench()
    for number in range(10_000):
        bench.add(number, 20_000 * MS + number * MS)
    assert len(bench.wheel._buckets) > 2_000
    looked = 0

    class Counting(dict[int, dict[int, int]]):
        def items(self) -> Any:
            nonlocal looked
            looked += len(self)
            return super().items()

    bench.wheel._buckets = Counting(bench.wheel._buckets)
    for number in range(10_000, 20_000):
        bucket = bench.add(number, 50 * MS)
        bench.loop.run_until(bench.loop.now_ns + MS)
        bucket.pop(number, None)
    assert looked <= 10_000


def test_one_expiry_ends_another() -> None:
    """A MultiInference that expires takes its other tasks along."""
    loop = Loop()
    expired: list[int] = []
    buckets: dict[int, dict[int, int]] = {}

    def expire(request_id: int) -> None:
        expired.append(request_id)
        buckets[3 - request_id].pop(3 - request_id, None)
        if request_id == 1:
            buckets[9] = wheel.add(9, loop.now_ns + 5 * MS)

    wheel = DeadlineWheel(cast(asyncio.AbstractEventLoop, loop), lambda: loop.now_ns, expire)
    buckets[1] = wheel.add(1, START_NS + MS)
    buckets[2] = wheel.add(2, START_NS + 30 * MS)
    loop.run_until(START_NS + 3 * MS)
    assert expired == [1]
    buckets[0] = buckets[-6] = {}
    loop.run_until(START_NS + 100 * MS)
    assert expired == [1, 9], "the other one was taken out, and what came meanwhile is seen to"
    assert not loop.pending()


def test_a_busy_loop_is_late_once_and_forgets_nobody() -> None:
    bench = Bench()
    for number in range(50):
        bench.add(number, number * MS)
    bench.loop.run_until(START_NS + 200 * MS, busy_ns=30 * MS)
    assert sorted(number for number, _ in bench.expired) == list(range(50))


def test_closing_ends_the_timer() -> None:
    bench = Bench()
    bench.add(1, MS)
    bench.wheel.close()
    assert not bench.loop.pending()


def test_grace_lasts_one_to_two_milliseconds() -> None:
    loop = Loop()
    over: list[tuple[int, int]] = []
    grace = Grace(cast(asyncio.AbstractEventLoop, loop), lambda number: over.append((number, loop.now_ns)))
    added = {}
    for number in range(40):
        loop.run_until(START_NS + number * 300_000)
        added[number] = loop.now_ns
        grace.add(number)
    loop.run_until(START_NS + 100 * MS)
    assert [number for number, _ in over] == list(range(40))
    assert all(MS <= when_ns - added[number] <= 2 * MS for number, when_ns in over)
    assert not loop.pending()
    grace.add(99)
    grace.close()
    assert not loop.pending()
