"""Pure: workers that are to go: until when each still takes what only it can serve.

A draining worker is the last resort for the versions that no ready worker has: a frontend that has not heard yet that
a version goes still submits requests for it. So it stays until none has come for a while. One that is *kept* for some
versions (nobody can load them any more) stays as long as that is so.
"""

from __future__ import annotations

from collections.abc import Iterable

from ringserve.broker.fleet import Fleet, Worker, WorkerState
from ringserve.broker.lanes import Lane
from ringserve.broker.messages import ModelVersion

#: Frontends hear of the catalog within milliseconds; this long after the last batch for a last resort nothing comes.
QUIET_NS = 1_000_000_000


class Drains:
    """The draining workers of `fleet`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._workers: dict[int, Worker] = {}

    def __bool__(self) -> bool:
        return bool(self._workers)

    def start(self, worker: Worker, kept: frozenset[ModelVersion], now_ns: int, *, at_once: bool) -> None:
        """It takes what only it can serve, and goes when that is nothing. kept: it stays for these. at_once: it takes
        nothing more, and goes when it has finished what it holds."""
        if worker.state is WorkerState.READY:
            self._fleet.drain(worker)
        if at_once:
            self._fleet.retire(worker)
        worker.kept = kept
        worker.quiet_since_ns = now_ns
        self._workers[worker.worker_id] = worker

    def left(self, worker_id: int) -> None:
        """It is gone, or was ordered to end."""
        self._workers.pop(worker_id, None)

    def look(self, lanes: Iterable[Lane], now_ns: int) -> tuple[list[int], int]:
        """(workers that may go now, each told once; when to look again if nothing happens, 0 = not needed)."""
        drained = []
        wake_ns = 0
        for worker_id, worker in self._workers.items():
            if worker.leases or worker.kept or worker.lent_for is not None:
                continue
            alone = self._fleet.alone(worker) if not worker.retired else frozenset()
            quiet_ns = worker.quiet_since_ns + QUIET_NS
            if alone and now_ns < quiet_ns:
                wake_ns = min(wake_ns or quiet_ns, quiet_ns)
            elif not any(lane.waiting and lane.servable in alone for lane in lanes):
                drained.append(worker_id)
        for worker_id in drained:
            self._fleet.retire(self._workers.pop(worker_id))
        return sorted(drained), wake_ns
