"""Pure: the workers, the states they go through, what each has loaded and how many batches it will still take.

    joining ──▶ ready ──▶ draining ──▶ gone
       └──────────┴──────────────────────▲

A ready worker is sent batches. A draining one finishes what it holds, and is sent only what no ready worker has loaded
(or nothing: when it was ordered to end, and what it holds comes back when it is gone).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from hashlib import blake2b

from ringserve.broker.lanes import Lane
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

    killed: it was ordered to end because its head lease ran out. kept: versions for which it stays while it drains.
    quiet_since_ns: when it was last sent something while it drains. lent_for: the lane of which a frontend may send it
    batches that the broker does not know of yet; kept by `Loans`.
    """

    __slots__ = (
        "index",
        "kept",
        "killed",
        "leases",
        "lent_for",
        "loaded",
        "quiet_since_ns",
        "retired",
        "state",
        "worker_id",
    )

    def __init__(self, worker_id: int, index: int, leases: list[Lease]) -> None:
        self.worker_id = worker_id
        self.index = index
        self.leases = leases
        self.loaded: frozenset[ModelVersion] = frozenset()
        self.state = WorkerState.JOINING
        self.killed = False
        self.lent_for: Lane | None = None
        self.retired = False
        self.kept: frozenset[ModelVersion] = frozenset()
        self.quiet_since_ns = 0

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
        self._spare: dict[ModelVersion, list[Worker]] = {}  # the draining ones likewise

    def joined(self, worker_id: int, index: int, leases: list[Lease]) -> Worker:
        """A worker registered; it takes nothing yet. Ids are never used twice."""
        if worker_id in self.workers:
            raise IllegalMoveError(f"worker {worker_id} joined twice")
        worker = self.workers[worker_id] = Worker(worker_id, index, leases)
        return worker

    def ready(self, worker: Worker, loaded: Iterable[tuple[str, int]]) -> None:
        """The worker has loaded these and takes batches from now on."""
        self._move(worker, WorkerState.READY)
        self.more(worker, loaded)

    def more(self, worker: Worker, loaded: Iterable[tuple[str, int]]) -> None:
        """The ready worker has loaded these, too."""
        if worker.state is WorkerState.READY:
            new = frozenset(ModelVersion(name, version) for name, version in loaded) - worker.loaded
            worker.loaded |= new
            _list(worker, new, self._serving)

    def drain(self, worker: Worker) -> None:
        """Send it only what no ready worker has."""
        self._move(worker, WorkerState.DRAINING)
        _unlist(worker, self._serving)
        _list(worker, worker.loaded, self._spare)

    def retire(self, worker: Worker) -> None:
        """Send the draining worker nothing more."""
        if not worker.retired:
            worker.retired = True
            _unlist(worker, self._spare)

    def left(self, worker: Worker) -> None:
        """Its process is gone."""
        before = worker.state
        self._move(worker, WorkerState.GONE)
        if before is WorkerState.READY:
            _unlist(worker, self._serving)
        elif before is WorkerState.DRAINING:
            self.retire(worker)
        del self.workers[worker.worker_id]

    def serving(self, servable: ModelVersion, workers_max: int = 0) -> list[Worker]:
        """The ready workers that have loaded it, or else the draining ones (at most `workers_max`, always the same
        ones), preferred ones first."""
        served_by = self._serving.get(servable) or self._spare.get(servable, [])
        return served_by[:workers_max] if workers_max else served_by

    def alone(self, worker: Worker) -> frozenset[ModelVersion]:
        """What the worker has loaded and no ready worker has."""
        return frozenset(servable for servable in worker.loaded if servable not in self._serving)

    def has_room(self, taken: Collection[int] = ()) -> bool:
        """Could any worker take a batch? taken: ids of busy ones that somebody waits for, who is before all others.

        With a lane for each of a hundred models most of them wait for the same few workers: a turn that asked for each
        took longer than their batches.
        """
        credit_max = self.credit_max
        for worker in self.workers.values():
            leases = worker.leases
            if leases and worker.worker_id in taken:
                continue
            if len(leases) < credit_max and (worker.state is WorkerState.READY or self._is_spare(worker)):
                return True
        return False

    @staticmethod
    def _is_spare(worker: Worker) -> bool:
        return worker.state is WorkerState.DRAINING and not worker.retired

    def _move(self, worker: Worker, state: WorkerState) -> None:
        if state not in MOVES[worker.state]:
            raise IllegalMoveError(f"worker {worker.worker_id}: {worker.state.value} -> {state.value}")
        worker.state = state


def _list(worker: Worker, servables: Iterable[ModelVersion], served_by: dict[ModelVersion, list[Worker]]) -> None:
    for servable in servables:
        workers = served_by.setdefault(servable, [])
        workers.append(worker)
        workers.sort(key=lambda w: (preference(servable.name, w.index), w.worker_id))


def _unlist(worker: Worker, served_by: dict[ModelVersion, list[Worker]]) -> None:
    for servable in worker.loaded:
        workers = served_by[servable]
        workers.remove(worker)
        if not workers:
            del served_by[servable]


def preference(model: str, index: int) -> int:
    """Orders the workers of a model: the smallest first.

    By a hash of both, so that models that may use few workers are spread over all of them, and so that a model
    comes back to the same places of the fleet after any of its workers was replaced.
    """
    return int.from_bytes(blake2b(f"{model}:{index}".encode(), digest_size=8).digest())
