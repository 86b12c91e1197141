"""How requests end other than by running: deadlines, cancels, deaths, hangs, nobody to serve them."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.messages import Code
from tests.broker.kit import FRONTEND, MS, NOW, OTHER_FRONTEND, Bench, sent, spec_of, told

SECOND = 1_000 * MS


def busy_bench(workers: int = 1, **policy: Any) -> tuple[Bench, int]:
    """All workers run something; returns the batch id of the first one's."""
    bench = Bench(workers, credit_max=1, **policy)
    batch_id = 0
    for i in range(workers):
        bench.now_ns += 2 * MS  # so that the lane, whose run time is unknown, takes another worker
        ((_, execute),) = bench.submit((800 + i, 1)).executes
        batch_id = batch_id or execute.batch_id
    return bench, batch_id


def order_of_the_rest(bench: Bench) -> list[list[int]]:
    """A new worker runs what is left, batch by batch: the requests of each."""
    bench.core.worker_joined(11, 0, {("m", 1)})
    turn = bench.turn()
    order = []
    while turn.executes:
        ((worker_id, execute),) = turn.executes
        order.append([part[1] for part in execute.parts])
        turn = bench.done(worker_id, execute.batch_id)
    return order


def test_an_expired_request_is_told_when_wake_ns_says() -> None:
    bench, _ = busy_bench()
    turn = bench.submit((1, 1, bench.now_ns + 5 * MS), (2, 1))
    assert turn.wake_ns == bench.now_ns + 5 * MS
    assert not bench.turn(5 * MS - 1).failed
    turn = bench.turn(1)
    text = "Timed out waiting for notification: the request was still queued"
    assert turn.failed == {FRONTEND: [[1, Code.DEADLINE_EXCEEDED, text]]}
    assert (bench.counted("expired"), bench.counted("queued")) == (1, 1)


def test_an_expired_request_is_not_run_even_between_two_sweeps() -> None:
    bench, batch_id = busy_bench()
    bench.submit((1, 1, bench.now_ns + MS), (2, 1, bench.now_ns + MS + 1), (3, 1))
    bench.turn(MS)  # sweeps; the next may come 1 ms later
    bench.now_ns += 10
    turn = bench.done(10, batch_id)
    assert sent(turn) == [(10, [(3, 1, 0)])]
    assert told(turn) == [(2, Code.DEADLINE_EXCEEDED)]


@pytest.mark.parametrize(("others", "batch"), [(2, [2, 4]), (1, [2, 3])])
def test_a_request_that_can_no_longer_make_it_leaves_its_place_to_another(others: int, batch: list[int]) -> None:
    bench = Bench(credit_max=1, batch_rows_max=2)
    bench.learn(10 * MS)
    ((_, execute),) = bench.submit((1, 1)).executes
    bench.submit((2, 1), (3, 1, bench.now_ns + 100 * MS), *[(4, 1)] * (others - 1))  # a batch of 2 takes 20 ms
    bench.now_ns += 85 * MS  # and the one before it much longer than predicted
    turn = bench.done(10, execute.batch_id, 10 * MS)
    assert sent(turn) == [(10, [(request_id, 1, 0) for request_id in batch])]
    assert told(turn) == ([] if 3 in batch else [(3, Code.DEADLINE_EXCEEDED)])


def test_cancel_drops_what_waits_and_leaves_what_runs() -> None:
    bench, batch_id = busy_bench()
    bench.submit((1, 1), (2, 1), (3, 1))
    bench.core.cancel(FRONTEND, [[bench.key, 2], [bench.key, 800], [b"unknown", 1], [bench.key, 99]], bench.now_ns)
    assert told(bench.turn()) == [(2, Code.CANCELLED)]
    assert sent(bench.done(10, batch_id)) == [(10, [(1, 1, 0), (3, 1, 0)])]
    assert (bench.counted("done"), bench.counted("cancelled")) == (1, 1)


def test_cancel_is_by_frontend() -> None:
    bench, _ = busy_bench()
    bench.core.frontend_joined(OTHER_FRONTEND)
    bench.submit((1, 1))
    bench.core.cancel(OTHER_FRONTEND, [[bench.key, 1]], bench.now_ns)
    assert not bench.turn().failed


