"""Who is here: registration connections, peers, and the hand-over of rings and cables between them.

The registry introduces peers to each other before anything can name them: when a worker joins, every frontend learns
of it (ring included) before the worker's first Result can reach it, because nothing is sent to a worker earlier; the
same holds for a frontend that joins and the workers. The caller (`broker/main.py`) owns the poll loop.
"""

from __future__ import annotations

import os
import selectors
import socket
from dataclasses import dataclass, field

from ringserve.broker.cable import Cable, pair
from ringserve.broker.control import ControlChannel, ControlClosed, ControlMessage, Received
from ringserve.broker.messages import PROTOCOL_VERSION, Hello, PeerJoined, PeerLeft, Role, Stop, Welcome

#: Frontends read workers' rings and workers read frontends' rings; nobody else needs to know of anybody.
_INTRODUCED_TO = {Role.FRONTEND: Role.WORKER, Role.WORKER: Role.FRONTEND}


@dataclass
class Peer:
    """A registered process. `ring_fd` is the registry's own descriptor of its memfd, -1 when it has none. `cable`: the
    broker's end of that between the two, which its user closes; the pool has none.
    """

    peer_id: int
    role: Role
    hello: Hello
    channel: ControlChannel
    ring_fd: int = -1
    cable: Cable | None = None


@dataclass
class Arrivals:
    """What one poll of the registry brought, in the order in which the caller must handle it. mail: hot messages that
    came over cables. outdated: why this broker is of no use any more; empty: it is of use.
    """

    joined: list[Peer] = field(default_factory=list)
    mail: list[bytes] = field(default_factory=list)
    messages: list[tuple[Peer, ControlMessage]] = field(default_factory=list)
    left: list[Peer] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    outdated: str = ""


