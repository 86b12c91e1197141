"""The core's batches beyond one lane's rules: how many run at once, how large they get, who is told of them."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import LaneSpec
from ringserve.broker.policy import LanePolicy
from tests.broker.kit import MS, NOW, Bench, sent, spec_of

# ------------------------------------------------------------------------------------------------- batches at once


@pytest.mark.parametrize(("at_once", "running"), [(0, 4), (1, 1), (3, 3), (9, 4)])
def test_6_1_so_many_batches_run_at_once_over_all_models(at_once: int, running: int) -> None:
    bench = Bench(4, credit_max=1, batches_at_once_max=at_once)
    keys = [bench.lane(spec_of(signature=f"s{i}")) for i in range(6)]
    started = [execute for i, key in enumerate(keys) for _, execute in bench.submit((i, 1), key=key).executes]
    assert len(started) == running
    waiting = len(keys) - running
    while started:  # as one ends the next begins, and all are served
        execute = started.pop(0)
        (worker_id,) = [lease.worker_id for lease in bench.core._leases if lease.batch_id == execute.batch_id]
        turn = bench.done(worker_id, execute.batch_id)
        assert len(turn.executes) == (1 if waiting else 0)
        waiting -= len(turn.executes)
        started += [execute for _, execute in turn.executes]
        assert bench.core._leases.running_count == len(started)
    assert bench.counted("done") == 6


def test_a_worker_that_dies_makes_room() -> None:
    bench = Bench(2, credit_max=1, batches_at_once_max=1)
    other = bench.lane(spec_of(signature="other"))
    ((worker_id, _),) = bench.submit((1, 1)).executes
    assert not bench.submit((2, 1), key=other).executes
    turn = bench.left(worker_id)
    assert len(turn.executes) == 1


def test_nothing_is_sent_ahead_of_a_lane_that_waits_for_its_turn_to_start() -> None:
    """Or the worker that runs would be kept running by its own lane, and the other one's would never start."""
    bench = Bench(0, batches_at_once_max=1)
    bench.core.worker_joined(10, 0, {("m", 1)})
    bench.core.worker_joined(11, 1, {("n", 1)})
    other = bench.lane(spec_of(model="n"))
    bench.learn(10 * MS)  # so that its next batch could be sent ahead
    ((_, first),) = bench.submit((1, 1)).executes
    bench.submit((2, 1))
    bench.submit((3, 1), key=other)  # has had nothing so far: its turn
    assert not bench.turn(after_ns=int(9.5 * MS)).executes
    ((worker_id, execute),) = bench.done(10, first.batch_id, 10 * MS).executes
    assert (worker_id, execute.lane_key) == (11, other)
    ((worker_id, execute),) = bench.done(11, execute.batch_id).executes
    assert (worker_id, execute.lane_key) == (10, bench.key)


def test_the_limit_can_change() -> None:
    bench = Bench(2, credit_max=1, batches_at_once_max=1)
    other = bench.lane(spec_of(signature="other"))
    bench.submit((1, 1))
    assert not bench.submit((2, 1), key=other).executes
    bench.core.set_policies(LanePolicy(batches_at_once_max=2), {})
    assert len(bench.turn().executes) == 1


# ------------------------------------------------------------------------------------------------------ large enough


@pytest.mark.parametrize(
    ("fixed_ns", "row_ns", "waiting", "batch"),
    [
        (0, 4 * MS, 20, 3),  # rows cost the time: three go, the others need not wait for them
        (10 * MS, 1 * MS, 20, 20),
        (60_000, 6_000, 100, 100),
    ],
)
def test_a_batch_has_no_more_rows_than_make_it_worth(fixed_ns: int, row_ns: int, waiting: int, batch: int) -> None:
    bench = Bench(1, credit_max=1)
    for rows in (1, 16):
        bench.learn(fixed_ns + rows * row_ns, rows=rows)
    ((_, execute),) = bench.submit((1, 1)).executes
    bench.submit(*((i, 1) for i in range(2, 2 + waiting)))
    ((_, parts),) = sent(bench.done(10, execute.batch_id, fixed_ns + row_ns))
    assert len(parts) == batch


@pytest.mark.parametrize("policy", [{"batching": "timeout"}, {"batch_enough_ns": 0}])
def test_the_clocks_batches_are_as_large_as_configured(policy: dict[str, object]) -> None:
    bench = Bench(1, credit_max=1, **policy)
    for rows in (1, 16):
        bench.learn(rows * 4 * MS, rows=rows)
    ((_, execute),) = bench.submit((1, 1)).executes
    bench.submit(*((i, 1) for i in range(2, 22)))
    ((_, parts),) = sent(bench.done(10, execute.batch_id, 4 * MS))
    assert len(parts) == 20


