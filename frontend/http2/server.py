"""The native gRPC engine: listening sockets, the connections they accepted, and the end of both."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from ringserve.frontend.addresses import Addresses
from ringserve.frontend.buffers import Buffers
from ringserve.frontend.handler import EngineLimits, Methods
from ringserve.frontend.http2.account import Account
from ringserve.frontend.http2.aside import Aside
from ringserve.frontend.http2.headers import HeaderCache
from ringserve.frontend.http2.heap import keep_freed_memory
from ringserve.frontend.http2.protocol import EngineProtocol, HostOfTheGone
from ringserve.frontend.http2.rush import Rush
from ringserve.frontend.http2.turns import Pauses, Turns
from ringserve.frontend.listening import let_accepted_join
from ringserve.frontend.tls_door import TlsDoor

#: A UNIX socket's file stays: the socket is other frontends', too. (Older event loops never remove it.)
_KEEP_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


def report_bug(error: BaseException) -> None:
    """What becomes of a handler's bug when the caller names nothing else: the loop's exception handler is told.

    Its default logs; a main that ends the process on a bug installs its own.
    """
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "a gRPC handler raised", "exception": error})


class NativeEngine:
    """A serving engine. Make one with `serve_native`."""

    def __init__(
        self,
        methods: Methods,
        limits: EngineLimits,
        on_bug: Callable[[BaseException], None],
        buffers: Buffers | None = None,
    ) -> None:
        self.limits = limits
        self.cache = HeaderCache(methods, limits.header_list_bytes_max)
        self.bug = on_bug
        self.clock_ns = time.monotonic_ns
        self.own_ns = time.thread_time_ns
        self._loop = asyncio.get_running_loop()
        self.account = Account(buffers or Buffers(limits.held_bytes_max, self._loop.call_later))
        self._side = Aside(self._loop, on_bug)
        self.aside = self._side.do
        self.turns = Turns(self._loop, self.clock_ns)
        self.pauses = Pauses(self._loop)
        self.rush = Rush()
        self.host_of_the_gone = HostOfTheGone(self._loop.time, self.clock_ns, on_bug, self.account)
        self._servers: list[asyncio.Server] = []
        self._doors: list[TlsDoor] = []
        self._protocols: set[EngineProtocol] = set()
        self._is_draining = False
        self._addresses = Addresses(limits.connections_per_address_max)
        self._empty = asyncio.Event()
        self._empty.set()
        self._stall_s = limits.stall_ms_max / 1000
        self._timer = self._loop.call_later(self._stall_s, self._look_for_stalls) if self._stall_s else None

    @property
    def connections_count(self) -> int:
        return len(self._protocols)

    def in_flight(self) -> int:
        """Calls whose answer is not decided."""
        return sum(not call.is_done for each in self._protocols for call in each.connection.streams.values())

    async def listen(self, sockets: list[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Accepts from sockets that are bound already (and belong to the engine from here on)."""
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"backlog": 1024}

        def protocol() -> EngineProtocol:
            return EngineProtocol(self, loop)

        for sock in sockets:
            if tls is not None:
                self._doors.append(TlsDoor(sock, protocol, tls, self.account.refusals))
            elif sock.family == socket.AF_UNIX:
                self._servers.append(await loop.create_unix_server(protocol, sock=sock, **options, **_KEEP_FILE))
            else:
                self._servers.append(await loop.create_server(protocol, sock=sock, **options))

    def joined(self, protocol: EngineProtocol, transport: asyncio.BaseTransport) -> bool:
        """Counts a new connection. False: there are too many, it must be closed."""
        self._protocols.add(protocol)
        self._empty.clear()
        if self._is_draining:
            protocol.connection.drain()
        is_welcome = self._addresses.join(protocol, transport)
        return is_welcome and len(self._protocols) <= self.limits.connections_max

    def left(self, protocol: EngineProtocol) -> None:
        self._protocols.discard(protocol)
        self._addresses.leave(protocol)
        if not self._protocols:
            self._empty.set()

    def _look_for_stalls(self) -> None:
        self._timer = self._loop.call_later(self._stall_s, self._look_for_stalls)
        for protocol in list(self._protocols):
            protocol.look_for_stalls()

    async def drain(self, timeout_s: float) -> None:
        """Stops accepting, lets the calls that are open finish, and closes; after `timeout_s` it closes anyway."""
        self._is_draining = True
        opened: list[asyncio.Server | TlsDoor] = [*self._servers, *self._doors]
        for server in opened:
            server.close()
        await let_accepted_join()
        for protocol in list(self._protocols):
            protocol.connection.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            pass
        await self.close()

    async def close(self) -> None:
        """Ends everything at once. Open calls see a lost connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._side.close()
        for server in self._servers:
            server.close()
        for door in self._doors:
            door.abort()
        for protocol in list(self._protocols):
            protocol.abort()


async def serve_native(
    methods: Methods,
    sockets: list[socket.socket],
    limits: EngineLimits,
    on_bug: Callable[[BaseException], None] = report_bug,
    tls: ssl.SSLContext | None = None,
    buffers: Buffers | None = None,
) -> NativeEngine:
    """Starts serving on bound sockets (TCP or UNIX). `on_bug` is told of every exception that a handler lets out.

    tls: a server's context, for all of the sockets. buffers: where long messages lie, its own if not given. Sets the
    process's C allocator to keep freed memory, see `heap.py`.
    """
    keep_freed_memory()
    engine = NativeEngine(methods, limits, on_bug, buffers)
    await engine.listen(sockets, tls)
    return engine
