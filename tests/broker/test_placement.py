"""Where a batch goes. Rows of each table: what is known, what runs, what waits -> the decision.

Worker 1 runs the lane unless said otherwise; the others are idle or busy with another lane.
"""

from __future__ import annotations

import pytest

from ringserve.broker.placement import among, earliest, free_ns, place, rows_per_worker, share, spread
from ringserve.broker.policy import LanePolicy
from ringserve.broker.runtimes import RunTimes
from tests.broker.kit import MS, NOW, entry, lane_of, lease_of, worker_of

US = 1_000


@pytest.mark.parametrize(
    # spread_ns is 1 ms
    ("known", "expected_ns", "ran_ns", "spreads", "ask_after_ns"),
    [
        (True, 800 * US, 0, False, 6800 * US),  # free soon: wait; but not longer than it takes and 6 ms
        (True, 800 * US, 700 * US, False, 6100 * US),
        (True, 800 * US, 6700 * US, False, 100 * US),
        (True, 800 * US, 6800 * US, True, 0),  # overdue
        (True, 4 * MS, 0, True, 0),  # a long run: use another worker
        (True, 4 * MS, 2900 * US, True, 0),
        (True, 4 * MS, 3 * MS, False, 7 * MS),  # about to end: wait
        (False, 0, 0, False, 1 * MS),  # unknown: see whether it takes long
        (False, 0, 999 * US, False, 1 * US),
        (False, 0, 1 * MS, True, 0),  # it does
    ],
)
def test_spread(known: bool, expected_ns: int, ran_ns: int, spreads: bool, ask_after_ns: int) -> None:
    lane = lane_of(entry(1), run_ns=expected_ns if known else 0)
    workers = [worker_of(1, lease_of(lane, ran_ns=ran_ns, expected_ns=expected_ns)), worker_of(2)]
    ask_ns = spread(lane, workers, NOW)
    assert (ask_ns == 0) == spreads
    assert ask_ns == (NOW + ask_after_ns if ask_after_ns else 0)
    placement = place(lane, workers, NOW, credit_max=1, lanes_waiting=1)
    assert placement.worker is (workers[1] if spreads else None)


def test_a_lane_that_runs_nowhere_starts_at_once() -> None:
    lane = lane_of(entry(1))
    assert spread(lane, [worker_of(1)], NOW) == 0


def test_one_worker_that_is_free_soon_is_enough_to_wait_for() -> None:
    lane = lane_of(entry(1), run_ns=4 * MS)
    far = worker_of(1, lease_of(lane, ran_ns=0, expected_ns=4 * MS))
    near = worker_of(2, lease_of(lane, ran_ns=3500 * US, expected_ns=4 * MS))
    assert spread(lane, [far, near, worker_of(3)], NOW) > NOW
    assert spread(lane, [far, far, worker_of(3)], NOW) == 0


@pytest.mark.parametrize(
    ("recent", "idle", "chosen"),
    [
        ([], [2, 3], 2),  # never used: the preferred one
        ([3, 2], [2, 3], 3),  # the last used
        ([3, 2], [2, 4], 2),
        ([9], [4, 5], 4),  # one that is gone
    ],
)
def test_the_most_recently_used_idle_worker(recent: list[int], idle: list[int], chosen: int) -> None:
    lane = lane_of(entry(1))
    lane.recent = recent
    placement = place(lane, [worker_of(i) for i in idle], NOW, credit_max=2, lanes_waiting=1)
    assert placement.worker is not None
    assert placement.worker.worker_id == chosen


@pytest.mark.parametrize(
    # fixed and row time of a batch, rows waiting, idle workers -> rows of the largest part
    ("fixed_ns", "row_ns", "rows", "workers", "rows_max", "expected"),
    [
        (60 * US, 6 * US, 128, 2, 128, 128),  # cheap: one batch
        (100 * US, 4 * MS, 2, 2, 128, 1),  # row time dominates: one each
        (100 * US, 4 * MS, 8, 2, 128, 4),
        (100 * US, 4 * MS, 8, 8, 128, 1),
        (100 * US, 4 * MS, 9, 8, 128, 2),  # no ninth worker: two rows each for some
        (20 * MS, 100 * US, 64, 4, 128, 64),  # the batch itself costs, not its rows
        (2 * MS, 1 * MS, 8, 4, 128, 2),
        (3 * MS, 1 * MS, 8, 4, 128, 4),  # a third saves 1 ms; the fourth's rows would cost less than its fixed time
        (0, 4 * MS, 40, 2, 16, 16),  # more than all can take: full batches
        (0, 4 * MS, 1, 4, 128, 1),
    ],
)
def test_share(fixed_ns: int, row_ns: int, rows: int, workers: int, rows_max: int, expected: int) -> None:
    lane = lane_of(entry(1, rows), batch_rows_max=rows_max)
    assert lane.rows_best == rows_max
    lane.times.fixed_ns, lane.times.row_ns = fixed_ns, row_ns
    assert min(rows_max, share(lane, workers)) == min(rows_max, expected)


