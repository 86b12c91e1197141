"""Pure: how many workers a group has, between its smallest and its largest number, by the load that is measured.

One more, when all were busy and work waited for a while; one less, when for much longer the load would have fitted
into one fewer, and not filled them. Between the two lies the hysteresis: after a change the load is neither.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Workers are busy when they ran batches for this share of the time: the rest is the way from one batch to the next.
BUSY_SHARE = 0.8
#: The share of their time that one fewer may be busy.
SPARE_SHARE = 0.6
_WINDOWS = 4


class Elastic:
    """Decides for one group. grow_ns, shrink_ns: how long it takes until the number changes. wake_ns: ask again then.

    It looks at windows of a fourth of the shorter of the two times.
    """

    def __init__(self, workers_min: int, workers_max: int, *, grow_ns: int, shrink_ns: int) -> None:
        self.workers_min = workers_min
        self.workers_max = workers_max
        self._grow_ns = grow_ns
        self._shrink_ns = shrink_ns
        self._window_ns = min(grow_ns, shrink_ns) // _WINDOWS
        self._begun_ns = 0
        self._busy_ns: dict[int, int] = {}
        self._full_ns = 0  # how long it has been so
        self._spare_ns = 0
        self.wake_ns = 0

    def look(self, busy_ns: Mapping[int, int], now_ns: int, *, waits: bool, settled: bool) -> int:
        """1: one more worker; -1: one less; 0: as many as there are.

        busy_ns: of the workers that serve, by id, since each joined. waits: work waits for one. settled: nothing is
        under way that changes their number; otherwise what was measured is forgotten.
        """
        if now_ns < self.wake_ns and settled and busy_ns.keys() == self._busy_ns.keys():
            return 0
        before, begun_ns = self._busy_ns, self._begun_ns
        self._busy_ns, self._begun_ns = dict(busy_ns), now_ns
        self.wake_ns = now_ns + self._window_ns
        if not settled or before.keys() != busy_ns.keys() or not begun_ns:
            self._full_ns = self._spare_ns = 0
            return 0
        count, span_ns = len(busy_ns), now_ns - begun_ns
        load = sum(busy_ns[worker] - before[worker] for worker in busy_ns) / span_ns
        full = waits and load >= BUSY_SHARE * count
        self._full_ns = self._full_ns + span_ns if full else 0
        self._spare_ns = self._spare_ns + span_ns if load <= SPARE_SHARE * (count - 1) else 0
        change = 0
        if count < self.workers_max and self._full_ns >= self._grow_ns:
            change = 1
        elif count > self.workers_min and self._spare_ns >= self._shrink_ns:
            change = -1
        if change:
            self._full_ns = self._spare_ns = 0
        return change
