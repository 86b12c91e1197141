"""How both engines take connections (section 9): TLS, certificates of clients, shared UNIX sockets, the age of one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ringserve.config.tls import SslConfig, server_context
from ringserve.frontend.grpcio_engine import serve_grpcio
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2.server import serve_native
from tests.frontend.http2.certificates import HAS_OPENSSL, Certificates, Pair, certificates
from tests.frontend.http2.service import GRPCIO, NATIVE, PREFIX, Service, grpc

needs_openssl = pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")


@pytest.fixture(params=[NATIVE, GRPCIO])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Listening:
    """An engine in a thread that listens on a TCP port, a UNIX socket that is bound already, or both."""

    def __init__(self, engine: str, limits: EngineLimits, tls: SslConfig | None, shared: socket.socket | None) -> None:
        self.service = Service()
        self.port = 0
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        start = self._native if engine == NATIVE else self._grpcio
        self.engine: Any = self.call(start(limits, tls, shared))

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _native(self, limits: EngineLimits, tls: SslConfig | None, shared: socket.socket | None) -> Any:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        sockets = [listener] if shared is None else [listener, shared]
        for each in sockets:
            each.setblocking(False)
        context = server_context(tls) if tls else None
        return await serve_native(self.service.methods(), sockets, limits, self.service.on_bug, context)

    async def _grpcio(self, limits: EngineLimits, tls: SslConfig | None, shared: socket.socket | None) -> Any:
        relayed = None
        if shared is not None:
            shared.setblocking(False)
            relayed = (shared, f"{shared.getsockname()}.{id(self)}")
        now = (lambda: tls) if tls else None
        engine = await serve_grpcio(
            self.service.methods(), ["127.0.0.1:0"], limits, self.service.on_bug, tls=now, relayed=relayed
        )
        self.port = engine.ports[0]
        return engine

    def stop(self) -> None:
        self.call(self.engine.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        assert not self.service.bugs


@contextlib.contextmanager
def listening(
    engine: str,
    *,
    limits: EngineLimits | None = None,
    tls: SslConfig | None = None,
    shared: socket.socket | None = None,
) -> Iterator[Listening]:
    server = Listening(engine, limits or EngineLimits(), tls, shared)
    try:
        yield server
    finally:
        server.stop()


def echo(channel: Any, message: bytes = b"hello", **options: Any) -> bytes:
    answer: bytes = channel.unary_unary(f"{PREFIX}Echo")(message, timeout=20, **options)
    return answer


def secure(target: str, authority: Pair, own: Pair | None = None) -> Any:
    credentials = grpc.ssl_channel_credentials(
        authority.cert.encode(), own.key.encode() if own else None, own.cert.encode() if own else None
    )
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
    return grpc.secure_channel(target, credentials, options=options)


# ----------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certs() -> Certificates:
    return certificates()


def plain_tls(certs: Certificates) -> SslConfig:
    return SslConfig(certs.server.key, certs.server.cert, "", False)


def mutual_tls(certs: Certificates) -> SslConfig:
    return SslConfig(certs.server.key, certs.server.cert, certs.authority.cert, True)


@contextlib.contextmanager
def tls_channel(engine: str, certs: Certificates, own: Pair | None = None) -> Iterator[tuple[Listening, Any]]:
    """A server with TLS that asks for no certificate, and a channel to it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(listening(engine, tls=plain_tls(certs)))
        yield server, stack.enter_context(secure(f"localhost:{server.port}", certs.authority, own))


@needs_openssl
@pytest.mark.parametrize("size", [0, 5, 100_000, 20_000_000])
def test_9_tls(engine: str, certs: Certificates, size: int) -> None:
    message = os.urandom(1000) * (size // 1000 + 1)
    with listening(engine, tls=plain_tls(certs)) as server:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        credentials = grpc.ssl_channel_credentials(certs.authority.cert.encode())
        with grpc.secure_channel(f"localhost:{server.port}", credentials, options=options) as channel:
            assert echo(channel, message[:size]) == message[:size]


@needs_openssl
def test_9_tls_many_calls_at_once(engine: str, certs: Certificates) -> None:
    messages = [b"%d" % number * number for number in range(300)]
    with tls_channel(engine, certs) as (_, channel), ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda message: echo(channel, message), messages)) == messages


@needs_openssl
def test_9_tls_offers_http2_and_nothing_old(engine: str, certs: Certificates) -> None:
    context = ssl.create_default_context(cadata=certs.authority.cert)
    context.set_alpn_protocols(["h2"])
    with tls_channel(engine, certs) as (server, _):
        raw = socket.create_connection(("127.0.0.1", server.port), 20)
        with raw, context.wrap_socket(raw, server_hostname="localhost") as wrapped:
            assert wrapped.selected_alpn_protocol() == "h2"
            assert wrapped.version() in ("TLSv1.2", "TLSv1.3")


@needs_openssl
def test_9_the_clients_address_is_known_behind_tls(engine: str, certs: Certificates) -> None:
    with tls_channel(engine, certs) as (_, channel):
        answer = channel.unary_unary(f"{PREFIX}Look")(b"", timeout=20)
    assert b"peer=ipv4:127.0.0.1" in answer


