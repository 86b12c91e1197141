"""Which bytes of a ring are free: pure bookkeeping of the one process that writes it. It never touches the bytes.

    0                                            extent                        capacity
    │ live │ gap │ live │ live │ open gap ─────────▶│ · · · untouched or given back · · ·│
                                └ claims are cut from its front

- The *open gap* is where claims come from, one after the other, so that requests that arrive together lie together
  and a worker can read a run of records as one array. When a claim does not fit, the largest gap becomes the open one.
- Releases come in any order; a released record joins the gaps at its sides. A record that is held for long is simply
  not part of any gap: claims pass around it, and it never makes the ring full.
- The ring uses only an *extent* of its capacity. It doubles when nothing fits, and falls back: at once when the ring
  is empty, and by halves while three quarters of it stay free. So the memory in use follows the load, a calm ring
  stays in the processor's cache, and after a burst the pages beyond the extent can go back to the system.

Every structure here is a dict or a number, and no operation walks over records or gaps (except within one size class,
see `_find`): a claim costs the same with ten thousand records live as with one. Being full is an answer; releasing
what is not live is a bug of the caller and raises.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ringserve.shm.layout import ALIGN, align

#: What `claim` answers when no gap is large enough.
FULL: Final = -1

EXTENT_BYTES_MIN: Final = 4 << 20


class RingError(Exception):
    """The caller broke the ring's protocol, for example by releasing a record twice. Always a bug."""


class RingStatistics(NamedTuple):
    """The ring now, in bytes and counts. extent_bytes_peak: largest extent ever; full_count: claims answered FULL."""

    capacity_bytes: int
    extent_bytes: int
    extent_bytes_peak: int
    used_bytes: int
    records_count: int
    gaps_count: int
    full_count: int


