"""Who goes on next: connections whose last read holds more than others can wait for, one part of one of them a turn.

However many of them there are, what comes in meanwhile on other connections waits for one part only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

_PAUSE_S: Final = 0.003


class Waiting(Protocol):
    """Who has more to do."""

    def take_turn(self) -> bool:
        """Does a part of it. False: that was all."""


class Turns:
    """The queue of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[Waiting] = deque()
        self.taken = 0  # since the beginning

    def ask(self, waiting: Waiting) -> None:
        """`waiting` gets its turns behind those who asked before, in later turns of the loop."""
        self._queue.append(waiting)
        if len(self._queue) == 1:
            self._loop.call_soon(self._next)

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
    """Connections that are not read for a moment, as most of what they send is refused: all go on at one time.

    A read of one call costs as much as one of twenty. Whoever is refused has time, and so do those that are taken, as
    they wait in a full queue anyway; but what reading costs is taken from the workers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._paused: list[Paused] = []

    def ask(self, paused: Paused) -> None:
        """`paused` goes on when the pause is over."""
        if not self._paused:
            self._loop.call_later(_PAUSE_S, self._end)
        self._paused.append(paused)

    def _end(self) -> None:
        paused, self._paused = self._paused, []
        for each in paused:
            each.go_on()
