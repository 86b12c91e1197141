"""Pure: what a frontend does with the broker's word that a lane is overloaded: refuse at once who cannot be served in
time, and tell clients when to come again.

Whom the broker refuses would have waited too long behind what waits already, and it says how long. That is believed for
a few milliseconds, a part of the wait: so long the queue cannot have become shorter by more than that part. And what
this frontend has on its way in the lane at that moment is what it takes so long for: a part of it takes a part of the
time. So who comes after that is refused here while there is too much on its way for the time that he has, which costs
neither a copy into the ring nor two messages. The word fades, as the queue may move faster by now: more and more are
let through until one is refused by the broker, which says it anew. It fades the sooner the fewer and the shorter
the rows are that it is about, as it then costs little to find out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ringserve.broker.messages import Code, Failed

if TYPE_CHECKING:
    from ringserve.frontend.lanes import Lane

#: So many rows a second are let through to find out whether the broker's word still holds, of long ones fewer: one of
#: 110 KB that is read and refused costs eleven times what one of 3 KB does.
_ASKED_ROW_NS: Final = 500_000
_ASKED_BYTE_NS: Final = 50
#: It fades within:
_FADES_NS_MIN: Final = 20_000_000
_FADES_NS_MAX: Final = 300_000_000
_BELIEVED_PART: Final = 4
_BELIEVED_NS_MAX: Final = 5_000_000
#: Who has so many times the wait that the broker named is never refused here: a queue that became so much longer
#: meanwhile is the broker's to judge. Rows are no measure of that, where one call may have as many as all others.
_PATIENT_TIMES: Final = 8
#: Rows that are no queue.
_ROWS_FEW: Final = 4
#: So long after it a client is told when to come again.
_TOLD_NS: Final = 1_000_000_000
#: Not at once: of calls that are to be sent again within 1-2 ms grpcio's client (1.85) loses some, with any server.
_RETRY_MS_MIN: Final = 10
_RETRY_MS_MAX: Final = 1_000
_RETRY_CODES: Final = (int(Code.RESOURCE_EXHAUSTED), int(Code.UNAVAILABLE))


class Pressure:
    """What is known of a lane's load. wait_ns: in which time one more request can be promised an answer, as the broker
    said last. text: for those who are refused. rows: of this frontend's requests, on their way. coming: of those whose
    messages have begun to come. row_bytes: of all inputs, as far as that is known."""

    __slots__ = ("_asked_row_ns", "_fades_ns", "_rows_told", "_told_ns", "coming", "rows", "text", "wait_ns")

    def __init__(self, row_bytes: int = 0) -> None:
        self.wait_ns = 0
        self.text = ""
        self.rows = 0
        self.coming = 0
        self._asked_row_ns = _ASKED_ROW_NS + row_bytes * _ASKED_BYTE_NS
        self._fades_ns = _FADES_NS_MIN
        self._rows_told = 0
        self._told_ns = -_TOLD_NS

    def told(self, wait_ns: int, now_ns: int) -> None:
        """The broker has refused requests of this lane, and says so."""
        self.wait_ns = wait_ns
        self.text = (
            "The queue is too long for this request's deadline: an answer can be promised in "
            f"{wait_ns / 1e6:.0f} ms at the earliest"
        )
        self._told_ns = now_ns

    def taken(self, rows: int) -> None:
        """So many of `rows` the broker had taken when it said so."""
        self._rows_told = rows
        self._fades_ns = min(max(_FADES_NS_MIN, rows * self._asked_row_ns), _FADES_NS_MAX)

    def room(self, timeout_ns: int, now_ns: int) -> float:
        """How many more rows can go before one that is still answered within that time; 0 and less: it is too late;
        inf: nothing is known against it."""
        age_ns = now_ns - self._told_ns
        if age_ns >= self._fades_ns or not self.wait_ns or timeout_ns >= self.wait_ns * _PATIENT_TIMES:
            return math.inf
        if timeout_ns < self.wait_ns and age_ns < min(self.wait_ns // _BELIEVED_PART, _BELIEVED_NS_MAX):
            return 0.0
        wait_ns = self.wait_ns * (1 - age_ns / self._fades_ns)
        return timeout_ns / wait_ns * (self._rows_told + _ROWS_FEW) - _ROWS_FEW - self.rows - self.coming

    def is_crowded(self, now_ns: int) -> bool:
        """Some are refused here."""
        return self.wait_ns > 0 and now_ns - self._told_ns < self._fades_ns

    def retry_ms(self, code: int, now_ns: int) -> int:
        """When a request that failed with that code is best tried again; 0: nothing is known.

        A second at most: a queue has room again long before it is empty, and what was predicted may be wrong.
        """
        if code not in _RETRY_CODES or now_ns - self._told_ns > _TOLD_NS:
            return 0
        return min(max(_RETRY_MS_MIN, self.wait_ns // 1_000_000), _RETRY_MS_MAX)


def note(failed: Failed, lanes: Iterable[Lane], now_ns: int) -> list[Pressure]:
    """lanes: of the failed requests, some of them in `failed.waits`. Returns whom it concerns."""
    waits: dict[bytes, int] = dict(failed.waits)  # type: ignore[arg-type]
    pressed = {lane.pressure: waits[lane.key] for lane in lanes if lane.key in waits}
    for pressure, wait_ns in pressed.items():
        pressure.told(wait_ns, now_ns)
    return list(pressed)


def count_taken(pressed: Iterable[Pressure], later: Iterable[tuple[Lane, int]]) -> None:
    """What has the broker of these lanes? later: (lane, rows) of requests that it did not know when it said so."""
    undecided = dict.fromkeys(pressed, 0)
    for lane, rows in later:
        if lane.pressure in undecided:
            undecided[lane.pressure] += rows
    for pressure, rows in undecided.items():
        pressure.taken(pressure.rows - rows)


def retry_after(code: int, retry_ms: int) -> bytes:
    """REST's header line for a failed request: Retry-After, in whole seconds."""
    if code == Code.UNAVAILABLE or (retry_ms and code in _RETRY_CODES):
        return b"Retry-After: %d\r\n" % max(1, -(-retry_ms // 1_000))
    return b""
