"""Pure: which of a Submit's requests enter their lane, and what the others are told at once.

This loop runs once for every request the server ever sees; it is written for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ringserve.broker import failures
from ringserve.broker.lanes import Lane, Split
from ringserve.broker.messages import Failure
from ringserve.broker.policy import ROWS_ANY

#: A wait in the queue is taken to last so many times what is predicted. Who is let in and then comes too late costs
#: twice: a worker's time, and a client that waited in vain. In an overload queues are not empty for that, only shorter.
_PATIENCE = 2.0

Refusal = tuple[int, Failure]  # request id, what it is told


def admit(
    lane: Lane, frontend_id: int, requests: Sequence[Sequence[int]], soonest: tuple[int, float], now_ns: int
) -> list[Refusal]:
    """Queue `requests` ([request_id, rows, deadline_ns, offset, ...]) in order; return those refused, with the reason.

    A request is refused when its deadline has passed, when it has no rows or more than may run, when the lane is full,
    and when it cannot make its deadline. soonest: `placement.soonest_answer`.
    """
    policy = lane.policy
    queue = lane.queue
    if not queue:
        lane.pace.idle()
    refused: list[Refusal] = []
    room = policy.queue_requests_max - len(queue)
    rows_queued = lane.rows_queued
    rows_beyond = lane.rows_beyond  # that are queued, but do not count
    rows_room = lane.queue_rows_max
    rows_slow = ROWS_ANY  # so many rows would wait for `queue_ns_max`
    if policy.queue_ns_max and soonest[1]:
        rows_slow = int(policy.queue_ns_max / soonest[1])
        rows_room = min(rows_room, rows_slow)
    batches: deque[int] | None = None
    if policy.queue_batches_max and not lane.single:
        if policy.split:
            rows_room = min(rows_room, policy.queue_batches_max * lane.rows_max)
        else:
            batches = lane.open_batches()
    # Beyond these a request needs a second look.
    rows_plain = min(lane.rows_counted_max, lane.rows_max, rows_room, policy.request_rows_max or ROWS_ANY)
    rows_end = rows_room
    opened_at = rows_queued - (batches[-1] if batches else 0)  # rows before those of the last, open batch
    if batches is not None:
        rows_end = min(rows_room, opened_at + lane.rows_max if batches else 0)
    deadline_min_ns = lane.deadline_min_ns or ROWS_ANY
    soonest_ns, row_ns = soonest if policy.refuse_late else (0, 0.0)
    row_ns *= _PATIENCE
    soonest_ns -= int(rows_beyond * row_ns)
    for request in requests:
        request_id, rows, deadline_ns, *offsets = request
        if deadline_ns:
            if deadline_ns <= now_ns:
                refused.append((request_id, failures.DEADLINE_PASSED))
                continue
            answer_ns = soonest_ns + rows_queued * row_ns
            if deadline_ns < answer_ns and rows_queued:
                refused.append((request_id, failures.too_late(int(answer_ns) - now_ns)))
                continue
            if deadline_ns < deadline_min_ns:
                deadline_min_ns = deadline_ns
        if rows > rows_plain or rows < 1 or room < 1 or rows_queued + rows > rows_end:
            if batches:
                batches[-1] = rows_queued - opened_at
            failure = _second_look(lane, rows, rows_queued, rows_queued - rows_beyond, batches, rows_slow)
            if failure is not None:
                refused.append((request_id, failure))
                continue
            if rows > lane.rows_counted_max:
                rows_beyond += rows - lane.rows_counted_max
                soonest_ns -= int((rows - lane.rows_counted_max) * row_ns)
            if rows > lane.rows_max and policy.split:
                lane.splits[frontend_id, request_id] = Split()
            elif batches is not None and not (batches and batches[-1] + rows <= lane.rows_max):
                opened_at = rows_queued
                batches.append(0)
                rows_end = min(rows_room, opened_at + lane.rows_max)
        queue.append(([frontend_id, request_id, rows, 0, *offsets], deadline_ns, now_ns))
        room -= 1
        rows_queued += rows
    if batches:
        batches[-1] = rows_queued - opened_at
    lane.rows_queued = rows_queued
    lane.rows_beyond = rows_beyond
    lane.deadline_min_ns = 0 if deadline_min_ns == ROWS_ANY else deadline_min_ns
    lane.used_ns = now_ns
    return refused


def promised_ns(lane: Lane, soonest: tuple[int, float]) -> int:
    """By when a request that comes now could be promised an answer; for whom it is too late is refused."""
    return int(soonest[0] + (lane.rows_queued - lane.rows_beyond) * soonest[1] * _PATIENCE)


def _second_look(
    lane: Lane, rows: int, rows_queued: int, rows_counted: int, batches: deque[int] | None, rows_slow: int
) -> Failure | None:
    """Why a request that is large, or finds the lane (nearly) full, must be refused; None when it need not be.

    rows_counted: of those queued. batches: `Lane.open_batches`, where whole batches are counted.
    """
    policy = lane.policy
    if rows < 1:
        return failures.NO_ROWS
    if 0 < policy.request_rows_max < rows:
        return failures.too_large(rows, policy.request_rows_max)
    if not lane.queue:
        return None
    rows_more = min(rows, lane.rows_counted_max)
    rows_count_max = ROWS_ANY if lane.single else policy.queue_rows_max
    if rows_queued + rows > lane.queue_rows_of_bytes:
        rows_max = lane.queue_rows_of_bytes
        return failures.queue_full(len(lane.queue), policy.queue_requests_max, rows_queued, rows_max)
    if len(lane.queue) >= policy.queue_requests_max or rows_counted + rows_more > rows_count_max:
        rows_max = lane.queue_rows_max if lane.queue_rows_max < ROWS_ANY else 0
        return failures.queue_full(len(lane.queue), policy.queue_requests_max, rows_counted, rows_max)
    if rows_counted + rows_more > rows_slow:
        return failures.queue_slow(rows_counted, rows_slow, policy.queue_ns_max)
    if not policy.queue_batches_max or lane.single:
        return None
    if batches is None:
        if rows_queued + rows > policy.queue_batches_max * lane.rows_max:
            return failures.no_capacity(rows, rows_queued, lane.rows_max, policy.queue_batches_max)
    elif batches[-1] + rows > lane.rows_max and len(batches) >= policy.queue_batches_max:
        return failures.queue_full_batches(len(batches), policy.queue_batches_max)
    return None
