"""The ring's bookkeeping against a brute-force model: every state of small rings, random walks on larger ones."""

from __future__ import annotations

import copy
import random
from collections import deque
from itertools import pairwise, permutations, product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringserve.shm.layout import ALIGN, align
from ringserve.shm.ring import EXTENT_BYTES_MIN, FULL, RingError, RingWriter


def free_gaps(live: dict[int, int], stop: int) -> list[tuple[int, int]]:
    """Brute force: the maximal free ranges of [0, stop) around the live records."""
    gaps = []
    position = 0
    for offset, size in sorted(live.items()):
        if offset > position:
            gaps.append((position, min(offset, stop)))
        position = offset + size
    if position < stop:
        gaps.append((position, stop))
    return gaps


def assert_books(ring: RingWriter, live: dict[int, int]) -> None:
    """The ring's tables say exactly what the live records (offset -> aligned size) leave free in the extent."""
    position = 0
    for offset, size in sorted(live.items()):
        assert offset % ALIGN == 0
        assert offset >= position, "records overlap"
        position = offset + size
    assert position <= ring._extent <= ring._capacity
    assert ring._sizes == live
    assert ring._starts == {end: start for start, end in ring._ends.items()}
    pieces = sorted(ring._ends.items())
    if ring._next < ring._limit:
        pieces = sorted([*pieces, (ring._next, ring._limit)])
    joined: list[tuple[int, int]] = []
    for start, end in pieces:
        assert start < end
        if joined and joined[-1][1] == start:
            # Only the open gap may lie unjoined beside another.
            assert start in (ring._next, ring._limit)
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    assert joined == free_gaps(live, ring._extent)
    for size_class, members in enumerate(ring._bins):
        assert bool(members) == bool(ring._bins_used >> size_class & 1)
        assert all((ring._ends[start] - start).bit_length() == size_class for start in members)
    assert sum(map(len, ring._bins)) == len(ring._ends)


def fits(live: dict[int, int], capacity: int, nbytes: int) -> bool:
    return any(end - start >= max(align(nbytes), ALIGN) for start, end in free_gaps(live, capacity))


class Checked:
    """A ring and its model; every act is checked against the model."""

    def __init__(self, capacity: int, extent_min: int) -> None:
        self.ring = RingWriter(capacity, extent_bytes_min=extent_min)
        self.capacity = capacity & -ALIGN
        self.live: dict[int, int] = {}

    def claim(self, nbytes: int) -> int:
        possible = fits(self.live, self.capacity, nbytes)
        offset = self.ring.claim(nbytes)
        assert (offset != FULL) == possible
        if offset != FULL:
            assert offset not in self.live
            self.live[offset] = max(align(nbytes), ALIGN)
        assert_books(self.ring, self.live)
        return offset

    def release(self, offset: int) -> None:
        self.ring.release(offset)
        del self.live[offset]
        assert_books(self.ring, self.live)


# --------------------------------------------------------------------------------------------------- exhaustive


def state_of(ring: RingWriter) -> tuple[object, ...]:
    """All that decides what the ring does next. The order of the tables' keys is part of it."""
    bins = tuple(tuple(members) for members in ring._bins)
    return ring._next, ring._limit, ring._extent, tuple(sorted(ring._sizes.items())), tuple(ring._ends.items()), bins


@pytest.mark.parametrize(("units", "extent_units"), [(1, 1), (2, 1), (3, 3), (4, 1), (5, 1), (6, 2), (6, 6)])
def test_every_reachable_state_of_a_small_ring_is_sound(units: int, extent_units: int) -> None:
    first = Checked(units * ALIGN, extent_units * ALIGN)
    known = {state_of(first.ring)}
    todo = [first]
    while todo:
        here = todo.pop()
        acts = [("claim", size * ALIGN) for size in range(1, units + 2)] + [("release", each) for each in here.live]
        for act, argument in acts:
            there = copy.deepcopy(here)
            getattr(there, act)(argument)
            state = state_of(there.ring)
            if state not in known:
                known.add(state)
                todo.append(there)
    assert len(known) >= 2**units  # every set of one-unit records can be live