def test_a_split_request_is_told_of_its_failure_when_no_part_of_it_runs() -> None:
    bench = Bench(1, credit_max=1, batch_rows_max=8)
    ((_, execute),) = bench.submit((1, 20)).executes
    bench.core.cancel(FRONTEND, [[bench.key, 1]], bench.now_ns)
    assert not bench.turn().failed  # a worker reads its records
    assert bench.counted("queued_rows") == 0
    assert told(bench.done(10, execute.batch_id)) == [(1, Code.CANCELLED)]
    assert (bench.counted("cancelled"), bench.counted("split")) == (1, 0)


def test_a_frontend_that_left_has_nothing_waiting_and_is_told_nothing() -> None:
    bench, batch_id = busy_bench(batch_rows_max=8)
    bench.core.frontend_joined(OTHER_FRONTEND)
    bench.submit((1, 1, bench.now_ns + MS), (2, 20))
    bench.submit((3, 1), frontend_id=OTHER_FRONTEND)
    bench.core.frontend_left(FRONTEND)
    assert sent(bench.done(10, batch_id)) == [(10, [(3, 1, 0)])]  # its batch was left to run
    assert (bench.counted("dropped"), bench.counted("done"), bench.counted("split")) == (2, 1, 0)
    assert not bench.turn(10 * MS).failed
    assert not bench.submit((5, 1)).failed
    assert bench.counted("submits_ignored") == 1


# ---------------------------------------------------------------------------------------------------- worker deaths


def test_a_lost_batch_goes_back_to_the_front_and_runs_one_by_one() -> None:
    bench, batch_id = busy_bench()
    bench.submit((1, 1), (2, 1))
    bench.done(10, batch_id)
    bench.submit((3, 1))
    bench.left(10)
    assert order_of_the_rest(bench) == [[1], [2], [3]]
    assert (bench.counted("retried"), bench.counted("done")) == (2, 4)


def test_the_batch_behind_the_one_that_ran_is_not_blamed() -> None:
    bench = Bench(1, batch_rows_max=2)
    bench.learn(400_000, rows=2)
    assert sent(bench.submit((1, 1), (2, 1), (3, 1), (4, 1))) == [
        (10, [(1, 1, 0), (2, 1, 0)]),
        (10, [(3, 1, 0), (4, 1, 0)]),
    ]
    bench.left(10)
    assert order_of_the_rest(bench) == [[1], [2], [3, 4]]


def test_workers_that_leave_with_their_pool_are_not_the_requests_fault() -> None:
    bench = Bench()
    bench.submit((1, 1), (2, 1))
    for worker_id in (10, 11, 12):
        bench.left(worker_id, blameless=True)
        bench.core.worker_joined(worker_id + 1, 0, {("m", 1)})
        # Together again, and not one by one as suspects are.
        assert sent(bench.turn()) == [(worker_id + 1, [(1, 1, 0), (2, 1, 0)])]
    assert bench.counted("failed") == 0


def test_a_lease_that_ran_out_is_held_against_it_though_the_pool_is_gone() -> None:
    bench = Bench(lease_ns_max=50 * MS)
    bench.submit((1, 1))
    bench.turn(50 * MS)
    bench.left(10, blameless=True)
    bench.core.worker_joined(11, 0, {("m", 1)})
    bench.turn()
    (failure,) = bench.left(11).failed[FRONTEND]
    assert failure[:2] == [1, Code.INTERNAL]


def test_a_request_that_ended_two_workers_is_not_tried_again() -> None:
    bench = Bench()
    bench.submit((1, 1), (2, 1))
    bench.left(10)  # 1 and 2 are suspects
    bench.core.worker_joined(11, 0, {("m", 1)})
    assert sent(bench.turn()) == [(11, [(1, 1, 0)])]
    turn = bench.left(11)
    (failure,) = turn.failed[FRONTEND]
    assert failure[:2] == [1, Code.INTERNAL]
    assert "ended two worker processes" in failure[2]
    bench.core.worker_joined(12, 0, {("m", 1)})
    turn = bench.turn()
    assert sent(turn) == [(12, [(2, 1, 0)])]
    bench.done(12, turn.executes[0][1].batch_id)
    assert (bench.counted("failed"), bench.counted("done")) == (1, 1)


def test_surviving_clears_a_suspect() -> None:
    bench = Bench()
    bench.submit((1, 1))
    bench.left(10)
    bench.core.worker_joined(11, 0, {("m", 1)})
    ((_, execute),) = bench.turn().executes
    bench.done(11, execute.batch_id)
    bench.submit((1, 1))  # the same id anew
    bench.left(11)
    assert not bench.turn().failed


