"""What the broker's policies come to under load, in simulated time."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ringserve.broker import placement
from ringserve.broker.policy import MILLISECOND_NS as MS
from ringserve.broker.policy import LanePolicy
from tests.sim.load import Load, LoadLane

US = 1_000
SECOND = 1_000 * MS


def run(lanes: list[LoadLane], workers: int, duration_ns: int = 2 * SECOND, policy: LanePolicy | None = None) -> None:
    Load(lanes, workers, policy).run(duration_ns)


def test_a_fast_lane_waits_for_at_most_two_batches_of_a_slow_one() -> None:
    slow = LoadLane("slow", 50 * MS, 0, clients=500)
    fast = LoadLane("fast", MS, 0, clients=4)
    run([slow, fast], workers=1)
    assert fast.wait_ns_max <= 2 * 50 * MS + 5 * MS
    assert fast.batches >= 15


def test_lanes_that_always_have_something_waiting_get_the_same_worker_time() -> None:
    lanes = [
        LoadLane("a", 20 * MS, 0, clients=600),
        LoadLane("b", 100 * US, 10 * US, clients=600),
        LoadLane("c", 0, 2 * MS, clients=600),
    ]
    run(lanes, workers=1, duration_ns=10 * SECOND, policy=LanePolicy(batch_rows_max=32))
    shares = [lane.busy_ns for lane in lanes]
    assert max(shares) <= 1.15 * min(shares)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_none_of_many_lanes_starves(workers: int) -> None:
    lanes = [LoadLane(f"l{i}", (1 + i % 5) * MS, 0, clients=1 + i % 3) for i in range(60)]
    run(lanes, workers=workers)
    once_around_ns = sum(lane.fixed_ns for lane in lanes) // workers
    assert max(lane.wait_ns_max for lane in lanes) <= 2 * once_around_ns + 20 * MS


def test_an_expensive_lane_uses_every_worker() -> None:
    lane = LoadLane("dear", 200 * US, 4 * MS, clients=16)
    run([lane], workers=4)
    assert lane.busy_ns >= 0.9 * 4 * 2 * SECOND


def test_a_cheap_lane_stays_on_one_worker_with_large_batches() -> None:
    lane = LoadLane("cheap", 60 * US, 6 * US, clients=128)
    run([lane], workers=4)
    assert len(lane.workers_used) == 1
    assert lane.answered / lane.batches >= 32


def test_a_cheap_lane_takes_more_workers_when_one_is_not_enough() -> None:
    lane = LoadLane("cheap", 60 * US, 6 * US, clients=2_000)
    run([lane], workers=4, duration_ns=SECOND)
    one_worker = SECOND / (60 * US + 128 * 6 * US) * 128
    assert lane.answered >= 3 * one_worker


@pytest.mark.parametrize("batchable", [True, False])
def test_goodput_under_twice_the_capacity_stays_near_the_capacity(batchable: bool) -> None:
    # Batches of 8 rows take 8 ms: capacity 1,000 rows a second; 2,000 arrive, each good for 60 ms.
    lane = LoadLane("m", 0, MS, interval_ns=500 * US, timeout_ns=60 * MS, batchable=batchable)
    run([lane], workers=1, duration_ns=4 * SECOND, policy=LanePolicy(batch_rows_max=8))
    assert lane.in_time >= 0.85 * 4_000
    assert lane.answered - lane.in_time <= 0.05 * lane.answered  # hardly any work is done in vain


def test_an_idle_worker_answers_one_client_without_waiting() -> None:
    lane = LoadLane("m", 50 * US, 0, clients=1)
    run([lane], workers=4, duration_ns=SECOND)
    assert lane.wait_ns_max <= 50 * US + 60 * US


# -------------------------------------------------------------------------------------- batches no larger than worth it

MLP = {"fixed_ns": 55 * US, "row_ns": 4_500}
CONV: dict[str, Any] = {"fixed_ns": 150 * US, "row_ns": 3_600 * US}
LSTM = {"fixed_ns": 10 * MS, "row_ns": 250 * US}

#: Whatever waits goes, however long it then runs.
UNLIMITED = LanePolicy(batch_enough_ns=0)


def with_and_without(workers: int = 2, duration_ns: int = 4 * SECOND, **lane: Any) -> tuple[LoadLane, LoadLane]:
    limited, unlimited = LoadLane("m", **lane), LoadLane("m", **lane)
    run([limited], workers, duration_ns)
    run([unlimited], workers, duration_ns, UNLIMITED)
    return limited, unlimited


@pytest.mark.parametrize(
    "lane",
    [
        {**MLP, "clients": 128},
        {**MLP, "clients": 1_000},
        {**LSTM, "clients": 20},
        {**LSTM, "clients": 128},
        {**LSTM, "clients": 64, "rows": 8},
        {**LSTM, "interval_ns": 40 * MS, "burst": 64},
        {"fixed_ns": 50 * MS, "row_ns": 0, "clients": 300},
        {**LSTM, "clients": 128, "cold_ns": 500 * MS},
    ],
    ids=str,
)
def test_a_lane_whose_batches_pay_is_left_as_it_is(lane: dict[str, int]) -> None:
    limited, unlimited = with_and_without(duration_ns=SECOND // 2 if lane["fixed_ns"] < MS else 2 * SECOND, **lane)
    assert limited.rows_of_batches == unlimited.rows_of_batches


def test_a_burst_of_long_rows_is_answered_row_by_row() -> None:
    """Two workers, 3.6 ms a row: with all rows in one batch each, all are answered when the last one is."""
    waits = []
    for policy in (LanePolicy(), UNLIMITED):
        lane = LoadLane("m", **CONV, interval_ns=200 * MS)
        load = Load([lane], 2, policy)
        load.at(2 * SECOND, lambda lane=lane: lane.__dict__.update(burst=48))  # type: ignore[misc]
        load.run(8 * SECOND)
        waits.append((lane.wait_ns(0.5), lane.wait_ns(0.99)))
    (median_ns, late_ns), (unlimited_median_ns, unlimited_late_ns) = waits
    assert median_ns <= 0.8 * unlimited_median_ns
    assert late_ns <= 1.15 * unlimited_late_ns


@pytest.mark.parametrize("clients", [8, 32, 128])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_short_batches_of_long_rows_cost_hardly_any_throughput(clients: int, workers: int) -> None:
    limited, unlimited = with_and_without(workers, **CONV, clients=clients)
    assert limited.answered >= 0.95 * unlimited.answered


def test_a_lane_whose_batches_begin_to_pay_gets_larger_ones() -> None:
    lane = LoadLane("m", **CONV, clients=64)
    load = Load([lane], 2)
    load.at(2 * SECOND, lambda: lane.__dict__.update(LSTM))
    load.run(8 * SECOND)
    later = sorted(lane.rows_of_batches[-50:])
    assert later[25] >= 32


@pytest.mark.parametrize("workers", [2, 8])
def test_rows_that_cost_the_time_are_for_whoever_is_free_first(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that come as they like, two thirds of what can be done: with all that waits in one batch, all of it is
    answered when its last row is, while another worker has nothing to do."""

    def late_ns() -> int:
        lane = LoadLane("m", 700 * US, 4 * MS, interval_ns=4_175 * US * 3 // (2 * workers), chance=random.Random(1))
        run([lane], workers, 20 * SECOND)
        return lane.wait_ns(0.99)

    parted_ns = late_ns()
    monkeypatch.setattr(placement, "among", lambda lane, workers_count: lane.rows_best)
    assert parted_ns <= 0.8 * late_ns()


def test_padding_to_allowed_sizes_wastes_little_where_rows_cost_the_time() -> None:
    lane = LoadLane("m", fixed_ns=200 * US, row_ns=MS, clients=5)
    run([lane], 1, policy=LanePolicy(batch_rows_max=8, batch_rows_allowed=(1, 4, 8)))
    padded = sum(min(size for size in (1, 4, 8) if size >= rows) for rows in lane.rows_of_batches)
    assert padded <= 1.1 * sum(lane.rows_of_batches)
