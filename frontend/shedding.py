"""Pure: what a frontend does with the broker's word that a lane is overloaded: refuse at once who cannot be served in
time, and tell clients when to come again.

The word is believed for a few milliseconds, a part of the wait that it names: so long the queue cannot have become
shorter by more than that part. Then the next request asks the broker again. Until then those that would be refused
anyway cost neither a copy into the ring nor two messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ringserve.broker.messages import Code, Failed

if TYPE_CHECKING:
    from ringserve.frontend.lanes import Lane

_BELIEVED_PART: Final = 4
_BELIEVED_NS_MAX: Final = 5_000_000
#: So long after it a client is told when to come again.
_TOLD_NS: Final = 1_000_000_000
#: Not at once: of calls that are to be sent again within 1-2 ms grpcio's client (1.85) loses some, with any server.
_RETRY_MS_MIN: Final = 10
_RETRY_MS_MAX: Final = 1_000
_RETRY_CODES: Final = (int(Code.RESOURCE_EXHAUSTED), int(Code.UNAVAILABLE))


class Pressure:
    """What is known of a lane's load. wait_ns: in which time one more request can be promised an answer; a request of a
    shorter timeout is refused while that is believed. text: the broker's, for those."""

    __slots__ = ("_believed_until_ns", "_told_ns", "text", "wait_ns")

    def __init__(self) -> None:
        self.wait_ns = 0
        self.text = ""
        self._told_ns = -_TOLD_NS
        self._believed_until_ns = 0

    def told(self, wait_ns: int, now_ns: int) -> None:
        """The broker has refused requests of this lane, and says so."""
        self.wait_ns = wait_ns
        self.text = (
            "The queue is too long for this request's deadline: an answer can be promised in "
            f"{wait_ns / 1e6:.0f} ms at the earliest"
        )
        self._told_ns = now_ns
        self._believed_until_ns = now_ns + min(wait_ns // _BELIEVED_PART, _BELIEVED_NS_MAX)

    def is_believed(self, now_ns: int) -> bool:
        """It was told a moment ago."""
        return now_ns < self._believed_until_ns

    def retry_ms(self, code: int, now_ns: int) -> int:
        """When a request that failed with that code is best tried again; 0: nothing is known.

        A second at most: a queue has room again long before it is empty, and what was predicted may be wrong.
        """
        if code not in _RETRY_CODES or now_ns - self._told_ns > _TOLD_NS:
            return 0
        return min(max(_RETRY_MS_MIN, self.wait_ns // 1_000_000), _RETRY_MS_MAX)


def note(failed: Failed, lanes: Iterable[Lane], now_ns: int) -> None:
    """lanes: of the failed requests, some of them in `failed.waits`."""
    waits: dict[bytes, int] = dict(failed.waits)  # type: ignore[arg-type]
    for lane in lanes:
        if lane.key in waits:
            lane.pressure.told(waits[lane.key], now_ns)


def retry_after(code: int, retry_ms: int) -> bytes:
    """REST's header line for a failed request: Retry-After, in whole seconds."""
    if code == Code.UNAVAILABLE or (retry_ms and code in _RETRY_CODES):
        return b"Retry-After: %d\r\n" % max(1, -(-retry_ms // 1_000))
    return b""
