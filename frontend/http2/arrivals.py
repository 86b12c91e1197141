"""Since when input has waited in the socket: what a server that reads too late must know, and nobody tells it.

A client's deadline counts from when it sent. A frontend that is asked for more than it can do reads late, and then a
call that it takes for new may be over already; who serves such calls in their order serves each of them too late. So
while reads are long, each is followed by a look at how much is left in the socket. A byte that one look found there
has waited since then at least.
"""

from __future__ import annotations

import fcntl
import termios
from collections import deque
from collections.abc import Callable
from typing import Final

#: Reads of fewer bytes leave nothing behind that is worth a system call.
LONG_READ_BYTES: Final = 32_768
#: A wait that hurts nobody; and for how long it must have been longer without a break to be no burst, but a queue that
#: stands, in which everybody waits and nobody gains by it.
STANDING_WAIT_NS: Final = 3_000_000
_BURST_NS: Final = 50_000_000
#: For how long nothing must have waited before that is over.
_CALM_NS: Final = 100_000_000
#: Unfinished messages of a connection that fill its socket by themselves: what waits behind them is no queue of calls.
LONG_MESSAGES_BYTES: Final = 262_144


def bytes_unread(fd: int) -> int:
    """What a socket holds. OSError: it is closed."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), "little")


class Arrivals:
    """The input of one connection. unread: how many bytes its socket holds.

    is_standing: there is a queue in the socket that does not go away by itself. unread_bytes: what the last read left.
    """

    __slots__ = ("_fresh_ns", "_late_ns", "_looks", "_taken", "_unread", "is_standing", "unread_bytes")

    def __init__(self, unread: Callable[[], int]) -> None:
        self.is_standing = False
        self.unread_bytes = 0
        self._unread = unread
        self._looks: deque[tuple[int, int]] = deque()  # bytes that had come by then, when
        self._taken = 0
        self._fresh_ns = 0  # when it was last seen that nothing had waited for long
        self._late_ns = 0  # and when that something had

    def since_ns(self, nbytes: int, now_ns: int, unfinished_bytes: int = 0) -> int:
        """Called for every read: since when the first of its bytes has waited, as far as anybody looked.

        unfinished_bytes: what has come of messages that this read may go on with.
        """
        looks = self._looks
        if nbytes < LONG_READ_BYTES and not looks:
            self.unread_bytes = 0
            return now_ns
        since_ns = looks[0][1] if looks else now_ns
        self._taken += nbytes
        while looks and looks[0][0] <= self._taken:
            looks.popleft()
        unread = self.unread_bytes = self._unread()
        if not unread:
            looks.clear()
        elif not looks or looks[-1][0] < self._taken + unread:
            looks.append((self._taken + unread, now_ns))
        is_short = unread == 0 or now_ns - since_ns < STANDING_WAIT_NS
        self._judge(now_ns, is_short or unfinished_bytes > LONG_MESSAGES_BYTES)
        return since_ns

    def is_empty(self) -> bool:
        """Nothing lies in the socket now."""
        return self._unread() == 0

    def _judge(self, now_ns: int, is_fresh: bool) -> None:
        if is_fresh:
            self._fresh_ns = now_ns
            if now_ns - self._late_ns > _CALM_NS:
                self.is_standing = False
        else:
            self._late_ns = now_ns
            if now_ns - self._fresh_ns > _BURST_NS:
                self.is_standing = True
