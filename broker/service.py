"""The broker's loop: messages and time go into the pure core, what it says goes out. No decision is taken here.

One turn: take in everything that arrived (registrations first, mail second, deaths last, so that what a process sent
before it died still counts), ask the core once, send each peer one batch of messages.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable

from ringserve.broker import wire
from ringserve.broker.core import Core
from ringserve.broker.mailbox import Inbox, Mail, Outbox
from ringserve.broker.messages import (
    Cancel,
    Code,
    Done,
    Exited,
    Failed,
    Failure,
    Kill,
    Loaded,
    ModelVersion,
    PoolState,
    Ready,
    Role,
    Stop,
    Submit,
)
from ringserve.broker.registry import Arrivals, Peer, Registry
from ringserve.broker.roster import Roster
from ringserve.broker.setup import Policies
from ringserve.broker.versions import Versions

log = logging.getLogger(__name__)

#: Longest sleep without a reason to wake: bounds how late a stop request is seen if a wake-up is ever missed.
_IDLE_NS = 1_000_000_000


class Service:
    """One broker. Owns its inbox and registry; `listener` stays the caller's."""

    def __init__(
        self,
        core: Core,
        policies: Policies,
        versions: Versions,
        roster: Roster,
        listener: socket.socket,
        inbox_path: str,
        *,
        clock: Callable[[], int],
        first_peer_id: int,
    ) -> None:
        self._core = core
        self._policies = policies
        self._versions = versions
        self._roster = roster
        self._clock = clock
        core.set_versions((name, version) for name, version, _ in versions.wanted())
        self._selector = selectors.DefaultSelector()
        self._mail = Mail()
        self._inbox: Inbox = self._mail.inbox(inbox_path)
        self._selector.register(self._inbox.fd, selectors.EVENT_READ, None)
        self._registry = Registry(listener, inbox_path, self._selector, first_peer_id=first_peer_id)
        self._outboxes: dict[int, Outbox] = {}
        self._catalog_epoch_sent = 0
        self._pool: Peer | None = None
        self._registered_pids: set[int] = set()
        self._stopping = False
        self.messages_dropped_count = 0

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Also wake for this descriptor (signals, the supervisor's death)."""
        self._selector.register(fd, selectors.EVENT_READ, lambda _: on_readable())

    def stop(self) -> None:
        """Leave the loop after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`."""
        wake_ns = 0
        while not self._stopping:
            wake_ns = self._turn(wake_ns)
        for peer in self._registry.of_role(Role.POOL):
            self._registry.send(peer, Stop("the broker stops"))

    def close(self) -> None:
        """End every connection and remove the inbox."""
        self._registry.close()
        for outbox in self._outboxes.values():
            outbox.close(flush_ms=100)
        self._inbox.close()
        self._mail.close()
        self._selector.close()

    def _turn(self, wake_ns: int) -> int:
        sleep_ns = min(max(wake_ns - self._clock(), 0), _IDLE_NS) if wake_ns else _IDLE_NS
        arrivals = Arrivals()
        for key, _ in self._selector.select(sleep_ns / 1e9):
            if key.data is not None:
                key.data(arrivals)
        mail = self._inbox.drain()
        now_ns = self._clock()
        for peer in arrivals.joined:
            self._joined(peer, now_ns)
        for data in mail:
            self._on_mail(data, now_ns)
        for peer, message in arrivals.messages:
            self._on_control(peer, message, now_ns)
        for peer in arrivals.left:
            self._left(peer, now_ns)
        for refusal in arrivals.refused:
            log.warning("refused a registration: %s", refusal)
        return self._speak(now_ns)

    def _speak(self, now_ns: int) -> int:
        turn = self._core.turn(now_ns)
        for worker_id, execute in turn.executes:
            self._outboxes[worker_id].send(wire.pack(execute))
        for frontend_id, requests in turn.failed.items():
            outbox = self._outboxes.get(frontend_id)
            if outbox is not None:
                outbox.send(wire.pack(Failed(requests)))
        pool = self._pool
        roster_wake_ns = 0
        if pool is not None:
            for worker_id in turn.kills:
                worker = self._registry.peers.get(worker_id)
                if worker is not None:
                    log.error("worker %d (process %d) let its lease run out: ending it", worker_id, worker.hello.pid)
                    self._registry.send(pool, Kill(worker.hello.pid))
            for fork in self._roster.due(self._versions.wanted(), now_ns):
                self._registry.send(pool, fork)
            roster_wake_ns = self._roster.wake_ns()
        if self._versions.epoch != self._catalog_epoch_sent:
            self._catalog_epoch_sent = self._versions.epoch
            for frontend in self._registry.of_role(Role.FRONTEND):
                self._registry.send(frontend, self._versions.catalog())
        return min((wake for wake in (turn.wake_ns, roster_wake_ns) if wake), default=0)

    # ------------------------------------------------------------------------------------------------- arrivals

    def _joined(self, peer: Peer, now_ns: int) -> None:
        log.info("%s %d registered (process %d)", peer.role.name.lower(), peer.peer_id, peer.hello.pid)
        if peer.hello.inbox:
            self._outboxes[peer.peer_id] = self._mail.outbox(peer.hello.inbox)
        if peer.role is Role.FRONTEND:
            self._core.frontend_joined(peer.peer_id)
            self._registry.send(peer, self._versions.catalog())
        elif peer.role is Role.WORKER:
            self._registered_pids.add(peer.hello.pid)
            self._roster.joined(peer.hello.worker_index, now_ns)

    def _left(self, peer: Peer, now_ns: int) -> None:
        log.info("%s %d left (process %d)", peer.role.name.lower(), peer.peer_id, peer.hello.pid)
        outbox = self._outboxes.pop(peer.peer_id, None)
        if outbox is not None:
            outbox.close()
        if peer.role is Role.FRONTEND:
            self._core.frontend_left(peer.peer_id)
        elif peer.role is Role.WORKER:
            self._core.worker_left(peer.peer_id, now_ns)
            self._roster.gone(peer.hello.worker_index, now_ns)
        elif peer is self._pool:
            self._pool = None

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
        else:
            self.messages_dropped_count += 1
            log.error("dropped a %s, which no broker takes", type(message).__name__)

    def _on_control(self, peer: Peer, message: object, now_ns: int) -> None:
        if isinstance(message, Loaded):
            failure = Failure(Code(message.error_code), message.error_text)
            if message.error_text:
                log.error("%s version %d did not load: %s", message.name, message.version, message.error_text)
            if message.changes_state:
                self._policies.keep_on_one_worker(message.name)
            self._versions.loaded(ModelVersion(message.name, message.version), failure, message.signature_defs)
        elif isinstance(message, Ready):
            loaded = frozenset((str(name), int(version)) for name, version in message.loaded)
            self._core.worker_joined(peer.peer_id, peer.hello.worker_index, loaded)
            self._versions.ready(loaded)
        elif isinstance(message, Exited):
            log.warning("worker process %d (index %d) ended: %s", message.pid, message.worker_index, message.status)
            # One that registered is known to be gone by its connection's end; this is for one that never came so far.
            if message.pid in self._registered_pids:
                self._registered_pids.discard(message.pid)
            else:
                self._roster.gone(message.worker_index, now_ns)
        elif isinstance(message, PoolState):
            self._pool = peer
            self._roster.pool_joined([index for index, _ in message.workers], now_ns)
        else:
            log.error("dropped a %s from %s %d", type(message).__name__, peer.role.name.lower(), peer.peer_id)
