"""Deadlines of pending requests: a dict entry each, and one timer for the next that may come.

A heap would keep every answered request until its deadline (at 60,000 requests/s with a minute's timeout, millions of
entries); a timer per request costs more than decoding it. So deadlines lie in buckets by time, from which an answered
request is removed at once, and the timer looks into the earliest one only. It stands where the earliest deadline was
when it was set: if that request has been answered by then, it moves on to the earliest that is left. Nothing polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

#: TF Serving's text for a deadline that passes while a request waits or runs; where it was comes after it.
TIMED_OUT = "Timed out waiting for notification"
#: Answers to requests whose time is over. Of one that waits in its queue the broker tells it: nobody else knows.
ARRIVED_LATE_TEXT = f"{TIMED_OUT}: the deadline had passed before the request was read"
RUNNING_TEXT = f"{TIMED_OUT}: the request was running (or the broker too busy to say that it was not)"
NO_BROKER_TEXT = f"{TIMED_OUT}: the broker was being replaced"

#: log2 of a bucket's width: 2**22 ns = 4.2 ms. It decides how much is looked at, not how exact a deadline is.
_BUCKET_SHIFT = 22
_MILLISECOND_NS = 1_000_000
_NEVER_NS = 1 << 63
#: Buckets beyond which those that are empty are thrown away.
_BUCKETS_MIN = 16
#: How long an expired request waits, at least, for the word of where it was; twice as long at most.
_GRACE_S = 0.001


class DeadlineWheel:
    """Calls `expire(request_id)` after a request's deadline, at most a millisecond and what the loop is busy for."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], int], expire: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._expire = expire
        self._buckets: dict[int, dict[int, int]] = {}
        self._numbers: list[int] = []  # of the buckets, a heap
        self._buckets_max = _BUCKETS_MIN
        self._timer: asyncio.TimerHandle | None = None
        self._wake_ns = _NEVER_NS  # no deadline in here is earlier

    def add(self, request_id: int, deadline_ns: int) -> dict[int, int]:
        """Watch a deadline. Returns the bucket: remove the id from it when the request is over."""
        number = deadline_ns >> _BUCKET_SHIFT
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._open(number)
        bucket[request_id] = deadline_ns
        if deadline_ns < self._wake_ns:
            self._sleep(deadline_ns)
        return bucket

    def _open(self, number: int) -> dict[int, int]:
        if len(self._buckets) >= self._buckets_max:
            self._buckets = {number: bucket for number, bucket in self._buckets.items() if bucket}
            self._numbers = list(self._buckets)
            heapify(self._numbers)
            self._buckets_max = max(_BUCKETS_MIN, 2 * len(self._buckets))
        heappush(self._numbers, number)
        bucket = self._buckets[number] = {}
        return bucket

    def _sleep(self, wake_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_ns = wake_ns
        # Timers of the loop count whole milliseconds, and one that came early would have to be set again.
        delay_ms = max(wake_ns - self._clock(), 0) // _MILLISECOND_NS + 1
        self._timer = self._loop.call_later(delay_ms / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._wake_ns = 0  # what is added meanwhile is seen to below
        now_ns = self._clock()
        number_now = now_ns >> _BUCKET_SHIFT
        due: list[int] = []
        while self._numbers and self._numbers[0] < number_now:
            due += self._buckets.pop(heappop(self._numbers))
        bucket = self._buckets.get(number_now)
        if bucket:
            late = [request_id for request_id, deadline_ns in bucket.items() if deadline_ns <= now_ns]
            for request_id in late:
                del bucket[request_id]
            due += late
        for request_id in due:
            self._expire(request_id)
        while self._numbers and not self._buckets[self._numbers[0]]:
            del self._buckets[heappop(self._numbers)]
        self._wake_ns = _NEVER_NS
        if self._numbers:
            self._sleep(min(self._buckets[self._numbers[0]].values()))

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake_ns = _NEVER_NS
        self._buckets.clear()
        self._numbers.clear()


class Grace:
    """Calls `give_up(request_id)` one to two milliseconds after `add`.

    An expired request that waits in the broker's queue is answered by the broker, which knows where it was. It has
    this long for it; then nobody but a worker can have the request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, give_up: Callable[[int], None]) -> None:
        self._loop = loop
        self._give_up = give_up
        self._new: list[int] = []
        self._old: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request_id: int) -> None:
        """It has expired now."""
        self._new.append(request_id)
        if self._timer is None:
            self._timer = self._loop.call_later(_GRACE_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        over, self._old, self._new = self._old, self._new, []
        for request_id in over:
            self._give_up(request_id)
        if (self._old or self._new) and self._timer is None:
            self._timer = self._loop.call_later(_GRACE_S, self._tick)

    def close(self) -> None:
        """Stop: whoever waits is left to the caller."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
