"""Pure: when to look for waiting requests whose deadline has come, and the look itself.

They are looked for at most once a millisecond, and the less often the more there are to look at, so that a long queue
does not cost the broker its time (one that is about to run is looked at anyway).
"""

from __future__ import annotations

from collections.abc import Sequence

from ringserve.broker import failures
from ringserve.broker.lanes import Lane
from ringserve.broker.outcomes import Outcomes
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

    def look(self, lanes: Sequence[Lane], outcomes: Outcomes, now_ns: int) -> None:
        """Answer every request in these lanes whose deadline has come."""
        looked_at = 0
        for lane in lanes:
            if lane.deadline_min_ns and lane.deadline_min_ns <= now_ns:
                looked_at += len(lane.queue)
                outcomes.fail(lane, lane.sweep(now_ns), failures.DEADLINE_PASSED, "expired")
        self.look_ns = 0
        self._again_ns = now_ns + max(_PAUSE_NS_MIN, looked_at * _PAUSE_NS_PER_REQUEST)
        for lane in lanes:
            if lane.deadline_min_ns:
                self.by(lane.deadline_min_ns)