def test_a_request_that_fits_the_limit_is_not_cut_for_it() -> None:
    bench = Bench(1, credit_max=1, batch_rows_max=16)
    for rows in (1, 16):
        bench.learn(rows * 4 * MS, rows=rows)
    ((_, parts),) = sent(bench.submit((1, 12), (2, 1)))
    assert parts == [(1, 12, 0)]


# ---------------------------------------------------------------------------------------------------------- observer


class Notes:
    """Writes down what an Observer is told."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, int, list[int], list[int], int]] = []

    def batch_done(
        self, lane: LaneSpec, rows: int, rows_run: int, parts: list[list[int]], waits_ns: list[int], run_ns: int
    ) -> None:
        self.done.append((lane.signature, rows, rows_run, [part[2] for part in parts], waits_ns, run_ns))


def test_an_observer_is_told_of_every_batch() -> None:
    bench = Bench(1, credit_max=1, batch_rows_allowed=(1, 8))
    notes = bench.core.observer = Notes()
    ((_, first),) = bench.submit((1, 1)).executes
    bench.submit((2, 2))
    bench.now_ns += 3 * MS
    bench.submit((3, 1))
    bench.now_ns += MS
    ((_, second),) = bench.done(10, first.batch_id, 4 * MS).executes
    bench.done(10, second.batch_id, 5 * MS)
    assert notes.done == [("s", 1, 1, [1], [0], 4 * MS), ("s", 3, 8, [2, 1], [4 * MS, MS], 5 * MS)]


def test_a_request_counts_with_the_batch_that_answers_it_however_often_it_goes_out() -> None:
    bench = Bench(2, credit_max=1)
    notes = bench.core.observer = Notes()
    ((worker_id, _),) = bench.submit((1, 1)).executes
    ((worker_id, execute),) = bench.left(worker_id).executes
    assert notes.done == []
    bench.submit((2, 2), (3, 1), (4, 1))
    ((_, execute),) = bench.done(worker_id, execute.batch_id, 4 * MS).executes
    bench.now_ns += MS
    ((_, execute),) = bench.done(worker_id, execute.batch_id, 5 * MS, parts_left=2).executes  # it ran the first only
    bench.now_ns += MS
    ((_, execute),) = bench.done(worker_id, execute.batch_id, 6 * MS, parts_left=2).executes  # together they failed
    bench.done(worker_id, execute.batch_id, 7 * MS)
    assert notes.done == [
        ("s", 1, 1, [1], [0], 4 * MS),
        ("s", 2, 2, [2], [0], 5 * MS),
        ("s", 0, 0, [], [], 6 * MS),
        ("s", 2, 2, [1, 1], [2 * MS, 2 * MS], 7 * MS),
    ]
    assert [bench.counted(name) for name in ("batches", "rows", "done", "retried")] == [3, 5, 4, 1]


def test_what_a_batch_took_that_failed_is_no_run_time_and_is_paid_for() -> None:
    bench = Bench(1, credit_max=1)
    bench.learn(2 * MS)
    lane = bench.core._lanes.get(bench.key)
    assert lane is not None
    ((_, execute),) = bench.submit((1, 1)).executes
    before, attained_ns = [lane.predict(1), lane.predict(64)], lane.attained_ns - lane.predict(1)
    bench.done(10, execute.batch_id, 50 * MS, parts_left=1)
    assert [lane.predict(1), lane.predict(64)] == before
    assert lane.attained_ns - lane.predict(1) == attained_ns + 50 * MS  # the request goes again, and is charged again


def test_a_batch_is_full_when_as_many_wait_as_a_worker_runs_of_one() -> None:
    bench = Bench(1, credit_max=1, batching="timeout", batch_wait_ns_max=10 * MS)
    bench.submit((1, 1), (2, 1), (3, 1))
    ((_, execute),) = bench.turn(10 * MS).executes
    turn = bench.done(10, execute.batch_id, parts_left=3, parts_max=1)
    bench.submit((4, 1))
    for request_id in (1, 2, 3, 4):
        assert sent(turn) == [(10, [(request_id, 1, 0)])]
        turn = bench.done(10, turn.executes[0][1].batch_id, parts_max=1)


def test_queues() -> None:
    bench = Bench(1, credit_max=1)
    idle, busy = (bench.lane(spec_of(signature=name)) for name in ("idle", "busy"))
    ((_, execute),) = bench.submit((1, 1), key=idle).executes
    bench.done(10, execute.batch_id)
    bench.submit((2, 3))
    bench.submit((3, 2), (4, 5), key=busy)
    bench.now_ns = NOW + 7 * MS
    queues = {queue.lane.signature: queue for queue in bench.core.queues(bench.now_ns)}
    assert set(queues) == {"s", "busy"}
    assert queues["s"][1:5] == (0, 0, 0, 1)
    assert queues["busy"][1:5] == (2, 7, 7 * MS, 0)
