"""A worker's side of the registration: the frontends' rings, the ways to their inboxes, and the broker.

Blocking and single-threaded like the worker itself. When the broker is lost the link registers again with the next
one; when the pool is gone (end-of-file on `pool_fd`) the worker has nobody to belong to and leaves.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from typing import NamedTuple

from ringserve.broker.control import ControlChannel, ControlClosed, ControlMessage, Received
from ringserve.broker.mailbox import Inbox, Mail, Outbox
from ringserve.broker.messages import (
    PROTOCOL_VERSION,
    Ask,
    Hello,
    ModelOptions,
    PeerJoined,
    PeerLeft,
    Role,
    Stop,
    Welcome,
)
from ringserve.shm.segment import Segment

log = logging.getLogger(__name__)

_RECONNECT_MS = 20


class PoolGone(Exception):
    """The pool that forked this worker has ended; so must the worker."""


class StopOrdered(Exception):
    """The broker asks this worker to leave."""


class FrontendPeer(NamedTuple):
    """A frontend as a worker sees it: its request ring, read-only, and the way to its inbox."""

    segment: Segment
    outbox: Outbox


class Link:
    """Registration, peers and mail of one worker.

    segment: this worker's result ring, handed to every frontend; stays the caller's. stop_fd: readable when this
    process shall stop, -1 for none. wake_fds: further descriptors that end a `wait` besides mail and news. pool_fd: its
    end-of-file tells of the pool's death. Valid after `register`: worker_id, broker, outboxes and rings (request rings,
    read-only) by frontend id. left, options, asks: news that the caller takes out of these lists.
    """

    def __init__(
        self,
        registration_path: str,
        inbox_path: str,
        segment: Segment,
        *,
        worker_index: int,
        generation: int,
        pool_fd: int,
        stop_fd: int = -1,
        wake_fds: tuple[int, ...] = (),
    ) -> None:
        self._registration_path = registration_path
        self._segment = segment
        self._worker_index = worker_index
        self._generation = generation
        self._pool_fd = pool_fd
        self._stop_fd = stop_fd
        self._mail = Mail()
        self.inbox: Inbox = self._mail.inbox(inbox_path)
        self._channel: ControlChannel | None = None
        self._broker: Outbox | None = None
        self._frontends: dict[int, FrontendPeer] = {}
        self._poller = _poller_of(pool_fd, stop_fd, self.inbox.fd, *wake_fds)
        # While there is no broker nothing else is taken in, so that what waits there must not end every pause at once.
        self._pauser = _poller_of(pool_fd, stop_fd)
        self.rings: dict[int, memoryview] = {}
        self.outboxes: dict[int, Outbox] = {}
        self.left: list[int] = []
        self.options: list[ModelOptions] = []
        self.asks: list[Ask] = []
        self.worker_id = -1

    @property
    def broker(self) -> Outbox:
        """The way to the broker's inbox."""
        assert self._broker is not None, "register first"
        return self._broker

    def register(self) -> None:
        """Connect, say Hello, wait for the Welcome. Raises PoolGone, and StopOrdered when `stop_fd` is readable."""
        self._forget_all()
        while True:
            try:
                self._channel = ControlChannel.connect(self._registration_path)
            except OSError:
                self._pause()
                continue
            for poller in (self._poller, self._pauser):
                poller.register(self._channel.fd, select.POLLIN)
            hello = Hello(
                PROTOCOL_VERSION,
                int(Role.WORKER),
                os.getpid(),
                self.inbox.path,
                self._segment.data_bytes,
                self._worker_index,
                self._generation,
            )
            self._channel.send(hello, (self._segment.fd,))
            try:
                while self._broker is None:
                    self._pause()
                    self._take(self._channel.receive())
                signal.alarm(0)  # see `Pool._be_worker`
                return
            except ControlClosed:
                self._forget_all()
                self._pause()

    def send(self, message: ControlMessage) -> None:
        """Send a control message, waiting until the kernel has taken all of it."""
        channel = self._channel
        assert channel is not None, "register first"
        channel.send(message)
        while channel.unsent:
            writable = select.poll()  # not select(), which refuses descriptors above 1023
            writable.register(channel.fd, select.POLLOUT)
            writable.poll(100)
            channel.flush()

    def wait(self, timeout_ms: int | None) -> None:
        """Sleep until there is mail, news, something on a wake descriptor, or the timeout. Raises PoolGone."""
        self._wait(self._poller, timeout_ms)

    def news(self) -> bool:
        """Take in what the broker says of peers. False when the broker is lost. Raises StopOrdered."""
        assert self._channel is not None, "register first"
        try:
            self._take(self._channel.receive())
        except ControlClosed:
            return False
        return True

    def _wait(self, poller: select.poll, timeout_ms: int | None) -> set[int]:
        ready = {fd for fd, _ in poller.poll(timeout_ms)}
        if self._pool_fd in ready:
            raise PoolGone
        return ready

    def _pause(self) -> None:
        if self._stop_fd in self._wait(self._pauser, _RECONNECT_MS):
            raise StopOrdered("stopped while registering")

    def _take(self, received: list[Received]) -> None:
        for message, fds in received:
            if isinstance(message, Welcome):
                self.worker_id = message.peer_id
                self._broker = self._mail.outbox(message.broker_inbox)
            elif isinstance(message, PeerJoined):
                try:
                    segment = Segment.attach(fds[0])
                finally:
                    os.close(fds[0])
                peer = FrontendPeer(segment, self._mail.outbox(message.inbox))
                self._frontends[message.peer_id] = peer
                self.rings[message.peer_id] = segment.data
                self.outboxes[message.peer_id] = peer.outbox
            elif isinstance(message, PeerLeft):
                self._forget(message.peer_id)
            elif isinstance(message, ModelOptions):
                self.options.append(message)
            elif isinstance(message, Ask):
                self.asks.append(message)
            elif isinstance(message, Stop):
                raise StopOrdered(message.reason)

    def _forget(self, peer_id: int) -> None:
        peer = self._frontends.pop(peer_id, None)
        if peer is not None:
            del self.rings[peer_id]
            del self.outboxes[peer_id]
            peer.outbox.close(flush_ms=200)
            # A batch that waits for room may still hold a view: its memory goes when the view does.
            peer.segment.abandon()
            self.left.append(peer_id)

    def _forget_all(self) -> None:
        self.asks.clear()  # of a broker that is gone: its numbers mean nothing to the next one
        for peer_id in list(self._frontends):
            self._forget(peer_id)
        if self._channel is not None:
            for poller in (self._poller, self._pauser):
                poller.unregister(self._channel.fd)
            self._channel.close()
            self._channel = None
        if self._broker is not None:
            self._broker.close()
            self._broker = None

    def close(self) -> None:
        """Deliver what is queued and leave."""
        for peer_id in list(self._frontends):
            self._forget(peer_id)
        if self._broker is not None:
            self._broker.close(flush_ms=200)
        if self._channel is not None:
            self._channel.close()
        self.inbox.close()
        self._mail.close()


def _poller_of(*fds: int) -> select.poll:
    poller = select.poll()
    for fd in fds:
        if fd >= 0:
            poller.register(fd, select.POLLIN)
    return poller
