"""Pure: how fast a lane's queue really goes, measured while something always waits in it.

Run times say how fast it could go. What else there is (other lanes' turns on the same workers, cores that others use,
messages that wait for a core) shows only here.
"""

from __future__ import annotations

from ringserve.broker.policy import MILLISECOND_NS, SECOND_NS

#: What lies further back hardly counts: about as long as a burst takes to show.
_MEMORY_NS = 100 * MILLISECOND_NS
#: Less than this says nothing yet, and a rate from longer ago says nothing any more.
_KNOWN_NS = 25 * MILLISECOND_NS
_FRESH_NS = SECOND_NS
#: Of the rows that left, at least, after some came back.
_RETURNED_LEFT = 0.125


class Pace:
    """Rows that left the queue for a worker, and the time in which they did, both fading."""

    __slots__ = ("_last_ns", "_ns", "_rows", "_seen_ns")

    def __init__(self) -> None:
        self._rows = 0.0
        self._ns = 0.0
        self._last_ns = 0  # of the last batch, if it left something behind
        self._seen_ns = 0

    def granted(self, rows: int, now_ns: int, *, leaves_some: bool) -> None:
        """A batch of `rows` left; leaves_some: others still wait."""
        if self._last_ns:
            passed_ns = max(0, now_ns - self._last_ns)
            kept = max(0.0, 1.0 - passed_ns / _MEMORY_NS)
            self._ns = self._ns * kept + passed_ns
            self._rows = self._rows * kept + rows
            self._seen_ns = now_ns
        self._last_ns = now_ns if leaves_some else 0

    def returned(self, rows: int) -> None:
        """So many rows of a batch came back, and wait again: they did not leave. Where all came back it is not as if
        nothing ever left: the next ones will, fewer at a time."""
        self._rows = max(self._rows - rows, self._rows * _RETURNED_LEFT)

    def stood(self, waited_ns: int) -> None:
        """A worker waited so long for somebody to read answers. Short waits are how fast things go; a long one is a
        frontend that stands still, and says nothing of those to come: they would be told to wait for minutes."""
        if self._last_ns and waited_ns > _MEMORY_NS:
            self._last_ns += waited_ns

    def idle(self) -> None:
        """Nothing waits, whether it left for a worker or was taken out: what comes now begins anew."""
        self._last_ns = 0

    def row_ns(self, now_ns: int) -> float:
        """What each waiting row adds to the wait of those behind it; 0 = not known."""
        if self._ns < _KNOWN_NS or now_ns - self._seen_ns > _FRESH_NS:
            return 0.0
        return self._ns / self._rows
