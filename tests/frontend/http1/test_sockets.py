"""Real sockets on loopback: Python's own HTTP client, curl, pipelining, clients that leave, and the end."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
import uvloop

from ringserve.frontend.http1.arrivals import waited_ns
from ringserve.frontend.http1.exchange import Http1Limits
from ringserve.frontend.http1.server import Http1Server, serve_http1
from ringserve.frontend.rest_api import make_app
from tests.frontend.fakes import half_plus_two
from tests.frontend.http1.loopback import ANSWER, BODY, REQUEST, exchange, serving, until
from tests.frontend.rest.served import PREDICT, RestLoopback, default_model

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def test_http_client_on_one_connection() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        answers = await asyncio.to_thread(
            exchange,
            port,
            ("POST", PREDICT, BODY, {}),
            ("POST", PREDICT, iter([BODY[:5], BODY[5:]]), {}),  # chunked
            ("POST", PREDICT, gzip.compress(BODY), {"Content-Encoding": "gzip"}),
            ("GET", "/v1/models/default", None, {}),
            ("POST", PREDICT + "?a=1", BODY, {}),
            ("HEAD", "/v1/models/default", None, {}),
            ("GET", "/", None, {}),
            ("OPTIONS", "/v1/models/default", None, {"Origin": "http://a"}),
            ("POST", "/v1/models/a%2Fb:predict", BODY, {}),
            ("GET", "/ringserve/v1/models/default", None, {}),
            ("TRACE", "/v1/models/default", None, {}),
        )
        assert [answer[0] for answer in answers] == [200, 200, 200, 200, 400, 400, 404, 200, 404, 200, 501]
        assert [answer[2] for answer in answers[:3]] == [ANSWER] * 3
        headers = answers[0][1]
        assert headers["content-type"] == "application/json"
        assert headers["content-length"] == str(len(ANSWER))
        assert set(headers) == {"content-type", "content-length", "date"}
        assert json.loads(answers[4][2])["error"] == f"Malformed request: POST {PREDICT}?a=1"
        assert json.loads(answers[8][2])["error"] == "Servable not found for request: Latest(a/b)"

    serving(test)


def test_what_a_busy_server_reads_too_late_is_turned_away() -> None:
    """Only the kernel knows when it came: the loop was busy meanwhile."""

    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            loop = asyncio.get_running_loop()
            peer.settimeout(20)

            for timeout, is_busy, status in ((b"60", False, b"200"), (b"1", True, b"429"), (b"60", True, b"200")):
                before = len(client.requests)
                peer.sendall(REQUEST.replace(b"Host:", b"X-Request-Timeout: " + timeout + b"\r\nHost:"))
                if is_busy:
                    time.sleep(0.3)  # a loop that is busy for longer than a quarter of the shorter time
                answer = await loop.run_in_executor(None, peer.recv, 65_536)
                assert answer.startswith(b"HTTP/1.1 " + status), answer
                assert len(client.requests) - before == (status == b"200")
                assert (b"Retry-After: 1\r\n" in answer) == (status == b"429")

    serving(test)


def test_how_long_bytes_lie_in_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        served, _ = listening.accept()
        with client, served:
            before_ns = time.monotonic_ns()
            client.sendall(b"x")
            time.sleep(0.05)  # the age of the bytes is what is tested
            assert waited_ns(served) >= 30_000_000
            assert waited_ns(served) <= time.monotonic_ns() - before_ns + 20_000_000
    assert waited_ns(served) == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert waited_ns(ours) == 0


LARGE = b'{"instances":[' + b",".join([b"1.0"] * 600_000) + b"]}"


@needs_curl
@pytest.mark.parametrize(
    ("body", "options"),
    [
        (BODY, []),
        (BODY, ["--http1.0"]),
        (BODY, ["--http2"]),  # offers to change to HTTP/2
        (BODY, ["-H", "Transfer-Encoding: chunked"]),
        (BODY, ["-H", "Transfer-Encoding: chunked", "--http2"]),
        (BODY, ["-H", "Connection: close"]),
        (LARGE, []),  # curl waits for 100 Continue
        (LARGE, ["-H", "Expect:"]),
        (LARGE, ["-H", "Transfer-Encoding: chunked"]),
    ],
)
def test_curl(body: bytes, options: list[str]) -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        url = f"http://127.0.0.1:{port}{PREDICT}"
        command = ["curl", "-sS", "--max-time", "20", "--data-binary", "@-", *options, url]
        run = await asyncio.to_thread(subprocess.run, command, input=body, capture_output=True, check=True)
        assert run.stdout.startswith(b'{\n    "predictions": [2.5, ')
        assert len(client.requests[0][2][0]) == (3 if body is BODY else 600_000) * 4

    serving(test)


@needs_curl
def test_curl_uses_one_connection_for_several_urls(tmp_path: Path) -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        url = f"http://127.0.0.1:{port}/v1/models/default"
        command = ["curl", "-sSv", "--max-time", "20", url, "-o", str(tmp_path / "a"), url, "-o", str(tmp_path / "b")]
        run = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        assert b"Re-using existing connection" in run.stderr
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""

    serving(test)


@needs_curl
def test_curl_reads_the_refusal_of_a_body_that_is_too_large() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        url = f"http://127.0.0.1:{port}{PREDICT}"
        for options in (["-H", "Expect:"], [], ["-H", "Transfer-Encoding: chunked"]):
            command = ["curl", "-sS", "--max-time", "20", "--data-binary", "@-", "-w", "%{http_code}", *options, url]
            run = await asyncio.to_thread(subprocess.run, command, input=LARGE, capture_output=True)
            assert run.stdout.endswith(b"413"), run.stderr
            assert b"raise rest_body_bytes_max" in run.stdout

    serving(test, limits=Http1Limits(body_bytes_max=100_000))


def test_pipelining_and_a_body_in_slow_pieces() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST * 2)
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(len(ANSWER)) == ANSWER
        for byte in REQUEST:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    serving(test)


def test_many_pipelined_requests_whose_answers_are_not_read_at_once() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 20_000

        async def send() -> None:
            for _ in range(count // 100):
                writer.write(b"GET /v1/models/default HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
                await writer.drain()

        sending = asyncio.create_task(send())
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            size = int(head.rpartition(b"Content-Length: ")[2])
            assert (await reader.readexactly(size)).endswith(b"}\n")
        await sending
        writer.close()

    serving(test)


def test_no_http_at_all() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        for junk in (b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"\r\n\r\n\0"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(junk)
            answer = await reader.read()
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), "at once, though the client waits"
            writer.close()
        assert (await asyncio.to_thread(exchange, port, ("POST", PREDICT, BODY, {})))[0][0] == 200

    serving(test)


def test_a_client_that_closes_cancels() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await until(lambda: client.requests)
        writer.close()
        await until(lambda: client.cancelled)
        assert client.cancelled == [1]
        await until(lambda: not server.connections_count)

    serving(test, answers=False)


def test_a_client_that_resets_cancels() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await until(lambda: client.requests)
        writer.transport.abort()
        await until(lambda: client.cancelled)

    serving(test, answers=False)


@pytest.mark.parametrize("resets", [True, False])
def test_a_client_that_goes_while_nothing_is_read(resets: bool) -> None:
    """It has sent requests ahead, so reading has stopped and the end is behind what is unread."""

    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST * 20)
        await until(lambda: client.requests)
        (connection,) = server._connections
        await until(lambda: connection._is_paused)
        if resets:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        await until(lambda: client.cancelled)
        assert client.cancelled == [1]
        await until(lambda: not server.connections_count)

    serving(test, answers=False, limits=Http1Limits(tick_s=0.02))


def test_a_client_that_only_stops_sending_gets_its_answer() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST * 2)
        writer.write_eof()
        for number in range(2):
            await until(lambda wanted=number: len(client.requests) > wanted)  # type: ignore[misc]
            await asyncio.sleep(0.15)  # both interim answers go out: the client is spoken to twice
            assert not client.cancelled
            lane, rows, payloads, _, reply = client.requests[number]
            reply.answer(half_plus_two(lane, rows, payloads), 0, rows)
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.endswith(ANSWER)
        assert b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 " in answer
        writer.close()

    serving(test, answers=False)


def test_drain_finishes_what_runs_and_closes_what_idles() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await until(lambda: client.requests)
        draining = asyncio.create_task(server.drain(15.0))
        assert await idle_reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not draining.done()
        lane, rows, payloads, _, reply = client.requests[0]
        reply.answer(half_plus_two(lane, rows, payloads), 0, rows)
        answer = await reader.read()
        await draining
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(ANSWER)
        assert server.connections_count == 0
        for each in (idle_writer, writer):
            each.close()

    serving(test, answers=False)


def test_who_was_accepted_just_before_the_drain_is_answered() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(REQUEST)
        loop = asyncio.get_running_loop()
        joining = asyncio.create_task(loop.connect_accepted_socket(server._connection, ours))
        draining = asyncio.create_task(server.drain(15.0))
        await until(lambda: client.requests)
        assert not draining.done()
        lane, rows, payloads, _, reply = client.requests[0]
        reply.answer(half_plus_two(lane, rows, payloads), 0, rows)
        await draining
        await joining
        with theirs:
            assert theirs.recv(4096).startswith(b"HTTP/1.1 200")

    serving(test, answers=False)


def test_the_end_of_the_drain_is_answered_503(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await until(lambda: client.requests)
        await server.drain(0.0)
        await server.close()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503")
        assert answer.endswith(b'{\n    "error": "the server is shutting down"\n}')
        assert client.cancelled == [1]
        writer.close()

    with caplog.at_level(logging.CRITICAL):
        serving(test, answers=False)


def test_connections_beyond_the_limit_are_refused() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        ((status, headers, body),) = await asyncio.to_thread(exchange, port, ("POST", PREDICT, BODY, {}))
        assert (status, headers["connection"]) == (503, "close")
        assert json.loads(body)["error"] == "there are 3 connections already"
        for _, writer in held:
            writer.close()
        await until(lambda: not server.connections_count)
        assert (await asyncio.to_thread(exchange, port, ("POST", PREDICT, BODY, {})))[0][0] == 200

    serving(test, limits=Http1Limits(connections_max=3))


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "UNIX"])
def test_clients_on_this_host_are_known(family: str, tmp_path: Path) -> None:
    """A loopback address or a UNIX socket: what `rest_admin = "local"` lets in."""

    async def run() -> None:
        app = make_app(RestLoopback(model=default_model))
        if family == "UNIX":
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "s"))
            listening.listen()
        else:
            address = "127.0.0.1" if family == "IPv4" else "::1"
            kind = socket.AF_INET if family == "IPv4" else socket.AF_INET6
            try:
                listening = socket.create_server((address, 0), family=kind)
            except OSError:
                pytest.skip("no IPv6 here")
        listening.setblocking(False)
        name = listening.getsockname()
        server = await serve_http1(app.handle, [listening])
        if family == "UNIX":
            reader, writer = await asyncio.open_unix_connection(name)
        else:
            reader, writer = await asyncio.open_connection(*name[:2])
        writer.write(b"GET /ringserve/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
        await server.close()
        app.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
