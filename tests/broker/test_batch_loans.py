"""Workers that are lent for batches: when, for how long, and what the broker knows of those that did not come by it."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.core import Turn
from ringserve.broker.loans import LOAN_ID_FIRST
from ringserve.broker.messages import Handed, Lend, Recall
from tests.broker.kit import FRONTEND, MS, OTHER_FRONTEND, Bench, sent
from tests.broker.test_loans import company, sum_holds

FIRST = LOAN_ID_FIRST  # the first loan's id


def busy(bench: Bench, count: int, *, requests: int = 2, run_ns: int = 100_000) -> Turn:
    """So many batches in a row; while one runs, the next one's requests come. Returns the last turn."""
    ids = range(1, requests + 1)
    ((worker_id, execute),) = bench.submit(*((number, 1) for number in ids)).executes
    for batch in range(1, count + 1):
        bench.submit(*((100 * batch + number, 1) for number in ids))
        turn = bench.done(worker_id, execute.batch_id, run_ns, requests)
        ((worker_id, execute),) = turn.executes
    return turn


def batch_lent(**policy: Any) -> Bench:
    """The frontend has a loan of which it may make batches, and nothing else runs."""
    bench = Bench(**policy)
    turn = busy(bench, 16)
    ((_, lend),) = turn.loans
    assert isinstance(lend, Lend)
    assert lend.batch_rows_max > 1
    ((worker_id, execute),) = turn.executes
    bench.done(worker_id, execute.batch_id, rows=2)
    return bench


def test_a_frontend_that_has_a_lane_of_short_batches_to_itself_is_lent_its_worker() -> None:
    bench = Bench(workers=2)
    assert busy(bench, 15).loans == []
    bench = Bench(workers=2)
    ((frontend_id, lend),) = busy(bench, 16).loans
    assert (frontend_id, lend) == (FRONTEND, Lend(FIRST, bench.key, bench.core.ran_last, 128, 32))


@pytest.mark.parametrize(
    "policy",
    [
        {"spread_ns": 10_000},
        {"batching": "none"},
        {"batch_rows_allowed": (1, 4, 8)},
        {"queue_requests_max": 1},
        {"lend_after_requests": 0},
        {"batches_at_once_max": 1},
    ],
    ids=str,
)
def test_no_batches_are_lent_where_the_broker_has_something_to_decide(policy: dict[str, Any]) -> None:
    bench = Bench(credit_max=1, **policy)
    for _ in range(20):
        turn = bench.submit((1, 1), (2, 1))
        while turn.executes:
            ((worker_id, execute),) = turn.executes
            turn = bench.done(worker_id, execute.batch_id, rows=len(execute.parts))
            assert not [lend for _, lend in turn.loans if isinstance(lend, Lend) and lend.batch_rows_max]


def test_nor_where_workers_run_requests_one_by_one() -> None:
    bench = Bench()
    for _ in range(20):
        turn = bench.submit((1, 1), (2, 1))
        while turn.executes:
            ((worker_id, execute),) = turn.executes
            turn = bench.done(worker_id, execute.batch_id, rows=len(execute.parts), parts_max=1)
            assert not [lend for _, lend in turn.loans if isinstance(lend, Lend) and lend.batch_rows_max]


def test_two_frontends_batches_are_the_brokers() -> None:
    bench = Bench()
    bench.core.frontend_joined(OTHER_FRONTEND)
    for _ in range(40):
        bench.core.submit(OTHER_FRONTEND, [[bench.key, [[1, 1, 0, 64]]]], bench.now_ns)
        ((worker_id, execute),) = bench.submit((1, 1)).executes
        assert bench.done(worker_id, execute.batch_id, rows=2).loans == []


def test_requests_of_a_batch_that_nobody_told_of_are_counted_each() -> None:
    bench = batch_lent()
    before = bench.core.statistics()
    bench.done(10, FIRST + 1, 300_000, 6, requests=[1, 4, 1], waits=[[2, 5_000], [1, 0]])
    after = bench.core.statistics()
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {"submitted": 3, "handed": 3, "batches": 1, "rows": 6, "done": 3}


def test_how_long_each_waited_is_told() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    class Looker:
        def batch_done(self, lane: Any, rows: int, run: int, parts: list[list[int]], waits: list[int], ns: int) -> None:
            seen.append(([part[2] for part in parts], waits))

    bench = batch_lent()
    bench.core.observer = Looker()
    bench.done(10, FIRST + 1, 300_000, 6, requests=[1, 4, 1], waits=[[2, 5_000], [1, 0]])
    assert seen == [([1, 4, 1], [5_000, 5_000, 0])]


def hand_over(bench: Bench, number: int, *request_ids: int) -> Turn:
    requests = [[request_id, 1, 0, 64] for request_id in request_ids]
    message = Handed(FRONTEND, bench.core.ran_last, FIRST + number, bench.key, bench.now_ns, requests)
    bench.core.handed(message, bench.now_ns)
    return bench.turn()


@pytest.mark.parametrize("told", ["before", "after"])
def test_what_the_worker_left_of_a_batch_is_run(told: str) -> None:
    bench = batch_lent()
    if told == "before":
        assert hand_over(bench, 1, 1, 2, 3).executes == []
    turn = bench.done(10, FIRST + 1, 300_000, 1, parts_left=2, parts_max=1, requests=[1, 1, 1], waits=[[3, 0]])
    assert turn.loans == [(FRONTEND, Recall(FIRST))], "they are the broker's from now on"
    if told == "after":
        assert (turn.executes, sum_holds(bench)) == ([], True)
        turn = hand_over(bench, 1, 1, 2, 3)
        bench.core.returned(FIRST, FIRST + 1)
    assert sent(turn) == [(10, [(2, 1, 0)])]
    ((_, execute),) = turn.executes
    assert sent(bench.done(10, execute.batch_id, parts_max=1)) == [(10, [(3, 1, 0)])]
    assert (bench.counted("retried"), sum_holds(bench)) == (0, True)


def test_one_worker_that_a_batch_ends_has_each_of_it_run_alone() -> None:
    bench = batch_lent(workers=2)
    hand_over(bench, 1, 1, 2)
    assert [parts for _, parts in sent(bench.left(bench.core.ran_last))] == [[(1, 1, 0)]]
    assert (bench.counted("retried"), sum_holds(bench)) == (2, True)


def test_a_lane_whose_batches_take_longer_is_lent_no_more() -> None:
    bench = batch_lent()
    assert bench.done(10, FIRST + 1, 3 * MS, 2, requests=[1, 1], waits=[[2, 0]]).loans == []
    turn = bench.done(10, FIRST + 2, 5 * MS, 2, requests=[1, 1], waits=[[2, 0]])
    assert turn.loans == [(FRONTEND, Recall(FIRST))]


def test_a_loan_of_batches_outlasts_what_was_on_its_way_to_the_broker() -> None:
    bench = batch_lent()
    assert [company(bench) for _ in range(3)] == [[]] * 3
    assert company(bench) == [(FRONTEND, Recall(FIRST))]
