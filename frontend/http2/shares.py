"""Pure: whether so many of a connection's calls are refused unread that their messages had better not come.

A message that is refused costs a client and a server some microseconds for its bytes; one that is let in later costs a
window update and frames that come apart. So it takes more refused calls than taken ones, and messages that are worth
being kept.
"""

from __future__ import annotations

from typing import Final

#: Of the calls of one look: from so many refused ones on messages are kept by their clients, and until so few.
BARS_FROM: Final = 0.75
BARS_UNTIL: Final = 0.68
#: Bytes of a call, its headers included, below which they are no matter.
_CALL_BYTES_MIN: Final = 1_000
#: How often that is looked at, and of how many calls.
LOOK_NS: Final = 50_000_000
_CALLS_MIN: Final = 64


class Shares:
    """Of one connection."""

    __slots__ = ("_bars", "_bytes", "_refused", "_since_ns", "_taken")

    def __init__(self) -> None:
        self._bars = False
        self._since_ns = 0
        self._taken = self._refused = self._bytes = 0

    def calm(self) -> None:
        """Whoever comes is taken."""
        self._bars = False

    def bars(self, now_ns: int, read_bytes: int, taken: int, refused: int) -> bool:
        """Whether messages must wait. taken, refused: calls of a read of so many bytes; refused: only unread ones."""
        self._taken += taken
        self._refused += refused
        self._bytes += read_bytes
        calls = self._taken + self._refused
        if now_ns - self._since_ns >= LOOK_NS and calls >= _CALLS_MIN:
            share = self._refused / calls
            if self._bars:
                self._bars = share > BARS_UNTIL
            else:
                self._bars = share > BARS_FROM and self._bytes > _CALL_BYTES_MIN * calls
            self._since_ns = now_ns
            self._taken = self._refused = self._bytes = 0
        return self._bars
