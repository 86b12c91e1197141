"""Pure: what each frontend holds of the result ring, and which of them stand still.

The worker has one thread, so an answer that finds no room keeps everybody waiting, and whoever reads no answers must
neither fill the ring nor be waited for:

- While there are others a frontend that holds something gets no more than is still free afterwards. One that stands
  still ends up with half of the ring, two with a third each; who reads has as much as each of them.
- Those who hold something and have given nothing back in all of a long wait are *silent* until they give something
  back. Nothing is waited for that only they could give.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from ringserve.shm.ring import FULL, RingWriter

#: How long a wait may be for one that gives nothing back, while there are others.
_SILENT_NS: Final = 2_000_000_000


class _Share:
    """One frontend's. nbytes: of its records. since_ns: a wait goes on since then, and it has given nothing back."""

    __slots__ = ("is_silent", "nbytes", "records", "since_ns")

    def __init__(self) -> None:
        self.records: dict[int, int] = {}
        self.nbytes = 0
        self.is_silent = False
        self.since_ns = 0


class Shares:
    """The ring's records by frontend. frontends: live view of those that are there; more may still hold something."""

    def __init__(self, ring: RingWriter, frontends: Collection[int]) -> None:
        self._ring = ring
        self._frontends = frontends
        self._free_bytes = ring.record_bytes_max
        self._shares: dict[int, _Share] = {}
        self._waits = False

    def claim(self, frontend_id: int, nbytes: int) -> int:
        """Offset of a new record that this frontend holds, or FULL."""
        share = self._shares.get(frontend_id)
        if share is None:
            share = self._shares[frontend_id] = _Share()
        if share.nbytes and share.nbytes + nbytes > self._free_bytes and len(self._frontends) > 1:
            return FULL
        offset = self._ring.claim(nbytes)
        if offset >= 0:
            share.records[offset] = nbytes
            share.nbytes += nbytes
            self._free_bytes -= nbytes
            if self._waits:
                self.end_wait()
        return offset

    def release(self, frontend_id: int, record_ids: Sequence[int]) -> None:
        """This frontend gives records back. Those that it does not hold (it is long gone, say) are ignored."""
        share = self._shares.get(frontend_id)
        if share is None:
            return
        for record_id in record_ids:
            nbytes = share.records.pop(record_id, -1)
            if nbytes >= 0:
                self._ring.release(record_id)
                share.nbytes -= nbytes
                self._free_bytes += nbytes
                share.is_silent, share.since_ns = False, 0

    def left(self, frontend_id: int) -> None:
        """Take back what this frontend holds."""
        share = self._shares.get(frontend_id)
        if share is not None:
            self.release(frontend_id, list(share.records))
            del self._shares[frontend_id]

    def is_hopeless(self, frontend_id: int, nbytes: int) -> bool:
        """Nobody who gives anything back could make room for such a record of this frontend."""
        if self._shares[frontend_id].is_silent:
            return True
        held = sum(share.nbytes for share in self._shares.values() if not share.is_silent)
        return not held or held + self._free_bytes < nbytes

    def look(self, now_ns: int, alone_ns: int) -> bool:
        """A record waits for room. True: somebody has become silent. alone_ns: the patience where there is nobody who
        could be kept waiting by it; with others it is two seconds, or this if it is less."""
        patience_ns = min(_SILENT_NS, alone_ns) if len(self._frontends) > 1 else alone_ns
        self._waits, is_news = True, False
        for share in self._shares.values():
            if share.nbytes and not share.is_silent:
                share.since_ns = share.since_ns or now_ns
                if now_ns - share.since_ns > patience_ns:
                    share.is_silent = is_news = True
        return is_news

    def end_wait(self) -> None:
        """Nothing waits for room any more. Who is silent stays so."""
        self._waits = False
        for share in self._shares.values():
            share.since_ns = 0
