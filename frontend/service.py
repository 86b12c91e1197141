"""One frontend, put together: the client to the workers, the gRPC engine and the REST server on one event loop.

Start order: listen last, so that a connection that is accepted can be served. Stop order: have health checks say not to
come here and serve on (for lame_duck_ms), stop accepting, let calls finish (up to drain_ms_max), leave the broker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from array import array
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from ringserve.config.descriptors import Caps
from ringserve.config.keys_file import RATE_SLOTS, parse_anonymous
from ringserve.config.limits import is_loopback
from ringserve.config.schema import Server, Settings
from ringserve.config.tls import GRPC_ALPN, REST_ALPN, Source, source_of_grpc, source_of_rest
from ringserve.frontend.access import Access
from ringserve.frontend.access_log import AccessLogger, make_maker
from ringserve.frontend.buffers import Buffers
from ringserve.frontend.client import Client
from ringserve.frontend.console import Overview
from ringserve.frontend.grpc_access import GrpcGuard
from ringserve.frontend.grpc_api import GrpcSettings, make_methods
from ringserve.frontend.grpc_draining import Draining
from ringserve.frontend.grpcio_engine import serve_grpcio
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http1.exchange import Handler, Http1Limits
from ringserve.frontend.http1.server import serve_http1
from ringserve.frontend.http2.server import serve_native
from ringserve.frontend.key_keeper import KeyKeeper
from ringserve.frontend.ledger import Books
from ringserve.frontend.listening import listen
from ringserve.frontend.metrics import FrontendMetrics
from ringserve.frontend.passing import WholeClient
from ringserve.frontend.rest_access import RestGuard
from ringserve.frontend.rest_api import RestApp, RestSettings, error_page, make_app
from ringserve.frontend.tls_keeper import TlsKeeper
from ringserve.frontend.tracing import Tracer, trace_id
from ringserve.shm.segment import Segment
from ringserve.shm.words import map_words

log = logging.getLogger(__name__)

#: What a limit of 0 (none) is for those who know no such thing.
_FOREVER_S = 1e9


class Listening(Protocol):
    """A server of either protocol."""

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing new and return when the last call is over, or the time is."""

    async def close(self) -> None:
        """Close every connection that is still open."""


def _sockets(fds: tuple[int, ...]) -> list[socket.socket]:
    """Inherited listening sockets; other processes accept from them, too."""
    sockets = [socket.socket(fileno=fd) for fd in fds]
    for each in sockets:
        each.setblocking(False)
    return sockets


def _places(server: Server) -> list[str]:
    """Where this server is to be reached, in words."""
    places = [f"gRPC at {server.host}:{server.port}"] if server.port >= 0 else []
    places += [f"gRPC at UNIX socket {server.grpc_socket_path}"] if server.grpc_socket_path else []
    places += [f"REST at {server.host}:{server.rest_api_port}"] if server.rest_api_port > 0 else []
    places += [f"metrics at {server.metrics_host}:{server.metrics_port}"] if server.metrics_port > 0 else []
    places += [f"operators at {server.admin_host}:{server.admin_port}"] if server.admin_port > 0 else []
    places += [f"operators at UNIX socket {server.admin_socket_path}"] if server.admin_socket_path else []
    return places


class Inherited(NamedTuple):
    """Descriptors that all frontends have from the supervisor or from systemd, each -1 for none.

    grpc_socket_fd, admin_socket_fd: listening UNIX sockets. rates_fd: `shm.words` that keys' requests are counted in.
    grpc_fds, rest_fds: listening sockets of any kind that somebody holds who outlives this server; in place of `port`
    and `rest_api_port`. Nothing is accepted from these before models serve: who connects is not refused, but waits.
    """

    grpc_socket_fd: int = -1
    admin_socket_fd: int = -1
    rates_fd: int = -1
    grpc_fds: tuple[int, ...] = ()
    rest_fds: tuple[int, ...] = ()


