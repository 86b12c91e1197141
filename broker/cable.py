"""A cable: a socket pair that carries hot messages between two processes, for which ZeroMQ is too slow.

ZeroMQ sends and receives in threads of its own, so that a message wakes three threads, one after the other; a cable's
wakes one. What has been sent lies in the receiver's socket: it arrives even if the sender dies.

Frame: u32 length (little endian), then the message as `broker/wire.py` packs it.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

from ringserve.broker.sockets import is_gone

_LENGTH = struct.Struct("<I")
_RECEIVE_BYTES = 65_536


class Cable:
    """One end. Never waits: what the kernel does not take is kept, and `flush` tries again when the descriptor is
    writable. That queue has no bound of its own, because what fills it is bounded elsewhere (credits, rings, pending
    requests); a bound would turn a slow peer into a lost message.

    connection: owned from now on. over: the other side is gone, and all that it had sent has been received; how the
    process at the other end does is told by its registration.
    """

    __slots__ = ("_held", "_socket", "_unsent", "fd", "over")

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._held = bytearray()  # the beginning of a message whose rest is still to come
        self._unsent: deque[memoryview] = deque()
        self.fd = connection.fileno()
        self.over = False

    @classmethod
    def of_fd(cls, fd: int) -> Cable:
        """The end that came over a registration connection; owns `fd`."""
        return cls(socket.socket(fileno=fd))

    @property
    def unsent(self) -> bool:
        """True when something waits for the descriptor to become writable."""
        return bool(self._unsent)

    def send(self, message: bytes) -> bool:
        """Send, or keep for `flush`; True when all is sent. Nothing is sent to a process that is gone, which is no
        error here.
        """
        self._unsent.append(memoryview(_LENGTH.pack(len(message)) + message))
        return len(self._unsent) == 1 and self.flush()

    def flush(self) -> bool:
        """Send as much as the kernel takes; True when that is all."""
        unsent = self._unsent
        while unsent:
            frame = unsent[0]
            try:
                sent = self._socket.send(frame, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                if not is_gone(error):
                    return False
                unsent.clear()
                break
            if sent < len(frame):
                unsent[0] = frame[sent:]
            else:
                unsent.popleft()
        return True

    def receive(self) -> list[bytes]:
        """The messages that are whole by now, oldest first."""
        messages: list[bytes] = []
        while not self.over:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self.over = True
                break
            self._split(data, messages)
            if len(data) < _RECEIVE_BYTES:
                break
        return messages

    def _split(self, data: bytes, messages: list[bytes]) -> None:
        held = self._held
        if held:
            held += data
        received = held or data
        start, end = 0, len(received)
        while end - start >= _LENGTH.size:
            body = start + _LENGTH.size
            after = body + _LENGTH.unpack_from(received, start)[0]
            if after > end:
                break
            messages.append(bytes(received[body:after]))
            start = after
        if held:
            del held[:start]
        elif start < end:
            held += data[start:]

    def close(self, *, flush_ms: int = 0) -> None:
        """Close. Waits up to `flush_ms` for a peer that reads what is unsent; the rest is dropped."""
        if self._unsent and flush_ms:
            self._socket.settimeout(flush_ms / 1e3)
            try:
                self._socket.sendall(b"".join(self._unsent))
            except OSError:
                pass
        self._unsent.clear()
        self._socket.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new cable, to be handed to the two processes that it connects."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
