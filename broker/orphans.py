"""Pure: lanes with requests waiting and no worker that serves them: how long they may wait, what they are told then.

A lane that has something waiting stands either in the fair order or here, never in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ringserve.broker.batcher import FairOrder
from ringserve.broker.expiry import Expiry
from ringserve.broker.fleet import Fleet
from ringserve.broker.lanes import Lane
from ringserve.broker.messages import Failure, ModelVersion
from ringserve.broker.outcomes import Outcomes
from ringserve.broker.placement import earliest
from ringserve.broker.servables import Servables


class Orphans:
    """The lanes that nobody serves. Iterable, and a container of lanes."""

    def __init__(
        self, order: FairOrder, fleet: Fleet, servables: Servables, outcomes: Outcomes, expiry: Expiry
    ) -> None:
        self._order = order
        self._fleet = fleet
        self._servables = servables
        self._outcomes = outcomes
        self._expiry = expiry
        self._lanes: dict[Lane, None] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def __contains__(self, lane: object) -> bool:
        return lane in self._lanes

    def list(self, lane: Lane, now_ns: int) -> None:
        """See to it that what a lane has waiting is thought of in every turn, and when its first deadline comes."""
        if lane.deadline_min_ns:
            self._expiry.by(lane.deadline_min_ns)
        if lane.listed or not lane.waiting:
            return
        if self._fleet.serving(lane.servable):
            self._order.add(lane)
        else:
            self._lanes[lane] = None
            self._servables.orphaned(lane.servable, now_ns)

    def found(self, servables: Iterable[ModelVersion]) -> None:
        """A worker serves these now."""
        for lane in [lane for lane in self._lanes if lane.servable in servables]:
            del self._lanes[lane]
            self._order.add(lane)

    def lost(self, servables: Iterable[ModelVersion], now_ns: int) -> None:
        """A worker stopped serving these: set apart the lanes that have none left."""
        lost = {servable for servable in servables if not self._fleet.serving(servable)}
        for servable in lost:
            self._servables.orphaned(servable, now_ns)
        if lost:
            self._lanes.update(dict.fromkeys(self._order.remove(lambda lane: lane.servable in lost)))

    def told(self, lane: Lane, now_ns: int) -> Failure | None:
        """What a request is told that no worker can run now; None = it may wait for one."""
        return self._servables.unserved(lane.servable, lane.policy.no_worker_ns_max, now_ns)

    def expire(self, now_ns: int) -> int:
        """Fail what has waited too long for any worker at all; return when the next will have, 0 = none."""
        wake_ns = 0
        for lane in list(self._lanes):
            failure = self.told(lane, now_ns)
            if failure is not None:
                self._outcomes.fail(lane, lane.remove(lambda _: True), failure, "failed")
            if not lane.waiting:
                del self._lanes[lane]
            else:
                ends_ns = self._servables.ends_waiting_ns(lane.servable, lane.policy.no_worker_ns_max)
                wake_ns = earliest(wake_ns, ends_ns)
        return wake_ns
