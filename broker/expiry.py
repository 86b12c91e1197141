"""Pure: requests that nobody waits for any more: when to look for those whose deadline has come, the look itself, and
those whose frontend says so.

They are looked for at most once a millisecond, and the less often the more there are to look at, so that a long queue
does not cost the broker its time (one that is about to run is looked at anyway).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from ringserve.broker import failures
from ringserve.broker.lane_table import LaneTable
from ringserve.broker.lanes import Entry, Lane
from ringserve.broker.leases import Leases
from ringserve.broker.outcomes import LOADING, QUEUED, Outcomes
from ringserve.broker.policy import MILLISECOND_NS

_PAUSE_NS_MIN = MILLISECOND_NS
_PAUSE_NS_PER_REQUEST = 2_000


class Expiry:
    """look_ns: when to look next; 0 = nothing that waits has a deadline."""

    def __init__(self) -> None:
        self.look_ns = 0
        self._again_ns = 0

    def by(self, deadline_ns: int) -> None:
        """Something with this deadline waits: look then, or as soon after it as is allowed."""
        look_ns = max(deadline_ns, self._again_ns)
        if not self.look_ns or look_ns < self.look_ns:
            self.look_ns = look_ns

    def look(self, lanes: Sequence[Lane], orphans: Container[Lane], outcomes: Outcomes, now_ns: int) -> None:
        """Answer every request in these lanes whose deadline has come. orphans: those that no worker serves."""
        looked_at = 0
        for lane in lanes:
            if lane.deadline_min_ns and lane.deadline_min_ns <= now_ns:
                looked_at += len(lane.queue)
                expire(lane, lane.sweep(now_ns), outcomes, is_orphan=lane in orphans)
        self.look_ns = 0
        self._again_ns = now_ns + max(_PAUSE_NS_MIN, looked_at * _PAUSE_NS_PER_REQUEST)
        for lane in lanes:
            if lane.deadline_min_ns:
                self.by(lane.deadline_min_ns)


def expire(lane: Lane, entries: list[Entry], outcomes: Outcomes, *, is_orphan: bool = False) -> None:
    """End these, just taken out of the lane, as too late."""
    failure = failures.DEADLINE_LOADING if is_orphan else failures.DEADLINE_QUEUED
    outcomes.fail(lane, entries, failure, "expired", LOADING if is_orphan else QUEUED)


def cancel(
    lanes: LaneTable,
    orphans: Container[Lane],
    leases: Leases,
    outcomes: Outcomes,
    frontend_id: int,
    requests: Iterable[Sequence[Any]],
    now_ns: int,
) -> None:
    """Nobody waits for these any more: [[lane_key, request_id], ...], as in the message Cancel.

    One whose deadline has come was given up for that. What a worker holds is left to run, but never runs again.
    """
    ids_by_lane: dict[bytes, set[int]] = {}
    for key, request_id in requests:
        ids_by_lane.setdefault(key, set()).add(request_id)
    for key, request_ids in ids_by_lane.items():
        lane = lanes.get(key)
        if lane is None:
            continue
        is_orphan = lane in orphans
        removed = lane.remove_requests(frontend_id, request_ids)
        late = [entry for entry in removed if 0 < entry[1] <= now_ns]
        gone = [entry for entry in removed if not 0 < entry[1] <= now_ns]
        expire(lane, late, outcomes, is_orphan=is_orphan)
        outcomes.fail(lane, gone, failures.CANCELLED, "cancelled", LOADING if is_orphan else QUEUED)
        request_ids.difference_update(entry[0][1] for entry in removed)
        if request_ids and lane.leases_count:
            for lease in leases:
                if lease.lane is lane:
                    outcomes.unwanted(lease, frontend_id, request_ids, now_ns)
