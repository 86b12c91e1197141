"""The life cycle of models without processes: real `Lifecycle`, `Generations` and `Crew`; simulated disk, watcher,
pool, workers and time, from one seed.

In the first phase things happen: versions are copied, replaced, removed, some broken, some deadly; models are
configured and taken out; groups grow, shrink and are renewed; workers, the pool and the broker die. Then it is quiet,
and everything must come to its end.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ringserve.broker.directories import ModelPlan
from ringserve.broker.lifecycle import Lifecycle
from ringserve.broker.messages import Code, Failure, ModelVersion
from ringserve.broker.orders import ForkPlan, Moves, Order
from ringserve.broker.retries import Retries
from ringserve.broker.versions import Versions
from tests.sim.authors import SimAuthors
from tests.sim.disk import Disk
from tests.sim.layout import Layout
from tests.sim.life_events import change_config, die_together, something
from tests.sim.life_rules import Rules

MS = 1_000_000
SECOND = 1_000 * MS
BUSY_NS = 120 * SECOND
QUIET_NS = 300 * SECOND  # long enough for every back-off that is tried here
LINK_NS = 3 * MS  # a message's longest way
SETTLE_NS = 2 * SECOND
INCOMPLETE_NS = 8 * SECOND
RETRIES_MAX = 3
MANY_GROUPS = 1_000_000  # seeds from here on are of lives with several groups

BROKEN = Failure(Code.INVALID_ARGUMENT, "broken")
UNLUCKY = Failure(Code.UNAVAILABLE, "bad luck")


@dataclass
class SimWorker:
    plan: ForkPlan
    pid: int
    worker_id: int = 0
    alive: bool = True
    loaded: dict[tuple[str, int], str] = field(default_factory=dict)
    reports: list[tuple[Order, Failure | None]] = field(default_factory=list)
    loading: Order | None = None
    complete: bool = False


class LifeWorld:
    """One simulated server. `run` raises AssertionError when a rule is broken."""

    def __init__(self, seed: int, *, sharing: bool = False, together: bool = False) -> None:
        """together: whenever the pool dies the broker does, too, and the other way round, a moment before or after."""
        self.rng = rng = random.Random(seed)
        self.together = together
        self.sharing = sharing
        self.authors = SimAuthors(self, seed)
        self.layout = Layout(rng, many=seed >= MANY_GROUPS)
        self.deaths = rng.random() < 0.6 or together
        self.broker_deaths = self.deaths and rng.random() < 0.5
        self.kinds = rng.choice((["good"], ["good", "broken"], ["good", "good", "broken", "deadly", "unlucky"]))
        self.unload_when_empty = rng.random() < 0.3
        self.load_ns_max = rng.choice((100 * MS, 2 * SECOND, 20 * SECOND))
        self.now_ns = 1_000 * SECOND
        self.busy_until_ns = self.now_ns + BUSY_NS
        self.disk = Disk(rng)
        self.rules = Rules(self)
        self.plans: dict[str, ModelPlan] = {}
        self.workers: dict[int, SimWorker] = {}  # by process id
        self.versions = Versions()
        self.forks_count = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._ids = 100
        self._broker = 0
        self._looking: set[str] = set()
        self.unseen: set[tuple[str, int]] = set()
        self.lost_ns = 0
        self._pool = 1
        self.new_broker()

    # ---------------------------------------------------------------------------------------------------- engine

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now_ns + delay_ns, self._sequence, action))

    def soon(self, action: Callable[[], None], after_ns: int = 0) -> None:
        """A message on its way to this broker; one that follows it never sees it."""
        broker = self._broker
        self.at(after_ns + self.rng.randint(10_000, LINK_NS), lambda: action() if broker == self._broker else None)

    def run(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            change_config(self)
        for _ in range(self.rng.randint(5, 60)):
            self.at(self.rng.randint(0, BUSY_NS), lambda: something(self))
        for _ in range(self.rng.randint(1, 6) if self.together else 0):
            self.at(self.rng.randint(0, BUSY_NS), lambda: die_together(self))
        self.poll()
        end_ns = self.busy_until_ns + QUIET_NS
        turns = 0
        # A change that began late may take as long again.
        while self._events[0][0] < end_ns or (self.changing() and self.now_ns < end_ns + QUIET_NS):
            self.now_ns, _, action = heapq.heappop(self._events)
            action()
            self.turn()
            turns += 1
            assert turns < 200_000, "it does not come to rest"
        self.rules.finished()

    def changing(self) -> bool:
        if self.layout.many and any(generation.loading() for generation in self.crews.generations):
            return True
        return any(crew.following or any(not member.kept for member in crew.old) for crew in self.crews.crews)

    def turn(self) -> None:
        for name in self.lifecycle.due_looks(self.now_ns):
            self.look(name)
        moves = self.lifecycle.turn(self.now_ns)
        if moves is not None:
            self.move(moves)
        self.authors.send()
        self.rules.check()
        wakes = [self.lifecycle.wake_ns, *self.lifecycle.looks.values()]
        wake_ns = min((wake for wake in wakes if wake), default=0)
        if wake_ns:
            self.at(max(wake_ns - self.now_ns, 1), lambda: None)

    # ------------------------------------------------------------------------------------------- broker and pool

    def new_broker(self) -> None:
        self._broker += 1
        self.authors.broker_lost()
        self._looking.clear()
        self.groups = self.layout.groups()
        self.crews = self.groups.crew
        self.versions = Versions()
        self.lifecycle = Lifecycle(
            self.groups,
            self.versions,
            Retries(RETRIES_MAX, 60 * SECOND),
            self.authors.preparation(),
            settle_ns=SETTLE_NS,
            incomplete_ns=INCOMPLETE_NS,
            unload_when_empty=self.unload_when_empty,
        )
        self.lifecycle.configure(self.plans.values(), self.now_ns)
        if self._pool:
            self.soon(self.pool_registers)
        for worker in list(self.workers.values()):
            self.soon(lambda worker=worker: self.register(worker))  # type: ignore[misc]

    @property
    def pool_lives(self) -> bool:
        return bool(self._pool)

    def pool_registers(self) -> None:
        if self.sharing and not self._pool:
            return
        living = {worker.plan.worker_index: worker.pid for worker in self.workers.values()}
        self.lifecycle.supply.pool_joined(living, list(self.authors.held.values()), self.now_ns)
        self.lifecycle.touch()

    def pool_dies(self) -> None:
        self._pool = 0
        self.authors.pool_lost()
        self.soon(self.pool_left)
        for worker in list(self.workers.values()):
            # A worker sees its pool's end and leaves; the broker has seen it by then.
            self.end(worker, None, after_ns=LINK_NS if self.together else 0)
        self.at(3 * SECOND, self.pool_comes)

    def pool_left(self) -> None:
        self.lifecycle.supply.pool_left(self.now_ns)
        self.lifecycle.touch()

    def pool_comes(self) -> None:
        self._pool = 1
        self.soon(self.pool_registers)

    def move(self, moves: Moves) -> None:
        for plan in moves.forks:
            assert self.crews.pool
            if self.sharing:
                self.authors.fork(plan)
            else:
                self.soon(lambda plan=plan: self.fork(plan))  # type: ignore[misc]
        for worker_id, place, _ in moves.serve:
            assert 0 <= place < self.layout.places_count
            assert self.by_id(worker_id) is None or self.by_id(worker_id).alive  # type: ignore[union-attr]
        for worker_id, kept in moves.drain:
            if not kept:
                self.at(self.rng.randint(MS, SECOND), lambda worker_id=worker_id: self.drained(worker_id))  # type: ignore[misc]
        for worker_id in moves.stops:
            worker = self.by_id(worker_id)
            if worker is not None:
                self.at(self.rng.randint(MS, 100 * MS), lambda worker=worker: self.end(worker, 0))  # type: ignore[misc]
        for pid in moves.kills:
            if pid in self.workers:
                self.at(MS, lambda pid=pid: self.kill(pid))  # type: ignore[misc]

    def drained(self, worker_id: int) -> None:
        member = self.crews.find(worker_id)
        # The core names a worker only while it is kept for nothing.
        if member is not None and member.kept == frozenset():
            self.crews.worker_drained(worker_id, self.now_ns)
            self.lifecycle.touch()

    # --------------------------------------------------------------------------------------------------- workers

    def by_id(self, worker_id: int) -> SimWorker | None:
        return next((worker for worker in self.workers.values() if worker.worker_id == worker_id), None)

    def fork(self, plan: ForkPlan) -> None:
        if not self._pool:
            return
        self.forks_count += 1
        self._ids += 1
        worker = self.workers[self._ids] = SimWorker(plan, self._ids)
        if self.faulty(0.03):
            self.end(worker, -9)
            return
        self.soon(lambda: self.register(worker))
        self.at(self.rng.randint(MS, 200 * MS), lambda: self.load(worker, list(plan.orders)))

    def register(self, worker: SimWorker) -> None:
        if not worker.alive:
            return
        self._ids += 1
        worker.worker_id = self._ids
        plan = worker.plan
        self.crews.worker_joined(worker.worker_id, plan.generation, plan.worker_index, worker.pid, self.now_ns)
        for order, failure in worker.reports:
            self.tell_loaded(worker, order, failure)
        if worker.loading is not None:
            self.crews.worker_loading(worker.worker_id, worker.loading.key, self.now_ns)
        if worker.loaded or worker.complete:
            self.tell_ready(worker)
        self.lifecycle.touch()

    def load(self, worker: SimWorker, left: list[tuple[Order, bool]]) -> None:
        if not worker.alive:
            return
        if not worker.worker_id:
            self.at(MS, lambda: self.load(worker, left))
            return
        unsettled = {order.name for order, fallback in left if not fallback}
        turn = next((item for item in left if not item[1] or item[0].name not in unsettled), None)
        if turn is None:
            worker.complete = True
            self.tell(worker, lambda: self.tell_ready(worker))
            return
        left.remove(turn)
        order, fallback = turn
        if fallback and any(name == order.name for name, _ in worker.loaded):
            self.load(worker, left)
            return
        worker.loading = order
        self.tell(worker, lambda: self.crews.worker_loading(worker.worker_id, order.key, self.now_ns))
        self.at(self.rng.randint(10 * MS, self.load_ns_max), lambda: self.loaded(worker, order, left))

    def loaded(self, worker: SimWorker, order: Order, left: list[tuple[Order, bool]]) -> None:
        if not worker.alive:
            return
        on_disk = self.disk.of(order)
        kind = "broken" if on_disk is None or not on_disk.complete else on_disk.kind
        if on_disk is None:
            # Gone and back between two looks: nobody can know that its error means nothing any more.
            self.unseen.add((order.name, order.version))
        if kind == "deadly" or self.faulty(0.03):
            self.end(worker, -11)
            return
        failure = None
        if kind == "broken":
            failure = BROKEN
        elif kind == "unlucky" and self.rng.random() < 0.5:
            failure = UNLUCKY
        worker.loading = None
        worker.reports.append((order, failure))
        self.tell(worker, lambda: self.tell_loaded(worker, order, failure))
        if failure is None:
            worker.loaded[order.name, order.version] = order.path
            self.tell(worker, lambda: self.tell_ready(worker))
        self.at(0, lambda: self.load(worker, left))

    def tell(self, worker: SimWorker, action: Callable[[], None]) -> None:
        """A worker speaks on one connection: what it says arrives in its order, and before its end."""
        worker_id = worker.worker_id

        def arrive() -> None:
            if worker.worker_id == worker_id:
                action()
                self.lifecycle.touch()

        arrive()

    def tell_loaded(self, worker: SimWorker, order: Order, failure: Failure | None) -> None:
        failed = self.crews.worker_loaded(worker.worker_id, order.key, failure)
        if failed is not None:
            assert failed.order.key == order.key
            self.lifecycle.load_failed(failed, self.now_ns)
        elif failure is None:
            self.lifecycle.load_succeeded(order.key)
            if order.name in self.layout.stateful:
                self.lifecycle.singles.add(order.key)

    def tell_ready(self, worker: SimWorker) -> None:
        keys = frozenset(ModelVersion(*key) for key in worker.loaded)
        self.crews.worker_ready(worker.worker_id, keys, complete=worker.complete)

    def kill(self, pid: int) -> None:
        if pid in self.workers:
            self.end(self.workers[pid], -9)

    def end(self, worker: SimWorker, status: int | None, *, after_ns: int = 0) -> None:
        """status: None when its pool is gone, too, and nobody says how it ended."""
        if not worker.alive:
            return
        if status != 0:
            self.lost_ns = self.now_ns
        worker.alive = False
        del self.workers[worker.pid]
        worker_id, index = worker.worker_id, worker.plan.worker_index

        def left() -> None:
            self.crews.worker_left(worker_id, self.now_ns)
            self.lifecycle.touch()

        def exited() -> None:
            assert status is not None
            for failed in self.crews.worker_exited(index, worker.pid, status, self.now_ns):
                self.lifecycle.load_failed(failed, self.now_ns)
            self.lifecycle.touch()

        if worker_id:
            self.soon(left, after_ns)
        if status is not None:
            self.soon(exited)

    # ----------------------------------------------------------------------------------------------------- watcher

    def poll(self) -> None:
        for name in self.lifecycle.names():
            self.look(name)
        self.at(SECOND, self.poll)

    def look(self, name: str) -> None:
        look = self.lifecycle.look(name)
        if look is None or name in self._looking:
            return
        self._looking.add(name)
        listing = self.disk.listing(look, self.now_ns, fails=self.faulty(0.02))

        def arrive() -> None:
            self._looking.discard(name)
            self.lifecycle.listed(listing, self.now_ns)

        self.soon(arrive)

    def faulty(self, chance: float) -> bool:
        return self.deaths and self.now_ns < self.busy_until_ns and self.rng.random() < chance
