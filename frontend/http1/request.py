"""One request on its way through the application, and where its client sits."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, Protocol

from ringserve.frontend.http1.exchange import JSON, Head
from ringserve.frontend.ledger import CANCELLED, Ledger
from ringserve.frontend.peer_names import names_of

#: Process, user and group of whoever connected to a UNIX socket.
_UCRED: Final = struct.Struct("3i")


class Answerer(Protocol):
    """What an exchange needs of its connection."""

    def answered(
        self, head: Head, status: int, body: bytes, content_type: bytes, headers: bytes, made_id: str = ""
    ) -> bool:
        """The application's answer to the present request. See Exchange. False: refused in its place."""

    def peer(self) -> Peer:
        """Who the client is."""

    def waited_ns(self) -> int:
        """How long the present request lay in the socket. See Exchange."""


class Peer:
    """Who is at the other end of a connection."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @property
    def is_local(self) -> bool:
        """Whether it is on this host."""
        return is_local(self._transport)

    @property
    def address(self) -> str:
        """`127.0.0.1:1234`, `[::1]:1234`, or who it is that has connected to a UNIX socket: `unix:uid=0,pid=1`."""
        sock = self._transport.get_extra_info("socket")
        if sock is None:
            return "(unknown)"
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return f"unix:uid={uid},pid={pid}"
        host, port = (self._transport.get_extra_info("peername") or ("?", 0))[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of its verified certificate."""
        return names_of(self._transport.get_extra_info("peercert"))


class ServedExchange:
    """An `Exchange`. It lets go of its connection when it is over, so that the two form no cycle of garbage.

    calls: where it is booked.
    """

    __slots__ = ("_body", "_calls", "_cancel", "_connection", "head", "upload_ns")

    def __init__(
        self, connection: Answerer, head: Head, body: bytes | bytearray, calls: Ledger, upload_ns: int = 0
    ) -> None:
        calls.received += 1
        self._calls = calls
        self.head = head
        self.upload_ns = upload_ns
        self._body = body
        self._connection: Answerer | None = connection
        self._cancel: Callable[[], None] | None = None

    @property
    def peer_is_local(self) -> bool:
        """See Exchange."""
        return self._connection is not None and self._connection.peer().is_local

    @property
    def peer(self) -> str:
        """See Exchange."""
        return self._connection.peer().address if self._connection is not None else "(gone)"

    @property
    def names(self) -> tuple[str, ...]:
        """See Exchange."""
        return self._connection.peer().names if self._connection is not None else ()

    @property
    def request_id(self) -> str:
        """See Exchange."""
        return self.head.request_id

    @property
    def waited_ns(self) -> int:
        """See Exchange."""
        return self._connection.waited_ns() if self._connection is not None else 0

    def take_body(self) -> bytes | bytearray:
        """See Exchange."""
        body, self._body = self._body, b""
        return body

    def answer(
        self, status: int, body: bytes = b"", content_type: bytes = JSON, headers: bytes = b"", made_id: str = ""
    ) -> None:
        """See Exchange."""
        connection = self._connection
        if connection is not None:
            self._connection = self._cancel = None
            if connection.answered(self.head, status, body, content_type, headers, made_id):
                self._calls.ended[status] += 1
            else:
                self._calls.received -= 1  # it is in the book as a refused one

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """See Exchange."""
        self._cancel = callback

    def cancel(self) -> None:
        """Tell the application that there is no need for an answer any more."""
        if self._connection is not None:
            self._calls.ended[CANCELLED] += 1
        callback, self._connection, self._cancel = self._cancel, None, None
        if callback is not None:
            callback()


def is_local(transport: asyncio.BaseTransport) -> bool:
    """Whether the other end of a socket is on this host: the loopback interface, or a UNIX socket."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return sock is not None
    peer = transport.get_extra_info("peername")
    if not peer:
        return False
    address = ip_address(peer[0].partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
