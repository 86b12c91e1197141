"""How many workers a group has: when one more, when one less, and that it never flaps."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.elastic import Elastic

S = 1_000_000_000
MS = 1_000_000
GROW_NS, SHRINK_NS = 2 * S, 60 * S


class Bench:
    """A group whose load is so many workers' work; what does not fit waits."""

    def __init__(self, workers_min: int, workers_max: int) -> None:
        self.elastic = Elastic(workers_min, workers_max, grow_ns=GROW_NS, shrink_ns=SHRINK_NS)
        self.size = workers_min
        self.now_ns = 1_000 * S
        self.busy_ns = dict.fromkeys(range(workers_min), 0)
        self.changes: list[tuple[int, int]] = []  # (when, by)
        self._id = workers_min

    def run(self, load: float, seconds: float) -> int:
        """Returns the number of workers after that."""
        end_ns = self.now_ns + int(seconds * S)
        while self.now_ns < end_ns:
            self.now_ns += 100 * MS
            share = min(load / self.size, 1.0)
            for worker in self.busy_ns:
                self.busy_ns[worker] += int(share * 100 * MS)
            change = self.elastic.look(self.busy_ns, self.now_ns, waits=load > self.size, settled=True)
            if change:
                self.changes.append((self.now_ns, change))
                self.size += change
            if change > 0:
                self._id += 1
                self.busy_ns[self._id] = 0
            elif change < 0:
                del self.busy_ns[max(self.busy_ns)]
        return self.size


def test_it_grows_under_load_and_shrinks_long_after() -> None:
    bench = Bench(1, 3)
    assert bench.run(5, 1.9) == 1
    assert bench.run(5, 1) == 2
    assert bench.run(5, 4) == 3
    assert bench.run(5, 60) == 3
    assert bench.run(0, 59) == 3
    assert bench.run(0, 3) == 2
    assert bench.run(0, 120) == 1
    assert bench.run(0, 300) == 1


def test_busy_workers_without_a_queue_are_enough() -> None:
    assert Bench(1, 3).run(1.0, 60) == 1


def test_a_short_burst_changes_nothing() -> None:
    bench = Bench(1, 3)
    for _ in range(20):
        bench.run(5, 1)
        bench.run(0, 1)
    assert bench.changes == []


def test_one_fewer_must_have_room_to_spare() -> None:
    bench = Bench(1, 3)
    bench.run(5, 10)
    assert bench.size == 3
    assert bench.run(1.3, 300) == 3  # two would be busy for 65 % of the time
    assert bench.run(1.1, 62) == 2
    assert bench.run(1.1, 300) == 2


def test_a_size_that_changes_otherwise_begins_afresh() -> None:
    bench = Bench(2, 3)
    bench.run(5, 1.9)
    del bench.busy_ns[0]
    bench.busy_ns[77] = 0  # replaced
    assert bench.run(5, 1) == 2
    assert bench.elastic.look(bench.busy_ns, bench.now_ns + 10 * S, waits=True, settled=False) == 0


@given(st.integers(1, 6), st.integers(0, 6), st.floats(0, 8))
@settings(max_examples=25, deadline=None)
def test_a_steady_load_comes_to_rest(workers_min: int, more: int, load: float) -> None:
    bench = Bench(workers_min, workers_min + more)
    bench.run(load, 500)
    before = list(bench.changes)
    bench.run(load, 300)
    assert bench.changes == before


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_it_never_flaps(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(rng.randint(1, 3), rng.randint(3, 6))
    for _ in range(60):
        size = bench.run(rng.choice((0, 0.5, rng.random() * 8, 8)), rng.choice((0.5, 2, 10, 90)))
        assert bench.elastic.workers_min <= size <= bench.elastic.workers_max
    for (before_ns, _), (at_ns, by) in pairwise(bench.changes):
        assert at_ns - before_ns >= (GROW_NS if by > 0 else SHRINK_NS)
