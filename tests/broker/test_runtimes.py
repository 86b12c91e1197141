"""Learned run times: what is predicted from what was seen."""

from __future__ import annotations

import pytest

from ringserve.broker.policy import ROWS_ANY
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
        ([(1, 500 * US)], 128, 64 * MS),
        ([(1, 500 * US)], 129, 0),  # beyond what one row tells
        ([(1, 500 * US), (2, 520 * US)], 25_000_000, 0),
        ([(1, 500 * US), (25_000_000, 900 * MS)], 25_000_001, 900 * MS),
        ([(1, 500 * US), (16, 400 * US)], 4, 500 * US),  # more rows are not faster: the smallest size's time
    ],
)
def test_predict(samples: list[tuple[int, int]], rows: int, predicted_ns: int) -> None:
    assert times_of(*samples).predict(rows) == pytest.approx(predicted_ns, rel=0.001)


def test_a_large_size_that_was_seen_is_not_predicted_from_small_ones() -> None:
    """Nor when it did not run for long, so that the line is one of single rows."""
    times = times_of((1, 60 * US), (25_000_000, 900 * MS))
    for _ in range(300):
        times.observe(1, 60 * US, 60 * US)
    assert times.predict(25_000_000) == 900 * MS
    assert times.predict(30_000_000) == pytest.approx(1080 * MS)
    assert times.predict(50_000_000) == 0


def test_a_size_that_was_seen_is_predicted_from_itself() -> None:
    times = times_of((1, 100 * US), (8, 900 * US), (64, 1_000 * US), repeat=4)
    assert times.predict(8) == pytest.approx(900 * US, rel=0.01)


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_runs_of_a_size_may_be_cold_ones(workers: int) -> None:
    times = times_of(*[(8, 900 * MS)] * workers, (8, 1 * MS))
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


ENOUGH = 2 * MS
KNOWN = 8  # runs of each size


@pytest.mark.parametrize(
    ("samples", "repeat", "rows"),
    [
        ([], 1, ROWS_ANY),
        ([(8, 80 * MS)], KNOWN, ROWS_ANY),  # one size tells nothing
        ([(1, 4 * MS), (16, 64 * MS)], KNOWN - 1, ROWS_ANY),  # each may have been some worker's first
        # rows cost the time; 0.6 ms for what is done about a batch, shared by so many that it is a twentieth of a row
        ([(1, 12 * MS), (16, 192 * MS)], KNOWN, 1),
        ([(1, 4 * MS), (16, 64 * MS)], KNOWN, 3),
        ([(1, 1 * MS), (16, 16 * MS)], KNOWN, 12),
        ([(1, 1200 * US), (16, 16200 * US)], KNOWN, 16),  # and 0.2 ms for its run
        ([(1, 300 * US), (64, 6600 * US)], KNOWN, 160),
        # the batch itself costs the time
        ([(1, 10250 * US), (64, 26 * MS)], KNOWN, 848),
        ([(1, 10 * MS), (64, 10 * MS)], KNOWN, ROWS_ANY),
        ([(1, 10 * MS), (64, 9 * MS)], KNOWN, ROWS_ANY),
        # cheap: a millisecond for a hundred rows
        ([(1, 4 * US), (100, 400 * US)], KNOWN, ROWS_ANY),
        ([(1, 10 * US), (100, 1 * MS)], KNOWN, 1200),
    ],
)
def test_rows_enough(samples: list[tuple[int, int]], repeat: int, rows: int) -> None:
    assert times_of(*samples, repeat=repeat).rows_enough(ENOUGH) == pytest.approx(rows, rel=0.1)


def test_no_batch_is_limited_to_less_than_is_worth_it() -> None:
    times = times_of((1, 4 * MS), (16, 64 * MS), repeat=KNOWN)
    assert times.rows_enough(40 * MS) == 10


def test_waiting_is_not_part_of_a_batchs_cost() -> None:
    times = RunTimes()
    for _ in range(50):
        for rows in (1, 16):
            times.observe(rows, rows * 4 * MS, rows * 4 * MS + 9 * MS)
    assert times.rows_enough(ENOUGH) == 3


def test_larger_batches_are_tried_again_when_none_was_seen_for_long() -> None:
    times = times_of((1, 4 * MS), (16, 64 * MS), repeat=KNOWN)
    for _ in range(255):
        times.observe(1, 4 * MS, 4 * MS)
    assert times.rows_enough(ENOUGH) == 3
    times.observe(1, 4 * MS, 4 * MS)
    assert times.rows_enough(ENOUGH) == 4
    # by now the batch itself costs the time, and so it is found out
    for _ in range(KNOWN):
        assert times.rows_enough(ENOUGH) == 4
        times.observe(4, 5 * MS, 5 * MS)
    assert times.rows_enough(ENOUGH) > 100


@pytest.mark.parametrize("runs", [1, 20])
def test_a_size_that_was_slow_long_ago_is_learned_anew(runs: int) -> None:
    times = times_of((100, 300 * MS), repeat=runs)
    for _ in range(300):
        times.observe(1, 350 * US, 350 * US)
    times.observe(100, 5 * MS, 5 * MS)
    assert times.predict(100) == pytest.approx(5 * MS, rel=0.1)


def test_a_size_that_comes_again_after_long_is_still_known() -> None:
    """Or one small batch among hundreds of large ones would undo what limits these."""
    times = times_of((1, 4 * MS), (16, 64 * MS), repeat=KNOWN)
    for _ in range(3):
        for _ in range(300):
            times.observe(16, 64 * MS, 64 * MS)
        times.observe(1, 4 * MS, 4 * MS)
        assert times.rows_enough(ENOUGH) == 3


def test_a_large_first_batch_that_was_slow_does_not_keep_batches_small_for_ever() -> None:
    """A server that begins under load: its first batch is large and cold, and the next ones must be in time."""
    times = times_of((100, 300 * MS))
    run_ns = {rows: (300 + 50 * rows) * US for rows in (1, 2, 3, 20)}
    for turn in range(300):
        times.observe(1 + turn % 3, run_ns[1 + turn % 3], run_ns[1 + turn % 3])
    assert times.row_ns == pytest.approx(50 * US, rel=0.2)
    assert times.predict(100) < 10 * MS  # what it took once is no reason to refuse anybody now
    times.observe(100, 5 * MS, 5 * MS)
    assert times.predict(100) == pytest.approx(5 * MS, rel=0.1)  # and is forgotten when it runs again


def test_what_small_batches_took_is_remembered() -> None:
    """Or a lane under load, whose batches are all large, would not know any more that small ones do as well."""
    times = times_of((1, 4 * MS), repeat=KNOWN)
    for _ in range(5_000):
        times.observe(16, 64 * MS, 64 * MS)
    assert times.rows_enough(ENOUGH) == 3
