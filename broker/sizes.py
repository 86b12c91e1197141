"""Pure: how many rows the next batch should have where workers pad batches to prescribed sizes."""

from __future__ import annotations

from ringserve.broker.lanes import Lane


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
