"""Deadlines of pending requests: a wheel of 4 ms buckets, so that a deadline costs a dict entry and no timer.

A heap would keep every answered request until its deadline (at 60,000 requests/s with a minute's timeout, millions of
entries); a timer per request costs more than decoding it. The buckets are keyed by time, checked by one timer that
runs only while some bucket is filled, and an answered request leaves its bucket at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: log2 of a bucket's width: 2**22 ns = 4.2 ms, which is how late a deadline may be noticed.
_BUCKET_SHIFT = 22
_TICK_S = (1 << _BUCKET_SHIFT) / 1e9


class DeadlineWheel:
    """Calls `expire(request_id)` within a bucket's width after a request's deadline."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], int], expire: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._expire = expire
        self._buckets: dict[int, dict[int, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request_id: int, deadline_ns: int) -> dict[int, None]:
        """Watch a deadline. Returns the bucket: remove the id from it when the request is over."""
        number = deadline_ns >> _BUCKET_SHIFT
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
            if self._timer is None:
                self._timer = self._loop.call_later(_TICK_S, self._tick)
        bucket[request_id] = None
        return bucket

    def _tick(self) -> None:
        now = self._clock() >> _BUCKET_SHIFT
        for number in [number for number, bucket in self._buckets.items() if number < now or not bucket]:
            for request_id in list(self._buckets.pop(number)):
                self._expire(request_id)
        self._timer = self._loop.call_later(_TICK_S, self._tick) if self._buckets else None

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._buckets.clear()
