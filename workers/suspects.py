"""Pure: of a lane whose requests failed together, how many are run together next, so that the one to blame is found.

    run of n fails ──▶ all n back to the broker ──▶ n/2 ──▶ fails: n/4 of these, the others are out of suspicion
                                                        └─▶ passes: answered; half of the suspects that are left
                                                    1 ──▶ fails: that one is to blame, and is answered

A batch remains one run, whatever comes of it: its lease is for one, and nobody is answered before it is over. So those
that failed together leave the worker, come again from the front of their lane, and are known by their keys, for other
batches may be on their way before them. One to blame among n is found in log2(n) runs, and on the way most of the
others are answered.

How many are still to come that are to blame nobody knows. The largest group in which a run tells most is the one that
fails every other time: so a failure halves what may come together, and a run that passes doubles it again, up to what
it was. All are bad: one by one. One in ten: some six. One a minute: one batch is smaller.

Where each passes by itself it was the number (memory, a model that takes so many rows only). Such a number is tried
again after some runs, each time after more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from ringserve.workers.gather import FRONTEND, REQUEST, ROW_START, Part

#: So many runs pass before a number that was too large itself is tried again; each time so many times as many.
_PATIENCE_TIMES: Final = 4
_PATIENCE_MAX: Final = 256
#: A lane is forgotten after so many runs of as many as came.
_CALM: Final = 16
#: Of a lane. Those that were cancelled, or went to another worker, stay in it; beyond this all are forgotten.
_SUSPECTS_MAX: Final = 4096
#: Lanes in which something failed lately. A client that varies shapes makes new ones without end, and one that cancels
#: what failed leaves some hundred keys in each.
_LANES_MAX: Final = 64

_Key = tuple[int, int, int]


class _Group:
    """Parts one of which is to blame, unless it is their number. began: how many there were when the search began."""

    __slots__ = ("began", "keys")

    def __init__(self, keys: set[_Key], began: int) -> None:
        self.keys = keys
        self.began = began


class Suspects:
    """Of one lane, from the first run that fails on.

    parts_max: how many that nothing is known of may be run together; 0 = any number.
    """

    __slots__ = ("_calm", "_failed_max", "_group_of", "_passed", "_patience", "_too_many", "parts_max")

    def __init__(self) -> None:
        self.parts_max = 0
        self._group_of: dict[_Key, _Group] = {}
        self._failed_max = 0
        #: A number that fails though each part passes; 0: none is known.
        self._too_many = 0
        self._patience = 1
        self._passed = self._calm = 0

    @property
    def over(self) -> bool:
        """Nothing has failed for long."""
        return self._calm >= _CALM

    def first(self, parts: Sequence[Part]) -> int:
        """How many of these, from the first on, are to be run together now."""
        group = self._group_of.get(_key(parts[0])) if parts else None
        most = max(1, len(group.keys) // 2) if group is not None else self.parts_max or len(parts)
        for count, part in enumerate(parts[:most]):
            if self._group_of.get(_key(part)) is not group:
                return count
        return min(most, len(parts))

    def failed(self, parts: Sequence[Part]) -> None:
        """A run of these failed. Of a single one it is its answer."""
        group = self._group_of.get(_key(parts[0]))
        count = len(parts)
        self._passed = self._calm = 0
        if group is not None:
            for key in group.keys:
                self._group_of.pop(key, None)
        elif count > 1:
            self._failed_max = max(count, self._failed_max if self.parts_max else 0)
            self.parts_max = count // 2
        if count > 1:
            if len(self._group_of) + count > _SUSPECTS_MAX:
                self._group_of.clear()
            suspected = _Group({_key(part) for part in parts}, count if group is None else group.began)
            self._group_of.update(dict.fromkeys(suspected.keys, suspected))

    def passed(self, parts: Sequence[Part]) -> None:
        """A run of these did not fail."""
        group = self._group_of.get(_key(parts[0]))
        if group is None:
            self._raise()
            return
        for part in parts:
            group.keys.discard(_key(part))
            self._group_of.pop(_key(part), None)
        if not group.keys:
            self._too_many = min(group.began, self._too_many or group.began)
            self._patience = min(self._patience * _PATIENCE_TIMES, _PATIENCE_MAX)
            self._passed = 0

    def _raise(self) -> None:
        """More may come together, as these did well."""
        if not self.parts_max:
            self._calm += 1
            return
        raised = 2 * self.parts_max
        if self._too_many and raised >= self._too_many:
            self._passed += 1
            if self._passed < self._patience:
                return
            self._too_many = self._passed = 0
        self.parts_max = raised if raised < self._failed_max else 0


class Suspicions:
    """Those of one worker, by the keys of their lanes. Empty where nothing fails."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[bytes, Suspects] = OrderedDict()

    def first(self, lane_key: bytes, parts: Sequence[Part]) -> int:
        """How many of a batch are to be run together now; 0: all, as nothing of this lane failed lately."""
        lane = self._lanes.get(lane_key) if self._lanes else None
        return lane.first(parts) if lane is not None else 0

    def failed(self, lane_key: bytes, parts: Sequence[Part]) -> None:
        """A run of these failed."""
        lane = self._lanes.get(lane_key)
        if lane is None:
            if len(parts) == 1:
                return  # and nobody else with it
            lane = self._lanes[lane_key] = Suspects()
            if len(self._lanes) > _LANES_MAX:
                self._lanes.popitem(last=False)
        lane.failed(parts)

    def passed(self, lane_key: bytes, parts: Sequence[Part]) -> None:
        """A run of these did not fail."""
        lane = self._lanes.get(lane_key) if self._lanes else None
        if lane is not None:
            lane.passed(parts)
            if lane.over:
                del self._lanes[lane_key]

    def parts_max(self, lane_key: bytes) -> int:
        """How many the lane's batches may have from now on; 0 = any number."""
        lane = self._lanes.get(lane_key) if self._lanes else None
        return lane.parts_max if lane is not None else 0

    def clear(self) -> None:
        """The models behind the lanes change."""
        self._lanes.clear()


def _key(part: Part) -> _Key:
    return part[FRONTEND], part[REQUEST], part[ROW_START]
