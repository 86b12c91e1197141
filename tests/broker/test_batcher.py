"""When a batch is due, and which lane comes first."""

from __future__ import annotations

from collections import Counter

import pytest

from ringserve.broker.batcher import FairOrder, due_ns, is_full
from ringserve.broker.lanes import Lane
from tests.broker.kit import MS, NOW, entry, lane_of


@pytest.mark.parametrize(
    ("batching", "batchable", "rows", "full", "waits"),
    [
        ("adaptive", True, 7, False, False),
        ("adaptive", True, 8, True, False),
        ("timeout", True, 7, False, True),
        ("timeout", True, 8, True, False),
        ("timeout", True, 9, True, False),  # a later batch exists: the second request does not fit
        ("timeout", False, 1, True, False),  # its requests run alone: nothing to wait for
        ("none", True, 1, True, False),
    ],
)
def test_due_and_full(batching: str, batchable: bool, rows: int, full: bool, waits: bool) -> None:
    entries = [entry(1, rows)] if rows < 9 else [entry(1, 7), entry(2, 2)]
    lane = lane_of(*entries, batching=batching, batchable=batchable, batch_rows_max=8, batch_wait_ns_max=5 * MS)
    assert is_full(lane) == full
    assert due_ns(lane) == (NOW + 5 * MS if waits else 0)


def test_6_2_the_batch_behind_one_that_was_closed_waits_for_its_own_first_request() -> None:
    lane = lane_of(
        entry(1, 7, arrived_ns=NOW - 2 * MS),
        entry(2, 2, arrived_ns=NOW - MS),
        batching="timeout",
        batch_rows_max=8,
        batch_wait_ns_max=5 * MS,
    )
    assert due_ns(lane) == 0
    entries, _, _ = lane.take(8, NOW, NOW)
    assert [part[1] for part, _, _ in entries] == [1]
    assert due_ns(lane) == NOW + 4 * MS


def test_a_solo_request_does_not_wait_for_company() -> None:
    lane = lane_of(entry(2), batching="timeout", batch_wait_ns_max=5 * MS)
    lane.put_back([entry(1)], solo=True)
    assert due_ns(lane) == 0


def serve(order: FairOrder, cost_ns: dict[Lane, int], total_ns: int) -> Counter[Lane]:
    """Grant batches one by one; every lane always has more waiting."""
    spent: Counter[Lane] = Counter()
    while spent.total() < total_ns:
        lane = order.pop()
        assert lane is not None
        order.charge(lane, cost_ns[lane])
        spent[lane] += cost_ns[lane]
        order.put_back(lane)
    return spent


def test_lanes_get_the_same_time_however_long_their_batches() -> None:
    order = FairOrder()
    slow, fast, middle = (lane_of(entry(1)) for _ in range(3))
    cost_ns = {slow: 50 * MS, fast: MS, middle: 7 * MS}
    for lane in cost_ns:
        order.add(lane)
    spent = serve(order, cost_ns, 3_000 * MS)
    for lane in cost_ns:
        assert abs(spent[lane] - 1_000 * MS) <= 50 * MS


def test_a_lane_that_was_empty_starts_at_the_present() -> None:
    order = FairOrder()
    old, new = lane_of(entry(1)), lane_of(entry(1))
    order.add(old)
    serve(order, {old: 10 * MS}, 1_000 * MS)
    order.add(new)
    spent = serve(order, {old: 10 * MS, new: 10 * MS}, 200 * MS)
    assert abs(spent[old] - spent[new]) <= 10 * MS


def test_a_batch_that_ran_longer_than_charged_is_paid_for() -> None:
    order = FairOrder()
    first, second = lane_of(entry(1)), lane_of(entry(1))
    order.add(first)
    order.add(second)
    first.attained_ns += 5 * MS  # Done said so, while it stood in the order
    assert order.pop() is second
    assert order.pop() is first
    assert order.pop() is None


def test_a_lane_is_listed_once_and_an_empty_one_is_dropped() -> None:
    order = FairOrder()
    lane, empty = lane_of(entry(1)), lane_of(entry(1))
    order.add(lane)
    order.add(lane)
    order.add(empty)
    empty.queue.clear()
    assert order.pop() is lane
    assert order.pop() is None
    assert (lane.listed, empty.listed) == (False, False)


def test_remove() -> None:
    order = FairOrder()
    lanes = [lane_of(entry(1)) for _ in range(5)]
    for lane in lanes:
        order.add(lane)
    assert set(order.remove(lambda lane: lane in lanes[:2])) == set(lanes[:2])
    assert not lanes[0].listed
    assert {order.pop(), order.pop(), order.pop()} == set(lanes[2:])
