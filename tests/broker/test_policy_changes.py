"""Policies that change while lanes hold requests: what was admitted stays so, and runs by the new rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker.admission import admit
from ringserve.broker.lanes import Lane
from ringserve.broker.messages import Code
from ringserve.broker.policy import LanePolicy
from tests.broker.kit import FRONTEND, MS, NOW, Bench, lane_of, sent, told


def change(bench: Bench, **policy: Any) -> None:
    bench.core.set_policies(LanePolicy(**policy), {})


def busy_bench(*requests: tuple[int, int], **policy: Any) -> tuple[Bench, int]:
    """One worker that runs request 1, the others wait. Returns its batch's id, too."""
    bench = Bench(1, credit_max=1, **policy)
    ((_, execute),) = bench.submit((1, 1)).executes
    bench.submit(*requests)
    return bench, execute.batch_id


@pytest.mark.parametrize(
    ("before", "after", "batches"),
    [
        ({}, {"batch_rows_max": 4}, [[(2, 3, 0)], [(3, 3, 0)]]),
        ({"batch_rows_max": 4}, {}, [[(2, 3, 0), (3, 3, 0)]]),
        ({}, {"batching": "none"}, [[(2, 3, 0)], [(3, 3, 0)]]),
        ({"batching": "none"}, {}, [[(2, 3, 0), (3, 3, 0)]]),
        ({}, {"queue_requests_max": 1}, [[(2, 3, 0), (3, 3, 0)]]),
        # larger than a batch by now: cut
        ({}, {"batch_rows_max": 2}, [[(2, 2, 0)], [(2, 1, 2), (3, 1, 0)], [(3, 2, 1)]]),
        # or, when that is not wanted, run alone
        ({}, {"batch_rows_max": 2, "split": False}, [[(2, 3, 0)], [(3, 3, 0)]]),
    ],
)
def test_what_waits_runs_by_the_new_rules(
    before: dict[str, Any], after: dict[str, Any], batches: list[list[tuple[int, int, int]]]
) -> None:
    bench, batch_id = busy_bench((2, 3), (3, 3), **before)
    change(bench, **after)
    ran = []
    for _ in batches:
        ((_, execute),) = executes = bench.done(10, batch_id).executes
        ran += [parts for _, parts in sent(bench.turn()._replace(executes=executes))]
        batch_id = execute.batch_id
    assert ran == batches
    assert not bench.done(10, batch_id).executes
    assert (bench.counted("done"), bench.counted("split"), bench.counted("queued_rows")) == (3, 0, 0)


def test_a_request_that_was_begun_in_parts_ends_in_parts() -> None:
    bench, batch_id = busy_bench((2, 10), batch_rows_max=4)
    ((_, execute),) = bench.done(10, batch_id).executes
    assert execute.parts[0][2] == 4
    change(bench, batch_rows_max=4, split=False)
    for rows in (4, 2):
        ((_, execute),) = bench.done(10, execute.batch_id).executes
        assert [part[2] for part in execute.parts] == [rows]
    bench.done(10, execute.batch_id)
    assert (bench.counted("done"), bench.counted("split")) == (2, 0)
    ((_, execute),) = bench.submit((3, 10)).executes
    assert [part[2] for part in execute.parts] == [10]


def test_a_batch_that_waits_for_the_clock_goes_when_the_clock_is_taken_away() -> None:
    bench = Bench(1, batching="timeout", batch_wait_ns_max=50 * MS)
    turn = bench.submit((1, 1))
    assert (turn.executes, turn.wake_ns) == ([], NOW + 50 * MS)
    change(bench, batching="timeout", batch_wait_ns_max=20 * MS)
    assert bench.turn().wake_ns == NOW + 20 * MS
    change(bench)
    assert sent(bench.turn()) == [(10, [(1, 1, 0)])]


def test_a_smaller_limit_of_the_queue_refuses_newcomers_only() -> None:
    bench, batch_id = busy_bench((2, 4), (3, 4))
    change(bench, queue_rows_max=4)
    assert told(bench.submit((4, 1))) == [(4, Code.UNAVAILABLE)]
    ((_, execute),) = bench.done(10, batch_id).executes
    assert [part[1] for part in execute.parts] == [2, 3]


# ------------------------------------------------------------------------------------------------ random histories


def counted(lane: Lane) -> list[int]:
    """Lane.open_batches, counted the plain way."""
    batches: list[int] = []
    for part, _, _ in lane.queue:
        if batches and batches[-1] + part[2] <= lane.rows_max:
            batches[-1] += part[2]
        else:
            batches.append(part[2])
    return batches


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.lists(st.integers(1, 9), max_size=4)),
        st.tuples(st.just("take"), st.integers(1, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("policy"), st.tuples(st.integers(1, 8), st.booleans(), st.integers(0, 3))),
    ),
    max_size=30,
)


@given(STEPS)
def test_rows_and_batches_are_counted_right_through_any_history(steps: list[tuple[str, Any]]) -> None:
    lane = lane_of(batch_rows_max=8, split=False, queue_batches_max=3)
    requests: dict[int, int] = {}
    taken: dict[int, list[tuple[int, int]]] = {}
    gone: set[int] = set()
    for kind, value in steps:
        if kind == "submit":
            fresh = [[len(requests) + i, rows, 0, 0] for i, rows in enumerate(value)]
            requests.update({request[0]: request[1] for request in fresh})
            before = len(counted(lane))
            gone.update(request_id for request_id, _ in admit(lane, FRONTEND, fresh, (0, 0.0), NOW))
            if lane.policy.queue_batches_max and not lane.policy.split:
                assert len(counted(lane)) <= max(before, lane.policy.queue_batches_max)
        elif kind == "take":
            entries, rows, late = lane.take(min(value, lane.rows_best), NOW, NOW)
            assert not late
            assert rows == sum(part[2] for part, _, _ in entries)
            assert bool(entries) or not lane.queue
            assert rows <= lane.rows_max or len(entries) == 1
            for part, _, _ in entries:
                taken.setdefault(part[1], []).append((part[3], part[2]))
        elif kind == "cancel":
            gone.update(part[1] for part, _, _ in lane.remove_requests(FRONTEND, {value}))
        else:
            rows_max, split, batches_max = value
            lane.set_policy(LanePolicy(batch_rows_max=rows_max, split=split, queue_batches_max=batches_max))
        assert lane.rows_queued == sum(part[2] for part, _, _ in lane.queue)
        if lane.policy.queue_batches_max and not lane.policy.split:  # else nobody counts
            assert list(lane.open_batches()) == counted(lane)
    while lane.queue:
        for part, _, _ in lane.take(lane.rows_best, NOW, NOW)[0]:
            taken.setdefault(part[1], []).append((part[3], part[2]))
    for request_id, rows in requests.items():  # every row once, in order
        at = 0
        for row_start, part_rows in taken.get(request_id, []):
            assert row_start == at
            at += part_rows
        assert at == rows or request_id in gone
