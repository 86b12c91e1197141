"""Pure: the workers, the states they go through, what each has loaded and how many batches it will still take.

    joining ──▶ ready ──▶ draining ──▶ gone
       └──────────┴──────────────────────▲

Only a ready worker is sent batches. A draining one finishes what it holds (or was ordered to end, and what it holds
comes back when it is gone).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b

from ringserve.broker.leases import Lease
from ringserve.broker.messages import ModelVersion


class WorkerState(Enum):
    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


#: Every move there is. `Fleet._move` is the only one that makes them, and refuses all others.
MOVES: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.JOINING: frozenset({WorkerState.READY, WorkerState.GONE}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.GONE}),
    WorkerState.DRAINING: frozenset({WorkerState.GONE}),
    WorkerState.GONE: frozenset(),
}


class IllegalMoveError(Exception):
    """A move that is not in MOVES was asked for: a bug of the caller."""


class Worker:
    """One worker process. leases: what it holds, oldest first; kept by `Leases`.

    killed: it was ordered to end because its head lease ran out.
    """

    __slots__ = ("index", "killed", "leases", "loaded", "state", "worker_id")

    def __init__(self, worker_id: int, index: int, leases: list[Lease]) -> None:
        self.worker_id = worker_id
        self.index = index
        self.leases = leases
        self.loaded: frozenset[ModelVersion] = frozenset()
        self.state = WorkerState.JOINING
        self.killed = False

    def __repr__(self) -> str:
        return f"Worker({self.worker_id}, index={self.index}, {self.state.value}, leases={len(self.leases)})"


class Fleet:
    """The workers by id, and for each model version those that serve it. `credit_max`: batches a worker may hold."""

    def __init__(self, credit_max: int) -> None:
        if credit_max < 1:
            raise ValueError(f"a worker must be allowed at least 1 batch; credit_max is {credit_max}")
        self.credit_max = credit_max
        self.workers: dict[int, Worker] = {}
        self._serving: dict[ModelVersion, list[Worker]] = {}

    def joined(self, worker_id: int, index: int, leases: list[Lease]) -> Worker:
        """A worker registered; it takes nothing yet. Ids are never used twice."""
        if worker_id in self.workers:
            raise IllegalMoveError(f"worker {worker_id} joined twice")
        worker = self.workers[worker_id] = Worker(worker_id, index, leases)
        return worker

    def ready(self, worker: Worker, loaded: Iterable[tuple[str, int]]) -> None:
        """The worker has loaded these and takes batches from now on."""
        self._move(worker, WorkerState.READY)
        worker.loaded = frozenset(ModelVersion(name, version) for name, version in loaded)
        for servable in worker.loaded:
            served_by = self._serving.setdefault(servable, [])
            served_by.append(worker)
            served_by.sort(key=lambda w: (preference(servable.name, w.index), w.worker_id))

    def drain(self, worker: Worker) -> None:
        """Send it nothing more."""
        self._move(worker, WorkerState.DRAINING)
        self._unserve(worker)

    def left(self, worker: Worker) -> None:
        """Its process is gone."""
        was_ready = worker.state is WorkerState.READY
        self._move(worker, WorkerState.GONE)
        if was_ready:
            self._unserve(worker)
        del self.workers[worker.worker_id]

    def serving(self, servable: ModelVersion, workers_max: int = 0) -> list[Worker]:
        """The ready workers that have loaded it (at most `workers_max`, always the same ones), preferred ones first."""
        served_by = self._serving.get(servable, [])
        return served_by[:workers_max] if workers_max else served_by

    def has_room(self) -> bool:
        """Could any worker take a batch?"""
        credit_max = self.credit_max
        for worker in self.workers.values():
            if worker.state is WorkerState.READY and len(worker.leases) < credit_max:
                return True
        return False

    def _unserve(self, worker: Worker) -> None:
        for servable in worker.loaded:
            served_by = self._serving[servable]
            served_by.remove(worker)
            if not served_by:
                del self._serving[servable]

    def _move(self, worker: Worker, state: WorkerState) -> None:
        if state not in MOVES[worker.state]:
            raise IllegalMoveError(f"worker {worker.worker_id}: {worker.state.value} -> {state.value}")
        worker.state = state


def preference(model: str, index: int) -> int:
    """Orders the workers of a model: the smallest first.

    By a hash of both, so that models that may use few workers are spread over all of them, and so that a model
    comes back to the same places of the fleet after any of its workers was replaced.
    """
    return int.from_bytes(blake2b(f"{model}:{index}".encode(), digest_size=8).digest())
