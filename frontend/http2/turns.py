"""Who goes on next: connections whose last read holds more than others can wait for, one part of one of them a turn.

However many of them there are, what comes in meanwhile on other connections waits for one part only. Of long messages,
which cost little but their bytes, a turn takes some reads, until they are enough together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

#: What one turn of the loop reads of long messages, of all connections together: as long as others wait for it, 0.2 ms.
#: With one read a turn 0.6 MB there and back took a seventh longer (2,500 in place of 2,900 a second, seven pairs).
LONG_BYTES_MAX: Final = 2**20


class Waiting(Protocol):
    """Who has more to do."""

    def take_turn(self) -> bool:
        """Does a part of it. False: that was all."""


class Turns:
    """The queue of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[Waiting] = deque()
        self._long_bytes = 0  # that were read in this turn of the loop
        self.taken = 0  # since the beginning

    def ask(self, waiting: Waiting) -> None:
        """`waiting` gets its turns behind those who asked before, in later turns of the loop."""
        self._queue.append(waiting)
        if len(self._queue) == 1:
            self._loop.call_soon(self._next)

    def have_read(self, nbytes: int) -> bool:
        """So much was read of a long message. Whether that is enough for this turn of the loop."""
        if not self._long_bytes:
            self._loop.call_soon(self._begin)
        self._long_bytes += nbytes
        return self._long_bytes >= LONG_BYTES_MAX

    def _begin(self) -> None:
        self._long_bytes = 0

    def _next(self) -> None:
        self.taken += 1
        first = self._queue[0]  # stays there until its turn is over, so that `ask` does not call this a second time
        goes_on = first.take_turn()
        self._queue.popleft()
        if goes_on:
            self._queue.append(first)
        if self._queue:
            self._loop.call_soon(self._next)


class Paused(Protocol):
    """Who waits for the end of a pause."""

    def go_on(self) -> None: ...


class Pauses:
    """Connections that are not read for a moment (`lulls.py`): all go on at one time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._paused: list[Paused] = []

    def ask(self, paused: Paused, pause_ns: int) -> None:
        """`paused` goes on after that time, or with who asked before."""
        if not self._paused:
            self._loop.call_later(pause_ns / 1e9, self._end)
        self._paused.append(paused)

    def _end(self) -> None:
        paused, self._paused = self._paused, []
        for each in paused:
            each.go_on()
