"""Certificates that change while the server runs: both gRPC engines and REST, with real handshakes."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ringserve.config.tls import GRPC_ALPN, REST_ALPN, Source
from ringserve.config.x509_dates import validity
from ringserve.frontend.grpcio_engine import serve_grpcio
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http1.exchange import Exchange, Http1Limits
from ringserve.frontend.http1.server import serve_http1
from ringserve.frontend.http2.server import serve_native
from ringserve.frontend.tls_keeper import TlsKeeper
from tests.e2e.server import wait_until
from tests.frontend.http2.certificates import HAS_OPENSSL, Certificates, certificates
from tests.frontend.http2.service import GRPCIO, NATIVE, PREFIX, Service, grpc

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")

REST = "rest"
PERIOD_S = 0.02
BODY_BYTES_MAX = 30_000_000


@pytest.fixture
def certs() -> Certificates:
    return certificates()


class Files:
    """The files of a server's certificate."""

    def __init__(self, folder: Path, certs: Certificates) -> None:
        self.certs = certs
        self.cert, self.key, self.ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"
        self.write(certs.server.cert, certs.server.key)

    def write(self, cert: str, key: str) -> None:
        self.cert.write_text(cert)
        self.key.write_text(key)

    def trust(self, *authorities: str) -> None:
        self.ca.write_text("".join(authorities))

    def source(self, verify: str = "none") -> Source:
        return Source("", str(self.cert), str(self.key), str(self.ca), verify)


def put(path: Path, text: str) -> None:
    """Replace a file at one stroke."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


@pytest.fixture
def files(tmp_path: Path, certs: Certificates) -> Files:
    return Files(tmp_path, certs)


class Secure:
    """A server in a thread, of that protocol, whose certificate is kept by a TlsKeeper."""

    def __init__(self, kind: str, source: Source) -> None:
        self.kind = kind
        self.service = Service()
        self.ends: list[float] = []
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.keeper: Any = None
        self.engine: Any = None
        self.call(self._start(source))

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _start(self, source: Source) -> None:
        keeper = self.keeper = TlsKeeper(source, (GRPC_ALPN, REST_ALPN), PERIOD_S, self.ends.append)
        if self.kind == GRPCIO:
            methods, bug = self.service.methods(), self.service.on_bug
            target, limits = ["127.0.0.1:0"], EngineLimits()
            self.engine = await serve_grpcio(methods, target, limits, bug, tls=lambda: keeper.config)
            self.port = self.engine.ports[0]
            return
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        if self.kind == NATIVE:
            methods, bug = self.service.methods(), self.service.on_bug
            self.engine = await serve_native(methods, [listener], EngineLimits(), bug, keeper.contexts[GRPC_ALPN])
        else:

            def answer(exchange: Exchange) -> None:
                exchange.answer(200, bytes(exchange.take_body()))

            bounds = Http1Limits(body_bytes_max=BODY_BYTES_MAX)
            self.engine = await serve_http1(answer, [listener], bounds, tls=keeper.contexts[REST_ALPN])

    def stop(self) -> None:
        self.call(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        assert not self.service.bugs

    async def _stop(self) -> None:
        self.keeper.close()
        await self.engine.close()

    # What a client sees.

    def handshake(self, own: tuple[Path, Path] | None = None) -> str:
        """The certificate that a new connection is shown, as PEM text. Raises OSError when it is refused."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([REST_ALPN if self.kind == REST else GRPC_ALPN])
        if own is not None:
            context.load_cert_chain(*own)
        with socket.create_connection(("127.0.0.1", self.port), 20) as raw, context.wrap_socket(raw) as wrapped:
            if self.kind == REST:  # a refusal of a client's certificate comes after the handshake
                wrapped.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            else:
                wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            assert wrapped.recv(1)
            shown = wrapped.getpeercert(binary_form=True)
            assert shown is not None
            return ssl.DER_cert_to_PEM_cert(shown)

    def shows(self, cert: str) -> bool:
        return self.handshake().split() == cert.split()


@contextmanager
def secure(kind: str, source: Source) -> Iterator[Secure]:
    server = Secure(kind, source)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(params=[NATIVE, GRPCIO, REST])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_new_certificate_is_used_without_a_dropped_connection(kind: str, files: Files) -> None:
    """Clients call without end on connections of the first certificate while it is replaced, again and again."""
    certs = files.certs
    with secure(kind, files.source()) as server:
        if kind == REST:
            raw = socket.create_connection(("127.0.0.1", server.port), 20)
            client = context_client(raw, certs)
        else:
            credentials = grpc.ssl_channel_credentials(certs.authority.cert.encode())
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.secure_channel(f"localhost:{server.port}", credentials, options=options)
            stream = channel.stream_stream(f"{PREFIX}Chat")
            client = chat_client(stream)
        with client as ask:
            for _ in range(3):
                for pair in (certs.stranger, certs.server):
                    ask()
                    files.write(pair.cert, pair.key)
                    wait_until(partial(server.shows, pair.cert), "the new certificate")
                    ask()
        assert len(server.ends) >= 7


