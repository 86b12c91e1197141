"""The registration channel: control messages and file descriptors over a UNIX stream socket that stays connected.

Every process but the broker holds one such connection for its whole life. It carries what is rare (who joins, who
leaves, the catalog, orders to the pool), hands rings over by SCM_RIGHTS, and its end-of-file is the notice of a death:
the kernel sends it whatever way a process ends.

Frame: u32 length (little endian), u8 descriptors, then msgpack [kind, fields...]. Descriptors arrive no later than
the first byte of the frame they were sent with, so a queue of them in arrival order is enough to match them.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
from collections import deque
from typing import NamedTuple

from ringserve.broker import wire
from ringserve.broker.messages import (
    PROTOCOL_VERSION,
    Ask,
    Author,
    Authored,
    Catalog,
    Dependent,
    Exited,
    Forget,
    Fork,
    Hello,
    Kill,
    Loaded,
    Loading,
    LoadOrder,
    ModelOptions,
    PeerJoined,
    PeerLeft,
    PoolState,
    Ready,
    Stop,
    Told,
    VersionInfo,
    Welcome,
)
from ringserve.broker.sockets import is_gone

ControlMessage = (
    Hello
    | Welcome
    | PeerJoined
    | PeerLeft
    | Catalog
    | Fork
    | Kill
    | Exited
    | Loaded
    | Ready
    | Stop
    | PoolState
    | Loading
    | ModelOptions
    | Ask
    | Told
    | Author
    | Authored
    | Forget
    | Dependent
)

log = logging.getLogger(__name__)

# The position is the kind on the wire: append, never reorder, and raise PROTOCOL_VERSION on any change.
_MESSAGES: tuple[type[ControlMessage], ...] = (
    Hello,
    Welcome,
    PeerJoined,
    PeerLeft,
    Catalog,
    Fork,
    Kill,
    Exited,
    Loaded,
    Ready,
    Stop,
    PoolState,
    Loading,
    ModelOptions,
    Ask,
    Told,
    Author,
    Authored,
    Forget,
    Dependent,
)
_KIND_OF_MESSAGE = {message: kind for kind, message in enumerate(_MESSAGES)}
_HELLO = _KIND_OF_MESSAGE[Hello]

_HEADER = struct.Struct("<IB")
_RECEIVE_BYTES = 256 * 1024
_DESCRIPTORS_MAX = 16
#: A frame larger than this is not ours: the largest honest one is a catalog, signatures included.
_FRAME_BYTES_MAX = 256 * 1024 * 1024


class ControlClosed(Exception):
    """The other side is gone (or speaks nonsense): the connection is over."""


class Received(NamedTuple):
    """One control message with the descriptors that came with it; the receiver owns and closes them."""

    message: ControlMessage
    fds: list[int]

    def close(self) -> None:
        """Nobody takes it."""
        for fd in self.fds:
            os.close(fd)


class ControlChannel:
    """One end of a registration connection. Not thread safe. Owns the socket it is given.

    The socket is non-blocking. Sending never waits: what the kernel does not take is kept and `flush` tries again when
    the descriptor is writable (`unsent` says whether to ask for that).
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._received = bytearray()
        self._fds: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self.fd = connection.fileno()

    @classmethod
    def connect(cls, path: str) -> ControlChannel:
        """Connect to the broker's socket at `path`. Raises OSError when nobody listens there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            raise
        return cls(connection)

    @property
    def unsent(self) -> bool:
        """True when something waits for the descriptor to become writable."""
        return bool(self._unsent)

    @property
    def peer_uid(self) -> int:
        """The user id of the process at the other end, as the kernel knows it."""
        return self._peer()[1]

    def kill_peer(self) -> None:
        """End the process at the other end, if it is still there."""
        pid, _ = self._peer()
        if pid <= 0:
            log.warning("a process is not ended: it is out of this one's sight")  # in another namespace
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            # Its end of the connection goes with it: where that is open, the number was not another's by now.
            poller = select.poll()
            poller.register(self.fd, select.POLLRDHUP)
            if not poller.poll(0):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError as error:
            log.warning("process %d is not ended: %s", pid, error)
        finally:
            os.close(pidfd)

    def _peer(self) -> tuple[int, int]:
        """(process id, user id) of the other end."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        return int(pid), int(uid)

    def send(self, message: ControlMessage, fds: tuple[int, ...] = ()) -> None:
        """Send a message; `fds` stay the caller's and must stay open until `unsent` is False.

        A descriptor that could be closed earlier is duplicated here, so a caller need not care. A broken connection is
        not reported here: the reading side sees it.
        """
        body = wire.pack_fields((_KIND_OF_MESSAGE[type(message)], *message))
        frame = memoryview(_HEADER.pack(len(body), len(fds)) + body)
        self._unsent.append((frame, [os.dup(fd) for fd in fds]))
        self.flush()

    def flush(self) -> None:
        """Send as much as the kernel takes."""
        unsent = self._unsent
        while unsent:
            frame, fds = unsent[0]
            try:
                sent = socket.send_fds(self._socket, [frame], fds, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if not is_gone(error):
                    return
                self._drop_unsent()
                return
            for fd in fds:
                os.close(fd)
            if sent < len(frame):
                unsent[0] = (frame[sent:], [])
            else:
                unsent.popleft()

    def receive(self) -> list[Received]:
        """The messages that are complete now, oldest first. Raises ControlClosed at end-of-file or nonsense."""
        messages: list[Received] = []
        closed = False
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._socket, _RECEIVE_BYTES, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                closed = True
                break
            self._fds.extend(fds)
            if not data:
                closed = True
                break
            self._received += data
        try:
            self._parse(messages)
        except ControlClosed:
            for received in messages:  # which nobody will get
                received.close()
            raise
        if closed and not messages:
            raise ControlClosed("the other side closed the registration connection")
        return messages

    def _parse(self, messages: list[Received]) -> None:
        received = self._received
        start = 0
        while len(received) - start >= _HEADER.size:
            length, fds_count = _HEADER.unpack_from(received, start)
            if length > _FRAME_BYTES_MAX:
                raise ControlClosed(f"a control frame of {length} bytes is no frame of this protocol")
            end = start + _HEADER.size + length
            if len(received) < end:
                break
            message = _decode(bytes(received[start + _HEADER.size : end]))
            if len(self._fds) < fds_count:
                raise ControlClosed(f"{type(message).__name__} came without its {fds_count} descriptors")
            messages.append(Received(message, [self._fds.popleft() for _ in range(fds_count)]))
            start = end
        del received[:start]

    def _drop_unsent(self) -> None:
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()

    def close(self) -> None:
        """Close the socket and every descriptor nobody took."""
        self._drop_unsent()
        while self._fds:
            os.close(self._fds.popleft())
        self._socket.close()


def _decode(body: bytes) -> ControlMessage:
    try:
        kind, *fields = wire.unpack_fields(body)
        if kind == _HELLO and fields[0] != PROTOCOL_VERSION:
            fields = [*fields[:3], "", 0, -1, 0]  # what follows these three in another protocol means nothing here
        message: ControlMessage = _MESSAGES[kind](*fields)
    except (wire.WireError, ValueError, IndexError, TypeError) as error:
        raise ControlClosed(f"no control message of this protocol: {error!r}") from error
    if isinstance(message, Catalog):
        return message._replace(versions=[VersionInfo(*version) for version in message.versions])
    if isinstance(message, Fork):
        return message._replace(models=[LoadOrder(*order) for order in message.models])
    if isinstance(message, Author):
        return message._replace(order=LoadOrder(*message.order))
    if isinstance(message, PoolState):
        return message._replace(weights=[Authored(*weights) for weights in message.weights])
    return message
