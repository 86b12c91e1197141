"""This frontend's side of the registration: who the workers are, where the broker is, and coming back when it is lost.

The link keeps a dead worker's ring mapped for a while: a Result that it sent just before it died may still lie in this
process's socket when the registration socket already tells of the death.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from typing import Final, Protocol

from ringserve.broker.control import ControlChannel, ControlClosed
from ringserve.broker.mailbox import Inbox, Mail, MailError
from ringserve.broker.messages import (
    PROTOCOL_VERSION,
    Ask,
    Catalog,
    Hello,
    PeerJoined,
    PeerLeft,
    Role,
    Stop,
    Told,
    Welcome,
)
from ringserve.frontend.line import Line
from ringserve.shm.segment import Segment, SegmentError

log = logging.getLogger(__name__)

#: How long a dead worker's ring stays mapped (see above).
_DEAD_RING_KEPT_S = 5.0
_RECONNECT_S = 0.02
#: After a broker did not welcome this process: it is of another release, or just ending.
_REFUSED_S = 1.0
#: Connections that end within that time, one after the other, before the next one waits for it: what cannot be handed
#: over for want of descriptors ends each of them, and a broker that dies ends one.
_BRIEF_MAX = 3
#: No room for one more descriptor, in this process or the whole system.
_NO_ROOM: Final = frozenset((errno.EMFILE, errno.ENFILE))


class WorkerPeer:
    """A worker as a frontend sees it: its result ring, read-only, and the line to it. left: nobody reads that now."""

    def __init__(self, segment: Segment, line: Line) -> None:
        self.left = False
        self.segment = segment
        self.data = segment.data
        self.send = line.send
        self._line = line

    def close(self) -> None:
        self.data = memoryview(b"")
        self._line.close()
        self.segment.abandon()


class LinkUser(Protocol):
    """What the link tells its client."""

    def on_mail(self, messages: list[bytes]) -> None:
        """Hot messages, oldest first."""

    def on_connected(self, frontend_id: int) -> None:
        """Registered, for the first time or again: this broker knows nothing of earlier requests."""

    def on_worker_left(self, worker_id: int) -> None:
        """This worker is gone; Results it was sending may be lost."""

    def on_catalog(self, catalog: Catalog) -> None:
        """The whole catalog, after every change."""

    def on_told(self, told: Told) -> None:
        """The answer to an Ask."""

    def on_disconnected(self) -> None:
        """The broker is lost, and with it every Ask."""

    def on_outdated(self, reason: str) -> None:
        """No broker will take this process any more: its release has been replaced."""


class BrokerLink:
    """Registration, peers and mail of one frontend, on the running event loop.

    registration_path: the broker's socket. inbox_path: made and removed by the link. ring: this frontend's request
    ring, handed to every worker; stays the caller's.
    """

    def __init__(self, registration_path: str, inbox_path: str, ring: Segment, user: LinkUser) -> None:
        self._registration_path = registration_path
        self._ring = ring
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._mail = Mail()
        folder, name = os.path.split(inbox_path)
        self._inbox_paths = [inbox_path, os.path.join(folder, f"2.{name}")]
        self._inbox: Inbox = self._mail.inbox(inbox_path)
        self._channel: ControlChannel | None = None
        self._broker: Line | None = None
        self._closed = False
        self._refused_told = False
        self._no_room_told = False
        self._welcomed_s = 0.0
        self._brief_count = 0
        self.workers: dict[int, WorkerPeer] = {}
        self.frontend_id = -1
        self._loop.add_reader(self._inbox.fd, self._on_inbox)
        self._was_registered = False
        self._connect()

    @property
    def connected(self) -> bool:
        return self._broker is not None

    def send(self, message: bytes) -> bool:
        """Send a hot message to the broker; False when there is none just now."""
        if self._broker is None:
            return False
        self._broker.send(message)
        return True

    def ask(self, message: Ask) -> bool:
        """Send an operator's call to the broker; False when there is none just now."""
        channel = self._channel
        if channel is None or self._broker is None:
            return False
        channel.send(message)
        if channel.unsent:
            self._loop.add_writer(channel.fd, self._flush, channel)
        return True

    def _flush(self, channel: ControlChannel) -> None:
        channel.flush()
        if not channel.unsent:
            self._loop.remove_writer(channel.fd)

    def _on_inbox(self) -> None:
        messages = self._inbox.drain()
        if messages:
            self._user.on_mail(messages)

    def _renew_inbox(self) -> None:
        """Another one than that of the last registration, whose file the broker removes when it sees that it is over;
        and nobody else may have left it where it was."""
        self._inbox_paths.reverse()
        try:
            fresh = self._mail.inbox(self._inbox_paths[0])
        except MailError as error:
            log.warning("%s", error)
            self._inbox_paths.reverse()
            return
        self._loop.remove_reader(self._inbox.fd)
        self._on_inbox()
        self._inbox.close()
        self._inbox = fresh
        self._loop.add_reader(fresh.fd, self._on_inbox)

    def _connect(self) -> None:
        if self._closed:
            return
        if self._was_registered:
            self._was_registered = False
            self._renew_inbox()
        hello = Hello(
            PROTOCOL_VERSION, int(Role.FRONTEND), os.getpid(), self._inbox.path, self._ring.data_bytes, -1, 0
        )
        try:
            channel = ControlChannel.connect(self._registration_path)
            try:
                channel.send(hello, (self._ring.fd,))
            except OSError:
                channel.close()
                raise
        except OSError as error:
            # The broker is starting or being replaced; its listening socket usually outlives it, so this is rare.
            wait_s = _RECONNECT_S
            if error.errno in _NO_ROOM:
                wait_s = _REFUSED_S
                self._tell_no_room(error)
            self._loop.call_later(wait_s, self._connect)
            return
        self._channel = channel
        self._loop.add_reader(channel.fd, self._on_control)

    def _tell_no_room(self, error: OSError) -> None:
        """Clients hold all descriptors that there are. That passes: some leave, and this process serves the others."""
        if not self._no_room_told:
            log.warning("cannot register with the broker yet: %s", error)
        self._no_room_told = True

    def _on_control(self) -> None:
        channel = self._channel
        assert channel is not None
        try:
            received = channel.receive()
        except ControlClosed as closed:
            self._disconnect(str(closed))
            return
        for position, (message, fds) in enumerate(received):
            if isinstance(message, Welcome):
                self._refused_told = False
                self._welcomed_s = self._loop.time()
                self._was_registered = True
                self._broker = Line(fds[0], self._user.on_mail)
                self.frontend_id = message.peer_id
                self._user.on_connected(message.peer_id)
            elif isinstance(message, PeerJoined):
                try:
                    self._worker_joined(message, fds)
                except SegmentError as error:
                    cause = error.__cause__
                    if not isinstance(cause, OSError) or cause.errno not in _NO_ROOM:
                        raise
                    for later in received[position + 1 :]:
                        later.close()
                    self._disconnect(f"worker {message.peer_id} cannot be reached: {cause}", wait_s=_REFUSED_S)
                    return
            elif isinstance(message, PeerLeft):
                self._worker_left(message.peer_id)
            elif isinstance(message, Catalog):
                self._user.on_catalog(message)
            elif isinstance(message, Told):
                self._user.on_told(message)
            elif isinstance(message, Stop):
                self._closed = True
                self._user.on_outdated(message.reason)

    def _worker_joined(self, message: PeerJoined, fds: list[int]) -> None:
        try:
            segment = Segment.attach(fds[0])
        except SegmentError:
            os.close(fds[1])
            raise
        finally:
            os.close(fds[0])
        self._no_room_told = False
        self.workers[message.peer_id] = WorkerPeer(segment, Line(fds[1], self._user.on_mail))

    def _worker_left(self, peer_id: int) -> None:
        worker = self.workers.get(peer_id)
        if worker is not None:
            worker.left = True
            self._loop.call_later(_DEAD_RING_KEPT_S, self._forget, peer_id)
            self._user.on_worker_left(peer_id)

    def _forget(self, peer_id: int) -> None:
        worker = self.workers.pop(peer_id, None)
        if worker is not None:
            worker.close()

    def _disconnect(self, reason: str, *, wait_s: float = 0.0) -> None:
        """The broker is lost, or given up. wait_s: register again after that time."""
        welcome = self._broker is not None
        if not self._closed and (welcome or not self._refused_told):
            what = "lost the broker" if welcome else "the broker does not take this process: see its log"
            log.warning("%s (%s); registering again", what, reason)
            self._refused_told = not welcome
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fd)
            self._loop.remove_writer(self._channel.fd)
            self._channel.close()
            self._channel = None
        if self._broker is not None:
            self._broker.close()
            self._broker = None
            self._user.on_disconnected()
        # A new broker introduces the workers again under new ids; the old ids stay good for Results under way.
        for peer_id in self.workers:
            self._loop.call_later(_DEAD_RING_KEPT_S, self._forget, peer_id)
        is_brief = welcome and self._loop.time() < self._welcomed_s + _REFUSED_S
        self._brief_count = self._brief_count + 1 if is_brief else 0
        if not welcome or self._brief_count > _BRIEF_MAX:
            wait_s = _REFUSED_S
        if wait_s:
            self._loop.call_later(wait_s, self._connect)
        else:
            self._connect()

    def close(self) -> None:
        """Leave: the broker and the workers see it by end-of-file."""
        self._closed = True
        self._loop.remove_reader(self._inbox.fd)
        if self._channel is not None:
            self._disconnect("closing")
        for peer_id in list(self.workers):
            self._forget(peer_id)
        self._inbox.close()
        self._mail.close()