@contextmanager
def context_client(raw: socket.socket, certs: Certificates) -> Iterator[Callable[[], None]]:
    context = ssl.create_default_context(cadata=certs.authority.cert)
    with raw, context.wrap_socket(raw, server_hostname="localhost") as wrapped:

        def ask() -> None:
            wrapped.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
            assert wrapped.recv(1000).startswith(b"HTTP/1.1 200 OK")

        yield ask


@contextmanager
def chat_client(stream: Any) -> Iterator[Callable[[], None]]:
    """One stream, which cannot outlive its connection."""
    sent = threading.Semaphore(0)
    is_over = threading.Event()

    def messages() -> Iterator[bytes]:
        while sent.acquire() and not is_over.is_set():
            yield b"hello"

    answers = stream(messages(), timeout=60)

    def ask() -> None:
        sent.release()
        assert next(answers) == b"HELLO"

    yield ask
    is_over.set()
    sent.release()
    assert list(answers) == []


def test_a_bad_moment_changes_nothing_and_is_said_once(
    kind: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    certs = files.certs
    with caplog.at_level(logging.INFO), secure(kind, files.source()) as server:
        put(files.cert, certs.stranger.cert)  # its key is yet to come
        wait_until(lambda: "the key is not the one of the certificate" in caplog.text, "the complaint")
        put(files.key, "half a ke")
        wait_until(lambda: "holds no PEM text of a private key" in caplog.text, "the second complaint")
        files.key.unlink()
        wait_until(lambda: "No such file or directory" in caplog.text, "the third complaint")
        assert server.shows(certs.server.cert)
        put(files.key, certs.stranger.key)
        wait_until(lambda: server.shows(certs.stranger.cert), "the new certificate")
    assert caplog.text.count("the key is not the one of the certificate") == 1
    assert caplog.text.count("goes on being used") == 3


def test_a_file_replaced_by_a_link_is_seen(files: Files, tmp_path: Path) -> None:
    """As Kubernetes swaps secrets: the names are links into a folder that is itself a link."""
    certs = files.certs
    for name, pair in (("one", certs.server), ("two", certs.stranger)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tls.crt").write_text(pair.cert)
        (tmp_path / name / "tls.key").write_text(pair.key)
    data = tmp_path / "data"
    data.symlink_to("one")
    with secure(NATIVE, Source("", str(data / "tls.crt"), str(data / "tls.key"))) as server:
        assert server.shows(certs.server.cert)
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(data)
        wait_until(lambda: server.shows(certs.stranger.cert), "the new certificate")


def own_files(folder: Path, certs: Certificates, name: str) -> tuple[Path, Path]:
    pair = getattr(certs, name)
    cert, key = folder / f"own-{name}.crt", folder / f"own-{name}.key"
    cert.write_text(pair.cert)
    key.write_text(pair.key)
    return cert, key


def lets_in(server: Secure, own: tuple[Path, Path] | None) -> bool:
    try:
        server.handshake(own)
    except (OSError, AssertionError):
        return False
    return True


def test_clients_must_show_a_certificate_and_the_authorities_change(kind: str, files: Files, tmp_path: Path) -> None:
    certs = files.certs
    client, stranger = own_files(tmp_path, certs, "client"), own_files(tmp_path, certs, "stranger")
    files.trust(certs.authority.cert)
    with secure(kind, files.source("required")) as server:
        assert [lets_in(server, own) for own in (client, stranger, None)] == [True, False, False]
        files.trust(certs.stranger.cert)
        wait_until(lambda: lets_in(server, stranger), "the stranger to be trusted")
        assert [lets_in(server, own) for own in (client, stranger, None)] == [False, True, False]


@pytest.mark.parametrize("kind", [NATIVE, REST])
def test_clients_may_show_a_certificate(kind: str, files: Files, tmp_path: Path) -> None:
    certs = files.certs
    client, stranger = own_files(tmp_path, certs, "client"), own_files(tmp_path, certs, "stranger")
    files.trust(certs.authority.cert)
    with secure(kind, files.source("optional")) as server:
        assert [lets_in(server, own) for own in (client, stranger, None)] == [True, False, True]


@pytest.mark.parametrize(("kind", "alpn"), [(NATIVE, "h2"), (GRPCIO, "h2"), (REST, "http/1.1")])
def test_nothing_old_is_spoken(kind: str, alpn: str, files: Files) -> None:
    with secure(kind, files.source()) as server:
        run = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-alpn", "h2,http/1.1"]

        def s_client(*options: str) -> str:
            done = subprocess.run([*run, *options], input=b"", capture_output=True, timeout=30)
            return (done.stdout + done.stderr).decode(errors="replace")

        assert f"ALPN protocol: {alpn}" in s_client()
        assert "Protocol  : TLSv1.2" in s_client("-tls1_2")
        assert "TLSv1.3, Cipher is TLS_" in s_client("-tls1_3")
        for old in ("-tls1", "-tls1_1"):
            assert "Cipher is (NONE)" in s_client(old, "-cipher", "ALL:@SECLEVEL=0")
        for weak in ("AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384"):
            if kind != GRPCIO:  # which has its own list
                assert "Cipher is (NONE)" in s_client("-tls1_2", "-cipher", f"{weak}:@SECLEVEL=0")
        assert "ECDHE-ECDSA-AES" in s_client("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384")


def test_a_connection_without_tls_or_in_pieces_harms_nobody(kind: str, files: Files) -> None:
    with secure(kind, files.source()) as server:
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b"\x16"):
            with socket.create_connection(("127.0.0.1", server.port), 20) as raw:
                raw.sendall(junk)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(1000):
                    pass
        assert server.shows(files.certs.server.cert)


@contextmanager
def rest_client(server: Secure, certs: Certificates) -> Iterator[http.client.HTTPSConnection]:
    context = ssl.create_default_context(cadata=certs.authority.cert)
    client = http.client.HTTPSConnection("localhost", server.port, context=context, timeout=60)
    try:
        yield client
    finally:
        client.close()


@pytest.mark.parametrize("size", [0, 1, 70_000, 20_000_000])
def test_bodies_of_any_size_pass_over_rest(files: Files, size: int) -> None:
    with secure(REST, files.source()) as server, rest_client(server, files.certs) as client:
        body = os.urandom(1000) * (size // 1000 + 1)
        for _ in range(3):
            client.request("POST", "/", body[:size])
            assert client.getresponse().read() == body[:size]


def test_a_client_that_is_refused_while_it_sends_gets_the_answer(files: Files) -> None:
    with secure(REST, files.source()) as server:
        for size in (BODY_BYTES_MAX + 1, BODY_BYTES_MAX * 2):
            context = ssl.create_default_context(cadata=files.certs.authority.cert)
            raw = socket.create_connection(("127.0.0.1", server.port), 20)
            with raw, context.wrap_socket(raw, server_hostname="localhost") as wrapped:
                head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
                wrapped.sendall(head + bytes(200_000))
                assert wrapped.recv(1000).startswith(b"HTTP/1.1 413 ")
        assert server.shows(files.certs.server.cert)


def test_an_idle_drain_under_tls_ends(files: Files) -> None:
    with secure(REST, files.source()) as server, rest_client(server, files.certs) as client:
        client.request("GET", "/")
        client.getresponse().read()
        server.call(server.engine.drain(20))
        assert server.engine.connections_count == 0


# --------------------------------------------------------------------------------------------------------------- dates


async def test_an_end_that_comes_near_is_said(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    found = validity(files.certs.server.cert)
    assert found is not None
    now_s = found.end_s - 10 * 86_400
    keeper = TlsKeeper(files.source(), (GRPC_ALPN,), PERIOD_S, now_s=lambda: now_s)
    try:
        assert caplog.text.count("the certificate ends in 10.0 days") == 1

        async def until(text: str) -> None:
            async with asyncio.timeout(30):
                while text not in caplog.text:
                    await asyncio.sleep(PERIOD_S)  # polls a log, bounded above

        now_s = found.end_s - 86_400
        await until("the certificate ends in 1.0 days")
        now_s = found.end_s + 1
        await until("THE CERTIFICATE HAS EXPIRED")
        assert caplog.text.count("EXPIRED") == 1
    finally:
        keeper.close()


async def test_a_certificate_of_the_future_is_said(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    TlsKeeper(files.source(), (GRPC_ALPN,), PERIOD_S, now_s=lambda: 1.0).close()
    assert "NOT VALID YET" in caplog.text
