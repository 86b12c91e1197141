"""The HTTP/1.1 server of the REST API: listening sockets, the connections they accepted, their limits, and the end."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from ringserve.frontend.addresses import Addresses
from ringserve.frontend.http1.answers import AnswerHeads, plain_page
from ringserve.frontend.http1.connection import Http1Connection
from ringserve.frontend.http1.exchange import ErrorPage, Handler, Head, Http1Limits, OnRefusal
from ringserve.frontend.http1.heads import HeadTable
from ringserve.frontend.http1.request import Peer
from ringserve.frontend.ledger import Ledger
from ringserve.frontend.listening import let_accepted_join
from ringserve.frontend.tls_door import TlsDoor

#: Connections that may wait to be accepted. The loop listens again with its own, smaller number if it is not told.
_BACKLOG: Final = 1024
#: A UNIX socket's file stays: the socket is other frontends', too. (Older event loops never remove it.)
_KEEP_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Http1Server:
    """A running server. Make one with `serve_http1`. It owns the sockets it was given."""

    def __init__(self, handler: Handler, limits: Http1Limits, error_page: ErrorPage) -> None:
        self.handler = handler
        self.limits = limits
        self.error_page = error_page
        self.heads = HeadTable(limits.headers_max)
        self.answers = AnswerHeads()
        self.tick = 0
        self.clock_ns = time.monotonic_ns
        self.is_draining = False
        self.bodies_bytes = 0
        self.unsent_bytes = 0
        #: How often the engine itself refused something, by HTTP status.
        self.refusals: Counter[str] = Counter()
        self.calls = Ledger()
        self.on_refusal: OnRefusal | None = None
        self._addresses = Addresses(limits.connections_per_address_max)
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._doors: list[TlsDoor] = []
        self._connections: set[Http1Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._timer = self._loop.call_later(limits.tick_s, self._on_tick)

    @property
    def connections_count(self) -> int:
        """Open connections."""
        return len(self._connections)

    def in_flight(self) -> int:
        """Requests that the application has and has not answered."""
        return sum(connection.is_busy for connection in self._connections)

    def refused(self, status: int, text: str, head: Head | None, peer: Peer) -> None:
        """The engine itself answers what is no request, or one too many."""
        self.refusals[str(status)] += 1
        self.calls.refuse(status)
        if self.on_refusal is not None:
            self.on_refusal(status, text, head, peer.address)

    def ticks(self, seconds: float) -> int:
        """How many ticks make so many seconds, at least."""
        return max(1, round(seconds / self.limits.tick_s))

    async def listen(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Accept from sockets that listen already. Raises OSError when that fails. tls: a server's context."""
        options: dict[str, Any] = {"backlog": _BACKLOG}
        for sock in sockets:
            if tls is not None:
                self._doors.append(TlsDoor(sock, self._connection, tls, self.refusals))
            elif sock.family == socket.AF_UNIX:
                options_unix = options | _KEEP_FILE
                self._servers.append(await self._loop.create_unix_server(self._connection, sock=sock, **options_unix))
            else:
                self._servers.append(await self._loop.create_server(self._connection, sock=sock, **options))

    def _connection(self) -> Http1Connection:
        return Http1Connection(self, self._loop)

    def joined(self, connection: Http1Connection, transport: asyncio.BaseTransport) -> bool | None:
        """Count a new connection. False: there are too many, tell it so; None: close it without a word."""
        self._connections.add(connection)
        self._empty.clear()
        if not self._addresses.join(connection, transport):
            self.refusals["address"] += 1
            return None
        surplus = len(self._connections) - self.limits.connections_max
        return None if surplus > self.limits.connections_told_max else surplus <= 0

    def left(self, connection: Http1Connection) -> None:
        """A connection is over."""
        self._connections.discard(connection)
        self._addresses.leave(connection)
        if not self._connections:
            self._empty.set()

    def _on_tick(self) -> None:
        self._timer = self._loop.call_later(self.limits.tick_s, self._on_tick)
        self.tick += 1
        self.answers.refresh_date()
        for connection in list(self._connections):
            connection.on_tick(self.tick)
            if self.is_draining:
                connection.drain()

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing new, close idle connections, and return when the last answer is out, or the time is.

        What runs then is cancelled and answered 503.
        """
        self.is_draining = True
        opened: list[asyncio.Server | TlsDoor] = [*self._servers, *self._doors]
        for server in opened:
            server.close()
        for connection in list(self._connections):
            connection.drain()
        await let_accepted_join()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.stop()

    async def close(self) -> None:
        """Close every connection at once. What is written but not sent gets one try."""
        self.is_draining = True
        self._timer.cancel()
        for server in self._servers:
            server.close()
        for door in self._doors:
            door.abort()
        for connection in list(self._connections):
            connection.stop()
        await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.abort()


async def serve_http1(
    handler: Handler,
    sockets: Sequence[socket.socket],
    limits: Http1Limits | None = None,
    error_page: ErrorPage = plain_page,
    tls: ssl.SSLContext | None = None,
    on_refusal: OnRefusal | None = None,
) -> Http1Server:
    """Serve on listening sockets (TCP or UNIX); returns when it accepts. Raises OSError when it cannot.

    handler: must not raise. error_page: what the engine's own refusals look like. tls: for all of the sockets.
    """
    server = Http1Server(handler, limits or Http1Limits(), error_page)
    server.on_refusal = on_refusal
    await server.listen(sockets, tls)
    return server