@needs_openssl
def test_9_a_client_without_tls_is_refused(engine: str, certs: Certificates) -> None:
    with tls_channel(engine, certs) as (server, channel):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as clear, pytest.raises(grpc.RpcError) as caught:
            echo(clear)
        assert echo(channel) == b"hello"
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@needs_openssl
def test_9_client_verify(engine: str, certs: Certificates) -> None:
    with listening(engine, tls=mutual_tls(certs)) as server:
        target = f"localhost:{server.port}"
        with secure(target, certs.authority, certs.client) as channel:
            assert echo(channel) == b"hello"
        for own in (None, certs.stranger):
            with secure(target, certs.authority, own) as channel, pytest.raises(grpc.RpcError) as caught:
                echo(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@needs_openssl
def test_9_without_client_verify_a_certificate_is_not_asked_for(engine: str, certs: Certificates) -> None:
    with tls_channel(engine, certs, certs.stranger) as (_, channel):
        assert echo(channel) == b"hello"


@needs_openssl
def test_9_a_drain_under_tls_lets_calls_finish(engine: str, certs: Certificates) -> None:
    with tls_channel(engine, certs) as (server, channel):
        waiting = channel.unary_unary(f"{PREFIX}Hold").future(b"", timeout=60)
        assert server.service.held.wait(20)
        draining = asyncio.run_coroutine_threadsafe(server.engine.drain(60), server.loop)
        assert not draining.done()
        waiting.cancel()
        draining.result(30)


# --------------------------------------------------------------------------------------------------------- UNIX sockets


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """A listening UNIX socket, as the supervisor hands it to its frontends. (pytest's own folders have long names.)"""
    folder = tmp_path_factory.mktemp("u")
    path = os.path.relpath(folder / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(100)
        yield listener


def copy_of(listener: socket.socket) -> socket.socket:
    """As a process has it that inherited it: its own descriptor of the same socket."""
    return socket.socket(fileno=os.dup(listener.fileno()))


def path_of(listener: socket.socket) -> str:
    return os.path.abspath(str(listener.getsockname()))


def test_9_a_bound_unix_socket_is_served(engine: str, shared: socket.socket) -> None:
    with listening(engine, shared=copy_of(shared)) as server:
        with grpc.insecure_channel(f"unix:{path_of(shared)}") as channel:
            assert echo(channel) == b"hello"
            assert echo(channel, bytes(3_000_000)) == bytes(3_000_000)
            assert b"peer=unix:" in channel.unary_unary(f"{PREFIX}Look")(b"", timeout=20)
            chat = channel.stream_stream(f"{PREFIX}Chat")
            assert list(chat(iter([b"a", b"b"]), timeout=20)) == [b"A", b"B"]
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert echo(channel) == b"hello"


def test_9_several_frontends_share_it_and_it_outlives_them(engine: str, shared: socket.socket) -> None:
    path = path_of(shared)
    with listening(engine, shared=copy_of(shared)):
        with listening(engine, shared=copy_of(shared)):
            for _ in range(20):
                with grpc.insecure_channel(f"unix:{path}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
                    assert echo(channel) == b"hello"
        # One has gone: the file is still there, and the other serves it.
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        for _ in range(5):
            with grpc.insecure_channel(f"unix:{path}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
                assert echo(channel) == b"hello"
    assert stat.S_ISSOCK(os.stat(path).st_mode)


@needs_openssl
def test_9_the_same_credentials_hold_for_the_unix_socket(
    engine: str, shared: socket.socket, certs: Certificates
) -> None:
    with listening(engine, shared=copy_of(shared), tls=mutual_tls(certs)):
        target = f"unix:{path_of(shared)}"
        with secure(target, certs.authority, certs.client) as channel:
            assert echo(channel) == b"hello"
        for refused in (grpc.insecure_channel(target), secure(target, certs.authority)):
            with refused as channel, pytest.raises(grpc.RpcError):
                echo(channel)


def test_a_relayed_client_that_leaves_ends_its_call(shared: socket.socket) -> None:
    with listening(GRPCIO, shared=copy_of(shared)) as server:
        channel = grpc.insecure_channel(f"unix:{path_of(shared)}", [("grpc.use_local_subchannel_pool", 1)])
        waiting = channel.unary_unary(f"{PREFIX}Hold").future(b"", timeout=60)
        assert server.service.held.wait(20)
        channel.close()
        assert server.service.cancelled.wait(20)
        assert waiting.code() is grpc.StatusCode.CANCELLED


# -------------------------------------------------------------------------------------------------------------- the age


def test_an_old_connection_is_asked_to_leave_and_its_calls_finish(engine: str) -> None:
    """The stream is there before the connection is old and goes on when it is; calls go on on a new connection."""
    limits = EngineLimits(connection_age_ms_max=300)
    with listening(engine, limits=limits) as server:
        peers = set()
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            send, gate = [b"first"], threading.Event()

            def messages() -> Iterator[bytes]:
                yield send[0]
                gate.wait(60)
                yield b"last"

            chat = channel.stream_stream(f"{PREFIX}Chat")(messages(), timeout=60)
            assert next(chat) == b"FIRST"
            for _ in range(10_000):
                peers.add(channel.unary_unary(f"{PREFIX}Peer")(b"", timeout=20))
                if len(peers) > 1:
                    break
            assert len(peers) > 1  # a second connection was made
            gate.set()
            assert list(chat) == [b"LAST"]


def test_a_connection_lasts_without_a_limit_of_its_age(tmp_path: Path) -> None:
    with listening(NATIVE) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert len({channel.unary_unary(f"{PREFIX}Peer")(b"", timeout=20) for _ in range(100)}) == 1
