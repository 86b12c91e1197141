"""The HTTP/1.1 server of the REST API: uvicorn on the frontend's own event loop and already listening sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestLimits:
    """Bounds of the HTTP server.

    connections_max: connections (or requests in progress) above which requests are answered 503. keep_alive_s: how
    long an idle connection stays open.
    """

    connections_max: int = 10_000
    keep_alive_s: int = 50


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with a word when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's business."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self.listening.set()


class RestServer:
    """A running server. It owns the sockets it was given."""

    def __init__(self, server: _Server, running: asyncio.Task[None]) -> None:
        self._server = server
        self._running = running

    @property
    def connections_count(self) -> int:
        """Open connections."""
        return len(self._server.server_state.connections)

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing new, close idle connections, and return when the last answer is out, or the time is.

        What runs then is cancelled; the application answers it with 503.
        """
        # uvicorn's type says int; it hands the value to asyncio.wait_for, which takes a float.
        self._server.config.timeout_graceful_shutdown = timeout_s  # type: ignore[assignment]
        self._server.should_exit = True
        await asyncio.shield(self._running)

    async def close(self) -> None:
        """Close every connection at once. What is written but not sent gets one try."""
        self._server.should_exit = True
        self._server.force_exit = True
        for transport in self._transports():
            transport.close()
        await asyncio.sleep(0)
        for transport in self._transports():
            transport.abort()
        await asyncio.shield(self._running)

    def _transports(self) -> list[asyncio.Transport]:
        connections: set[Any] = self._server.server_state.connections
        return [connection.transport for connection in connections if connection.transport is not None]


async def serve_rest(app: Any, sockets: Sequence[socket.socket], limits: RestLimits | None = None) -> RestServer:
    """Serve an ASGI application on listening sockets; returns when it accepts. Raises OSError when it cannot."""
    limits = limits or RestLimits()
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http="httptools",
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        limit_concurrency=limits.connections_max,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(list(sockets)), name="rest server")
    listening = asyncio.create_task(server.listening.wait())
    await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    if running.done():
        await running
        raise OSError("the REST server ended before it listened")
    return RestServer(server, running)