@pytest.mark.parametrize(
    # what a batch and a row take, rows waiting, workers, idle or not -> rows of the next batch
    ("fixed_ns", "row_ns", "rows", "workers", "rows_max", "expected"),
    [
        (100 * US, 4 * MS, 2, 2, 8, 1),
        (100 * US, 4 * MS, 7, 2, 8, 4),
        (100 * US, 4 * MS, 7, 8, 8, 1),
        (100 * US, 4 * MS, 9, 8, 8, 2),
        (100 * US, 4 * MS, 40, 2, 8, 8),  # more than all take at once
        (100 * US, 4 * MS, 1, 2, 8, 8),  # nothing to share
        (100 * US, 4 * MS, 7, 1, 8, 8),  # and nobody to share it with
        (2 * MS, 4 * MS, 8, 2, 8, 4),  # the batch itself costs something
        (2 * MS + 1, 4 * MS, 8, 2, 8, 8),  # too much to pay it twice as often
        (100 * US, 500 * US, 4, 2, 8, 8),  # there is no more than 1 ms to be saved
        (100 * US, 501 * US, 4, 2, 8, 2),
        (100 * US, 900 * US, 14, 2, 8, 8),  # 7 of 14, where 8 would go
    ],
)
def test_among(fixed_ns: int, row_ns: int, rows: int, workers: int, rows_max: int, expected: int) -> None:
    lane = lane_of(entry(1, rows), batch_rows_max=64)
    assert among(lane, workers) == 64  # while nothing is known
    lane.times.fixed_ns, lane.times.row_ns = fixed_ns, row_ns
    lane.rows_best = rows_max
    assert among(lane, workers) == rows_max
    lane.knows_best = True
    assert among(lane, workers) == expected
    lane.times.turnaround_ns = row_ns / 2 - fixed_ns + 1  # is paid for a batch, too
    assert among(lane, workers) == rows_max


def test_parts_have_allowed_sizes() -> None:
    lane = lane_of(entry(1, 9), batch_rows_max=8, batch_rows_allowed=(4, 8))
    lane.times.row_ns, lane.knows_best = 4 * MS, True
    assert among(lane, 4) == 4


