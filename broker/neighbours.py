"""Pure: may a model take the last free worker? Not while another one lately had requests that would wait for it.

A worker finishes what it has begun. A model whose batches take tens of milliseconds, and of which more waits than all
workers can do, would make every request of a fast model wait for one of its batches, as turns are taken between
batches only. So it leaves one worker to the others while they have requests, one in so many of its throughput at most;
what it leaves is no more than what would be theirs by fair turns. Two models that both have more than enough take
turns on all workers as ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringserve.broker.fleet import Worker
from ringserve.broker.lanes import Lane

#: A model whose run is longer than so many times another one's batch does not mind waiting for it.
_MINDS_TIMES = 2


class Neighbours:
    """When each model had its last request, and by which lane."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Lane, int]] = {}

    def saw(self, lane: Lane, now_ns: int) -> None:
        """A request of it came."""
        self._seen[lane.servable.name] = (lane, now_ns)

    def keeps_off(self, lane: Lane, workers: Sequence[Worker], now_ns: int) -> int:
        """Until when the lane may only use the workers that run its model already; 0: it may use any of `workers`."""
        keep_ns = lane.policy.keep_free_ns
        if not keep_ns or len(self._seen) < 2 or len(workers) < 2:
            return 0
        run_ns = lane.predict(min(lane.rows_best, max(lane.rows_queued, 1)))
        if run_ns <= lane.policy.spread_ns:
            return 0
        model = lane.servable.name
        if sum(runs(worker, model) for worker in workers) < len(workers) - 1:
            return 0
        until_ns = 0
        gone = []
        for name, (other, seen_ns) in self._seen.items():
            if seen_ns + keep_ns <= now_ns:
                gone.append(name)
            elif name != model and other.predict(1) < _MINDS_TIMES * run_ns and _could_run(other, workers, model):
                until_ns = max(until_ns, seen_ns + keep_ns)
        for name in gone:
            del self._seen[name]
        return until_ns


def _could_run(other: Lane, workers: Sequence[Worker], model: str) -> bool:
    """Does one of these that holds nothing of that model serve the other lane?"""
    return any(other.servable in worker.loaded and not runs(worker, model) for worker in workers)


def runs(worker: Worker, model: str) -> bool:
    """Does it hold a batch of that model?"""
    return any(lease.lane.servable.name == model for lease in worker.leases)
