"""How much work without a purpose a client may cause: pings, settings, resets, empty frames.

Each is legitimate now and then, so they are counted against time and against the calls that the client lets finish:
a client that cancels every second call (hedging) stays at zero, one that only resets does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ringserve.frontend.http2.frames import ConnectionFault, ErrorCode

#: Frames more than calls, within PERIOD_SECONDS.
NOISE_MAX: Final = 4_000
PERIOD_SECONDS: Final = 10.0


class Noise:
    """The count of one connection. The clock is read once every NOISE_MAX frames."""

    __slots__ = ("_count", "_now", "_since")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._count = 0
        self._since = now()

    def add(self) -> None:
        """ConnectionFault: too much."""
        self._count += 1
        if self._count > NOISE_MAX:
            now = self._now()
            if now - self._since < PERIOD_SECONDS:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without a purpose")
            self._count, self._since = 0, now

    def forgive(self, calls: int) -> None:
        """`calls` calls went their ordinary way."""
        self._count = max(0, self._count - calls)