@pytest.mark.parametrize(("lanes_waiting", "rows"), [(1, 4), (2, 8)])
def test_a_part_for_a_worker_that_is_busy_yet(lanes_waiting: int, rows: int) -> None:
    """Where another lane waits, there is one worker for each of them."""
    lane = lane_of(entry(1, 8), batch_rows_max=64)
    lane.times.row_ns, lane.rows_best, lane.knows_best = 4 * MS, 8, True
    workers = [worker_of(i, lease_of(lane, ran_ns=ran * MS, expected_ns=20 * MS)) for i, ran in ((1, 3), (2, 19))]
    placement = place(lane, workers, NOW, credit_max=2, lanes_waiting=lanes_waiting)
    assert (placement.worker, placement.rows_max) == (workers[1], rows)
    idle = [worker_of(3), worker_of(4)]
    placement = place(lane, [*workers, *idle], NOW, credit_max=2, lanes_waiting=lanes_waiting)
    assert (placement.worker, placement.rows_max) == (idle[0], rows // 2)
    del workers[1].leases[0]
    placement = place(lane, workers, NOW, credit_max=2, lanes_waiting=lanes_waiting)
    assert (placement.worker, placement.rows_max) == (workers[1], rows)


def test_nothing_is_shared_out_while_nothing_is_known() -> None:
    assert rows_per_worker(100, 128, 4, RunTimes(), MS) == 128


@pytest.mark.parametrize(
    # the only worker runs another lane's batch: may it be sent this lane's batch ahead? prefetch 1 ms, when full 5 ms
    ("expected_ns", "ran_ns", "full", "credit", "solo", "sent", "ask_after_ns"),
    [
        (4 * MS, 3500 * US, False, 2, False, True, 0),  # about to end
        (4 * MS, 1 * MS, False, 2, False, False, 2 * MS),  # too early: asked again 1 ms before its end
        (4 * MS, 0, True, 2, False, True, 0),  # full: nothing to gain by waiting
        (50 * MS, 0, True, 2, False, False, 45 * MS),  # full, but a long time to go
        (500 * US, 0, False, 2, False, False, 0),  # over before the next batch is worth closing
        (500 * US, 0, True, 2, False, True, 0),
        (4 * MS, 3500 * US, False, 1, False, False, 0),  # no credit
        (4 * MS, 3500 * US, False, 2, True, False, 0),  # it may end its worker
        (0, 0, True, 2, False, False, 0),  # unknown
        (4 * MS, 20 * MS, True, 2, False, False, 0),  # overdue: perhaps hung
    ],
)
def test_prefetch(
    expected_ns: int, ran_ns: int, full: bool, credit: int, solo: bool, sent: bool, ask_after_ns: int
) -> None:
    lane, other = lane_of(entry(1), batch_rows_max=1 if full else 128), lane_of()
    worker = worker_of(1, lease_of(other, ran_ns=ran_ns, expected_ns=expected_ns, solo=solo))
    placement = place(lane, [worker], NOW, credit_max=credit, lanes_waiting=1)
    assert placement.worker is (worker if sent else None)
    assert placement.ask_ns == (NOW + ask_after_ns if ask_after_ns else 0)
    assert placement.waits_for == (() if sent else (worker,))


def test_nobody_asks_again_and_again_behind_an_overdue_run() -> None:
    lane, other = lane_of(entry(1)), lane_of()
    overdue, behind = (lease_of(other, ran_ns=5 * MS, expected_ns=4 * MS) for _ in range(2))
    placement = place(lane, [worker_of(1, overdue, behind)], NOW, credit_max=3, lanes_waiting=1)
    assert (placement.worker, placement.ask_ns) == (None, 0)  # the Done of the overdue run wakes it
    overdue.started_ns = NOW
    assert place(lane, [worker_of(1, overdue, behind)], NOW, credit_max=3, lanes_waiting=1).ask_ns == NOW + 7 * MS


def test_a_full_batch_goes_behind_a_short_run_before_it_takes_another_worker() -> None:
    lane = lane_of(entry(1, 8), batch_rows_max=8, run_ns=50 * US)
    mine, idle = worker_of(1, lease_of(lane, ran_ns=0, expected_ns=400 * US)), worker_of(2)
    assert place(lane, [mine, idle], NOW, credit_max=2, lanes_waiting=1).worker is mine
    mine.leases.append(lease_of(lane, ran_ns=0, expected_ns=400 * US))
    assert place(lane, [mine, idle], NOW, credit_max=2, lanes_waiting=1).worker is idle


def test_a_batch_that_is_not_full_leaves_the_other_worker_alone() -> None:
    lane = lane_of(entry(1, 7), batch_rows_max=8, run_ns=50 * US)
    mine, idle = worker_of(1, lease_of(lane, ran_ns=0, expected_ns=400 * US)), worker_of(2)
    assert place(lane, [mine, idle], NOW, credit_max=2, lanes_waiting=1).worker is None


@pytest.mark.parametrize(("waited_ns", "goes"), [(5 * MS, True), (5 * MS - 1, False)])
def test_a_batch_whose_time_is_over_does_not_wait_for_its_own_worker(waited_ns: int, goes: bool) -> None:
    lane = lane_of(
        entry(1, arrived_ns=NOW - waited_ns), run_ns=50 * US, batching="timeout", batch_wait_ns_max=5 * MS
    )
    mine, idle = worker_of(1, lease_of(lane, ran_ns=0, expected_ns=400 * US)), worker_of(2)
    placement = place(lane, [mine, idle], NOW, credit_max=1, lanes_waiting=1)
    assert placement.worker is (idle if goes else None)


def test_a_solo_request_wants_a_worker_to_itself() -> None:
    lane, other = lane_of(), lane_of()
    lane.put_back([entry(1)], solo=True)
    busy = worker_of(1, lease_of(other, ran_ns=3900 * US, expected_ns=4 * MS))
    placement = place(lane, [busy], NOW, credit_max=2, lanes_waiting=1)
    assert placement.worker is None
    assert placement.waits_for == (busy,)
    idle = worker_of(2)
    assert place(lane, [busy, idle], NOW, credit_max=2, lanes_waiting=1).worker is idle


def test_free_ns_adds_up_what_a_worker_holds() -> None:
    lane = lane_of(run_ns=MS)
    first, second = (lease_of(lane, ran_ns=MS, expected_ns=3 * MS) for _ in range(2))
    assert free_ns([], NOW) == NOW
    assert free_ns([first], NOW) == NOW + 2 * MS
    assert free_ns([first, second], NOW) == NOW + 5 * MS
    assert free_ns([lease_of(lane, ran_ns=9 * MS, expected_ns=3 * MS)], NOW) == NOW


@pytest.mark.parametrize(("a", "b", "first"), [(0, 0, 0), (5, 0, 5), (0, 5, 5), (4, 5, 4)])
def test_earliest_takes_zero_for_never(a: int, b: int, first: int) -> None:
    assert earliest(a, b) == first


def test_defaults_are_those_of_the_tables() -> None:
    policy = LanePolicy()
    assert (policy.spread_ns, policy.prefetch_ns, policy.prefetch_full_ns) == (MS, MS, 5 * MS)
