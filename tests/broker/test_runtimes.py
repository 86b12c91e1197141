"""Learned run times: what is predicted from what was seen."""

from __future__ import annotations

import pytest

from ringserve.broker.runtimes import RunTimes
from tests.broker.kit import MS

US = 1_000


def times_of(*samples: tuple[int, int], repeat: int = 1) -> RunTimes:
    times = RunTimes()
    for _ in range(repeat):
        for rows, run_ns in samples:
            times.observe(rows, run_ns, run_ns)
    return times


@pytest.mark.parametrize(
    ("samples", "rows", "predicted_ns"),
    [
        ([], 8, 0),  # unknown
        ([(8, 800 * US)], 8, 800 * US),
        ([(8, 800 * US)], 4, 400 * US),  # one size: all of it is row time
        ([(8, 800 * US)], 16, 1600 * US),
        ([(1, 110 * US), (11, 210 * US)], 6, 160 * US),  # two sizes: a line of 100 us and 10 us a row
        ([(1, 110 * US), (11, 210 * US)], 101, 1110 * US),
        ([(1, 500 * US), (16, 400 * US)], 4, 500 * US),  # more rows are not faster: the smallest size's time
    ],
)
def test_predict(samples: list[tuple[int, int]], rows: int, predicted_ns: int) -> None:
    assert times_of(*samples).predict(rows) == pytest.approx(predicted_ns, rel=0.001)


def test_a_size_that_was_seen_is_predicted_from_itself() -> None:
    times = times_of((1, 100 * US), (8, 900 * US), (64, 1_000 * US), repeat=4)
    assert times.predict(8) == pytest.approx(900 * US, rel=0.01)


def test_the_first_run_of_a_size_may_be_a_cold_one() -> None:
    times = times_of((8, 900 * MS), (8, 1 * MS))
    assert times.predict(8) == pytest.approx(1 * MS)


def test_one_outlier_moves_the_mean_little_and_a_change_is_followed() -> None:
    times = times_of((8, 1 * MS), repeat=30)
    times.observe(8, 500 * MS, 500 * MS)
    assert times.predict(8) < 1.3 * MS
    for _ in range(100):
        times.observe(8, 5 * MS, 5 * MS)
    assert times.predict(8) == pytest.approx(5 * MS, rel=0.1)


@pytest.mark.parametrize(
    ("samples", "repeat", "confident"),
    [
        ([(8, 1 * MS)], 15, False),  # too few
        ([(8, 1 * MS)], 40, True),
        ([(8, 1 * MS), (8, 9 * MS)], 40, False),  # too different
    ],
)
def test_confidence(samples: list[tuple[int, int]], repeat: int, confident: bool) -> None:
    assert times_of(*samples, repeat=repeat).confident == confident


def test_turnaround_is_the_time_beyond_the_run() -> None:
    times = RunTimes()
    for _ in range(50):
        times.observe(8, 1 * MS, 1 * MS + 200 * US)
    assert times.turnaround_ns == pytest.approx(200 * US)
