"""Batches where workers pad them to prescribed sizes: what is taken, what is predicted, what is learned."""

from __future__ import annotations

import pytest

from ringserve.broker.sizes import rows_fitting
from tests.broker.kit import MS, Bench, entry, lane_of, sent

ALLOWED = (1, 4, 8)


@pytest.mark.parametrize(
    # fixed and row time; rows waiting -> rows taken at most (99: whatever waits)
    ("fixed_ns", "row_ns", "waiting", "expected"),
    [
        (0, 4 * MS, 1, 99),
        (0, 4 * MS, 4, 99),  # an allowed size
        (0, 4 * MS, 5, 4),  # 4 and 1, not 8
        (0, 4 * MS, 7, 99),  # 8, as 4 and then 4 gain nothing
        (0, 4 * MS, 8, 99),
        (0, 4 * MS, 12, 99),  # above all sizes
        (0, 4 * MS, 2, 1),  # 1 and 1, not 4
        (40 * MS, 1 * MS, 5, 99),  # one more batch costs more than three rows of padding
        (40 * MS, 1 * MS, 2, 99),
    ],
)
def test_6_1_a_smaller_allowed_size_is_taken_where_padding_wastes_more(
    fixed_ns: int, row_ns: int, waiting: int, expected: int
) -> None:
    lane = lane_of(*(entry(i) for i in range(waiting)), batch_rows_max=99, batch_rows_allowed=ALLOWED)
    for rows in (1, 4, 8) * 4:
        lane.learn(rows, fixed_ns + row_ns * rows, fixed_ns + row_ns * rows)
    assert rows_fitting(lane, 99) == expected


def test_nothing_is_held_back_without_measurements_or_sizes_or_by_the_clock() -> None:
    unknown = lane_of(*(entry(i) for i in range(5)), batch_rows_allowed=ALLOWED)
    assert rows_fitting(unknown, 8) == 8
    free = lane_of(*(entry(i) for i in range(5)), run_ns=4 * MS)
    assert rows_fitting(free, 8) == 8
    timed = lane_of(*(entry(i) for i in range(5)), run_ns=4 * MS, batch_rows_allowed=ALLOWED, batching="timeout")
    assert rows_fitting(timed, 8) == 8  # TF Serving's batches, to the letter


@pytest.mark.parametrize(("rows", "run"), [(1, 1), (2, 4), (4, 4), (5, 8), (8, 8), (9, 9)])
def test_6_3_what_runs_is_the_next_allowed_size(rows: int, run: int) -> None:
    assert lane_of(batch_rows_allowed=ALLOWED).rows_run(rows) == run
    assert lane_of(batch_rows_allowed=ALLOWED, batchable=False).rows_run(rows) == rows
    assert lane_of().rows_run(rows) == rows


def test_run_times_are_those_of_the_padded_size() -> None:
    lane = lane_of(batch_rows_allowed=ALLOWED)
    for _ in range(5):
        lane.learn(5, 9 * MS, 9 * MS)
    assert lane.predict(8) == lane.predict(5) == 9 * MS


def test_a_batch_of_an_allowed_size_goes_and_the_rest_follows() -> None:
    bench = Bench(1, credit_max=1, batch_rows_max=8, batch_rows_allowed=ALLOWED, batch_enough_ns=0)
    for rows in (1, 8):
        bench.learn(rows * 4 * MS, rows=rows)
    ((_, running),) = bench.submit((1, 8)).executes
    bench.submit(*((i, 1) for i in range(2, 7)))
    turn = bench.done(10, running.batch_id, 32 * MS, 8)
    ((_, parts),) = sent(turn)
    assert len(parts) == 4
    ((_, parts),) = sent(bench.done(10, turn.executes[0][1].batch_id, 16 * MS, 4))
    assert len(parts) == 1