def test_nothing_is_sent_to_the_worker_of_a_suspect() -> None:
    bench = Bench(batch_rows_max=2)
    bench.learn(400_000, rows=2)
    bench.submit((1, 1))
    bench.left(10)
    bench.core.worker_joined(11, 0, {("m", 1)})
    assert sent(bench.turn()) == [(11, [(1, 1, 0)])]
    assert not bench.submit((2, 2), (3, 2)).executes


def test_a_lost_part_is_run_again_and_the_others_count() -> None:
    bench = Bench(2, batch_rows_max=8, credit_max=1)
    turn = bench.submit((1, 16))
    (first, first_execute), (second, second_execute) = turn.executes
    bench.done(second, second_execute.batch_id)
    ((other, again),) = bench.left(first).executes
    assert (other, again.parts) == (second, first_execute.parts)
    assert (bench.counted("done"), bench.counted("split")) == (0, 1)
    bench.done(other, again.batch_id)
    assert (bench.counted("done"), bench.counted("split")) == (1, 0)


def test_a_lost_batch_of_a_frontend_that_left_is_not_run_again() -> None:
    bench = Bench(batch_rows_max=8)
    bench.submit((1, 1), (2, 7))
    bench.core.frontend_left(FRONTEND)
    bench.left(10)
    bench.core.worker_joined(11, 0, {("m", 1)})
    turn = bench.turn()
    assert (turn.executes, turn.failed) == ([], {})
    assert (bench.counted("dropped"), bench.counted("retried")) == (2, 0)


def test_a_done_after_the_news_of_the_death_is_ignored() -> None:
    bench = Bench()
    ((_, execute),) = bench.submit((1, 1)).executes
    bench.left(10)
    bench.done(10, execute.batch_id)
    assert (bench.counted("dones_ignored"), bench.counted("queued")) == (1, 1)


def test_a_hung_worker_is_ended_once_and_its_batch_waits_for_that() -> None:
    bench = Bench(2, lease_ns_max=50 * MS)
    turn = bench.submit((1, 1))
    ((hung, _),) = turn.executes
    assert turn.wake_ns == bench.now_ns + 50 * MS
    assert bench.turn(50 * MS - 1).kills == []
    assert bench.turn(1).kills == [hung]
    assert bench.turn(100 * MS).kills == []
    assert bench.counted("leased") == 1  # it may still be writing its results
    ((other, _),) = bench.left(hung).executes
    assert other != hung
    assert bench.counted("kills") == 1


@pytest.mark.parametrize("holds", [False, True])
def test_a_draining_worker_takes_nothing_that_others_can_and_is_named_when_it_holds_nothing(holds: bool) -> None:
    bench = Bench()
    turn = bench.submit((1, 1)) if holds else bench.turn()
    bench.core.worker_joined(11, 0, {("m", 1)})
    bench.core.worker_draining(10, bench.now_ns)
    drained = bench.submit((2, 1))
    assert sent(drained) == [(11, [(2, 1, 0)])]
    if holds:
        assert drained.drained == []
        drained = bench.done(10, turn.executes[0][1].batch_id)
    assert drained.drained == [10]
    assert bench.turn().drained == []


def test_a_worker_that_never_took_batches_may_leave() -> None:
    bench = Bench()
    assert bench.left(99) == ([], {}, [], 0, [], {}, [])


# -------------------------------------------------------------------------------------------------- nobody serves it


def test_an_unknown_version_is_not_found() -> None:
    bench = Bench()
    turn = bench.submit((1, 1), key=bench.lane(spec_of(version=5)))
    assert turn.failed == {FRONTEND: [[1, Code.NOT_FOUND, "Servable not found for request: Specific(m, 5)"]]}
    assert bench.counted("refused") == 1


def test_a_version_that_is_to_be_served_is_waited_for() -> None:
    bench = Bench(0, no_worker_ns_max=10 * SECOND)
    bench.core.set_versions({("m", 1)})
    turn = bench.submit((1, 1))
    assert not turn.failed
    assert turn.wake_ns == NOW + 10 * SECOND
    bench.core.worker_joined(11, 0, {("m", 1)})
    assert sent(bench.turn()) == [(11, [(1, 1, 0)])]