@pytest.mark.parametrize("sizes", list(product((1, 64, 65, 128), repeat=4)))
def test_whatever_the_order_of_releases_the_ring_is_as_new(sizes: tuple[int, ...]) -> None:
    for order in permutations(range(4)):
        checked = Checked(16 * ALIGN, 2 * ALIGN)
        offsets = [checked.claim(size) for size in sizes]
        for index in order:
            checked.release(offsets[index])
        fresh = RingWriter(16 * ALIGN, extent_bytes_min=2 * ALIGN)
        assert state_of(checked.ring) == state_of(fresh)
        assert [checked.ring.claim(size) for size in sizes] == offsets


# -------------------------------------------------------------------------------------------------------- random


class RingMachine(RuleBasedStateMachine):
    """Any interleaving of claims, releases in any order, full rings, recoveries and give-backs."""

    @initialize(
        capacity=st.integers(ALIGN, 200 * ALIGN), extent_min=st.integers(1, 40 * ALIGN), seed=st.integers(0, 2**32)
    )
    def start(self, capacity: int, extent_min: int, seed: int) -> None:
        self.checked = Checked(capacity, extent_min)
        self.random = random.Random(seed)
        self.touched = self.checked.ring.statistics().extent_bytes  # highest byte that may have memory behind it

    def note(self) -> None:
        self.touched = max(self.touched, self.checked.ring.statistics().extent_bytes)

    @rule(nbytes=st.integers(0, 20 * ALIGN))
    def claim(self, nbytes: int) -> None:
        self.checked.claim(nbytes)
        self.note()

    @rule(nbytes=st.integers(0, 210 * ALIGN))
    def claim_large(self, nbytes: int) -> None:
        self.checked.claim(nbytes)
        self.note()

    @rule(nbytes=st.integers(1, 8 * ALIGN))
    def fill(self, nbytes: int) -> None:
        while self.checked.claim(nbytes) != FULL:
            self.note()

    @precondition(lambda self: self.checked.live)
    @rule(share=st.floats(0, 1))
    def release_some(self, share: float) -> None:
        offsets = list(self.checked.live)
        self.random.shuffle(offsets)
        for offset in offsets[: max(1, int(len(offsets) * share))]:
            self.checked.release(offset)

    @precondition(lambda self: self.checked.live)
    @rule(steps=st.integers(1, 60), nbytes=st.integers(0, 5 * ALIGN))
    def slide(self, steps: int, nbytes: int) -> None:
        """The common life of a ring: the oldest goes, a new one comes."""
        for _ in range(steps):
            if self.checked.live:
                self.checked.release(next(iter(self.checked.live)))
            self.checked.claim(nbytes)
            self.note()

    @rule()
    def give_back(self) -> None:
        told = self.checked.ring.take_shrunk()
        extent = self.checked.ring.statistics().extent_bytes
        if told is not None:
            start, nbytes = told
            assert extent <= start
            assert nbytes > 0
            assert start + nbytes == self.touched
            self.touched = start

    @precondition(lambda self: self.checked.live)
    @rule()
    def release_wrongly(self) -> None:
        offset = next(iter(self.checked.live))
        for wrong in (offset + 1, offset - ALIGN - 1, -1, self.checked.capacity):
            with pytest.raises(RingError):
                self.checked.ring.release(wrong)
        self.checked.release(offset)
        with pytest.raises(RingError, match=str(offset)):
            self.checked.ring.release(offset)

    @rule()
    def recover(self) -> None:
        """All records come back: the ring is as new."""
        offsets = list(self.checked.live)
        self.random.shuffle(offsets)
        for offset in offsets:
            self.checked.release(offset)
        fresh = RingWriter(self.checked.capacity, extent_bytes_min=self.checked.ring._extent_min)
        assert state_of(self.checked.ring) == state_of(fresh)

    @invariant()
    def told_counts_are_true(self) -> None:
        if hasattr(self, "checked"):
            told = self.checked.ring.statistics()
            assert told.used_bytes == sum(self.checked.live.values())
            assert told.records_count == len(self.checked.live)
            assert self.checked.ring.empty == (not self.checked.live)


