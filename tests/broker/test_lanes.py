"""A lane by itself: what a batch takes, what stays, and the lower bound of the deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker.admission import admit
from ringserve.broker.lanes import Entry
from ringserve.broker.policy import ROWS_ANY
from tests.broker.kit import FRONTEND, MS, NOW, entry, ids, lane_of

LATER = NOW + 10 * MS


@pytest.mark.parametrize(
    ("rows_waiting", "rows_max", "split", "batch", "left"),
    [
        # whole requests, in order, as long as they fit
        ([1, 1, 1], 8, True, [1, 1, 1], []),
        ([4, 4, 1], 8, True, [4, 4], [1]),
        ([5, 5], 8, True, [5], [5]),  # one that does not fit ends the batch, it is not cut
        ([5, 5, 1], 8, True, [5], [5, 1]),  # nor does a later one overtake it
        ([8], 8, True, [8], []),
        # larger than the limit: cut, and the first part fills what is free
        ([9], 8, True, [8], [1]),
        ([3, 9], 8, True, [3, 5], [4]),
        ([8, 9], 8, True, [8], [9]),
        ([20], 8, True, [8], [12]),
        # a share smaller than the limit does not cut what the limit allows
        ([6, 2], 4, True, [6], [2]),
        ([9], 4, True, [4], [5]),
        ([2, 6], 4, True, [2], [6]),
    ],
)
def test_take(rows_waiting: list[int], rows_max: int, split: bool, batch: list[int], left: list[int]) -> None:
    lane = lane_of(*(entry(i, rows) for i, rows in enumerate(rows_waiting)), batch_rows_max=8, split=split)
    entries, rows, late = lane.take(rows_max, NOW, NOW)
    assert [part[2] for part, _, _ in entries] == batch
    assert rows == sum(batch)
    assert [part[2] for part, _, _ in lane.queue] == left
    assert lane.rows_queued == sum(left)
    assert not late


def test_parts_follow_each_other() -> None:
    lane = lane_of(entry(7, 20), batch_rows_max=8)
    parts = [lane.take(8, NOW, NOW)[0][0][0] for _ in range(3)]
    assert [(part[2], part[3]) for part in parts] == [(8, 0), (8, 8), (4, 16)]
    assert all(part[4:] == [64 * 7] for part in parts)
    assert lane.splits[FRONTEND, 7].parts_queued == 3  # who takes them counts them out


@pytest.mark.parametrize(("batching", "batchable"), [("none", True), ("adaptive", False)])
def test_a_single_lane_gives_one_request_at_a_time(batching: str, batchable: bool) -> None:
    lane = lane_of(entry(1, 1000), entry(2), batching=batching, batchable=batchable, batch_rows_max=8)
    assert ids(lane.take(ROWS_ANY, NOW, NOW)[0]) == [1]
    assert ids(lane.take(ROWS_ANY, NOW, NOW)[0]) == [2]


@pytest.mark.parametrize(
    ("deadlines", "late_ns", "batch", "late"),
    [
        ([0, 0, 0], NOW, [0, 1, 2], []),
        ([LATER, 0, LATER], NOW, [0, 1, 2], []),
        ([NOW, LATER, NOW - 1], NOW, [1], [0, 2]),
        ([NOW, NOW], NOW, [], [0, 1]),
        # late only by prediction: believed, unless it leaves nobody
        ([NOW + 1, NOW + 1, LATER], NOW + MS, [2], [0, 1]),
        ([LATER, NOW + 1], NOW + MS, [0], [1]),
        ([NOW + 1, NOW + 1], NOW + MS, [0, 1], []),
        ([NOW, NOW + 1, NOW + 1], NOW + MS, [1, 2], [0]),
    ],
)
def test_late_requests_are_not_run(deadlines: list[int], late_ns: int, batch: list[int], late: list[int]) -> None:
    lane = lane_of(*(entry(i, 1, deadline_ns) for i, deadline_ns in enumerate(deadlines)))
    entries, rows, late_entries = lane.take(128, NOW, late_ns)
    assert (ids(entries), rows, ids(late_entries)) == (batch, len(batch), late)
    assert lane.rows_queued == 0
    assert lane.deadline_min_ns == 0


def test_put_back_goes_to_the_front_in_order() -> None:
    lane = lane_of(entry(3), entry(4))
    lane.put_back([entry(1, 2, LATER), entry(2)], solo=False)
    assert ids(list(lane.queue)) == [1, 2, 3, 4]
    assert (lane.rows_queued, lane.deadline_min_ns) == (5, LATER)
    lane.put_back([entry(8, 1, NOW)], solo=True)
    assert ids(list(lane.solo)) == [8]
    assert (lane.rows_queued, lane.deadline_min_ns) == (5, NOW)


def test_the_deadline_of_a_solo_request_survives_an_empty_queue() -> None:
    lane = lane_of(entry(1))
    lane.put_back([entry(8, 1, LATER)], solo=True)
    lane.take(128, NOW, NOW)
    assert lane.deadline_min_ns == LATER


def test_sweep_takes_the_expired_and_makes_the_bound_exact() -> None:
    lane = lane_of(entry(1, 1, NOW), entry(2), entry(3, 2, LATER))
    lane.put_back([entry(0, 1, NOW - 1)], solo=True)
    assert ids(lane.sweep(NOW)) == [0, 1]
    assert (ids(list(lane.queue)), lane.rows_queued, lane.deadline_min_ns) == ([2, 3], 3, LATER)


@pytest.mark.parametrize(
    ("unwanted", "removed", "rows"),
    [
        (lambda e: e[0][1] == 2, [2], 2),
        (lambda e: True, [9, 1, 2, 3], 0),
        (lambda e: False, [], 3),
    ],
)
def test_remove(unwanted: Callable[[Entry], bool], removed: list[int], rows: int) -> None:
    lane = lane_of(entry(1), entry(2), entry(3))
    lane.put_back([entry(9)], solo=True)
    assert ids(lane.remove(unwanted)) == removed
    assert lane.rows_queued == rows


@given(st.data(), st.booleans(), st.sampled_from(["adaptive", "none"]))
def test_rows_that_do_not_count_are_kept_up_to_date(data: st.DataObject, split: bool, batching: str) -> None:
    """Whatever comes, leaves, comes back, or is cut after a change of policy."""
    lane = lane_of(batch_rows_max=8, split=split, batching=batching)
    for step in range(data.draw(st.integers(1, 20))):
        act = data.draw(st.sampled_from(["admit", "take", "put_back", "remove", "policy"]))
        if act == "admit":
            rows = data.draw(st.lists(st.integers(1, 30), max_size=5))
            requests = [[100 * step + i, n, data.draw(st.sampled_from([0, NOW + MS])), 0] for i, n in enumerate(rows)]
            admit(lane, FRONTEND, requests, (0, 0.0), NOW)
        elif act == "take" and lane.queue:
            lane.take(data.draw(st.integers(1, 8)), NOW, data.draw(st.sampled_from([NOW, NOW + 2 * MS])))
        elif act == "put_back":
            lane.put_back([entry(10_000 + step, data.draw(st.integers(1, 30)))], solo=False)
        elif act == "remove":
            lane.remove(lambda each: each[0][1] % 2 == 0)
        elif act == "policy":
            lane.set_policy(replace(lane.policy, split=not lane.policy.split, batch_rows_max=5))
        assert lane.rows_queued == sum(part[2] for part, _, _ in lane.queue)
        most = lane.rows_counted_max
        assert lane.rows_beyond == sum(max(0, part[2] - most) for part, _, _ in lane.queue)
