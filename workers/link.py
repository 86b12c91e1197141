"""A worker's side of the registration: the frontends' rings, the cables to them, and the broker.

Blocking and single-threaded like the worker itself. When the broker is lost the link registers again with the next
one; when the pool is gone (end-of-file on `pool_fd`) the worker has nobody to belong to and leaves.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from typing import NamedTuple

from ringserve.broker.cable import Cable
from ringserve.broker.control import ControlChannel, ControlClosed, ControlMessage, Received
from ringserve.broker.messages import (
    PROTOCOL_VERSION,
    Ask,
    Dependent,
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
#: How long who leaves waits for a peer that does not read what was sent to it.
_FLUSH_MS = 200


class PoolGone(Exception):
    """The pool that forked this worker has ended; so must the worker."""


class StopOrdered(Exception):
    """The broker asks this worker to leave."""


class FrontendPeer(NamedTuple):
    """A frontend as a worker sees it: its request ring, read-only, and the cable to it."""

    segment: Segment
    cable: Cable


class Link:
    """Registration, peers and mail of one worker.

    segment: this worker's result ring, handed to every frontend; stays the caller's. stop_fd: readable when this
    process shall stop, -1 for none. wake_fds: further descriptors that end a `wait` besides mail and news. pool_fd: its
    end-of-file tells of the pool's death. Valid after `register`: worker_id and rings (request rings, read-only) by
    frontend id. left, options, asks, found: news that the caller takes out of these lists.

    When the broker is lost its frontends have left under their old ids only, and may still have to read what was sent
    to these, however long they stood still. So the cable to a frontend that left stays open until the other end is
    closed, by a frontend that has read all and forgotten this worker, or by its death: then its id comes into `left`.
    """

    def __init__(
        self,
        registration_path: str,
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
        self._channel: ControlChannel | None = None
        self._broker: Cable | None = None
        self._frontends: dict[int, FrontendPeer] = {}
        #: Those that are polled, by descriptor.
        self._cables: dict[int, Cable] = {}
        #: Those of frontends that left and have not hung up, with the frontends' ids.
        self._leaving: dict[int, tuple[int, Cable]] = {}
        self._newest_id = -1  # of the frontends that were ever here
        self._ready: dict[int, int] = {}
        self._poller = _poller_of(pool_fd, stop_fd, *wake_fds)
        # While there is no broker nothing else is taken in, so that what waits there must not end every pause at once.
        self._pauser = _poller_of(pool_fd, stop_fd)
        self._channel_poller = _poller_of()
        self.rings: dict[int, memoryview] = {}
        self.left: list[int] = []
        self.options: list[ModelOptions] = []
        self.asks: list[Ask] = []
        self.found: list[Dependent] = []
        self.worker_id = -1

    def register(self) -> None:
        """Connect, say Hello, wait for the Welcome. Raises PoolGone, and StopOrdered when `stop_fd` is readable."""
        self._forget_all()
        while True:
            try:
                self._channel = ControlChannel.connect(self._registration_path)
            except OSError:
                self._pause()
                continue
            for poller in (self._poller, self._pauser, self._channel_poller):
                poller.register(self._channel.fd, select.POLLIN)
            hello = Hello(
                PROTOCOL_VERSION,
                int(Role.WORKER),
                os.getpid(),
                "",
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

    def send_result(self, frontend_id: int, message: bytes) -> None:
        """Send a hot message to a frontend, unless it is gone."""
        frontend = self._frontends.get(frontend_id)
        if frontend is not None:
            self._send_hot(frontend.cable, message)

    def send_done(self, message: bytes) -> None:
        """Send a hot message to the broker."""
        assert self._broker is not None, "register first"
        self._send_hot(self._broker, message)

    def _send_hot(self, cable: Cable, message: bytes) -> None:
        if not cable.send(message) and cable.fd in self._cables:
            self._poller.modify(cable.fd, select.POLLIN | select.POLLOUT)

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
        self._ready = self._wait(self._poller, timeout_ms)

    def mail(self) -> list[bytes]:
        """Hot messages that the last `wait` found, oldest first."""
        messages: list[bytes] = []
        for fd in self._ready.keys() & self._cables.keys():
            cable = self._cables[fd]
            if cable.unsent and cable.flush():
                self._poller.modify(fd, select.POLLIN)
            messages += cable.receive()
            if cable.over:
                self._unplug(cable)  # it would end every wait until the registration tells of the death
                if fd in self._leaving:
                    self._hung_up(*self._leaving.pop(fd))
        return messages

    def awaits(self, frontend_id: int) -> bool:
        """The broker has not told of this frontend yet. It will: ids only grow."""
        return frontend_id > self._newest_id

    def news(self) -> bool:
        """Take in what the broker says of peers. False when the broker is lost. Raises StopOrdered.

        Call it after `mail`: then what the broker said before it sent a batch is known when the batch runs.
        """
        assert self._channel is not None, "register first"
        if not self._channel_poller.poll(0):  # cheaper than to receive nothing
            return True
        try:
            self._take(self._channel.receive())
        except ControlClosed:
            return False
        return True

    def _plug(self, fd: int) -> Cable:
        cable = Cable.of_fd(fd)
        self._cables[cable.fd] = cable
        self._poller.register(cable.fd, select.POLLIN)
        return cable

    def _unplug(self, cable: Cable) -> None:
        if self._cables.pop(cable.fd, None) is not None:
            self._poller.unregister(cable.fd)

    def _wait(self, poller: select.poll, timeout_ms: int | None) -> dict[int, int]:
        ready = dict(poller.poll(timeout_ms))
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
                self._broker = self._plug(fds[0])
            elif isinstance(message, PeerJoined):
                try:
                    segment = Segment.attach(fds[0])
                finally:
                    os.close(fds[0])
                self._frontends[message.peer_id] = FrontendPeer(segment, self._plug(fds[1]))
                self.rings[message.peer_id] = segment.data
                self._newest_id = max(self._newest_id, message.peer_id)
            elif isinstance(message, PeerLeft):
                self._forget(message.peer_id)
            elif isinstance(message, ModelOptions):
                self.options.append(message)
            elif isinstance(message, Dependent):
                self.found.append(message)
            elif isinstance(message, Ask):
                self.asks.append(message)
            elif isinstance(message, Stop):
                raise StopOrdered(message.reason)

    def _forget(self, peer_id: int) -> None:
        peer = self._frontends.pop(peer_id, None)
        if peer is not None:
            del self.rings[peer_id]
            # A batch that waits for room may still hold a view: its memory goes when the view does.
            peer.segment.abandon()
            if peer.cable.over:
                self._hung_up(peer_id, peer.cable)
            else:
                self._leaving[peer.cable.fd] = (peer_id, peer.cable)

    def _hung_up(self, peer_id: int, cable: Cable) -> None:
        """Nobody reads any more what was sent to this frontend."""
        cable.close()
        self.left.append(peer_id)

    def _forget_all(self) -> None:
        self.asks.clear()  # of a broker that is gone: its numbers mean nothing to the next one
        for peer_id in list(self._frontends):
            self._forget(peer_id)
        if self._channel is not None:
            for poller in (self._poller, self._pauser, self._channel_poller):
                poller.unregister(self._channel.fd)
            self._channel.close()
            self._channel = None
        if self._broker is not None:
            self._unplug(self._broker)
            self._broker.close()
            self._broker = None
        self._ready = {}

    def close(self) -> None:
        """Deliver what is queued and leave."""
        for peer_id in list(self._frontends):
            self._forget(peer_id)
        for _, cable in self._leaving.values():
            cable.close(flush_ms=_FLUSH_MS)
        if self._broker is not None:
            self._broker.close(flush_ms=_FLUSH_MS)
        if self._channel is not None:
            self._channel.close()


def _poller_of(*fds: int) -> select.poll:
    poller = select.poll()
    for fd in fds:
        if fd >= 0:
            poller.register(fd, select.POLLIN)
    return poller
