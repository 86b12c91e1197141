"""Which requests run together after a run has failed: those to blame are found in few runs, the others hardly wait."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.workers import suspects
from ringserve.workers.suspects import Suspects, Suspicions

Part = list[int]
Fails = Callable[[list[int]], bool]

LANE = b"lane"


def part(request_id: int) -> Part:
    return [1, request_id, 1, 0, 64 * request_id]


class Lane:
    """A lane of the broker with so many requests in it, and one worker. fails: whether these fail together."""

    def __init__(self, requests: Iterable[int], fails: Fails, batch_max: int) -> None:
        self.queue = list(requests)
        self.fails = fails
        self.batch_max = batch_max
        self.suspicions = Suspicions()
        self.answered: list[int] = []
        self.failed: list[int] = []
        self.sizes: list[int] = []

    def run(self, *, ahead: bool = False, runs_max: int = 100_000) -> int:
        """Run until nothing waits, and say how many runs that took. ahead: a batch is always sent while one runs."""
        batches: list[list[int]] = []
        begun = len(self.sizes)
        while self.queue or batches:
            assert len(self.sizes) - begun < runs_max
            while len(batches) <= ahead and self.queue:
                count = self.suspicions.parts_max(LANE) or self.batch_max
                batches.append(self.queue[:count])
                del self.queue[:count]
            self._execute(batches.pop(0))
        return len(self.sizes) - begun

    def _execute(self, batch: list[int]) -> None:
        first = self.suspicions.first(LANE, [part(i) for i in batch]) or len(batch)
        kept, left = batch[:first], batch[first:]
        self.sizes.append(len(kept))
        if not self.fails(kept):
            self.suspicions.passed(LANE, [part(i) for i in kept])
            self.answered += kept
        else:
            self.suspicions.failed(LANE, [part(i) for i in kept])
            if len(kept) == 1:
                self.failed += kept
            else:
                left = batch
        self.queue[:0] = left


def bad(*requests: int) -> Fails:
    """Each of these fails, and whoever is with it."""
    return lambda run: not set(requests).isdisjoint(run)


@pytest.mark.parametrize("count", [2, 3, 8, 33, 128])
def test_one_bad_request_is_found_in_a_logarithm_of_runs(count: int) -> None:
    for wrong in range(count):
        lane = Lane(range(count), bad(wrong), count)
        assert lane.run() <= 2 * log2(count) + 3
        assert lane.failed == [wrong]
        assert sorted(lane.answered) == [i for i in range(count) if i != wrong]


def test_one_bad_request_costs_the_next_ones_next_to_nothing() -> None:
    lane = Lane(range(3_200), bad(700), 32)
    runs = lane.run()
    assert runs <= 100 + 2 + 2 * log2(32)
    assert lane.sizes[-60:-1] == [32] * 59


def test_where_all_are_bad_they_run_one_by_one_and_not_twice() -> None:
    lane = Lane(range(1_000), lambda run: True, 128)
    assert lane.run() <= 1_050
    assert lane.failed == list(range(1_000))
    lane.queue, lane.fails = list(range(1_000, 3_000)), bad()
    assert lane.run() <= 8 + 2_000 // 128  # and it is as before when that ends


@pytest.mark.parametrize(("one_in", "runs_a_part"), [(2, 1.6), (10, 0.75), (100, 0.16), (1_000, 0.025)])
def test_the_more_are_bad_the_smaller_are_the_runs(one_in: int, runs_a_part: float) -> None:
    draw = random.Random(one_in)
    wrong = {i for i in range(20_000) if not draw.randrange(one_in)}
    for ahead in (False, True):
        lane = Lane(range(20_000), bad(*wrong), 128)
        assert lane.run(ahead=ahead) <= runs_a_part * 20_000
        assert sorted(lane.failed) == sorted(wrong)


@pytest.mark.parametrize("most", [1, 3, 50, 64, 100])
def test_a_number_that_fails_itself_is_tried_again_more_and_more_rarely(most: int) -> None:
    lane = Lane(range(40_000), lambda run: len(run) > most, 128)
    ideal = 40_000 / 2 ** int(log2(most))  # halves of 128
    assert lane.run() <= 1.1 * ideal + 40
    assert not lane.failed
    lane.queue, lane.fails = list(range(40_000, 200_000)), bad()
    lane.run()
    assert lane.sizes[-100:-1] == [128] * 99
    assert not lane.suspicions._lanes


def test_a_bad_request_where_the_number_is_limited_does_not_limit_it_more_for_long() -> None:
    lane = Lane(range(20_000), lambda run: len(run) > 64 or 9_000 in run, 128)
    lane.run()
    assert lane.failed == [9_000]
    assert lane.sizes[-50:-1] == [64] * 49


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.integers(1, 40), st.booleans(), st.integers(1, 40))
def test_everybody_is_answered_once_and_in_few_runs(
    count: int, wrong: set[int], batch_max: int, ahead: bool, most: int
) -> None:
    lane = Lane(range(count), lambda run: len(run) > most or not wrong.isdisjoint(run), batch_max)
    lane.run(ahead=ahead, runs_max=4 * count + 20)
    assert sorted(lane.failed) == sorted(i for i in wrong if i < count)
    assert sorted(lane.answered + lane.failed) == list(range(count))


def test_who_comes_in_between_is_no_suspect() -> None:
    """Another batch was on its way when these failed."""
    lane = Suspects()
    together, others = ([part(i) for i in ids] for ids in (range(8), range(8, 16)))
    lane.failed(together)
    assert (lane.first(together), lane.parts_max) == (4, 4)
    assert lane.first(others) == 4
    lane.passed(others[:4])
    assert (lane.first(others[4:]), lane.parts_max) == (4, 0)
    assert lane.first(together) == 4
    lane.failed(together[:4])
    assert [lane.first(together), lane.first(together[4:]), lane.first(together[2:])] == [2, 4, 2]


def test_suspects_that_never_come_again_are_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were cancelled, or another worker has them."""
    lane = Suspects()
    lane.failed([part(i) for i in range(32)])
    for i in range(100, 120):
        lane.passed([part(i)])
    assert (lane.parts_max, lane.over) == (0, True)
    monkeypatch.setattr(suspects, "_SUSPECTS_MAX", 40)
    for first in range(200, 400, 10):
        lane.failed([part(i) for i in range(first, first + 10)])
        assert len(lane._group_of) <= 40


def test_lanes_are_forgotten_when_all_is_well_and_bounded_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    suspicions = Suspicions()
    suspicions.failed(LANE, [part(1)])  # nobody else was with it
    assert not suspicions._lanes
    suspicions.failed(LANE, [part(1), part(2)])
    assert suspicions.parts_max(LANE) == 1
    suspicions.failed(LANE, [part(1)])
    for i in range(17):
        assert suspicions.first(LANE, [part(i + 3)]) == 1
        suspicions.passed(LANE, [part(i + 3)])
    assert not suspicions._lanes
    assert (suspicions.first(LANE, [part(1)] * 3), suspicions.parts_max(LANE)) == (0, 0)
    monkeypatch.setattr(suspects, "_LANES_MAX", 3)
    for i in range(5):
        suspicions.failed(b"%d" % i, [part(1), part(2)])
    assert list(suspicions._lanes) == [b"2", b"3", b"4"]
