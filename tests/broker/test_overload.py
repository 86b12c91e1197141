"""Bounds of a lane in bytes and in predicted time, how fast a queue is found to go, batches that fit their deadlines,
and who must leave a worker to whom.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker.admission import admit
from ringserve.broker.fleet import Worker
from ringserve.broker.lanes import Lane
from ringserve.broker.messages import Code, InputSpec, LaneSpec, ModelVersion
from ringserve.broker.neighbours import Neighbours
from ringserve.broker.pace import Pace
from ringserve.broker.placement import soonest_answer
from ringserve.broker.policy import LanePolicy
from ringserve.broker.row_bytes import ITEM_BYTES, row_bytes
from ringserve.broker.sizes import rows_in_time
from ringserve.shm.dtype import DTYPES, STRING
from tests.broker.kit import FRONTEND, MS, NOW, Bench, entry, lane_of, lease_of, worker_of

FULL = "The batch scheduling queue to which this task was submitted is full; "

# ---------------------------------------------------------------------------------------------------------- bounds


def test_bytes_of_a_row_are_those_of_its_dtypes() -> None:
    for number, dtype in DTYPES.items():
        assert number == STRING or ITEM_BYTES.get(number, 1) == dtype.itemsize, dtype.name
    inputs = (InputSpec("x", 1, (96, 96, 3)), InputSpec("y", 9, (-1,)), InputSpec("s", STRING, ()))
    assert row_bytes(LaneSpec("m", 1, "s", inputs, (), True)) == 96 * 96 * 3 * 4 + 8 + 8


def test_a_queue_is_bounded_in_bytes() -> None:
    lane = lane_of(queue_bytes_max=64)  # rows of 4 floats: 4 rows
    refused = admit(lane, FRONTEND, [[i, 1, 0, 0] for i in range(6)], (0, 0.0), NOW)
    assert [request_id for request_id, _ in refused] == [4, 5]
    assert refused[0][1].code is Code.UNAVAILABLE
    assert refused[0][1].text == (
        FULL + "currently 4 requests with 4 rows enqueued and the limits are 8192 requests and 4 rows"
    )


def test_what_is_larger_than_the_bound_in_bytes_runs_when_nothing_waits() -> None:
    lane = lane_of(queue_bytes_max=8)
    assert not admit(lane, FRONTEND, [[1, 30, 0, 0]], (0, 0.0), NOW)


@pytest.mark.parametrize(("waiting", "admitted"), [(4, True), (5, False), (0, True)])
def test_a_queue_is_bounded_in_predicted_time(waiting: int, admitted: bool) -> None:
    lane = lane_of(*(entry(i) for i in range(waiting)), queue_ns_max=5 * MS)
    for _ in range(20):
        for rows in (1, 8):
            lane.times.observe(rows, rows * MS, rows * MS)
    refused = admit(lane, FRONTEND, [[50, 1, 0, 0]], soonest_answer(lane, [worker_of(1)], NOW), NOW)
    assert (not refused) == admitted
    if refused:
        assert refused[0][1] == (
            Code.UNAVAILABLE,
            FULL + "currently 5 rows enqueued, and 5 are predicted to wait for the 5 ms that queue_ms_max allows",
        )


# ------------------------------------------------------------------------------------------------------- the drain


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(100_000, 20 * MS)), min_size=1, max_size=200))
def test_a_drain_is_somewhere_between_its_slowest_and_its_fastest_batch(batches: list[tuple[int, int]]) -> None:
    pace = Pace()
    now_ns = NOW
    pace.granted(1, now_ns, leaves_some=True)
    for rows, passed_ns in batches:
        now_ns += passed_ns
        pace.granted(rows, now_ns, leaves_some=True)
    each = [passed_ns / rows for rows, passed_ns in batches]
    found = pace.row_ns(now_ns)
    assert found == 0.0 or min(each) * 0.999 <= found <= max(each) * 1.001


def test_a_drain_follows_a_change_and_does_not_count_idle_time() -> None:
    pace = Pace()
    now_ns = NOW
    for rate_ns in (MS, 4 * MS):
        for _ in range(300):
            now_ns += rate_ns
            pace.granted(1, now_ns, leaves_some=True)
        assert pace.row_ns(now_ns) == pytest.approx(rate_ns, rel=0.05)
    pace.granted(1, now_ns + 4 * MS, leaves_some=False)
    assert pace.row_ns(now_ns + 500 * MS) == pytest.approx(4 * MS, rel=0.05)
    pace.granted(1, now_ns + 500 * MS, leaves_some=True)  # nothing waited for it
    assert pace.row_ns(now_ns + 500 * MS) == pytest.approx(4 * MS, rel=0.05)
    assert pace.row_ns(now_ns + 5_000 * MS) == 0.0  # too long ago


def test_a_queue_that_was_emptied_by_cancels_does_not_count_the_time_until_the_next_request() -> None:
    lane = lane_of()
    admit(lane, FRONTEND, [[1, 1, 0, 0], [2, 1, 0, 0]], (0, 0.0), NOW)
    for step in range(50):
        lane.pace.granted(1, NOW + step * MS, leaves_some=True)
    lane.remove(lambda _: True)
    later_ns = NOW + 600 * MS
    admit(lane, FRONTEND, [[3, 1, 0, 0], [4, 1, 0, 0]], (0, 0.0), later_ns)
    lane.pace.granted(1, later_ns, leaves_some=True)
    assert lane.pace.row_ns(later_ns) == pytest.approx(MS, rel=0.01)


def test_a_frontend_that_stood_still_does_not_make_a_queue_slow() -> None:
    """But how fast answers are read is how fast things go."""
    for waited_ms, expected_ms in ((2_000, 1.0), (20, 1.3)):
        bench = Bench(credit_max=1, batching="none")
        turn = bench.submit(*[(i, 1) for i in range(90)])
        for step in range(80):
            ((worker_id, execute),) = turn.executes
            waited_ns = waited_ms * MS if step == 60 else 0
            bench.now_ns += MS + waited_ns
            turn = bench.done(worker_id, execute.batch_id, MS, waited_ns=waited_ns)
        lane = bench.core._lanes.get(bench.key)
        assert lane is not None
        assert lane.pace.row_ns(bench.now_ns) / MS == pytest.approx(expected_ms, abs=0.1)
        assert lane.times.turnaround_ns < MS


def test_a_queue_that_goes_slower_than_run_times_say_refuses_sooner() -> None:
    """1 ms a row by its run times; the queue goes at 4 ms a row, as somebody else uses the workers, too."""
    lane = lane_of(*(entry(i) for i in range(10)))
    for _ in range(20):
        for rows in (1, 8):
            lane.times.observe(rows, rows * MS, rows * MS)
    request = [50, 1, NOW + 60 * MS, 0]
    assert not admit(lane, FRONTEND, [request], soonest_answer(lane, [worker_of(1)], NOW), NOW)
    for step in range(50):
        lane.pace.granted(1, NOW - (49 - step) * 4 * MS, leaves_some=True)
    assert admit(lane, FRONTEND, [request], soonest_answer(lane, [worker_of(1)], NOW), NOW)


# ------------------------------------------------------------------------------------------ batches and deadlines


@pytest.mark.parametrize(
    ("timeout_ms", "fixed_ms", "rows"),
    [
        (0, 0, 128),  # nobody is in a hurry
        (80, 0, 10),  # an eighth of the time that the first request was given, 1 ms a row
        (4, 0, 1),
        (80, 1, 9),
        (80, 4, 16),  # four times the fixed part
        (80, 10, 16),  # but not more than a third of the time
        (80, 20, 20),  # never less than what takes as long as the fixed part
        (100_000, 4, 128),
    ],
)
def test_a_batch_fits_the_deadlines_of_its_requests(timeout_ms: int, fixed_ms: int, rows: int) -> None:
    lane = lane_of(*(entry(i, deadline_ns=NOW + timeout_ms * MS if timeout_ms else 0) for i in range(200)))
    for size in (1, 64) * 4:
        lane.times.observe(size, (fixed_ms + size) * MS, 0)
    assert rows_in_time(lane, 128) == rows


# ------------------------------------------------------------------------------------------------------ neighbours


def neighbour(model: str, run_ns: int, **policy: Any) -> Lane:
    lane = Lane(model.encode(), LaneSpec(model, 1, "s", (InputSpec("x", 1, (4,)),), ("y",), True), LanePolicy(**policy))
    lane.times.observe(1, run_ns, run_ns)
    lane.queue.append(entry(1))
    lane.rows_queued = 1
    return lane


def workers_with(*lanes: Lane | None, loaded: tuple[str, ...] = ("slow", "fast")) -> list[Worker]:
    """One worker for each: busy with that lane, or idle."""
    workers = []
    for number, lane in enumerate(lanes):
        leases = () if lane is None else (lease_of(lane, ran_ns=MS, expected_ns=10 * MS),)
        worker = worker_of(number, *leases)
        worker.loaded = frozenset(ModelVersion(name, 1) for name in loaded)
        workers.append(worker)
    return workers


@pytest.mark.parametrize(
    ("run_ms", "other_run_ms", "holds", "seen_ms_ago", "kept_off"),
    [
        (10, 0.1, 1, 10, True),
        (10, 0.1, 0, 10, False),  # another worker is still free
        (10, 0.1, 1, 150, False),  # the other has not been asked for a while
        (0.5, 0.1, 1, 10, False),  # its batches are short: waiting for one does not hurt
        (10, 30, 1, 10, False),  # the other one takes longer itself
        (10, 15, 1, 10, True),
    ],
)
def test_a_model_of_long_batches_leaves_one_worker_to_the_others(
    run_ms: float, other_run_ms: float, holds: int, seen_ms_ago: int, kept_off: bool
) -> None:
    slow, fast = neighbour("slow", int(run_ms * MS)), neighbour("fast", int(other_run_ms * MS))
    neighbours = Neighbours()
    neighbours.saw(fast, NOW - seen_ms_ago * MS)
    neighbours.saw(slow, NOW)
    workers = workers_with(*[slow] * holds, *[None] * (2 - holds))
    assert neighbours.keeps_off(slow, workers, NOW) == (NOW + (100 - seen_ms_ago) * MS if kept_off else 0)


def test_the_last_worker_is_only_left_to_whom_it_serves() -> None:
    slow, fast = neighbour("slow", 10 * MS), neighbour("fast", MS // 10)
    neighbours = Neighbours()
    neighbours.saw(fast, NOW)
    neighbours.saw(slow, NOW)
    assert neighbours.keeps_off(slow, workers_with(slow, None, loaded=("slow",)), NOW) == 0
    assert neighbours.keeps_off(slow, workers_with(slow), NOW) == 0  # or it would never run
    assert neighbours.keeps_off(neighbour("slow", 10 * MS, keep_free_ns=0), workers_with(slow, None), NOW) == 0
    assert neighbours.keeps_off(fast, workers_with(fast, None), NOW) == 0
