"""Requests that nobody waits for any more, in the core: their slots are free at once, and they never run again.

Cancelled and expired ones are counted by where they were: arriving, queued, loading, running.
"""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.messages import Code
from tests.broker.kit import FRONTEND, MS, OTHER_FRONTEND, Bench, sent, spec_of, told


def cancel(bench: Bench, *request_ids: int, key: bytes | None = None, frontend_id: int = FRONTEND) -> None:
    bench.core.cancel(frontend_id, [[key or bench.key, request_id] for request_id in request_ids], bench.now_ns)


def busy(**policy: Any) -> tuple[Bench, int]:
    """One worker runs request 800; returns its batch."""
    bench = Bench(credit_max=1, **policy)
    ((_, execute),) = bench.submit((800, 1)).executes
    return bench, execute.batch_id


def test_a_queue_full_of_cancelled_requests_is_an_empty_queue() -> None:
    for size in (1, 7, 300):
        bench, batch_id = busy(queue_requests_max=size, queue_rows_max=10 * size, batch_rows_max=1_000)
        bench.submit(*((number, 10) for number in range(1, size + 1)))
        assert told(bench.submit((900, 1))) == [(900, Code.UNAVAILABLE)], "it is full"
        cancel(bench, *range(1, size + 1))
        turn = bench.submit((901, 10))
        assert told(turn) == [(number, Code.CANCELLED) for number in range(1, size + 1)]
        assert (bench.counted("queued"), bench.counted("queued_rows")) == (1, 10)
        assert sent(bench.done(10, batch_id)) == [(10, [(901, 10, 0)])], "no cancelled row runs"
        assert bench.core.take_given_up() == {("m", "1", "cancelled", "queued"): size}
        assert bench.core.take_given_up() == {}


def test_whole_batches_in_the_queue_are_counted_anew() -> None:
    bench, _ = busy(queue_batches_max=2, batch_rows_max=4, split=False, batching="timeout")
    bench.submit((1, 4), (2, 4))
    assert told(bench.submit((3, 4))) == [(3, Code.UNAVAILABLE)]
    cancel(bench, 1)
    assert told(bench.submit((4, 4))) == [(1, Code.CANCELLED)]


def test_where_and_why_are_counted() -> None:
    bench, batch_id = busy()
    loading = bench.lane(spec_of("later"))
    bench.core.set_versions({("m", 1), ("later", 1)})
    assert told(bench.submit((1, 1, bench.now_ns))) == [(1, Code.DEADLINE_EXCEEDED)]
    bench.submit((2, 1), (3, 1, bench.now_ns + 5 * MS), (4, 1, bench.now_ns + 5 * MS))
    bench.submit((5, 1), (6, 1, bench.now_ns + 5 * MS), key=loading)
    cancel(bench, 2, 800)
    cancel(bench, 5, key=loading)
    bench.now_ns += 5 * MS
    cancel(bench, 3)  # its frontend was quicker; it has expired all the same
    failed = {request_id: (code, text) for request_id, code, text in bench.turn().failed[FRONTEND]}
    assert {request_id: code for request_id, (code, _) in failed.items()} == {
        2: Code.CANCELLED,
        3: Code.DEADLINE_EXCEEDED,
        4: Code.DEADLINE_EXCEEDED,
        5: Code.CANCELLED,
        6: Code.DEADLINE_EXCEEDED,
    }
    assert "was still queued" in failed[3][1]
    assert failed[4] == failed[3]
    assert "no worker serves the model yet" in failed[6][1]
    assert bench.core.take_given_up() == {
        ("m", "1", "expired", "arriving"): 1,
        ("m", "1", "cancelled", "queued"): 1,
        ("m", "1", "cancelled", "running"): 1,
        ("m", "1", "expired", "queued"): 2,
        ("later", "1", "cancelled", "loading"): 1,
        ("later", "1", "expired", "loading"): 1,
    }
    bench.done(10, batch_id)
    assert (bench.counted("done"), bench.counted("cancelled"), bench.counted("expired")) == (1, 2, 4)


