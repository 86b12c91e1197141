"""Workers that are lent: when, for how long, and what the broker knows of requests that did not come through it."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.core import Turn
from ringserve.broker.loans import LOAN_ID_FIRST
from ringserve.broker.messages import Code, Handed, Lend, Recall
from ringserve.broker.outcomes import ENDS
from ringserve.broker.policy import MILLISECOND_NS, SECOND_NS, LanePolicy
from tests.broker.kit import FRONTEND, MS, OTHER_FRONTEND, Bench, sent, spec_of, told

FIRST = LOAN_ID_FIRST  # the first loan's id


def lone(bench: Bench, count: int = 4, *, frontend_id: int = FRONTEND, key: bytes | None = None) -> Turn:
    """So many requests, one after the other. Returns the last turn."""
    turn = bench.turn()
    for number in range(count):
        ((worker_id, execute),) = bench.submit((100 + number, 1), frontend_id=frontend_id, key=key).executes
        turn = bench.done(worker_id, execute.batch_id)
    return turn


def handed(bench: Bench, number: int, request_id: int = 7, *, worker_id: int = 10, deadline_ns: int = 0) -> Turn:
    """The frontend says that it handed over the number-th batch of the first loan, just now."""
    request = [request_id, 1, deadline_ns, 64]
    message = Handed(FRONTEND, worker_id, FIRST + number, bench.key, bench.now_ns, [request])
    bench.core.handed(message, bench.now_ns)
    return bench.turn()


def sum_holds(bench: Bench) -> bool:
    counted = bench.core.statistics()
    held = counted["queued"] + counted["leased"] + counted["split"]
    return counted["submitted"] == sum(counted[end] for end in ENDS) + held


# ------------------------------------------------------------------------------------------------------------- lending


def test_who_was_alone_for_a_while_is_lent_the_worker() -> None:
    bench = Bench(workers=2)
    assert lone(bench, 3).loans == []
    ((frontend_id, lend),) = lone(bench, 1).loans
    assert (frontend_id, lend) == (FRONTEND, Lend(FIRST, bench.key, bench.core.ran_last, 128, 16))
    assert bench.counted("loans") == 1


@pytest.mark.parametrize(
    "policy",
    [
        {"lend_after_requests": 0},
        {"batching": "timeout", "batch_wait_ns_max": 0},
        {"batches_at_once_max": 2},
    ],
    ids=str,
)
def test_nobody_is_lent_anything_where_batches_are_waited_for_or_counted(policy: dict[str, Any]) -> None:
    bench = Bench(**policy)
    for _ in range(10):
        assert lone(bench, 1).loans == []


def test_two_that_take_turns_are_lent_nothing() -> None:
    bench = Bench()
    bench.core.frontend_joined(OTHER_FRONTEND)
    other = bench.lane(spec_of(signature="other"))
    for _ in range(10):
        assert lone(bench, 3).loans == []
        assert lone(bench, 1, frontend_id=OTHER_FRONTEND).loans == []
        assert lone(bench, 3).loans == []
        assert lone(bench, 1, key=other).loans == []


def test_batches_of_several_and_company_break_the_row() -> None:
    bench = Bench()
    lone(bench, 3)
    ((_, execute),) = bench.submit((1, 1), (2, 1)).executes
    assert bench.done(10, execute.batch_id).loans == []
    assert lone(bench, 3).loans == []
    ((_, execute),) = bench.submit((3, 1)).executes
    bench.submit((4, 1))
    turn = bench.done(10, execute.batch_id)  # the next one runs now
    assert (len(turn.executes), turn.loans) == (1, [])
    assert bench.done(10, turn.executes[0][1].batch_id).loans == []
    assert len(lone(bench, 3).loans) == 1


def test_a_loan_of_a_lane_that_is_not_alone_any_more_is_recalled() -> None:
    bench = Bench(workers=2, spread_ns=0)
    lone(bench)
    turn = bench.submit((1, 1))
    assert turn.executes[0][0] != bench.core.ran_last
    assert turn.loans == [(FRONTEND, Recall(FIRST))]
    bench.done(*(turn.executes[0][0], turn.executes[0][1].batch_id))
    # It is not given back yet, and nothing else is lent to the frontend for this lane.
    for _ in range(3):
        assert lone(bench).loans == []
    assert bench.counted("loans") == 1


def lent(uses: int) -> Bench:
    """A frontend has a loan for lone requests that it used so often; there is another frontend."""
    bench = Bench(spread_ns=0)
    bench.core.frontend_joined(OTHER_FRONTEND)
    lone(bench)
    for number in range(1, uses + 1):
        bench.done(10, FIRST + number)
    return bench


def company(bench: Bench, *, frontend_id: int = FRONTEND, key: bytes | None = None) -> list[tuple[int, Any]]:
    """Two requests at once, in a batch that runs. Returns what frontends were told of loans."""
    turn = bench.submit((200, 1), (201, 1), frontend_id=frontend_id, key=key)
    ((worker_id, execute),) = turn.executes
    bench.done(worker_id, execute.batch_id)
    return turn.loans


@pytest.mark.parametrize(("uses", "times"), [(0, 0), (1, 1), (2, 2), (3, 3), (50, 3)])
def test_a_loan_outlasts_company_of_its_frontends_own_as_often_as_it_was_used(uses: int, times: int) -> None:
    """Of many uses three are kept for later."""
    bench = lent(uses)
    assert [company(bench) for _ in range(times)] == [[]] * times
    assert company(bench) == [(FRONTEND, Recall(FIRST))]
    assert company(bench) == [], "once is enough"


def test_who_is_alone_every_other_time_keeps_the_loan() -> None:
    bench = Bench()
    other = bench.lane(spec_of(signature="other"))
    lone(bench)
    for number in range(1, 40):
        bench.done(10, FIRST + number)
        assert company(bench, key=other if number % 2 else None) == []
    assert (bench.counted("loans"), sum_holds(bench)) == (1, True)


def test_what_its_worker_is_given_of_another_lane_is_company_too() -> None:
    bench = lent(uses=1)
    other = bench.lane(spec_of(signature="other"))
    assert company(bench, key=other) == []
    assert company(bench, key=other) == [(FRONTEND, Recall(FIRST))]


def test_company_of_another_frontend_ends_a_loan_however_often_it_was_used() -> None:
    bench = lent(uses=19)
    assert company(bench, frontend_id=OTHER_FRONTEND) == [(FRONTEND, Recall(FIRST))]


def test_nor_does_it_help_that_requests_of_its_own_are_among_them() -> None:
    bench = lent(uses=19)
    handed(bench, 20)
    bench.submit((1, 1))
    bench.submit((2, 1), frontend_id=OTHER_FRONTEND)
    turn = bench.done(10, FIRST + 20)
    assert (sent(turn), turn.loans) == ([(10, [(1, 1, 0), (2, 1, 0)])], [(FRONTEND, Recall(FIRST))])


@pytest.mark.parametrize(("uses", "row"), [(3, 8), (4, 4)])
def test_a_loan_that_was_hardly_used_makes_the_next_one_dearer(uses: int, row: int) -> None:
    bench = lent(uses)
    ((_, execute),) = bench.submit((1, 1)).executes
    bench.core.returned(FIRST, FIRST + uses)
    assert bench.done(10, execute.batch_id).loans == []
    assert lone(bench, row - 2).loans == []
    assert len(lone(bench, 1).loans) == 1


def test_larger_requests_than_may_run_do_not_go_there() -> None:
    bench = Bench(batch_rows_max=32, request_rows_max=8)
    ((_, lend),) = lone(bench).loans
    assert isinstance(lend, Lend)
    assert lend.rows_max == 8


# ------------------------------------------------------------------------------------------------ what is not told


def test_a_request_that_nobody_told_of_is_counted_by_its_done() -> None:
    bench = Bench()
    lone(bench)
    before = bench.core.statistics()
    turn = bench.done(10, FIRST + 1, 300_000, 3)
    assert turn == ([], {}, [], turn.wake_ns, [], {}, [])
    after = bench.core.statistics()
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {"submitted": 1, "handed": 1, "batches": 1, "rows": 3, "done": 1}
    assert bench.core.usage(bench.now_ns).busy_ns[10] == 300_000


def test_run_times_are_learnt_from_it() -> None:
    bench = Bench(workers=1, spread_ns=0)
    lone(bench)
    for number in range(1, 30):
        bench.done(10, FIRST + number, 20 * MS)
    now_ns = bench.now_ns
    bench.submit((1, 1))
    # A lease lasts ten times what is known at least; a policy's limit is less here.
    assert bench.core.turn(now_ns).wake_ns >= now_ns + 10 * 15 * MS


def test_what_a_frontend_that_left_had_handed_over_is_not_counted() -> None:
    bench = Bench()
    lone(bench)
    bench.core.frontend_left(FRONTEND)
    before = bench.counted("submitted")
    bench.done(10, FIRST + 1)
    assert (bench.counted("submitted"), bench.counted("dones_ignored"), bench.counted("loans")) == (before, 1, 0)
    assert sum_holds(bench)


# ------------------------------------------------------------------------------------------------------ what is told


def test_what_is_told_is_leased_until_it_is_done() -> None:
    bench = Bench()
    lone(bench)
    handed(bench, 1)
    assert (bench.counted("leased"), sum_holds(bench)) == (1, True)
    assert sent(bench.submit((8, 1))) == [], "it waits for a batch, as behind any other"
    assert sent(bench.done(10, FIRST + 1)) == [(10, [(8, 1, 0)])]
    assert sum_holds(bench)


def test_told_too_late_it_is_forgotten() -> None:
    bench = Bench()
    lone(bench)
    bench.done(10, FIRST + 1)
    handed(bench, 1)
    assert (bench.counted("leased"), bench.counted("handed"), sum_holds(bench)) == (0, 1, True)


def test_one_that_hangs_is_found_and_runs_elsewhere() -> None:
    bench = Bench(workers=2, lease_ns_max=SECOND_NS)
    lone(bench)
    worker_id = bench.core.ran_last
    handed(bench, 1, worker_id=worker_id)
    assert bench.turn(2 * SECOND_NS).kills == [worker_id]
    ((other_id, parts),) = sent(bench.left(worker_id))
    assert (other_id != worker_id, parts) == (True, [(7, 1, 0)])


def test_cancelled_it_does_not_run_again() -> None:
    bench = Bench(workers=2)
    lone(bench)
    worker_id = bench.core.ran_last
    handed(bench, 1, worker_id=worker_id)
    bench.core.cancel(FRONTEND, [[bench.key, 7]], bench.now_ns)
    turn = bench.left(worker_id)
    assert (turn.executes, told(turn)) == ([], [(7, Code.CANCELLED)])
    assert sum_holds(bench)


def test_it_is_the_one_that_runs_if_it_came_first() -> None:
    """Another request was sent to the worker before the broker heard that the worker had something to do."""
    bench = Bench()
    lone(bench)
    handed_ns = bench.now_ns
    bench.now_ns += MS
    assert sent(bench.submit((8, 1))) == [(10, [(8, 1, 0)])]
    message = Handed(FRONTEND, 10, FIRST + 1, bench.key, handed_ns, [[7, 1, 0, 64]])
    bench.core.handed(message, bench.now_ns)
    bench.turn()
    bench.core.worker_joined(11, 1, {("m", 1)})
    # It is to blame, and runs before the other one and alone.
    assert sent(bench.left(10)) == [(11, [(7, 1, 0)])]
    assert (bench.counted("retried"), sum_holds(bench)) == (2, True)


def test_two_workers_that_it_ends_are_enough() -> None:
    bench = Bench(workers=3)
    lone(bench)
    worker_id = bench.core.ran_last
    bench.left(worker_id)
    turn = handed(bench, 1, worker_id=worker_id)  # the frontend has heard that it left
    ((second_id, execute),) = turn.executes
    assert execute.parts[0][1] == 7
    turn = bench.left(second_id)
    assert (turn.executes, told(turn)) == ([], [(7, Code.INTERNAL)])
    assert sum_holds(bench)


def test_no_worker_that_the_pool_took_along_is_held_against_it() -> None:
    bench = Bench(workers=3)
    lone(bench)
    worker_id = bench.core.ran_last
    bench.left(worker_id, blameless=True)
    ((second_id, _),) = handed(bench, 1, worker_id=worker_id).executes
    ((third_id, _),) = bench.left(second_id).executes
    assert told(bench.left(third_id)) == [(7, Code.INTERNAL)]


def test_what_was_done_before_the_worker_left_does_not_run_again() -> None:
    bench = Bench(workers=2)
    lone(bench)
    worker_id = bench.core.ran_last
    bench.done(worker_id, FIRST + 1)
    bench.left(worker_id)
    assert handed(bench, 1, worker_id=worker_id).executes == []


def test_submitted_again_it_is_known() -> None:
    bench = Bench()
    lone(bench)
    handed(bench, 1)
    bench.core.resubmit(FRONTEND, [[bench.key, [[7, 1, 0, 64]]]], bench.now_ns)
    assert (bench.counted("leased"), bench.counted("queued"), bench.counted("resubmits_known")) == (1, 0, 1)


# ------------------------------------------------------------------------------------------------------ given back


def test_a_worker_that_is_used_otherwise_is_recalled() -> None:
    bench = Bench(spread_ns=0)
    lone(bench)
    turn = bench.submit((1, 1))
    assert (len(turn.executes), turn.loans) == (1, [(FRONTEND, Recall(FIRST))])
    turn = bench.done(10, turn.executes[0][1].batch_id)
    bench.core.returned(FIRST, FIRST)
    assert bench.counted("loans") == 0


@pytest.mark.parametrize("slow", [True, False])
def test_another_idle_worker_is_used_first_for_all_that_takes_long(slow: bool) -> None:
    bench = Bench(workers=2, spread_ns=0 if slow else MS)
    bench.core.frontend_joined(OTHER_FRONTEND)
    lone(bench)
    turn = bench.submit((1, 1), frontend_id=OTHER_FRONTEND)
    assert (turn.executes[0][0] != bench.core.ran_last) is slow


def test_a_loan_lasts_until_its_last_batch_is_done() -> None:
    bench = Bench()
    lone(bench)
    bench.submit((1, 1))
    bench.core.returned(FIRST, FIRST + 2)
    bench.done(10, FIRST + 1)
    assert bench.counted("loans") == 1
    bench.done(10, FIRST + 2)
    assert (bench.counted("loans"), sum_holds(bench)) == (0, True)


def test_a_worker_does_not_go_before_the_loan_is_back() -> None:
    bench = Bench(workers=2)
    lone(bench)
    worker_id = bench.core.ran_last
    bench.core.worker_draining(worker_id, bench.now_ns)
    turn = bench.turn()
    assert (turn.loans, turn.drained) == ([(FRONTEND, Recall(FIRST))], [])
    handed(bench, 1, worker_id=worker_id)
    bench.core.returned(FIRST, FIRST + 1)
    assert bench.turn(MILLISECOND_NS).drained == []
    assert bench.done(worker_id, FIRST + 1).drained == [worker_id]


def test_nor_is_it_held_by_a_frontend_that_left() -> None:
    bench = Bench(workers=2)
    lone(bench)
    worker_id = bench.core.ran_last
    bench.core.worker_draining(worker_id, bench.now_ns)
    assert bench.turn().drained == []
    bench.core.frontend_left(FRONTEND)
    assert bench.turn().drained == [worker_id]


def test_what_may_end_its_worker_waits_for_one_that_is_not_lent() -> None:
    bench = Bench()
    bench.core.frontend_joined(OTHER_FRONTEND)
    lone(bench)
    # The other frontend's loan is of a worker that has left, and it has not heard of its request since.
    message = Handed(OTHER_FRONTEND, 9, 5, bench.key, bench.now_ns, [[2, 1, 0, 64]])
    bench.core.handed(message, bench.now_ns)
    turn = bench.turn()
    assert (turn.executes, turn.loans) == ([], [(FRONTEND, Recall(FIRST))])
    bench.core.returned(FIRST, FIRST)
    assert sent(bench.turn()) == [(10, [(2, 1, 0)])]


def test_new_rules_end_all_loans() -> None:
    bench = Bench()
    lone(bench)
    bench.core.set_policies(LanePolicy(batches_at_once_max=1), {})
    assert bench.turn().loans == [(FRONTEND, Recall(FIRST))]
    bench.core.returned(FIRST, FIRST)
    assert lone(bench, 10).loans == []
