"""Who goes on next: connections that must not be read before others had their turn.

Where a read holds more than others can wait for, one part of one connection is handled in a turn of the loop: however
many of them there are, what comes in meanwhile on other connections waits for one part only. Of long messages, which
cost little but their bytes, a turn takes some reads, until they are enough together. And those who only wait until they
may be read again go on for as long as the loop was busy with all others since: one of them a turn was a lot where there
were eight, but of 128 half waited for 160-240 ms, while each of the others was read every 2 ms for a single call. Where
so many are read in a turn that it lasts too long (`long_turns.py`), everybody waits, and so many go on as it bears.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from ringserve.frontend.http2.long_turns import LongTurns

#: What one turn of the loop reads of long messages, of all connections together: as long as others wait for it, 0.2 ms.
#: With one read a turn 0.6 MB there and back took a seventh longer (2,500 in place of 2,900 a second, seven pairs).
LONG_BYTES_MAX: Final = 2**20
#: What one turn of the loop gives at most to those who waited, however long the last one took; for each of them beyond
#: so many; and in all. Where they are few answers wait for it: with 10 ms for 8 of them 5 % of what was taken of
#: 140,000 calls a second was late, 0.3 % so. With 1 ms for 128 of them reads were for single calls again: 20,000 of
#: 60,000 in time in place of 35,000.
TURN_NS: Final = 1_000_000
FEW: Final = 8
_EACH_NS: Final = 200_000
TURN_NS_MAX: Final = 10_000_000


class Waiting(Protocol):
    """Who has more to do. turn_ns: about how long it takes; TURN_NS_MAX: nobody else goes on in the same turn."""

    turn_ns: int

    def take_turn(self) -> bool:
        """Does a part of it. False: that was all."""


class Turns:
    """The queue of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock_ns: Callable[[], int]) -> None:
        self._loop = loop
        self._clock_ns = clock_ns
        self._ended_ns = 0  # when the last turn was over
        self._queue: deque[Waiting] = deque()
        self._long_bytes = 0  # that were read in this turn of the loop
        self.long = LongTurns()
        self.taken = 0  # since the beginning

    def reads(self, now_ns: int) -> None:
        """A read begins."""
        if self.long.reads(now_ns):
            self._loop.call_soon(self._have_read)

    def _have_read(self) -> None:
        self.long.ended(self._clock_ns())

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
        queue = self._queue
        now_ns, taken_before = self._clock_ns(), self.taken
        if self.long.are_long(now_ns):
            left_ns = self.long.group_ns
        else:
            most_ns = min(TURN_NS + _EACH_NS * max(0, len(queue) - FEW), TURN_NS_MAX)
            left_ns = min(now_ns - self._ended_ns, most_ns)
        while queue:
            self.taken += 1
            first = queue[0]  # stays there until its turn is over, so that `ask` does not call this a second time
            left_ns -= first.turn_ns
            goes_on = first.take_turn()
            queue.popleft()
            if goes_on:
                queue.append(first)
            if left_ns <= 0:
                break
        self._ended_ns = self._clock_ns()
        self.long.grouped(self.taken - taken_before, len(queue))
        if queue:
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