class Service:
    """Everything one frontend process holds."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        run_dir: str,
        broker_path: str,
        leave: Callable[[str], None],
        caps: Caps,
        inherited: Inherited | None = None,
    ) -> None:
        """leave: asks for an orderly stop of this process, for that reason."""
        self._settings = settings
        self._caps = caps
        self._run_dir = run_dir
        self._inherited = inherited or Inherited()
        self._grpc_socket_fd = self._inherited.grpc_socket_fd
        #: For an engine that cannot use that one. The process's number: a file of an earlier process may be there.
        self._inner_socket_path = os.path.join(run_dir, f"{name}-{os.getpid()}.grpcio")
        self._segment = Segment.create(f"{name}-requests", settings.shm.request_ring_bytes)
        self._client = Client(
            self._segment,
            registration_path=broker_path,
            inbox_path=os.path.join(run_dir, f"{name}-{os.getpid()}.inbox"),
            timeout_ns_max=settings.server.request_timeout_ms_max * 1_000_000,
        )
        self._client.leave = leave
        #: Open connections of the servers that can tell, by protocol.
        self._connections: dict[str, Callable[[], int]] = {}
        self._refusals: dict[str, Mapping[str, int]] = {}
        self._books: dict[str, list[Books]] = {}
        self._metrics = FrontendMetrics(
            self._client,
            run_dir=run_dir,
            process=name,
            connections=lambda: {protocol: count() for protocol, count in self._connections.items()},
            refusals=lambda: self._refusals,
            books=lambda: self._books,
        )
        self._draining = Draining()
        tracing = settings.tracing
        loop = asyncio.get_running_loop()
        self._tracer = Tracer(tracing, name, loop.call_soon) if tracing.endpoint else None
        #: The client as the APIs have it.
        self._seen: WholeClient = self._client if self._tracer is None else self._tracer.client(self._client)
        self._access_log = self._make_access_log(name)
        if self._access_log is not None:
            self._seen = self._access_log.client(self._seen)
        self._servers: list[Listening] = []
        #: One keeper for what both ports may share.
        self._keepers: dict[Source, TlsKeeper] = {}
        self._apps: list[RestApp] = []
        self._key_keeper: KeyKeeper | None = None
        self._access: Access | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self._opening: asyncio.Task[None] | None = None

    def _make_access_log(self, name: str) -> AccessLogger | None:
        settings, server = self._settings.access_log, self._settings.server
        if not settings.to:
            return None
        maker = make_maker(name, server.log_format, settings.to)
        later, count = asyncio.get_running_loop().call_later, self._metrics.access_log
        return AccessLogger(settings, maker, later, count, trace=trace_id, metrics_path=server.metrics_path)

    async def start(self) -> None:
        """Open the ports."""
        server = self._settings.server
        self._start_access()
        await self._start_operators(server)
        if self._inherited.grpc_fds or self._inherited.rest_fds:
            # Perhaps another server accepts from the same sockets, as long as this one has nothing to serve yet.
            self._opening = asyncio.create_task(self._open_later(server))
        else:
            await self._open(server)

    async def _open(self, server: Server) -> None:
        await self._start_grpc(server)
        log.info("Using %s", "SSL credentials" if source_of_grpc(server) else "InsecureServerCredentials")
        if server.rest_api_port > 0 or self._inherited.rest_fds:
            await self._start_rest(server)
        log.info("listening: %s", ", ".join(_places(server)))
        self._unwatch = self._client.catalog.watch(self._on_catalog)
        self._on_catalog()

    async def _open_later(self, server: Server) -> None:
        known = asyncio.Event()
        catalog = self._client.catalog

        def look() -> None:
            if not catalog.starting:
                known.set()

        self._unwatch = catalog.watch(look)
        look()
        await known.wait()
        self._unwatch()
        try:
            await self._open(server)
        except Exception as error:
            message = {"message": "cannot serve from systemd's sockets", "exception": error}
            asyncio.get_running_loop().call_exception_handler(message)

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

    def _start_access(self) -> None:
        access = self._settings.access
        if not access.keys_file:
            return
        fd = self._inherited.rates_fd
        rates = map_words(fd, RATE_SLOTS) if fd >= 0 else array("q", bytes(8 * RATE_SLOTS))
        self._access = Access(rates, self._metrics.tally.clock_ns, parse_anonymous(access.anonymous))
        if self._access_log is not None:
            self._access.told = self._access_log.asked
        self._key_keeper = KeyKeeper(access.keys_file, access.keys_check_ms / 1000, self._access.use)

    def _guard(self) -> RestGuard | None:
        if self._access is None:
            return None
        return RestGuard(self._access, self._metrics.refused, open_health=self._settings.access.open_health)

    async def _start_operators(self, server: Server) -> None:
        """Who can open the UNIX socket is the server's own user, and needs no key. Prometheus needs none either: its
        port is for a network that is the operator's."""
        fd = self._inherited.admin_socket_fd
        if fd >= 0:
            settings = RestSettings(admin="all", models=False, console=True)
            await self._start_http("admin", _sockets((fd,)), settings, None, None)
        if server.admin_port > 0:
            guard = self._guard()
            policy = "local" if is_loopback(server.admin_host) and guard is None else "all"
            settings = RestSettings(admin=policy, models=False, metrics_path=server.metrics_path, console=True)
            listeners = [listen(server.admin_host, server.admin_port)]
            await self._start_http("admin", listeners, settings, guard, source_of_rest(server))
        if server.metrics_port > 0:
            settings = RestSettings(admin="off", models=False, metrics_path=server.metrics_path)
            listeners = [listen(server.metrics_host, server.metrics_port)]
            await self._start_http("metrics", listeners, settings, None, None)

    async def _start_http(
        self, protocol: str, listeners: list[socket.socket], settings: RestSettings, guard: RestGuard | None,
        source: Source | None,
    ) -> None:
        """Serve HTTP/1.1. protocol: as which its connections are counted."""
        server, metrics = self._settings.server, self._metrics
        pages = metrics.exposition
        overview = Overview(self._run_dir, self._client.catalog, self._client.ask, pages) if settings.console else None
        app = make_app(
            self._seen, settings, tally=metrics.tally, metrics=pages, guard=guard, overview=overview
        )
        self._apps.append(app)
        stall_s = server.client_stall_ms_max / 1000 or _FOREVER_S
        port = self._caps.clients if protocol == "rest" else self._caps.operators
        limits = Http1Limits(
            connections_max=port.connections_max,
            connections_told_max=port.told_max,
            connections_per_address_max=server.connections_per_address_max,
            body_bytes_max=server.rest_body_bytes_max,
            bodies_bytes_max=server.held_bytes_max,
            unsent_bytes_max=server.unsent_bytes_max,
            body_window_s=stall_s,
            write_s=stall_s,
        )
        keeper = self._tls(source)
        context = keeper.contexts[REST_ALPN] if keeper else None
        handle: Handler = app.handle
        logger = self._access_log if protocol == "rest" else None
        if logger is not None:
            handle = logger.rest(handle)
        if self._tracer is not None:
            handle = self._tracer.rest(handle)
        told = logger.refused if logger is not None else None
        engine = await serve_http1(handle, listeners, limits, error_page, context, told)
        self._books.setdefault(protocol, []).append(Books(engine.calls, engine.in_flight))
        before = self._connections.get(protocol, lambda: 0)
        self._connections[protocol] = lambda: before() + engine.connections_count
        if protocol == "rest":
            self._refusals[protocol] = engine.refusals
        self._servers.append(engine)

    async def _start_rest(self, server: Server) -> None:
        settings = RestSettings(
            gunzip_bytes_max=server.inflated_bytes_max,
            tensor_bytes_max=self._settings.shm.request_ring_bytes,
            timeout_ms=server.rest_timeout_ms,
            cors=server.rest_api_enable_cors_support,
            check_method_name=server.enable_signature_method_name_check,
            admin=server.rest_admin,
            metrics_path=server.metrics_path,
            metrics=server.rest_metrics,
        )
        listeners = _sockets(self._inherited.rest_fds) or [listen(server.host, server.rest_api_port)]
        await self._start_http("rest", listeners, settings, self._guard(), source_of_rest(server))

    async def _start_grpc(self, server: Server) -> None:
        settings = GrpcSettings(
            tensor_content=server.enable_serialization_as_tensor_content,
            check_method_name=server.enable_signature_method_name_check,
            tensor_bytes_max=self._settings.shm.request_ring_bytes,
            health=server.enable_grpc_healthcheck_service,
            reflection=server.enable_grpc_reflection,
            profiler=server.enable_profiler,
            operators=server.grpc_admin,
            open_health=self._settings.access.open_health,
            timeout_ms=server.grpc_timeout_ms,
        )
        tally, guard = self._metrics.tally, None
        if self._access is not None:
            guard = GrpcGuard(self._access, tally, self._metrics.refused)
        buffers = Buffers(server.held_bytes_max + server.unsent_bytes_max, asyncio.get_running_loop().call_later)
        methods = make_methods(
            self._seen, settings, tally=tally, draining=self._draining, guard=guard, buffers=buffers
        )
        if self._access_log is not None:
            methods = self._access_log.methods(methods)
        if self._tracer is not None:
            methods = self._tracer.methods(methods)
        limits = EngineLimits(
            message_bytes_max=server.message_bytes_max,
            concurrent_streams_max=server.concurrent_streams_max,
            connections_max=self._caps.clients.connections_max,
            connections_per_address_max=server.connections_per_address_max,
            inflated_bytes_max=server.inflated_bytes_max,
            held_bytes_max=server.held_bytes_max,
            unsent_bytes_max=server.unsent_bytes_max,
            stall_ms_max=server.client_stall_ms_max,
            connection_age_ms_max=server.grpc_connection_age_ms_max,
        )
        tls = self._tls(source_of_grpc(server))
        shared = _sockets((self._grpc_socket_fd,))[0] if self._grpc_socket_fd >= 0 else None
        if server.grpc_engine == "native":
            sockets = _sockets(self._inherited.grpc_fds)
            if not sockets and server.port >= 0:
                sockets = [listen(server.host, server.port)]
            sockets += [shared] if shared is not None else []
            context = tls.contexts[GRPC_ALPN] if tls else None
            engine = await serve_native(methods, sockets, limits, tls=context, buffers=buffers)
            self._connections["grpc"] = lambda: engine.connections_count
            self._books["grpc"] = [Books(engine.account.calls, engine.in_flight)]
            self._refusals["grpc"] = engine.account.refusals
            self._servers.append(engine)
        else:
            host = f"[{server.host}]" if ":" in server.host else server.host
            addresses = [f"{host}:{server.port}"] if server.port >= 0 else []
            relayed = (shared, self._inner_socket_path) if shared is not None else None
            current = (lambda: tls.config) if tls else None
            grpcio = await serve_grpcio(methods, addresses, limits, tls=current, relayed=relayed)
            self._books["grpc"] = [Books(grpcio.calls.ledger, lambda: grpcio.calls.in_flight)]
            self._servers.append(grpcio)

    async def stop(self, *, drain: bool) -> None:
        """Let calls finish if `drain` says so, then close all."""
        if self._opening is not None:
            self._opening.cancel()
        self._draining.announce()
        for app in self._apps:
            app.begin_drain()
        if drain:
            await asyncio.sleep(self._settings.server.lame_duck_ms / 1000)
        self._draining.begin()
        drain_s = self._settings.server.drain_ms_max / 1000 if drain else 0.0
        await asyncio.gather(*(server.drain(drain_s) for server in self._servers))
        for server in self._servers:
            await server.close()
        for keeper in self._keepers.values():
            keeper.close()
        if self._key_keeper is not None:
            self._key_keeper.close()
        for app in self._apps:
            app.close()
        if self._tracer is not None:
            self._tracer.close()
        self._client.close()
        if self._access_log is not None:
            self._access_log.close()
        self._metrics.close()
        self._segment.close()
