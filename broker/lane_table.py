"""Pure: the lanes by key, the policy each follows, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ringserve.broker.lanes import Lane
from ringserve.broker.messages import LaneSpec
from ringserve.broker.policy import LanePolicy


class LaneTable:
    """Every lane that is remembered. A client can invent lanes (each inner shape is one), so they are bounded.

    unpack_lane: tells what a key means; called once for every key that is not in the table.
    lanes_max: beyond it idle lanes are forgotten, with what was learned about them, least recently used first.
    """

    def __init__(self, unpack_lane: Callable[[bytes], LaneSpec], default: LanePolicy, lanes_max: int) -> None:
        self._unpack_lane = unpack_lane
        self._lanes_max = lanes_max
        self._default = default
        self._by_model: dict[str, LanePolicy] = {}
        self._lanes: dict[bytes, Lane] = {}
        self.get = self._lanes.get

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def set_policies(self, default: LanePolicy, by_model: dict[str, LanePolicy]) -> None:
        """From now on lanes of a model follow `by_model[name]`, or `default`."""
        self._default, self._by_model = default, dict(by_model)
        for lane in self:
            lane.set_policy(by_model.get(lane.spec.model, default))

    def worker_left(self, worker_id: int) -> None:
        """No lane runs on that worker any more."""
        for lane in self:
            if worker_id in lane.recent:
                lane.recent.remove(worker_id)
            for split in lane.splits.values():
                split.worker_left(worker_id)

    def open(self, key: bytes) -> Lane | None:
        """The lane of a key that is not in the table; None when there are too many lanes and all are in use."""
        if len(self._lanes) >= self._lanes_max and not self._forget_idle():
            return None
        spec = self._unpack_lane(key)
        lane = self._lanes[key] = Lane(key, spec, self._by_model.get(spec.model, self._default))
        return lane

    def _forget_idle(self) -> bool:
        idle = sorted((lane for lane in self if lane.idle), key=lambda lane: lane.used_ns)
        for lane in idle[: self._lanes_max // 8 + 1]:  # several at once, so that the sorting pays
            del self._lanes[lane.key]
        return bool(idle)
