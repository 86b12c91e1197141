"""Overload in simulated time: goodput, who is refused and when, recovery, and what a slow model leaves of a fast one.

Arrivals are Poisson's and run times vary, one in twenty three times as long as it should be; from a seed, so that the
figures are always the same.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from ringserve.broker.policy import MILLISECOND_NS as MS
from ringserve.broker.policy import LanePolicy
from tests.sim.load import Load, LoadLane

US = 1_000
SECOND = 1_000 * MS
#: 4 ms a row, as perf's convolution net; and a model whose batches pay.
CONV: dict[str, Any] = {"fixed_ns": 150 * US, "row_ns": 3_600 * US, "timeout_ns": 100 * MS}
LSTM: dict[str, Any] = {"fixed_ns": 10 * MS, "row_ns": 250 * US, "timeout_ns": 300 * MS}


def overloaded(share: float, shape: dict[str, Any], rows_best: int, workers: int, seconds: int = 3) -> LoadLane:
    """That many times what the workers can do, in batches of `rows_best`, after a second of half a load that is not
    counted: so that it is known what batches take."""
    batch_ns = shape["fixed_ns"] + rows_best * shape["row_ns"]
    row_ns = batch_ns / rows_best / workers
    lane = LoadLane("m", **shape, interval_ns=int(row_ns * 2), chance=random.Random(1))
    load = Load([lane], workers)

    def overload() -> None:
        lane.interval_ns = int(row_ns / share)
        lane.answered = lane.in_time = lane.expired = 0
        lane.refusals_ns.clear()

    load.at(SECOND, overload)
    load.run((1 + seconds) * SECOND)
    return lane


@pytest.mark.parametrize(
    ("shape", "rows_best", "workers"),
    [(CONV, 3, 1), (CONV, 3, 2), (CONV, 3, 4), (LSTM, 100, 1), (LSTM, 100, 2)],
    ids=["conv-1", "conv-2", "conv-4", "lstm-1", "lstm-2"],
)
def test_goodput_under_overload_is_that_of_the_full_server(shape: dict[str, Any], rows_best: int, workers: int) -> None:
    full = overloaded(1.0, shape, rows_best, workers)
    for share in (2.0, 4.0):
        lane = overloaded(share, shape, rows_best, workers)
        assert lane.in_time >= 0.95 * full.in_time, share
        assert lane.late <= 0.04 * (lane.in_time + lane.late), share
        assert max(lane.refusals_ns) < 5 * MS, share


def test_nobody_is_refused_below_capacity() -> None:
    lane = overloaded(0.5, CONV, 4, 2)
    assert lane.refused == lane.late == 0


def test_all_is_as_before_when_the_overload_is_over() -> None:
    lane = LoadLane("m", **CONV, interval_ns=500 * US, chance=random.Random(2))  # four times as many
    load = Load([lane], 2)
    load.at(2 * SECOND, lambda: lane.__dict__.update(interval_ns=4 * MS))
    load.run(4 * SECOND)
    quiet = LoadLane("m", **CONV, interval_ns=4 * MS, chance=random.Random(2))
    Load([quiet], 2).run(2 * SECOND)
    over_ns = 2 * SECOND + 100 * MS  # what was let in before may take its deadline
    after = [wait_ns for at_ns, wait_ns in zip(lane.answered_at_ns, lane.waits_ns, strict=True) if at_ns > over_ns]
    assert len(after) > 400
    assert sorted(after)[int(0.95 * len(after))] <= 1.2 * quiet.wait_ns(0.95)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_slow_model_at_four_times_its_capacity_leaves_a_fast_one_alone(workers: int) -> None:
    def fast() -> LoadLane:
        return LoadLane("fast", 55 * US, 5 * US, interval_ns=5 * MS, model="fast", chance=random.Random(3))

    alone, beside = fast(), fast()
    Load([alone], workers).run(8 * SECOND)
    interval_ns = SECOND // (4 * 250 * workers)
    slow = LoadLane("slow", **CONV, interval_ns=interval_ns, model="slow", chance=random.Random(4))
    Load([beside, slow], workers).run(8 * SECOND)
    assert beside.answered > 1_400
    assert beside.wait_ns(0.99) <= 1.5 * alone.wait_ns(0.99)
    assert slow.in_time >= 0.85 * 8 * 250 * (workers - 1)  # it has all workers but one


def test_two_slow_models_share_all_workers() -> None:
    lanes = [
        LoadLane(name, **CONV, interval_ns=MS, model=name, chance=random.Random(seed)) for seed, name in enumerate("ab")
    ]
    Load(lanes, 2).run(4 * SECOND)
    good = [lane.in_time for lane in lanes]
    assert sum(good) >= 0.85 * 4 * 500
    assert max(good) <= 1.15 * min(good)


def test_without_deadlines_the_queue_is_bounded_by_predicted_time() -> None:
    lane = LoadLane("m", 150 * US, 3_600 * US, interval_ns=MS, chance=random.Random(5))
    Load([lane], 2, LanePolicy(queue_ns_max=50 * MS)).run(4 * SECOND)
    assert lane.answered >= 0.85 * 4 * 500
    assert lane.wait_ns(0.99) <= 150 * MS
