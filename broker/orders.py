"""Pure: the vocabulary of `lifecycle.py` and `generations.py`: what is to be loaded, what shall serve, what to do."""

from __future__ import annotations

from typing import NamedTuple

from ringserve.broker.messages import Failure, ModelVersion


class Order(NamedTuple):
    """One version's files: equal orders load the same. stamp: counts up when the directory was made anew."""

    name: str
    version: int
    path: str
    stamp: int = 0

    @property
    def key(self) -> ModelVersion:
        return ModelVersion(self.name, self.version)


Orders = dict[ModelVersion, Order]


class Aim(NamedTuple):
    """What shall serve.

    fallbacks: serve now, and go on unless the orders of their model load (at least one of them). singles: hold state
    that ends with their worker, so a worker that serves one of them is kept rather than replaced. gone: serve, and
    their files are not there any more, so that no worker can load them again. found: of what workers of an earlier
    broker serve, nobody knows from where: what lies there now.
    """

    orders: Orders
    fallbacks: Orders
    singles: frozenset[ModelVersion]
    gone: frozenset[Order]
    found: Orders

    def wants(self, key: ModelVersion) -> bool:
        return key in self.orders or key in self.fallbacks


class Seat(NamedTuple):
    """Where the worker of one place runs. cpus: cores to pin to, empty for none. gpu: CUDA's number, -1 for none."""

    cpus: tuple[int, ...]
    gpu: int = -1


class ForkPlan(NamedTuple):
    """One worker to fork. orders: what it is to load, each with whether it is a fallback. Others: as in Fork."""

    worker_index: int
    generation: int
    cpus: tuple[int, ...]
    threads: int
    orders: tuple[tuple[Order, bool], ...]
    gpu: int = -1
    gpu_bytes_max: int = 0
    first: bool = True


class Moves(NamedTuple):
    """What the broker's loop has to do now.

    serve: (worker id, place in the fleet, all that it may be sent from now on). drain: (worker id, versions it is kept
    for; empty: it may go when nothing comes any more that only it can serve; None: as soon as it can). stops: worker
    ids; kills: process ids. wake_ns: ask again then; 0 = not needed.
    """

    forks: list[ForkPlan]
    serve: list[tuple[int, int, frozenset[ModelVersion]]]
    drain: list[tuple[int, frozenset[ModelVersion] | None]]
    stops: list[int]
    kills: list[int]
    wake_ns: int

    def then(self, later: Moves) -> Moves:
        """These, and after them those."""
        return Moves(
            self.forks + later.forks,
            self.serve + later.serve,
            self.drain + later.drain,
            self.stops + later.stops,
            self.kills + later.kills,
            later.wake_ns,
        )


class LoadFailure(NamedTuple):
    """A load that failed and counts. final: trying again is no use."""

    order: Order
    failure: Failure
    final: bool
