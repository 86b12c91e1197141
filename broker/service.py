"""The broker's loop: messages and time go into the pure parts, what they say goes out. No decision is taken here.

One turn: take in everything that arrived (registrations first, mail second, deaths last, so that what a process sent
before it died still counts), ask the core once, and the models' side once if something concerns it, send each peer one
batch of messages.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections import deque
from collections.abc import Callable

from ringserve.broker import wire
from ringserve.broker.cables import Cables
from ringserve.broker.core import Core, Turn
from ringserve.broker.former import FormerWorkers
from ringserve.broker.leases import stopped_ns
from ringserve.broker.mailbox import Mail, Outbox
from ringserve.broker.messages import (
    Ask,
    Authored,
    Cancel,
    Dependent,
    Done,
    Exited,
    Failed,
    Forget,
    Fork,
    Handed,
    Kill,
    Loaded,
    Loading,
    LoadOrder,
    ModelOptions,
    ModelVersion,
    PoolState,
    Ready,
    Returned,
    Role,
    Stop,
    Submit,
    Told,
)
from ringserve.broker.metrics import BrokerMetrics
from ringserve.broker.models import Models
from ringserve.broker.operators import Operators
from ringserve.broker.orders import ForkPlan, Moves
from ringserve.broker.registry import Arrivals, Peer, Registry
from ringserve.broker.setup import Policies
from ringserve.broker.tending import Tending

log = logging.getLogger(__name__)

#: Longest sleep without a reason to wake: bounds how late a stop request is seen if a wake-up is ever missed.
_IDLE_NS = 1_000_000_000
#: Telling the catalog takes one in so many parts of the loop's time at most.
_CATALOG_SHARE = 20


class Service:
    """One broker. Owns its registry; `listener` stays the caller's. `models` is set before `run`."""

    models: Models

    def __init__(
        self,
        core: Core,
        policies: Policies,
        metrics: BrokerMetrics,
        listener: socket.socket,
        *,
        clock: Callable[[], int],
        first_peer_id: int,
        beat: Callable[[int], int] = lambda _: 0,
    ) -> None:
        """beat: called in every turn with the time; returns when to call it again at the latest, 0 = no need to."""
        self._core = core
        self._policies = policies
        self._metrics = metrics
        self._clock = clock
        self._beat = beat
        self._selector = selectors.DefaultSelector()
        self._mail = Mail()
        self._cables = Cables(self._selector)
        self._registry = Registry(listener, self._selector, first_peer_id=first_peer_id)
        self._former = FormerWorkers(self._registry, core)
        self._outboxes: dict[int, Outbox] = {}
        self._catalog_epoch_sent = 0
        self._catalog_due_ns = 0
        self._strangers: set[int] = set()  # frontends that have no catalog yet
        self._pool: Peer | None = None
        self._news = True
        self._turned_ns = clock()
        self._stopping = False
        self._refusals_told: deque[str] = deque(maxlen=100)
        self.messages_dropped_count = 0

    def serve_models(self, models: Models, watcher_fd: int, tending: Tending) -> None:
        """Whose models these are; `watcher_fd` wakes for `models.take_looks`."""
        self.models = models
        self._tending = tending
        self._operators = Operators(self._registry, models, self._core)
        self.watch(watcher_fd, self._on_looks)

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Also wake for this descriptor (signals, the supervisor's death)."""
        self._selector.register(fd, selectors.EVENT_READ, lambda _: on_readable())

    def stop(self) -> None:
        """Leave the loop after this turn."""
        self._stopping = True

    def run(self, *, pool_stays: bool = False) -> None:
        """Serve until `stop`, or until the models' side says that the server must end.

        pool_stays: the pool and its workers wait for the next broker; else they end, too.
        """
        wake_ns = 0
        while not self._stopping and not self.models.fatal:
            wake_ns = self._turn(wake_ns)
        for peer in self._registry.of_role(Role.POOL) if not pool_stays else ():
            self._registry.send(peer, Stop("the broker stops"))

    def close(self) -> None:
        """End every connection."""
        self._metrics.flush(self._core.ends(), self._core.take_given_up())
        self._cables.close()
        self._registry.close()
        for outbox in self._outboxes.values():
            outbox.close(flush_ms=100)
        self._mail.close()
        self._selector.close()

    def tell_workers(self, changed: list[ModelOptions]) -> None:
        """Batches of these models are to be run otherwise from now on."""
        for worker in self._registry.of_role(Role.WORKER) if changed else ():
            for options in changed:
                self._registry.send(worker, options)

    def _turn(self, wake_ns: int) -> int:
        sleep_ns = min(max(wake_ns - self._clock(), 0), _IDLE_NS) if wake_ns else _IDLE_NS
        arrivals = Arrivals()
        for key, _ in self._selector.select(sleep_ns / 1e9):
            key.data(arrivals)
        now_ns = self._clock()
        late_ns = stopped_ns(self._turned_ns + sleep_ns, now_ns)
        self._turned_ns = now_ns
        for peer in arrivals.joined:
            self._joined(peer, now_ns)
        for data in arrivals.mail:
            self._on_mail(data, now_ns)
        for peer, message in arrivals.messages:
            self._on_control(peer, message, now_ns)
        # The pool first: its workers leave because of that.
        for peer in sorted(arrivals.left, key=lambda peer: peer.role is not Role.POOL):
            self._left(peer, now_ns)
        self._refuse(arrivals)
        return self._speak(now_ns, late_ns)

    def _speak(self, now_ns: int, late_ns: int) -> int:
        models = self.models
        if self._tending.turn(now_ns):
            self._touch()
        if self._news or 0 < models.wake_ns <= now_ns:
            self._news = False
            moves = models.turn(now_ns)
            if moves is not None:
                self._move(moves, now_ns)
        catalog_ns = self._tell_frontends(now_ns)
        turn = self._core.turn(now_ns, late_ns)
        for worker_id, execute in turn.executes:
            self._cables.send(worker_id, wire.pack(execute))
        for frontend_id, requests in turn.failed.items():
            outbox = self._outboxes.get(frontend_id)
            if outbox is not None:
                outbox.send(wire.pack(Failed(requests, list(turn.waits.get(frontend_id, {}).items()))))
        for frontend_id, message in turn.loans:
            self._cables.send(frontend_id, wire.pack(message))
        if turn.kills or turn.drained:
            self._end_workers(turn, now_ns)
        metrics_ns = self._metrics.tick(now_ns, self._core.ends, self._core.take_given_up)
        models_ns = now_ns if self._news else models.wake_ns
        wakes = (turn.wake_ns, models_ns, metrics_ns, catalog_ns, self._tending.wake_ns, self._beat(now_ns))
        return min((wake for wake in wakes if wake), default=0)

    def _refuse(self, arrivals: Arrivals) -> None:
        for refusal in arrivals.refused:
            if refusal not in self._refusals_told:  # they try again, once a second
                log.warning("refused a registration: %s", refusal)
                self._refusals_told.append(refusal)
        if arrivals.outdated:
            log.error("another release was installed, and nobody is left whom this broker understands: ending")
            self._stopping = True

    def _end_workers(self, turn: Turn, now_ns: int) -> None:
        crew = self.models.lifecycle.groups.crew
        for worker_id in turn.kills:
            worker = self._registry.peers.get(worker_id)
            crew.worker_killed(worker_id)
            if worker is not None:
                log.error("worker %d (process %d) let its lease run out: ending it", worker_id, worker.hello.pid)
                self._kill(worker.hello.pid)
        for worker_id in turn.drained:
            crew.worker_drained(worker_id, now_ns)
        self._touch()

    # --------------------------------------------------------------------------------------------------- models

    def _touch(self) -> None:
        """Something concerns the models' side: ask it in this turn, or in the next."""
        self._news = True
        self.models.lifecycle.touch()

    def _on_looks(self) -> None:
        self.models.take_looks(self._clock())
        self._news = True

    def _move(self, moves: Moves, now_ns: int) -> None:
        for group, reason in self.models.lifecycle.groups.take_begun():
            self._metrics.generation_begun(group, reason)
        for worker_id, place, servables in moves.serve:
            self._core.worker_joined(worker_id, place, servables)
        for worker_id, kept in moves.drain:
            self._core.worker_draining(worker_id, now_ns, kept)
        for worker_id in moves.stops:
            worker = self._registry.peers.get(worker_id)
            if worker is not None:
                log.info("worker %d (process %d) is no longer needed", worker_id, worker.hello.pid)
                self._registry.send(worker, Stop("its generation has been replaced"))
        for pid in moves.kills:
            self._kill(pid)
        for plan in moves.forks:
            if self._pool is not None:
                self._registry.send(self._pool, self._fork(plan))
                self._metrics.process_started(f"worker-{plan.worker_index}")
        self._supply()

    def _supply(self) -> None:
        """Weights: after the forks, which inherit even what is given up now."""
        supply = self.models.lifecycle.supply
        authors, forgets = supply.take_authors(), supply.take_forgets()
        if self._pool is None:
            return
        if forgets:
            self._registry.send(self._pool, Forget(forgets))
        for author in authors:
            self._registry.send(self._pool, author)

    def _fork(self, plan: ForkPlan) -> Fork:
        weights_id = self.models.lifecycle.preparation.weights_id
        orders = [
            LoadOrder(*order[:3], fallback, list(self._policies.options(order.name)[1:]), weights_id(order))
            for order, fallback in plan.orders
        ]
        return Fork(
            plan.worker_index,
            plan.generation,
            list(plan.cpus),
            plan.threads,
            orders,
            plan.gpu,
            plan.gpu_bytes_max,
            plan.first,
        )

    def _kill(self, pid: int) -> None:
        if not self._former.end(pid) and self._pool is not None:
            self._registry.send(self._pool, Kill(pid))

    def _tell_frontends(self, now_ns: int) -> int:
        """The catalog when they come and after every change, and their operators' answers. Returns when to try again;
        0 when nothing is left to be told."""
        models = self.models
        # Who was just told to try again would find the same at once, as often as they try.
        urgent = self._core.take_asked_late() or bool(self._strangers) or self._operators.answers_wait
        changed = models.epoch != self._catalog_epoch_sent
        if not (changed or urgent):
            return 0
        if not models.may_tell(now_ns):
            if models.may_answer:
                self._operators.speak(catalog=False)
            return 0
        # A catalog of a thousand models takes a while to write, and each of them changes it: not after each.
        if now_ns < self._catalog_due_ns and not urgent:
            return self._catalog_due_ns
        if changed or self._strangers:
            self._tell_catalog(changed=changed)
            self._catalog_due_ns = now_ns + min(_CATALOG_SHARE * (self._clock() - now_ns), _IDLE_NS)
        self._operators.speak(catalog=True)
        return 0

    def _tell_catalog(self, *, changed: bool) -> None:
        models = self.models
        catalog = models.catalog()
        for frontend in self._registry.of_role(Role.FRONTEND):
            if changed or frontend.peer_id in self._strangers:
                self._registry.send(frontend, catalog)
        self._strangers.clear()
        self._catalog_epoch_sent = models.epoch
        self._metrics.serving(models.lifecycle.versions.expected())

    # ------------------------------------------------------------------------------------------------- arrivals

    def _joined(self, peer: Peer, now_ns: int) -> None:
        log.info("%s %d registered (process %d)", peer.role.name.lower(), peer.peer_id, peer.hello.pid)
        if peer.hello.inbox:
            self._outboxes[peer.peer_id] = self._mail.outbox(peer.hello.inbox)
        if peer.cable is not None:
            self._cables.add(peer.peer_id, peer.cable)
        if peer.role is Role.FRONTEND:
            self._core.frontend_joined(peer.peer_id)
            self._strangers.add(peer.peer_id)
        elif peer.role is Role.WORKER:
            hello, crew = peer.hello, self.models.lifecycle.groups.crew
            crew.worker_joined(peer.peer_id, hello.generation, hello.worker_index, hello.pid, now_ns)
        self._touch()

    def _left(self, peer: Peer, now_ns: int) -> None:
        log.info("%s %d left (process %d)", peer.role.name.lower(), peer.peer_id, peer.hello.pid)
        for data in self._cables.remove(peer.peer_id):
            self._on_mail(data, now_ns)
        outbox = self._outboxes.pop(peer.peer_id, None)
        if outbox is not None:
            outbox.close()
        crew = self.models.lifecycle.groups.crew
        if peer.role is Role.FRONTEND:
            self._core.frontend_left(peer.peer_id)
            self._strangers.discard(peer.peer_id)
        elif peer.role is Role.WORKER:
            self._core.worker_left(peer.peer_id, now_ns, blameless=self._pool is None or peer.peer_id in self._former)
            crew.worker_left(peer.peer_id, now_ns)
            self._former.left(peer.peer_id)
            self._operators.left(peer)
        elif peer is self._pool:
            self._pool = None
            self._former.pool_has((), now_ns)
            self.models.lifecycle.supply.pool_left(now_ns)
        self._touch()

    def _on_mail(self, data: bytes, now_ns: int) -> None:
        try:
            message = wire.unpack(data)
        except wire.WireError:
            self.messages_dropped_count += 1
            log.exception("dropped a message")
            return
        if isinstance(message, Submit):
            if message.again:
                self._core.resubmit(message.frontend_id, message.groups, now_ns)
            else:
                self._core.submit(message.frontend_id, message.groups, now_ns)
        elif isinstance(message, Done):
            self._core.done(message, now_ns)
        elif isinstance(message, Cancel):
            self._core.cancel(message.frontend_id, message.requests, now_ns)
        elif isinstance(message, Handed):
            self._core.handed(message, now_ns)
        elif isinstance(message, Returned):
            self._core.returned(*message)
        else:
            self.messages_dropped_count += 1
            log.error("dropped a %s, which no broker takes", type(message).__name__)

    def _on_control(self, peer: Peer, message: object, now_ns: int) -> None:
        crew = self.models.lifecycle.groups.crew
        if isinstance(message, Ask):
            self._operators.ask(peer, message, now_ns)
        elif isinstance(message, Told):
            self._operators.told(peer, message)
        elif isinstance(message, Dependent):  # another generation may have other files of that version
            for worker in self._registry.of_role(Role.WORKER):
                if worker is not peer and worker.hello.generation == peer.hello.generation:
                    self._registry.send(worker, message)
        elif isinstance(message, Loading):
            crew.worker_loading(peer.peer_id, ModelVersion(message.name, message.version), now_ns)
        elif isinstance(message, Loaded):
            if path := self.models.loaded(peer.peer_id, message, now_ns):
                self._metrics.loaded(path, message)
        elif isinstance(message, Ready):
            keys = frozenset(ModelVersion(str(name), int(version)) for name, version in message.loaded)
            crew.worker_ready(peer.peer_id, keys, complete=message.complete)
        elif isinstance(message, Exited):
            self._metrics.worker_ended(message.status)
            log.info("worker process %d (index %d) ended: %s", message.pid, message.worker_index, message.status)
            for failed in crew.worker_exited(message.worker_index, message.pid, message.status, now_ns):
                self.models.lifecycle.load_failed(failed, now_ns)
        elif isinstance(message, PoolState):
            self._pool = peer
            living = {worker[0]: worker[1] for worker in message.workers}
            self._former.pool_has(living.values(), now_ns)
            self.models.lifecycle.supply.pool_joined(living, message.weights, now_ns)
        elif isinstance(message, Authored):
            self._metrics.author_ended(self.models.lifecycle.preparation.authored(message))
        else:
            log.error("dropped a %s from %s %d", type(message).__name__, peer.role.name.lower(), peer.peer_id)
        self._touch()
