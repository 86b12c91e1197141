"""One frontend, put together: the client to the workers, the gRPC engine and the REST server on one event loop.

Start order: listen last, so that a connection that is accepted can be served. Stop order: stop accepting, let calls
finish (up to drain_ms_max), leave the broker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from ringserve.config.schema import Server, Settings
from ringserve.config.tls import GRPC_ALPN, REST_ALPN, Source, source_of_grpc, source_of_rest
from ringserve.frontend.client import Client
from ringserve.frontend.grpc_api import GrpcSettings, make_methods
from ringserve.frontend.grpc_draining import Draining
from ringserve.frontend.grpcio_engine import serve_grpcio
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http1.exchange import Http1Limits
from ringserve.frontend.http1.server import serve_http1
from ringserve.frontend.http2.server import serve_native
from ringserve.frontend.metrics import FrontendMetrics
from ringserve.frontend.rest_api import RestApp, RestSettings, error_page, make_app
from ringserve.frontend.tls_keeper import TlsKeeper
from ringserve.shm.segment import Segment

log = logging.getLogger(__name__)

_BACKLOG = 1024
#: What a limit of 0 (none) is for those who know no such thing.
_FOREVER_S = 1e9


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


def _places(server: Server) -> list[str]:
    """Where this server is to be reached, in words."""
    places = [f"gRPC at {server.host}:{server.port}"] if server.port >= 0 else []
    places += [f"gRPC at UNIX socket {server.grpc_socket_path}"] if server.grpc_socket_path else []
    places += [f"REST at {server.host}:{server.rest_api_port}"] if server.rest_api_port > 0 else []
    return places


class Service:
    """Everything one frontend process holds. grpc_socket_fd: a listening UNIX socket, for gRPC; -1: none."""

    def __init__(self, settings: Settings, *, name: str, run_dir: str, grpc_socket_fd: int = -1) -> None:
        self._settings = settings
        self._grpc_socket_fd = grpc_socket_fd
        #: For an engine that cannot use that one. The process's number: a file of an earlier process may be there.
        self._inner_socket_path = os.path.join(run_dir, f"{name}-{os.getpid()}.grpcio")
        self._segment = Segment.create(f"{name}-requests", settings.shm.request_ring_bytes)
        self._client = Client(
            self._segment,
            registration_path=os.path.join(run_dir, "broker.sock"),
            inbox_path=os.path.join(run_dir, f"{name}-{os.getpid()}.inbox"),
        )
        #: Open connections of the servers that can tell, by protocol.
        self._connections: dict[str, Callable[[], int]] = {}
        self._refusals: dict[str, Mapping[str, int]] = {}
        self._metrics = FrontendMetrics(
            self._client,
            run_dir=run_dir,
            process=name,
            connections=lambda: {protocol: count() for protocol, count in self._connections.items()},
            refusals=lambda: self._refusals,
        )
        self._draining = Draining()
        self._servers: list[Listening] = []
        #: One keeper for what both ports may share.
        self._keepers: dict[Source, TlsKeeper] = {}
        self._rest_app: RestApp | None = None
        self._unwatch: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Open the ports."""
        server = self._settings.server
        await self._start_grpc(server)
        log.info("Using %s", "SSL credentials" if source_of_grpc(server) else "InsecureServerCredentials")
        if server.rest_api_port > 0:
            await self._start_rest(server)
        log.info("listening: %s", ", ".join(_places(server)))
        self._unwatch = self._client.catalog.watch(self._on_catalog)

    def _on_catalog(self) -> None:
        """Scripts take these lines for the sign that models can be asked: TF Serving opens its ports only then."""
        if self._client.catalog.starting:
            return
        self._unwatch()
        server = self._settings.server
        if server.port >= 0:
            log.info("Running gRPC ModelServer at %s:%d ...", server.host, server.port)
        if self._grpc_socket_fd >= 0:
            log.info("Running gRPC ModelServer at UNIX socket %s ...", server.grpc_socket_path)
        if server.rest_api_port > 0:
            log.info("Exporting HTTP/REST API at:localhost:%d ...", server.rest_api_port)

    def _tls(self, source: Source | None) -> TlsKeeper | None:
        if source is None:
            return None
        if source not in self._keepers:
            period_s = self._settings.server.tls_check_ms / 1000
            told = self._metrics.certificate
            self._keepers[source] = TlsKeeper(source, (GRPC_ALPN, REST_ALPN), period_s, told)
        return self._keepers[source]

    async def _start_rest(self, server: Server) -> None:
        settings = RestSettings(
            gunzip_bytes_max=server.inflated_bytes_max,
            timeout_ms=server.rest_timeout_ms,
            cors=server.rest_api_enable_cors_support,
            check_method_name=server.enable_signature_method_name_check,
            admin=server.rest_admin,
            metrics_path=server.metrics_path,
        )
        app = make_app(self._client, settings, tally=self._metrics.tally, metrics=self._metrics.exposition)
        stall_s = server.client_stall_ms_max / 1000 or _FOREVER_S
        limits = Http1Limits(
            connections_max=server.connections_max,
            connections_per_address_max=server.connections_per_address_max,
            body_bytes_max=server.rest_body_bytes_max,
            bodies_bytes_max=server.held_bytes_max,
            body_window_s=stall_s,
            write_s=stall_s,
        )
        sockets = [listen(server.host, server.rest_api_port)]
        tls = self._tls(source_of_rest(server))
        context = tls.contexts[REST_ALPN] if tls else None
        engine = await serve_http1(app.handle, sockets, limits, error_page, context)
        self._rest_app = app
        self._connections["rest"] = lambda: engine.connections_count
        self._refusals["rest"] = engine.refusals
        self._servers.append(engine)

    async def _start_grpc(self, server: Server) -> None:
        settings = GrpcSettings(
            tensor_content=server.enable_serialization_as_tensor_content,
            check_method_name=server.enable_signature_method_name_check,
            tensor_bytes_max=self._settings.shm.request_ring_bytes,
            health=server.enable_grpc_healthcheck_service,
            reflection=server.enable_grpc_reflection,
            profiler=server.enable_profiler,
        )
        methods = make_methods(self._client, settings, tally=self._metrics.tally, draining=self._draining)
        limits = EngineLimits(
            message_bytes_max=server.message_bytes_max,
            concurrent_streams_max=server.concurrent_streams_max,
            connections_max=server.connections_max,
            connections_per_address_max=server.connections_per_address_max,
            inflated_bytes_max=server.inflated_bytes_max,
            held_bytes_max=server.held_bytes_max,
            unsent_bytes_max=server.unsent_bytes_max,
            stall_ms_max=server.client_stall_ms_max,
            connection_age_ms_max=server.grpc_connection_age_ms_max,
        )
        tls = self._tls(source_of_grpc(server))
        shared = socket.socket(fileno=self._grpc_socket_fd) if self._grpc_socket_fd >= 0 else None
        if shared is not None:
            shared.setblocking(False)
        if server.grpc_engine == "native":
            sockets = [listen(server.host, server.port)] if server.port >= 0 else []
            sockets += [shared] if shared is not None else []
            context = tls.contexts[GRPC_ALPN] if tls else None
            engine = await serve_native(methods, sockets, limits, tls=context)
            self._connections["grpc"] = lambda: engine.connections_count
            self._refusals["grpc"] = engine.account.refusals
            self._servers.append(engine)
        else:
            host = f"[{server.host}]" if ":" in server.host else server.host
            addresses = [f"{host}:{server.port}"] if server.port >= 0 else []
            relayed = (shared, self._inner_socket_path) if shared is not None else None
            current = (lambda: tls.config) if tls else None
            self._servers.append(await serve_grpcio(methods, addresses, limits, tls=current, relayed=relayed))

    async def stop(self, *, drain: bool) -> None:
        """Let calls finish if `drain` says so, then close all."""
        self._draining.begin()
        if self._rest_app is not None:
            self._rest_app.begin_drain()
        drain_s = self._settings.server.drain_ms_max / 1000 if drain else 0.0
        await asyncio.gather(*(server.drain(drain_s) for server in self._servers))
        for server in self._servers:
            await server.close()
        for keeper in self._keepers.values():
            keeper.close()
        if self._rest_app is not None:
            self._rest_app.close()
        self._client.close()
        self._metrics.close()
        self._segment.close()