TestRandomWalks = RingMachine.TestCase
TestRandomWalks.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# ---------------------------------------------------------------------------------------------- one fact at a time


def test_claims_are_contiguous_and_aligned() -> None:
    ring = RingWriter(1 << 20)
    assert [ring.claim(nbytes) for nbytes in (1, 64, 65, 0, 200, 64)] == [0, 64, 128, 256, 320, 576]


def test_a_ring_takes_its_capacity_and_not_a_byte_more() -> None:
    ring = RingWriter(1 << 20, extent_bytes_min=4096)
    assert ring.record_bytes_max == 1 << 20
    assert ring.claim((1 << 20) + 1) == FULL
    assert ring.claim(1 << 20) == 0
    assert ring.claim(0) == FULL
    ring.release(0)
    assert ring.claim((1 << 20) - ALIGN) == 0
    assert ring.claim(ALIGN + 1) == FULL
    assert ring.claim(ALIGN) == (1 << 20) - ALIGN
    assert ring.claim(1) == FULL
    assert ring.statistics().full_count == 4


def test_a_capacity_that_is_no_multiple_of_the_alignment_is_rounded_down() -> None:
    ring = RingWriter(3 * ALIGN + 63)
    assert ring.record_bytes_max == 3 * ALIGN
    assert ring.claim(3 * ALIGN + 1) == FULL
    assert ring.claim(3 * ALIGN) == 0


