"""Who goes on next: connections whose last read holds more than others can wait for, one part of one of them a turn.

However many of them there are, what comes in meanwhile on other connections waits for one part only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


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
