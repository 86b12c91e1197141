"""How much work without a purpose a client may cause: pings, settings, resets, empty frames, window updates.

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
#: Window updates that a call is worth (a client may return both windows for every frame), and those that a sent byte
#: is worth: one for so many. More of them cut the answers into crumbs.
_UPDATES_PER_CALL: Final = 8
_BYTES_PER_UPDATE: Final = 256


class Noise:
    """The counts of one connection. The clock is read once every NOISE_MAX frames."""

    __slots__ = ("_answered", "_count", "_now", "_since", "_updates")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._count = 0
        self._updates = 0
        self._answered = 0  # calls that may still be reset without harm, once each
        self._since = now()

    def add(self, weight: int = 1) -> None:
        """ConnectionFault: too much. weight: 2 for undoing a call that was forgiven already."""
        self._count += weight
        if self._count > NOISE_MAX:
            self._look("too many frames without a purpose")

    def add_late_resets(self, count: int) -> None:
        """Resets of streams that are closed. Each crossed an answer on its way: one for each call that was forgiven.
        ConnectionFault: too many."""
        crossed = min(count, self._answered)
        self._answered -= crossed
        if count > crossed:
            self.add(count - crossed)

    def add_update(self) -> None:
        """A window update. ConnectionFault: too many."""
        self._updates += 1
        if self._updates > NOISE_MAX:
            self._look("too many window updates")

    def _look(self, text: str) -> None:
        now = self._now()
        if now - self._since < PERIOD_SECONDS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text)
        self._count, self._updates, self._since = 0, 0, now

    def forgive(self, calls: int) -> None:
        """`calls` calls went their ordinary way."""
        self._answered += calls
        self._count = max(0, self._count - calls)
        self._updates = max(0, self._updates - _UPDATES_PER_CALL * calls)

    def sent(self, nbytes: int) -> None:
        """So many bytes of answers went into frames under the client's windows."""
        self._updates = max(0, self._updates - nbytes // _BYTES_PER_UPDATE)