def test_requests_wait_for_a_replacement_and_not_for_ever() -> None:
    bench = Bench(no_worker_ns_max=10 * SECOND)
    bench.left(10)
    bench.now_ns += SECOND
    turn = bench.submit((1, 1))
    assert not turn.failed
    assert turn.wake_ns == NOW + 10 * SECOND
    turn = bench.turn(9 * SECOND)
    assert told(turn) == [(1, Code.UNAVAILABLE)]
    assert "No worker has served model m version 1 for 10.0 s" in turn.failed[FRONTEND][0][2]
    assert told(bench.submit((2, 1))) == [(2, Code.UNAVAILABLE)]  # known to be down: no new wait
    bench.core.worker_joined(11, 0, {("m", 1)})
    assert sent(bench.submit((3, 1))) == [(11, [(3, 1, 0)])]


def test_what_waits_for_a_version_that_is_no_longer_served_is_told_so() -> None:
    bench = Bench()
    bench.left(10)
    bench.submit((1, 1))
    bench.core.set_versions({("m", 2)})
    assert told(bench.turn()) == [(1, Code.NOT_FOUND)]
    assert told(bench.submit((2, 1))) == [(2, Code.NOT_FOUND)]


def test_who_asks_for_a_version_that_was_replaced_shows_that_a_frontend_knows_too_little() -> None:
    bench = Bench()
    bench.core.set_versions({("m", 1)})
    bench.left(10)
    bench.core.set_versions({("m", 2)})
    assert told(bench.submit((1, 1), key=bench.lane(spec_of(version=5)))) == [(1, Code.NOT_FOUND)]
    assert not bench.core.take_asked_late()
    turn = bench.submit((2, 1))
    assert told(turn) == [(2, Code.UNAVAILABLE)]
    assert "was replaced while this request was on its way, try again" in turn.failed[FRONTEND][0][2]
    assert bench.core.take_asked_late()
    assert not bench.core.take_asked_late()


def test_deadlines_hold_while_nobody_serves() -> None:
    bench = Bench()
    bench.left(10)
    bench.submit((1, 1, bench.now_ns + 5 * MS))
    assert told(bench.turn(5 * MS)) == [(1, Code.DEADLINE_EXCEEDED)]


# -------------------------------------------------------------------------------------------------------- submit again


def test_resubmit_takes_only_what_is_neither_queued_nor_leased() -> None:
    bench, batch_id = busy_bench()
    bench.submit((1, 1))
    group = [bench.key, [[800, 1, 0, 64], [1, 1, 0, 64], [2, 1, 0, 64]]]
    bench.core.resubmit(FRONTEND, [group], bench.now_ns)
    assert bench.counted("resubmits_known") == 2
    assert sent(bench.done(10, batch_id)) == [(10, [(1, 1, 0), (2, 1, 0)])]


@pytest.mark.parametrize("late", [False, True])
def test_of_a_split_request_runs_again_what_a_worker_may_have_kept_to_itself(late: bool) -> None:
    """Its part was over, for the broker; whether its frontend has the Result only that knows, and it asks again. late:
    nothing of the request is held any more by then."""
    bench = Bench(2, batch_rows_max=32)
    turns = [bench.submit((1, 64)), bench.turn()]
    lost = {worker_id: parts for turn in turns for worker_id, parts in sent(turn)}[10]
    ids = {worker_id: execute.batch_id for turn in turns for worker_id, execute in turn.executes}
    bench.done(10, ids[10], rows=32)
    if late:
        bench.done(11, ids[11], rows=32)
    assert sent(bench.left(10)) == []
    for _ in range(2):  # another worker may leave, too
        bench.core.resubmit(FRONTEND, [[bench.key, [[1, 64, 0, 64]]]], bench.now_ns)
    turns = [bench.turn()]
    if not late:
        turns += [bench.done(11, ids[11], rows=32)]
        assert [parts for turn in turns for _, parts in sent(turn)] == [lost]
        assert (bench.counted("done"), bench.counted("split")) == (0, 1)
    while turns[-1].executes:
        turns += [bench.done(11, execute.batch_id, rows=32) for _, execute in turns[-1].executes]
    again = [part for turn in turns for _, parts in sent(turn) for part in parts]
    assert again == (lost if not late else [(1, 32, 0), (1, 32, 32)])
    assert (bench.counted("done"), bench.counted("split")) == (1 + late, 0)


def test_resubmit_knows_a_split_request_by_its_parts() -> None:
    bench = Bench(1, credit_max=1, batch_rows_max=8)
    bench.submit((1, 20))
    bench.core.resubmit(FRONTEND, [[bench.key, [[1, 20, 0, 64]]]], bench.now_ns)
    assert (bench.counted("resubmits_known"), bench.counted("submitted")) == (1, 1)