class Registry:
    """All registration connections of one broker.

    listener: bound and listening UNIX socket; stays the caller's.
    first_peer_id: ids count up from here; take it so that two brokers after each other never give the same id.
    """

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector, *, first_peer_id: int) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._selector = selector
        self._strangers: set[ControlChannel] = set()
        self._next_id = first_peer_id
        self.peers: dict[int, Peer] = {}
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def of_role(self, role: Role) -> list[Peer]:
        """The registered peers of that role, oldest first."""
        return [peer for peer in self.peers.values() if peer.role is role]

    def send(self, peer: Peer, message: ControlMessage) -> None:
        """Send without waiting; what does not fit the socket's buffer goes when it is writable."""
        peer.channel.send(message)
        self._watch(peer.channel)

    def _accept(self, arrivals: Arrivals) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            channel = ControlChannel(connection)
            # The directory's mode keeps others out already; this holds when an operator loosens it.
            if channel.peer_uid not in (os.geteuid(), 0):
                arrivals.refused.append(f"user {channel.peer_uid} may not register with this broker")
                channel.close()
                continue
            self._strangers.add(channel)
            self._watch(channel)

    def _watch(self, channel: ControlChannel) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.unsent else 0)

        def serve(arrivals: Arrivals) -> None:
            self._serve(channel, arrivals)

        try:
            if self._selector.get_key(channel.fd).events != events:
                self._selector.modify(channel.fd, events, serve)
        except KeyError:
            self._selector.register(channel.fd, events, serve)

    def _serve(self, channel: ControlChannel, arrivals: Arrivals) -> None:
        channel.flush()
        peer = next((peer for peer in self.peers.values() if peer.channel is channel), None)
        try:
            for received in channel.receive():
                if peer is None:
                    peer = self._register(channel, received, arrivals)
                    arrivals.joined.append(peer)
                else:
                    for fd in received.fds:
                        os.close(fd)
                    arrivals.messages.append((peer, received.message))
        except ControlClosed as closed:
            if peer is None:
                self._strangers.discard(channel)
                arrivals.refused.append(str(closed))
            else:
                arrivals.left.append(peer)
                self._leave(peer)
            self._selector.unregister(channel.fd)
            channel.close()
            return
        self._watch(channel)

    def _register(self, channel: ControlChannel, received: Received, arrivals: Arrivals) -> Peer:
        hello, fds = received
        fault = _fault_of(received)
        if isinstance(hello, Hello) and hello.protocol != PROTOCOL_VERSION:
            # Of two that cannot work together, who began later is of the installation as it is now.
            if _began(hello.pid) < _began(os.getpid()):
                text = f"protocol {PROTOCOL_VERSION} is spoken here now, and {hello.protocol} by this process"
                channel.send(Stop(text))
            elif not self._has(hello.role):
                arrivals.outdated = fault  # nobody is served by a broker without a pool, or without frontends
        if fault or not isinstance(hello, Hello):
            for fd in fds:
                os.close(fd)
            raise ControlClosed(fault)
        role = Role(hello.role)
        self._strangers.discard(channel)
        peer = Peer(self._next_id, role, hello, channel, fds[0] if fds else -1)
        self._next_id += 1
        self._welcome(peer)
        other_role = _INTRODUCED_TO.get(role)
        for other in self.of_role(other_role) if other_role else ():
            self._introduce(peer, other)
        self.peers[peer.peer_id] = peer
        return peer

    def _has(self, role: int) -> bool:
        return any(peer.role == role for peer in self.peers.values())

    def _welcome(self, peer: Peer) -> None:
        welcome = Welcome(peer.peer_id)
        if peer.role in _INTRODUCED_TO:
            ours, theirs = pair()
            peer.cable = Cable(ours)
            with theirs:
                peer.channel.send(welcome, (theirs.fileno(),))
        else:
            peer.channel.send(welcome)

    def _introduce(self, peer: Peer, other: Peer) -> None:
        """Each to the other, with a cable between them."""
        ends = pair()
        for one, to, end in zip((peer, other), (other, peer), ends, strict=True):
            with end:
                joined = PeerJoined(one.peer_id, int(one.role), one.hello.ring_bytes)
                to.channel.send(joined, (one.ring_fd, end.fileno()))
            self._watch(to.channel)

    def _leave(self, peer: Peer) -> None:
        del self.peers[peer.peer_id]
        other_role = _INTRODUCED_TO.get(peer.role)
        for other in self.of_role(other_role) if other_role else ():
            self.send(other, PeerLeft(peer.peer_id))
        if peer.ring_fd >= 0:
            os.close(peer.ring_fd)
        if peer.hello.inbox:
            # A process that was killed could not remove its inbox's file.
            try:
                os.unlink(peer.hello.inbox)
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """End every connection; the processes at the other ends see end-of-file."""
        for peer in list(self.peers.values()):
            self._selector.unregister(peer.channel.fd)
            peer.channel.close()
            if peer.ring_fd >= 0:
                os.close(peer.ring_fd)
        for channel in self._strangers:
            self._selector.unregister(channel.fd)
            channel.close()
        self.peers.clear()
        self._strangers.clear()
        self._selector.unregister(self._listener)


def _began(pid: int) -> int:
    """When a process began, in ticks since the system did; 0: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _fault_of(received: Received) -> str:
    """What is wrong with a first message; empty when nothing is."""
    hello, fds = received
    if not isinstance(hello, Hello):
        return f"a process registered with {type(hello).__name__} in place of Hello"
    if hello.protocol != PROTOCOL_VERSION:
        return (
            f"process {hello.pid} speaks protocol {hello.protocol}, this broker {PROTOCOL_VERSION}: "
            "they are of different releases, and the one that began first is to be restarted"
        )
    if hello.role not in (Role.FRONTEND, Role.POOL, Role.WORKER):
        return f"process {hello.pid} registered as role {hello.role}, which does not exist"
    if hello.role in _INTRODUCED_TO and len(fds) != 1:
        return f"process {hello.pid} registered with {len(fds)} rings; a {Role(hello.role).name.lower()} has one"
    return ""
