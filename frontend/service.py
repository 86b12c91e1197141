"""One frontend, put together: the client to the workers, the gRPC engine and the REST server on one event loop.

Start order: listen last, so that a connection that is accepted can be served. Stop order: stop accepting, let calls
finish (up to drain_ms_max), leave the broker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Protocol

from ringserve.config.schema import Settings
from ringserve.frontend.client import Client
from ringserve.frontend.grpc_api import make_methods
from ringserve.frontend.grpcio_engine import serve_grpcio
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2.server import serve_native
from ringserve.frontend.rest_api import RestApp, RestSettings, make_app
from ringserve.frontend.rest_server import RestLimits, serve_rest
from ringserve.shm.segment import Segment

log = logging.getLogger(__name__)

_BACKLOG = 1024


class Listening(Protocol):
    """A server of either protocol."""

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing new and return when the last call is over, or the time is."""

    async def close(self) -> None:
        """Close every connection that is still open."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket that shares its port with the other frontends (SO_REUSEPORT). Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class Service:
    """Everything one frontend process holds."""

    def __init__(self, settings: Settings, *, name: str, run_dir: str) -> None:
        self._settings = settings
        self._segment = Segment.create(f"{name}-requests", settings.shm.request_ring_bytes)
        self._client = Client(
            self._segment,
            registration_path=os.path.join(run_dir, "broker.sock"),
            inbox_path=os.path.join(run_dir, f"{name}-{os.getpid()}.inbox"),
        )
        self._servers: list[Listening] = []
        self._rest_app: RestApp | None = None

    async def start(self) -> None:
        """Open the ports."""
        server = self._settings.server
        methods = make_methods(
            self._client,
            tensor_content=server.enable_serialization_as_tensor_content,
            tensor_bytes_max=self._settings.shm.request_ring_bytes,
        )
        limits = EngineLimits(
            message_bytes_max=server.message_bytes_max,
            concurrent_streams_max=server.concurrent_streams_max,
            connections_max=server.connections_max,
        )
        if server.grpc_engine == "native":
            sockets = [listen(server.host, server.port)]
            self._servers.append(await serve_native(methods, sockets, limits))
        else:
            host = f"[{server.host}]" if ":" in server.host else server.host
            self._servers.append(await serve_grpcio(methods, [f"{host}:{server.port}"], limits))
        # Scripts wait for these lines of TF Serving's.
        log.info("Running gRPC ModelServer at %s:%d ...", server.host, server.port)
        if server.rest_api_port > 0:
            rest = RestSettings(body_bytes_max=server.rest_body_bytes_max, timeout_ms=server.rest_timeout_ms)
            self._rest_app = make_app(self._client, rest)
            sockets = [listen(server.host, server.rest_api_port)]
            rest_limits = RestLimits(connections_max=server.connections_max)
            self._servers.append(await serve_rest(self._rest_app, sockets, rest_limits))
            log.info("Exporting HTTP/REST API at:localhost:%d ...", server.rest_api_port)

    async def stop(self, *, drain: bool) -> None:
        """Let calls finish if `drain` says so, then close all."""
        drain_s = self._settings.server.drain_ms_max / 1000 if drain else 0.0
        await asyncio.gather(*(server.drain(drain_s) for server in self._servers))
        for server in self._servers:
            await server.close()
        if self._rest_app is not None:
            self._rest_app.close()
        self._client.close()
        self._segment.close()
