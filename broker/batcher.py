"""Pure: when a lane's next batch is due, whether it is full, and which lane comes first.

The order between lanes is start-time fair queueing over *worker time*: a lane is charged the predicted run time of
every batch it is granted (corrected when the real one is known), and the lane that has attained least goes first. So
two lanes that always have something waiting get the same worker time each, however different their batches are: a slow
model gets few long batches, a fast one many short ones. A lane that was empty starts at the present, not at its past:
nobody saves up, nobody pays for an idle minute.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ringserve.broker.lanes import Lane
from ringserve.broker.policy import MILLISECOND_NS

#: What a batch of unknown run time is charged until it is over.
_UNKNOWN_CHARGE_NS = MILLISECOND_NS

#: A lane that could not use its turns (its workers were busy, or gone) keeps at most this much of a claim.
_CLAIM_NS_MAX = 100 * MILLISECOND_NS


def is_full(lane: Lane) -> bool:
    """Would waiting not make the next batch larger?

    So it is when the waiting rows fill it, and when there are more of them and the next request does not fit: its
    requests are whole, and come in order.
    """
    return lane.single or lane.rows_queued >= lane.rows_best


def is_closed(lane: Lane, now_ns: int) -> bool:
    """Is the next batch not to wait for more rows, whether it is full or its time is over?"""
    policy = lane.policy
    if policy.batching == "timeout" and policy.batch_wait_ns_max and lane.queue:
        return is_full(lane) or lane.queue[0][2] + policy.batch_wait_ns_max <= now_ns
    return is_full(lane)


def due_ns(lane: Lane) -> int:
    """When the lane's next batch may go; 0 = it may go now. The lane must have something waiting."""
    if lane.policy.batching != "timeout" or lane.solo or is_full(lane):
        return 0
    if 0 < lane.parts_max <= len(lane.queue):  # a worker has said how many it runs of a batch
        return 0
    _, _, arrived_ns = lane.queue[0]
    return arrived_ns + lane.policy.batch_wait_ns_max


class FairOrder:
    """The lanes that have something waiting, least attained service first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Lane]] = []
        self._sequence = 0
        self._clock_ns = 0

    def __len__(self) -> int:
        return len(self._heap)

    def lanes(self) -> list[Lane]:
        """Every listed lane, in no order."""
        return [lane for _, _, lane in self._heap]

    def add(self, lane: Lane) -> None:
        """List a lane that has something waiting. Does nothing when it is listed."""
        if lane.listed:
            return
        lane.listed = True
        if lane.attained_ns < self._clock_ns:
            lane.attained_ns = self._clock_ns
        self._push(lane)

    def put_back(self, lane: Lane) -> None:
        """List a popped lane again, behind those that are as far."""
        lane.listed = True
        self._push(lane)

    def return_to_place(self, lane: Lane) -> None:
        """List a popped lane again that was granted nothing: still before those that are as far and came later."""
        lane.listed = True
        heapq.heappush(self._heap, (lane.attained_ns, lane.place, lane))

    def pop(self) -> Lane | None:
        """Unlist and return the lane whose turn it is, None when there is none. Lanes found empty are dropped."""
        heap = self._heap
        while heap:
            attained_ns, place, lane = heapq.heappop(heap)
            lane.listed = False
            lane.place = place
            if not lane.waiting:
                continue
            if lane.attained_ns > attained_ns:  # a batch of it ran longer than it was charged
                self.put_back(lane)
                continue
            return lane
        return None

    def remove(self, unwanted: Callable[[Lane], bool]) -> list[Lane]:
        """Unlist and return the lanes for which `unwanted` holds."""
        removed = [lane for _, _, lane in self._heap if unwanted(lane)]
        for lane in removed:
            lane.listed = False
        self._heap = [item for item in self._heap if item[2].listed]
        heapq.heapify(self._heap)
        return removed

    def charge(self, lane: Lane, expected_ns: int) -> int:
        """The lane was granted a batch: charge it, and return what it was charged."""
        if lane.attained_ns > self._clock_ns:
            self._clock_ns = lane.attained_ns
        charge_ns = expected_ns or _UNKNOWN_CHARGE_NS
        lane.attained_ns = max(lane.attained_ns, self._clock_ns - _CLAIM_NS_MAX) + charge_ns
        return charge_ns

    def _push(self, lane: Lane) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (lane.attained_ns, self._sequence, lane))
