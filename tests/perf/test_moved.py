"""Whether a figure moved: exact intervals, no verdict from too few pairs, few false alarms, real changes are found.

With made-up measurements only.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from perf import moved


def test_ratios_are_pairwise_and_survive_zeros() -> None:
    assert moved.ratios([2.0, 4.0], [3.0, 2.0]) == [1.5, 0.5]
    assert moved.ratios([0.0], [0.0]) == [1.0]
    assert moved.ratios([0.0, 1.0], [1.0, 0.0]) == [1e9, 1e-9]


def test_the_median_ratio_is_the_same_both_ways() -> None:
    values = [0.5, 0.8, 1.25, 3.0]
    assert moved.median_ratio(values) == pytest.approx(1.0)
    inverse = [1 / value for value in values]
    assert moved.median_ratio(values[:3]) == pytest.approx(1 / moved.median_ratio(inverse[:3]))


@pytest.mark.parametrize(
    ("pairs", "rank", "wanted"), [(5, 1, 30 / 32), (6, 1, 62 / 64), (8, 2, 1 - 18 / 256), (4, 1, 14 / 16)]
)
def test_coverage_is_that_of_coins(pairs: int, rank: int, wanted: float) -> None:
    assert moved.coverage(pairs, rank) == pytest.approx(wanted)


@pytest.mark.parametrize(("pairs", "dropped"), [(1, 0), (3, 0), (5, 0), (7, 0), (8, 1), (12, 2), (20, 5)])
def test_the_interval_drops_as_many_as_it_may(pairs: int, dropped: int) -> None:
    values = [1.0 + index / 100 for index in range(pairs)]
    random.Random(pairs).shuffle(values)
    found = moved.interval(values)
    assert found.low == pytest.approx(1.0 + dropped / 100)
    assert found.high == pytest.approx(1.0 + (pairs - 1 - dropped) / 100)
    assert found.coverage == pytest.approx(moved.coverage(pairs, dropped + 1))
    assert found.coverage >= moved.COVERAGE_LEAST or dropped == 0


@pytest.mark.parametrize("pairs", [5, 8])
def test_the_interval_holds_the_median_as_often_as_it_says_whatever_the_noise(pairs: int) -> None:
    chance = random.Random(7)
    shapes: dict[str, Callable[[], float]] = {
        "normal": lambda: chance.gauss(0.0, 0.05),
        "heavy tails": lambda: 0.02 * chance.gauss(0, 1) / max(abs(chance.gauss(0, 1)), 1e-3),
        "one-sided": lambda: chance.expovariate(1.0) - 0.6931,  # whose median is 0
    }
    for shape, draw in shapes.items():
        held = 0
        for _ in range(4000):
            found = moved.interval([2.718281828 ** min(draw(), 20.0) for _ in range(pairs)])
            held += found.low <= 1.0 <= found.high
        assert held / 4000 == pytest.approx(moved.coverage(pairs, 1 if pairs == 5 else 2), abs=0.015), shape


def test_all_pairs_must_agree_when_there_are_five() -> None:
    assert moved.direction([1.03, 1.02, 1.05, 1.04, 1.02], 0.01) == 1
    assert moved.direction([0.97, 0.98, 0.95, 0.96, 0.98], 0.01) == -1
    assert moved.direction([1.03, 1.02, 0.99, 1.04, 1.02], 0.01) == 0
    assert moved.direction([1.5, 1.5, 1.5, 1.5], 0.01) == 0, "four pairs say nothing, whatever they say"


def test_one_bad_pair_of_eight_is_forgiven() -> None:
    assert moved.direction([1.03, 1.02, 0.5, 1.04, 1.02, 1.03, 1.05, 1.04], 0.01) == 1


def test_changes_too_small_to_care_about_do_not_count() -> None:
    values = [1.004, 1.003, 1.005, 1.004, 1.006]
    assert moved.direction(values, 0.01) == 0
    assert moved.direction(values, 0.001) == 1
    assert moved.direction([1 / value for value in values], 0.001) == -1


UP, FLAT = [1.1, 1.12, 1.09, 1.11, 1.1], [1.0, 1.02, 0.97, 1.01, 0.99]


@pytest.mark.parametrize(
    ("first", "second", "more_is_better", "wanted"),
    [
        (UP, UP, True, "better"),
        (UP, UP, False, "worse"),
        (UP, FLAT, True, "not confirmed"),
        (UP, [1 / value for value in UP], True, "not confirmed"),
        (UP, None, True, "perhaps better"),
        (UP, None, False, "perhaps worse"),
        (FLAT, None, True, "no change seen"),
        (UP[:4], None, True, "too few pairs"),
    ],
)
def test_verdicts(first: list[float], second: list[float] | None, more_is_better: bool, wanted: str) -> None:
    assert moved.verdict(first, second, more_is_better, 0.01) == wanted


def test_false_alarms_are_rare_and_changes_of_five_percent_are_found() -> None:
    """Runs that differ by 1 %, as on a quiet machine, and drift by 20 % from pair to pair."""
    chance = random.Random(11)

    def pairs(change: float) -> list[float]:
        before, after = [], []
        for _ in range(5):
            drift = 2.0 ** chance.gauss(0.0, 0.2)
            before.append(1000 * drift * chance.gauss(1.0, 0.01))
            after.append(1000 * drift * change * chance.gauss(1.0, 0.01))
        return moved.ratios(before, after)

    verdicts = [moved.verdict(pairs(1.0), pairs(1.0), True, 0.0) for _ in range(5000)]
    assert sum(word in ("better", "worse") for word in verdicts) <= 5000 * 0.005
    assert 0.04 < sum(word != "no change seen" for word in verdicts) / 5000 < 0.09
    found = [moved.verdict(pairs(0.95), pairs(0.95), True, 0.01) for _ in range(300)]
    assert found.count("worse") > 280
