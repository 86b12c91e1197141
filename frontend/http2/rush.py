"""Pure: more is asked of an event loop than it can do. Until when that is so, and how much of each read it takes then.

What bounds the wait of those that are refused, and of all others, is the round: the time from one read of a connection
to the next. So in a rush a read may put into it only so many calls that a round costs the loop some milliseconds of its
own time, however many connections there are; the rest is refused, a thirtieth of the work. Time in which the loop has
no core does not count: fewer calls would not bring it back. Shorter rounds are answered sooner, but batches get smaller
with them, and everything that is done once a round more: at 3 ms a third of the calls at 200 % were lost.
"""

from __future__ import annotations

from typing import Final

from ringserve.frontend.http2.arrivals import LONG_READ_BYTES

#: For how long no queue must have stood and nobody been refused before a rush is over.
CALM_NS: Final = 100_000_000
#: The loop's own time that a round shall cost.
ROUND_NS: Final = 6_000_000
#: Calls that are taken of one read: bounds, and at first. Reads of many connections hold few calls each: of 60,000 a
#: second on 128 connections 21,000 were answered in time where 8 were always taken, 27,000 with 2.
ROOM_MIN: Final = 2.0
ROOM_MAX: Final = 128.0
_ROOM_FIRST: Final = 32.0
#: By how much one round may change that. Each of the connections that take part in it does so.
_LESS: Final = 0.95
_MORE: Final = 1.04
#: So many reads in a row are refused as a whole when the socket holds more that came later.
PASSES_MAX: Final = 3


class Rush:
    """The state of one event loop."""

    __slots__ = ("_last_ns", "_room")

    def __init__(self) -> None:
        self._last_ns = -CALM_NS
        self._room = _ROOM_FIRST

    def seen(self, now_ns: int) -> None:
        """A queue stands in a socket, or calls had to be refused."""
        self._last_ns = now_ns

    def is_on(self, now_ns: int) -> bool:
        return now_ns - self._last_ns < CALM_NS

    @property
    def room_calls(self) -> int:
        """How many calls of a read are taken."""
        return int(self._room)

    def round_took(self, own_ns: int) -> None:
        """So much of its own time the loop has spent in a round."""
        change = min(max(ROUND_NS / max(own_ns, 1), _LESS), _MORE)
        self._room = min(max(self._room * change, ROOM_MIN), ROOM_MAX)


class Round:
    """From a read of one connection until it may read again, in a rush. own_ns: the loop's own time until now."""

    __slots__ = ("_began_ns", "_passes", "_rush")

    def __init__(self, rush: Rush) -> None:
        self._rush = rush
        self._began_ns = -1  # none has
        self._passes = 0

    def room_calls(self, read_bytes: int, unread_bytes: int, own_ns: int) -> int:
        """How many calls of a read are taken; unread_bytes: what it left in the socket.

        None where as much waits there: it came later, and is still in time for longer.
        """
        if self._began_ns < 0:
            self._began_ns = own_ns
            self._passes = 0
        if unread_bytes >= read_bytes >= LONG_READ_BYTES and self._passes < PASSES_MAX:
            self._passes += 1
            return 0
        return self._rush.room_calls

    @property
    def has_begun(self) -> bool:
        return self._began_ns >= 0

    def forget(self) -> None:
        """There was nothing in it that anybody else waits for."""
        self._began_ns = -1

    def end(self, own_ns: int) -> None:
        if self.has_begun:
            self._rush.round_took(own_ns - self._began_ns)
            self._began_ns = -1