def test_what_runs_is_counted_once_and_for_its_reason() -> None:
    bench = Bench()
    ((_, execute),) = bench.submit((1, 1, bench.now_ns + MS), (2, 1, bench.now_ns + 9 * MS)).executes
    bench.now_ns += 2 * MS
    for _ in range(3):
        cancel(bench, 1, 2, 77)
    assert bench.core.take_given_up() == {("m", "1", "expired", "running"): 1, ("m", "1", "cancelled", "running"): 1}
    bench.done(10, execute.batch_id)
    assert bench.counted("done") == 2, "its worker ended it"
    cancel(bench, 1)
    assert bench.core.take_given_up() == {}


@pytest.mark.parametrize("blameless", [True, False])
def test_who_was_cancelled_while_it_ran_does_not_run_again(blameless: bool) -> None:
    bench = Bench()
    bench.submit((1, 1), (2, 1), (3, 1))
    cancel(bench, 2)
    bench.left(10, blameless=blameless)
    bench.core.worker_joined(11, 0, {("m", 1)})
    ran, failed, turn = [], [], bench.turn()
    while turn.executes:
        ((worker_id, execute),) = turn.executes
        ran += [part[1] for part in execute.parts]
        failed += told(turn)
        turn = bench.done(worker_id, execute.batch_id)
    assert ran == [1, 3], "its batch mates do"
    assert (bench.counted("cancelled"), bench.counted("done"), bench.counted("queued")) == (1, 2, 0)


def test_its_frontend_hears_of_it_when_no_worker_reads_its_records() -> None:
    bench = Bench()
    bench.submit((1, 1))
    cancel(bench, 1)
    assert told(bench.turn()) == []
    assert told(bench.left(10)) == [(1, Code.CANCELLED)]


def test_a_request_in_parts_of_which_all_run() -> None:
    """Both workers hold a part, none is queued: one worker ends, and its part does not run again."""
    bench = Bench(2, credit_max=1, batch_rows_max=4, spread_ns=0)
    executes = bench.submit((1, 8)).executes
    assert sum(part[2] for _, execute in executes for part in execute.parts) == 8
    assert len(executes) == 2
    cancel(bench, 1)
    assert told(bench.left(executes[0][0])) == [], "the other one reads its records"
    turn = bench.done(executes[1][0], executes[1][1].batch_id)
    assert (sent(turn), told(turn)) == ([], [(1, Code.CANCELLED)])
    assert (bench.counted("cancelled"), bench.counted("split"), bench.counted("queued_rows")) == (1, 0, 0)


def test_a_request_in_parts_of_which_one_has_run() -> None:
    bench = Bench(1, credit_max=1, batch_rows_max=4)
    ((_, first),) = bench.submit((1, 12), (2, 1)).executes
    ((_, second),) = bench.done(10, first.batch_id).executes
    cancel(bench, 1)
    turn = bench.done(10, second.batch_id)
    assert told(turn) == [(1, Code.CANCELLED)]
    assert sent(turn) == [(10, [(2, 1, 0)])], "the last part's place is the next one's"
    assert bench.core.take_given_up() == {("m", "1", "cancelled", "queued"): 1}


def test_one_that_waits_to_be_tried_again_alone() -> None:
    """After a death two requests are suspects and run one by one; the second one's client goes meanwhile."""
    bench = Bench()
    bench.submit((1, 1), (2, 1))
    bench.left(10)
    bench.core.worker_joined(11, 0, {("m", 1)})
    ((_, alone),) = bench.turn().executes
    cancel(bench, 2)
    turn = bench.done(11, alone.batch_id)
    assert (sent(turn), told(turn)) == ([], [(2, Code.CANCELLED)])


def test_a_frontend_that_leaves_takes_its_unwanted_ones_along() -> None:
    bench = Bench()
    bench.core.frontend_joined(OTHER_FRONTEND)
    bench.submit((1, 1), frontend_id=OTHER_FRONTEND)
    cancel(bench, 1, frontend_id=OTHER_FRONTEND)
    bench.core.frontend_left(OTHER_FRONTEND)
    assert bench.left(10).failed == {}
    assert bench.counted("dropped") == 1


def test_a_cancelled_request_that_comes_again_is_refused() -> None:
    """Frontends submit everything again after a death or to a new broker; what was cancelled has a deadline of 1."""
    bench = Bench()
    turn = bench.submit((1, 1, 1))
    assert (sent(turn), told(turn)) == ([], [(1, Code.DEADLINE_EXCEEDED)])
