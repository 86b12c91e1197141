"""One request on its way through the application, and where its client sits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

from ringserve.frontend.http1.exchange import JSON, Head


class Answerer(Protocol):
    """What an exchange needs of its connection."""

    def answered(self, head: Head, status: int, body: bytes, content_type: bytes, headers: bytes) -> None:
        """The application's answer to the present request."""

    def peer_is_local(self) -> bool:
        """Whether the client is on this host."""


class ServedExchange:
    """An `Exchange`. It lets go of its connection when it is over, so that the two form no cycle of garbage."""

    __slots__ = ("_body", "_cancel", "_connection", "head")

    def __init__(self, connection: Answerer, head: Head, body: bytes | bytearray) -> None:
        self.head = head
        self._body = body
        self._connection: Answerer | None = connection
        self._cancel: Callable[[], None] | None = None

    @property
    def peer_is_local(self) -> bool:
        """See Exchange."""
        return self._connection is not None and self._connection.peer_is_local()

    def take_body(self) -> bytes | bytearray:
        """See Exchange."""
        body, self._body = self._body, b""
        return body

    def answer(self, status: int, body: bytes = b"", content_type: bytes = JSON, headers: bytes = b"") -> None:
        """See Exchange."""
        connection = self._connection
        if connection is not None:
            self._connection = self._cancel = None
            connection.answered(self.head, status, body, content_type, headers)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """See Exchange."""
        self._cancel = callback

    def cancel(self) -> None:
        """Tell the application that there is no need for an answer any more."""
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