class RingWriter:
    """Claims and releases records in [0, capacity). Records start at multiples of 64 bytes and are contiguous.

    capacity_bytes: size of the segment's data; rounded down to a multiple of 64, and at least that.
    extent_bytes_min: the extent the ring starts with and falls back to.
    """

    __slots__ = (
        "_bins",
        "_bins_used",
        "_capacity",
        "_ends",
        "_extent",
        "_extent_min",
        "_extent_peak",
        "_extent_recent",
        "_full_count",
        "_limit",
        "_next",
        "_sizes",
        "_starts",
        "_touched",
    )

    def __init__(self, capacity_bytes: int, *, extent_bytes_min: int = EXTENT_BYTES_MIN) -> None:
        if capacity_bytes < ALIGN:
            raise ValueError(f"capacity_bytes must be at least {ALIGN}, not {capacity_bytes}")
        if extent_bytes_min < 1:
            raise ValueError(f"extent_bytes_min must be at least 1, not {extent_bytes_min}")
        self._capacity = capacity_bytes & -ALIGN
        self._extent_min = min(align(extent_bytes_min), self._capacity)
        self._extent = self._extent_min
        self._extent_peak = self._extent
        self._extent_recent = self._extent  # largest extent since the last take_shrunk
        self._touched = self._extent  # bytes beyond this were never used, or were given back
        self._full_count = 0
        # The open gap is [_next, _limit). It is in none of the tables below, may be empty, and may touch gaps that are:
        # they are joined when it is used up.
        self._next = 0
        self._limit = self._extent
        self._sizes: dict[int, int] = {}  # live record: offset -> aligned size
        self._ends: dict[int, int] = {}  # gap: start -> end
        self._starts: dict[int, int] = {}  # the same gaps: end -> start
        # Gaps by size class: class k holds the starts of gaps of 2^(k-1) .. 2^k - 1 bytes. A dict serves as a set that
        # keeps its order, so that two runs of one program place their records alike. Bit k of _bins_used: not empty.
        self._bins: list[dict[int, None]] = [{} for _ in range(self._capacity.bit_length() + 1)]
        self._bins_used = 0

    @property
    def record_bytes_max(self) -> int:
        """The largest record an empty ring takes."""
        return self._capacity

    @property
    def empty(self) -> bool:
        return not self._sizes

    def claim(self, nbytes: int) -> int:
        """Offset of a new record of `nbytes` bytes (0 is allowed: it takes a place too), or FULL."""
        size = ((nbytes - 1) | 63) + 1  # align(nbytes) without the call; 0 and below end up at 0 and below
        offset = self._next
        end = offset + size
        if offset < end <= self._limit:
            self._next = end
            self._sizes[offset] = size
            return offset
        if size > 0:
            return self._claim_elsewhere(size)
        if nbytes == 0:
            return self.claim(1)
        raise ValueError(f"a record cannot have {nbytes} bytes")

    def release(self, offset: int) -> None:
        """Take back the record at `offset`. RingError: there is none, so it was released before or never claimed."""
        sizes = self._sizes
        size = sizes.pop(offset, 0)
        if not size:
            raise RingError(f"no record is live at offset {offset}: released twice, or never claimed")
        if not sizes:
            self._start_afresh()
            return
        end = offset + size
        if end == self._next:
            self._next = offset
        elif offset == self._limit:
            self._limit = end
        else:
            self._add_gap(offset, end)

    def take_shrunk(self) -> tuple[int, int] | None:
        """(start, bytes) of what the owner may give back to the system (`Segment.free_pages`), told once; or None.

        It is what lies beyond the largest extent since the last call, so call this at a calm, regular pace (some
        seconds): then only memory that was not needed for that long goes, and bursts keep theirs.
        """
        kept = self._extent_recent
        self._extent_recent = self._extent
        if self._touched <= kept:
            return None
        start, stop = kept, self._touched
        self._touched = kept
        return start, stop - start

    def statistics(self) -> RingStatistics:
        """Figures for the metrics page; costs a walk over the live records."""
        return RingStatistics(
            capacity_bytes=self._capacity,
            extent_bytes=self._extent,
            extent_bytes_peak=self._extent_peak,
            used_bytes=sum(self._sizes.values()),
            records_count=len(self._sizes),
            gaps_count=len(self._ends) + (self._limit > self._next),
            full_count=self._full_count,
        )

    # ------------------------------------------------------------------------------------- when the open gap is used up

    def _claim_elsewhere(self, size: int) -> int:
        """A claim that does not fit the open gap: open another one, or a larger extent, or say FULL."""
        if self._next < self._limit:
            self._add_gap(self._next, self._limit)
        self._next = self._limit = 0
        self._shrink()
        start = self._find(size)
        if start < 0:
            start = self._grow(size)
            if start < 0:
                self._full_count += 1
                if not self._sizes:
                    self._start_afresh()
                return FULL
        stop = self._ends[start]
        self._remove_gap(start, stop)
        half = self._half_extent()
        if half < self._extent and start + size <= half < stop and (stop - start) * 4 >= self._extent * 3:
            # Much too large for what is live: stay in the lower half, so that the upper one empties and can go.
            self._add_gap(half, stop)
            stop = half
        self._next = start + size
        self._limit = stop
        self._sizes[start] = size
        return start

    def _half_extent(self) -> int:
        return max(self._extent_min, (self._extent >> 1) & -ALIGN)

    def _shrink(self) -> None:
        """Drop the upper half of the extent when it is one gap, and not the only one."""
        half = self._half_extent()
        start = self._starts.get(self._extent, -1)
        if 0 <= start <= half < self._extent and len(self._ends) > 1:
            self._remove_gap(start, self._extent)
            self._extent = half
            if start < half:
                self._add_gap(start, half)

    def _grow(self, size: int) -> int:
        """Extend until a gap at the end takes `size` bytes; its start, or FULL with the extent as it was."""
        start = self._starts.get(self._extent, self._extent)
        if start + size > self._capacity:
            return FULL
        extent = self._extent
        while extent < start + size:
            extent = min(extent * 2, self._capacity)
        if start < self._extent:
            self._remove_gap(start, self._extent)
        self._extent = extent
        self._extent_peak = max(self._extent_peak, extent)
        self._extent_recent = max(self._extent_recent, extent)
        self._touched = max(self._touched, extent)
        self._add_gap(start, extent)
        return start

    def _find(self, size: int) -> int:
        """Start of a gap of `size` bytes or more: of the largest class, so that what follows lies together. Or FULL."""
        largest = self._bins_used.bit_length() - 1
        if largest > size.bit_length():
            return next(iter(self._bins[largest]))
        if largest == size.bit_length():
            # The only walk: gaps of the same class may be up to one bit too small.
            ends = self._ends
            for start in self._bins[largest]:
                if ends[start] - start >= size:
                    return start
        return FULL

    # ----------------------------------------------------------------------------------------------- the tables of gaps

    def _add_gap(self, start: int, end: int) -> None:
        """Note [start, end) as free, joined with the gaps that touch it."""
        starts = self._starts
        ends = self._ends
        before = starts.pop(start, -1)
        after = ends.pop(end, -1)
        if before >= 0:
            old = (start - before).bit_length()
            start = before
        else:
            old = 0
        if after >= 0:
            self._drop_from_bin(end, (after - end).bit_length())
            end = after
        ends[start] = end
        starts[end] = start
        new = (end - start).bit_length()
        if new != old:
            if old:
                self._drop_from_bin(start, old)
            self._bins[new][start] = None
            self._bins_used |= 1 << new

    def _remove_gap(self, start: int, end: int) -> None:
        del self._ends[start]
        del self._starts[end]
        self._drop_from_bin(start, (end - start).bit_length())

    def _drop_from_bin(self, start: int, size_class: int) -> None:
        members = self._bins[size_class]
        del members[start]
        if not members:
            self._bins_used &= ~(1 << size_class)

    def _start_afresh(self) -> None:
        """Nothing is live: back to the front, so that a ring that is hardly used lives in its first pages."""
        self._next = 0
        self._limit = self._extent = self._extent_min
        if self._bins_used:
            self._ends.clear()
            self._starts.clear()
            while self._bins_used:
                size_class = self._bins_used.bit_length() - 1
                self._bins[size_class].clear()
                self._bins_used ^= 1 << size_class
