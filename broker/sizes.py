"""Pure: how many rows the next batch should have: for its requests' deadlines, and where workers pad batches to
prescribed sizes.
"""

from __future__ import annotations

from ringserve.broker.lanes import Lane

#: One batch takes this part of the time that its first request was given: it waits for one before it, and for its own,
#: and much is left for what nobody foresaw. Where rows are cheap beside the batch itself it may take longer, until rows
#: are so many times the fixed part, and the batch another part of that time.
_PART, _FIXED_TIMES, _PART_MAX = 8, 5, 3


def rows_in_time(lane: Lane, rows_max: int) -> int:
    """Rows of the next batch at most, given that `rows_max` would be right if nobody were in a hurry.

    A hundred rows of 4 ms that wait are no batch for requests that are good for 100 ms. It goes by the time that the
    first one was given in all, not by what is left of it: batches that got smaller the later they are would be later
    still. For the same reason the rows always take as long as the fixed part.
    """
    times, policy = lane.times, lane.policy
    if lane.single or not (lane.queue and times.row_ns):
        return rows_max
    _, deadline_ns, arrived_ns = lane.queue[0]
    given_ns = deadline_ns - arrived_ns if deadline_ns and policy.refuse_late else policy.queue_ns_max
    if not given_ns:
        return rows_max
    fixed_ns = times.fixed_ns
    batch_ns = max(given_ns / _PART, min(_FIXED_TIMES * fixed_ns, given_ns / _PART_MAX))
    return min(rows_max, max(1, int(max(batch_ns - fixed_ns, fixed_ns) / times.row_ns)))


def rows_fitting(lane: Lane, rows_max: int) -> int:
    """Rows of the next batch at most, given that `rows_max` would be right if sizes were free.

    Five rows where 4 and 8 are allowed: run as eight, or as four now and one with the next batch? By what these sizes
    took so far, the messages about one more batch included. TF Serving always runs what waits.
    """
    allowed = lane.rows_allowed
    if not allowed or lane.single or lane.policy.batching != "adaptive" or not lane.times.known:
        return rows_max
    waiting = min(lane.rows_queued, rows_max)
    smaller = [rows for rows in allowed if rows < waiting]
    padded = lane.rows_run(waiting)
    if padded == waiting or not smaller:
        return rows_max
    apart_ns = lane.predict(smaller[-1]) + lane.predict(waiting - smaller[-1]) + int(lane.times.turnaround_ns)
    return smaller[-1] if apart_ns < lane.predict(padded) else rows_max
