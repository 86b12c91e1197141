"""ZeroMQ as ringserve uses it, for what the broker tells frontends of requests: a PULL inbox in each frontend, a PUSH
outbox to each of them in the broker.

Plain sockets on a poll loop, not `zmq.asyncio` (which costs a future per message). The inbox's descriptor becomes
readable once and stays silent until everything is read, so a reader must `drain` it whole before it waits again.
"""

from __future__ import annotations

import os

import zmq

# Queues are unbounded here because the requests that fill them are bounded elsewhere (lane queues, rings, credits);
# a bound would turn a slow peer into a lost message.
_HIGH_WATER_UNLIMITED = 0
_INBOX_END = ".inbox"


class MailError(Exception):
    """An inbox or outbox could not be made; the text names the endpoint and the reason."""


class Mail:
    """The ZeroMQ context of one process. Make it after a fork, never before."""

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=1)

    def inbox(self, path: str) -> Inbox:
        """Bind a PULL socket at the UNIX socket `path`. Raises MailError."""
        return Inbox(self._context, path)

    def outbox(self, path: str) -> Outbox:
        """A PUSH socket to the inbox at `path`; what is sent before it is connected waits."""
        return Outbox(self._context, path)

    def close(self) -> None:
        """Close what is left open, without waiting for peers."""
        self._context.destroy(linger=0)


class Inbox:
    """Where a process receives. Owner: the process that made it; `close` removes its file."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str) -> None:
        self.path = path
        try:
            self._socket = context.socket(zmq.PULL)
        except zmq.ZMQError as error:  # there are no more descriptors
            raise MailError(f"cannot receive at {path}: {error.strerror}") from error
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_UNLIMITED)
        try:
            self._socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise MailError(f"cannot receive at {path}: {error.strerror}") from error
        self.fd = int(self._socket.getsockopt(zmq.FD))

    def drain(self) -> list[bytes]:
        """All messages that are here now, oldest first."""
        messages: list[bytes] = []
        receive = self._socket.recv
        try:
            while True:
                messages.append(receive(zmq.NOBLOCK))
        except zmq.Again:
            return messages

    def close(self) -> None:
        self._socket.close(linger=0)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


class Outbox:
    """A way to one peer's inbox."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_UNLIMITED)
        # A peer that binds late or is being replaced is found again soon; the default backs off for too long.
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.connect(f"ipc://{path}")

    def send(self, message: bytes) -> None:
        """Queue the message; never waits."""
        self._socket.send(message, zmq.NOBLOCK)

    def close(self, *, flush_ms: int = 0) -> None:
        """Close; `flush_ms` is how long the context keeps trying to deliver what is queued."""
        self._socket.close(linger=flush_ms)


def remove_dead_inboxes(folder: str) -> list[str]:
    """Remove the inboxes in `folder`, named NAME-PID.inbox, whose processes are gone; returns their names.

    Who leaves removes its own, and the broker that of a peer that was killed: so this is for those who died while there
    was none.
    """
    removed = []
    for name in os.listdir(folder):
        pid = name.removesuffix(_INBOX_END).rpartition("-")[2]
        if name.endswith(_INBOX_END) and pid.isdecimal() and not _is_alive(int(pid)):
            os.unlink(os.path.join(folder, name))
            removed.append(name)
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