@pytest.mark.parametrize(("capacity", "extent_min"), [(-1, 1), (0, 1), (63, 1), (64, 0), (64, -1)])
def test_a_ring_too_small_for_one_record_is_refused(capacity: int, extent_min: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        RingWriter(capacity, extent_bytes_min=extent_min)


@pytest.mark.parametrize("nbytes", [-1, -63, -64, -65, -4096])
def test_a_negative_size_is_refused_and_changes_nothing(nbytes: int) -> None:
    ring = RingWriter(4096)
    assert ring.claim(64) == 0
    with pytest.raises(ValueError, match=str(nbytes)):
        ring.claim(nbytes)
    assert ring.claim(64) == 64


def test_releasing_twice_is_a_bug_even_when_the_ring_is_empty() -> None:
    ring = RingWriter(4096)
    ring.release(ring.claim(10))
    with pytest.raises(RingError, match="offset 0"):
        ring.release(0)


def test_wrap_around_passes_a_long_held_record_and_stays_contiguous_between() -> None:
    units = 32
    ring = RingWriter(units * ALIGN)
    window = deque(ring.claim(ALIGN) for _ in range(8))
    held = ring.claim(ALIGN)  # never released below
    placed = []
    for _ in range(10 * units):
        ring.release(window.popleft())
        offset = ring.claim(ALIGN)
        assert offset != FULL
        assert offset != held
        window.append(offset)
        placed.append(offset)
    # The larger side of the held record is the ring now; the smaller one is there when it is needed.
    assert min(placed) == held + ALIGN
    assert max(placed) == (units - 1) * ALIGN
    neighbours = sum(second - first == ALIGN for first, second in pairwise(placed))
    assert neighbours > len(placed) * 0.9  # it jumps at the end only
    rest = [ring.claim(ALIGN) for _ in range(units - 1 - len(window))]
    assert sorted([held, *window, *rest]) == [unit * ALIGN for unit in range(units)]
    assert ring.claim(1) == FULL


def test_one_held_record_leaves_all_other_space_usable() -> None:
    for position in range(8):
        ring = RingWriter(8 * ALIGN)
        offsets = [ring.claim(ALIGN) for _ in range(8)]
        for index, offset in enumerate(offsets):
            if index != position:
                ring.release(offset)
        assert ring.claim(max(position, 7 - position) * ALIGN) != FULL
        if 0 < position < 7:
            assert ring.claim(min(position, 7 - position) * ALIGN) != FULL
        assert ring.claim(1) == FULL


def test_a_release_makes_room_for_the_claim_that_was_refused() -> None:
    ring = RingWriter(4 * ALIGN)
    offsets = [ring.claim(ALIGN) for _ in range(4)]
    assert ring.claim(2 * ALIGN) == FULL
    ring.release(offsets[2])
    assert ring.claim(2 * ALIGN) == FULL
    ring.release(offsets[1])
    assert ring.claim(2 * ALIGN) == offsets[1]


def test_the_extent_starts_small_doubles_when_it_is_full_and_falls_back_when_the_ring_is_empty() -> None:
    ring = RingWriter(1 << 30)
    extents = []
    offsets = []
    for _ in range(40):
        offsets.append(ring.claim(1 << 20))
        extents.append(ring.statistics().extent_bytes)
    mib = [extent >> 20 for extent in extents]
    assert EXTENT_BYTES_MIN == 4 << 20
    assert mib == [4] * 4 + [8] * 4 + [16] * 8 + [32] * 16 + [64] * 8
    assert ring.take_shrunk() is None
    for offset in offsets:
        ring.release(offset)
    assert ring.statistics().extent_bytes == EXTENT_BYTES_MIN
    assert ring.statistics().extent_bytes_peak == 64 << 20
    assert ring.take_shrunk() is None  # 64 MiB were needed since the last call
    assert ring.take_shrunk() == (EXTENT_BYTES_MIN, 60 << 20)
    assert ring.take_shrunk() is None


def test_memory_that_is_needed_again_is_not_given_back() -> None:
    ring = RingWriter(64 << 20)
    ring.release(ring.claim(32 << 20))
    assert ring.take_shrunk() is None
    again = ring.claim(16 << 20)
    assert ring.take_shrunk() == (16 << 20, 16 << 20)
    assert ring.take_shrunk() is None
    ring.release(again)
    ring.take_shrunk()
    assert ring.take_shrunk() == (EXTENT_BYTES_MIN, 12 << 20)


@pytest.mark.parametrize("held_record", [False, True])
def test_the_extent_falls_back_under_load_too(held_record: bool) -> None:
    """After a burst the ring never becomes empty, yet its extent comes down to what the load needs."""
    unit = 4096
    ring = RingWriter(4096 * unit, extent_bytes_min=16 * unit)
    held = ring.claim(unit) if held_record else FULL
    window = deque(ring.claim(unit) for _ in range(2000))
    assert ring.statistics().extent_bytes == 2048 * unit
    while len(window) > 3:
        ring.release(window.popleft())
    for _ in range(20_000):
        ring.release(window.popleft())
        window.append(ring.claim(unit))
        assert window[-1] != FULL
    assert ring.statistics().extent_bytes <= 32 * unit
    ring.take_shrunk()
    shrunk = ring.take_shrunk()
    assert shrunk is not None
    assert sum(shrunk) == 2048 * unit
    assert held not in window


def test_many_records_of_mixed_sizes_in_a_busy_ring() -> None:
    """A long seeded run at a size that the model of the other tests is too slow for; books checked now and then."""
    chance = random.Random(5)
    ring = RingWriter(8 << 20, extent_bytes_min=1 << 16)
    live: dict[int, int] = {}
    refused = 0
    for step in range(60_000):
        if live and chance.random() < 0.47:
            offset = chance.choice(list(live)) if step % 16 == 0 else next(iter(live))
            ring.release(offset)
            del live[offset]
        else:
            nbytes = chance.choice((40, 3136, 3136, 3136, 9000, 600_000))
            offset = ring.claim(nbytes)
            if offset == FULL:
                refused += 1
                assert not fits(live, 8 << 20, nbytes)
            else:
                live[offset] = align(nbytes)
        if step % 2000 == 0:
            assert_books(ring, live)
    assert refused > 100
    assert ring.statistics().full_count == refused
