"""Who enters a lane, at every limit and one beyond it."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker import failures
from ringserve.broker.admission import admit, promised_ns
from ringserve.broker.messages import Code
from ringserve.broker.placement import soonest_answer
from ringserve.broker.policy import LanePolicy
from tests.broker.kit import FRONTEND, MS, NOW, entry, ids, lane_of, worker_of

UNKNOWN = (0, 0.0)
FULL = "The batch scheduling queue to which this task was submitted is full; "


@pytest.mark.parametrize(
    ("policy", "waiting", "rows", "code", "text"),
    [
        ({}, [], 128, None, ""),
        ({"batch_rows_max": 8}, [], 9, None, ""),  # will be split
        ({"batch_rows_max": 8, "split": False}, [], 9, None, ""),  # will run by itself
        ({"batch_rows_max": 8, "split": False}, [], 8, None, ""),
        (
            {"batch_rows_max": 8, "split": False, "request_rows_max": 8},
            [],
            9,
            Code.INVALID_ARGUMENT,
            "Task size 9 is larger than maximum input batch size 8",
        ),
        ({"batch_rows_max": 8, "split": False, "batching": "none"}, [], 9, None, ""),
        ({}, [], 0, Code.INVALID_ARGUMENT, "A request must have at least one row"),
        ({"queue_requests_max": 2}, [1], 1, None, ""),
        (
            {"queue_requests_max": 2},
            [1, 1],
            1,
            Code.UNAVAILABLE,
            FULL + "currently 2 requests with 2 rows enqueued and the limits are 2 requests and 65536 rows",
        ),
        ({"queue_rows_max": 10}, [4], 6, None, ""),
        (
            {"queue_rows_max": 10},
            [4],
            7,
            Code.UNAVAILABLE,
            FULL + "currently 1 requests with 4 rows enqueued and the limits are 8192 requests and 10 rows",
        ),
        ({"queue_rows_max": 10}, [], 11, None, ""),  # it could never run otherwise
        # what runs by itself for being larger than a batch counts for one; where all do rows do not count
        ({"queue_rows_max": 10, "batch_rows_max": 4, "split": False}, [900], 900, None, ""),
        ({"queue_rows_max": 10, "batch_rows_max": 4, "split": False}, [900, 900], 2, None, ""),
        (
            {"queue_rows_max": 10, "batch_rows_max": 4, "split": False},
            [900, 900],
            900,
            Code.UNAVAILABLE,
            FULL + "currently 2 requests with 8 rows enqueued and the limits are 8192 requests and 10 rows",
        ),
        ({"queue_rows_max": 10, "batching": "none"}, [900, 900], 900, None, ""),
        (
            {"queue_requests_max": 2, "batching": "none"},
            [900, 900],
            900,
            Code.UNAVAILABLE,
            FULL + "currently 2 requests with 2 rows enqueued and the limit is 2",
        ),
        (
            {"queue_bytes_max": 1600 * 16, "batching": "none"},  # 16 bytes a row
            [900],
            900,
            Code.UNAVAILABLE,
            FULL + "currently 1 requests with 900 rows enqueued and the limits are 8192 requests and 1600 rows",
        ),
        # 6.3: more rows than a request may have, whatever would be split
        ({"request_rows_max": 8, "batch_rows_max": 4}, [], 8, None, ""),
        (
            {"request_rows_max": 8, "batch_rows_max": 4},
            [],
            9,
            Code.INVALID_ARGUMENT,
            "Task size 9 is larger than maximum input batch size 8",
        ),
        (
            {"request_rows_max": 8, "batching": "none"},
            [],
            9,
            Code.INVALID_ARGUMENT,
            "Task size 9 is larger than maximum input batch size 8",
        ),
        # 6.3, splitting on: a request is cut into what is free, so rows count
        ({"queue_batches_max": 2, "batch_rows_max": 4}, [4, 3], 1, None, ""),
        ({"queue_batches_max": 2, "batch_rows_max": 4}, [3, 3], 2, None, ""),
        ({"queue_batches_max": 2, "batch_rows_max": 4}, [], 9, None, ""),  # it could never run otherwise
        (
            {"queue_batches_max": 2, "batch_rows_max": 4},
            [4, 4],
            1,
            Code.UNAVAILABLE,
            FULL + "task size is 1 but scheduling capacity is only 0 (num_enqueued_batches=2, max_enqueued_batches=2, "
            "open_batch_size=4, max_execution_batch_size=4)",
        ),
        (
            {"queue_batches_max": 3, "batch_rows_max": 4},
            [4, 2],
            9,
            Code.UNAVAILABLE,
            FULL + "task size is 9 but scheduling capacity is only 6 (num_enqueued_batches=2, max_enqueued_batches=3, "
            "open_batch_size=2, max_execution_batch_size=4)",
        ),
        # 6.2, splitting off: whole requests, so batches count, and they may not be full
        ({"queue_batches_max": 2, "batch_rows_max": 4, "split": False}, [3, 3], 1, None, ""),
        ({"queue_batches_max": 2, "batch_rows_max": 4, "split": False}, [4], 4, None, ""),
        (
            {"queue_batches_max": 2, "batch_rows_max": 4, "split": False},
            [3, 3],
            2,
            Code.UNAVAILABLE,
            FULL + "currently 2 batches enqueued and max_enqueued_batches is 2",
        ),
        ({"queue_batches_max": 1, "batch_rows_max": 4, "split": False}, [], 4, None, ""),
        (
            {"queue_batches_max": 1, "batch_rows_max": 4, "split": False},
            [1],
            4,
            Code.UNAVAILABLE,
            FULL + "currently 1 batches enqueued and max_enqueued_batches is 1",
        ),
        ({"queue_batches_max": 1, "batching": "none"}, [1, 1, 1], 4, None, ""),  # no batches to count
        (
            {"queue_batches_max": 9, "batch_rows_max": 4, "split": False, "queue_rows_max": 8},
            [3, 3],
            3,
            Code.UNAVAILABLE,
            FULL + "currently 2 requests with 6 rows enqueued and the limits are 8192 requests and 8 rows",
        ),
    ],
)
def test_6_3_limits(policy: dict[str, Any], waiting: list[int], rows: int, code: Code | None, text: str) -> None:
    lane = lane_of(*(entry(i, r) for i, r in enumerate(waiting)), **policy)
    refused = admit(lane, FRONTEND, [[50, rows, 0, 640]], UNKNOWN, NOW)
    if code is None:
        assert not refused
        assert lane.queue[-1] == ([FRONTEND, 50, rows, 0, 640], 0, NOW)
        assert lane.rows_queued == sum(waiting) + rows
        assert lane.rows_beyond == sum(max(0, each - lane.rows_counted_max) for each in (*waiting, rows))
        assert ((FRONTEND, 50) in lane.splits) == (rows > lane.rows_max and lane.policy.split)
    else:
        assert refused == [(50, (code, text))]
        assert ids(list(lane.queue)) == list(range(len(waiting)))
        assert lane.rows_queued == sum(waiting)
        assert not lane.splits


def test_the_limit_counts_within_one_message() -> None:
    lane = lane_of(queue_requests_max=3)
    refused = admit(lane, FRONTEND, [[i, 1, 0, 0] for i in range(5)], UNKNOWN, NOW)
    assert ids(list(lane.queue)) == [0, 1, 2]
    assert [request_id for request_id, _ in refused] == [3, 4]


@pytest.mark.parametrize("policy", [{"batching": "none"}, {"batch_rows_max": 8, "split": False}])
@pytest.mark.parametrize("at_once", [True, False])
def test_large_requests_are_not_taken_for_so_many_small_ones(policy: dict[str, Any], at_once: bool) -> None:
    """By runs of one row, 1 ms each, each of these would take minutes: nothing says so."""
    lane = lane_of(**policy)
    lane.times.observe(160_000, MS, MS)
    for _ in range(300):
        lane.times.observe(1, MS, MS)
    requests = [[i, 160_000, NOW + 900 * MS, 0] for i in range(9)] + [[9, 1, NOW + 900 * MS, 0]]
    for submit in [requests] if at_once else [[request] for request in requests]:
        assert not admit(lane, FRONTEND, submit, soonest_answer(lane, [worker_of(1)], NOW), NOW)
    assert promised_ns(lane, soonest_answer(lane, [worker_of(1)], NOW)) < NOW + 900 * MS


@pytest.mark.parametrize(("timeout_ms", "admitted"), [(30, False), (100, True)])
def test_requests_that_run_one_by_one_wait_for_those_before_them(timeout_ms: int, admitted: bool) -> None:
    """Ten runs of 2 ms, which are counted twice."""
    lane = lane_of(*(entry(i, 100) for i in range(10)), batching="none")
    for _ in range(20):
        lane.times.observe(100, 2 * MS, 2 * MS)
    request = [50, 100, NOW + timeout_ms * MS, 0]
    assert admitted != bool(admit(lane, FRONTEND, [request], soonest_answer(lane, [worker_of(1)], NOW), NOW))


def test_6_2_a_request_that_does_not_fit_the_open_batch_closes_it() -> None:
    lane = lane_of(queue_batches_max=3, batch_rows_max=4, split=False)
    refused = admit(lane, FRONTEND, [[i, rows, 0, 0] for i, rows in enumerate([3, 2, 1, 1, 4, 1])], UNKNOWN, NOW)
    # 3 | 2 1 1 | 4: the last one would open a fourth
    assert ids(list(lane.queue)) == [0, 1, 2, 3, 4]
    assert [request_id for request_id, _ in refused] == [5]
    assert list(lane.open_batches()) == [3, 4, 4]


def test_a_small_request_enters_after_a_large_one_was_refused() -> None:
    lane = lane_of(entry(0, 5), queue_rows_max=10)
    refused = admit(lane, FRONTEND, [[1, 6, 0, 0], [2, 5, 0, 0]], UNKNOWN, NOW)
    assert [request_id for request_id, _ in refused] == [1]
    assert lane.rows_queued == 10


@pytest.mark.parametrize(("deadline_ns", "admitted"), [(0, True), (NOW - 1, False), (NOW, False), (NOW + 1, True)])
def test_a_passed_deadline(deadline_ns: int, admitted: bool) -> None:
    lane = lane_of()
    refused = admit(lane, FRONTEND, [[1, 1, deadline_ns, 0]], UNKNOWN, NOW)
    assert bool(lane.queue) == admitted
    assert lane.deadline_min_ns == (deadline_ns if admitted else 0)
    if not admitted:
        assert refused == [(1, failures.DEADLINE_PASSED)]


@pytest.mark.parametrize(
    # 1 ms a row, well known. 20 rows wait before the request.
    ("refuse_late", "known", "waiting", "workers", "deadline_ms", "admitted"),
    [
        (True, True, 20, 1, 50, True),  # twice what the queue is predicted to take, and a batch of eight
        (True, True, 20, 1, 45, False),
        (True, True, 20, 2, 30, True),  # two workers need half the time
        (True, True, 20, 2, 25, False),
        (False, True, 20, 1, 15, True),  # the policy is off
        (True, False, 20, 1, 15, True),  # not known well enough
        (True, True, 0, 1, 1, True),  # the only one: it is tried
        (True, True, 20, 0, 15, True),  # nobody serves it now: no prediction
    ],
)
def test_a_deadline_that_cannot_be_met(
    refuse_late: bool, known: bool, waiting: int, workers: int, deadline_ms: int, admitted: bool
) -> None:
    lane = lane_of(*(entry(i) for i in range(waiting)), batch_rows_max=8, refuse_late=refuse_late)
    for _ in range(20 if known else 2):
        for rows in (1, 8):
            lane.times.observe(rows, rows * MS, rows * MS)
    soonest = soonest_answer(lane, [worker_of(i) for i in range(workers)], NOW)
    refused = admit(lane, FRONTEND, [[50, 1, NOW + deadline_ms * MS, 0]], soonest, NOW)
    assert (not refused) == admitted
    if refused:
        assert refused[0][1].code == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "wrong",
    [
        {"batching": "sometimes"},
        {"batch_rows_max": 0},
        {"queue_requests_max": 0},
        {"spread_ns": -1},
        {"lease_ns_max": 0},
        {"request_rows_max": -1},
        {"batches_at_once_max": -1},
        {"batch_enough_ns": -1},
        {"batch_rows_allowed": (0, 4)},
        {"batch_rows_allowed": (4, 4)},
        {"batch_rows_allowed": (8, 4)},
    ],
)
def test_a_policy_names_its_mistake(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LanePolicy(**wrong)
