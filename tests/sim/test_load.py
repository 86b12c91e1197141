"""What the broker's policies come to under load, in simulated time."""

from __future__ import annotations

import pytest

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
