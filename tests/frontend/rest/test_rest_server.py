"""The application behind uvicorn on loopback: real sockets, Python's own HTTP client, and curl."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from ringserve.frontend.rest_api import RestSettings, make_app
from ringserve.frontend.rest_server import RestLimits, RestServer, serve_rest
from tests.frontend.fakes import LoopbackClient, half_plus_two
from tests.frontend.rest.asgi import default_model, models

BODY = b'{"instances":[1.0,2.0,5.0]}'
ANSWER = b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'
PREDICT = "/v1/models/default:predict"
HEAD = b"POST /v1/models/default:predict HTTP/1.1\r\nHost: a\r\n"


def listener() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    return listening


def serving(
    test: Callable[[RestServer, int, LoopbackClient], Awaitable[None]],
    *,
    answers: bool = True,
    settings: RestSettings | None = None,
    limits: RestLimits | None = None,
) -> None:
    """Run `test` on the loop of a server."""

    async def run() -> None:
        client = LoopbackClient(models(), default_model if answers else None)
        listening = listener()
        port = listening.getsockname()[1]
        server = await serve_rest(make_app(client, settings), [listening], limits)
        try:
            await test(server, port, client)
        finally:
            await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def exchange(port: int, *requests: tuple[str, str, Any, dict[str, str]]) -> list[tuple[int, dict[str, str], bytes]]:
    """Several requests over one connection of http.client."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    answers = []
    for method, target, body, headers in requests:
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        answers.append((response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()))
    connection.close()
    return answers


def test_http_client() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
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
            ("TRACE", "/v1/models/default", None, {}),
            ("OPTIONS", "/v1/models/default", None, {"Origin": "http://a"}),
            ("POST", "/v1/models/a%2Fb:predict", BODY, {}),
        )
        assert [answer[0] for answer in answers] == [200, 200, 200, 200, 400, 400, 404, 501, 200, 404]
        assert [answer[2] for answer in answers[:3]] == [ANSWER] * 3
        headers = answers[0][1]
        assert headers["content-type"] == "application/json"
        assert headers["content-length"] == str(len(ANSWER))
        assert "date" in headers
        assert "server" not in headers
        assert json.loads(answers[4][2])["error"] == f"Malformed request: POST {PREDICT}?a=1"
        assert json.loads(answers[9][2])["error"] == "Servable not found for request: Latest(a/b)"

    serving(test)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        large = b'{"instances":[' + b",".join([b"1.0"] * 600_000) + b"]}"
        for body, options in ((BODY, []), (large, ["-H", "Expect: 100-continue"]), (BODY, ["--http1.0"])):
            command = ["curl", "-sS", "--max-time", "20", "--data-binary", "@-", *options]
            run = await asyncio.to_thread(
                subprocess.run,
                [*command, f"http://127.0.0.1:{port}{PREDICT}"],
                input=body,
                capture_output=True,
                check=True,
            )
            assert run.stdout.startswith(b'{\n    "predictions": [2.5, ')
        assert len(client.requests[1][2][0]) == 600_000 * 4

    serving(test)


def test_pipelining_and_a_body_in_slow_pieces() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        writer.write(whole * 2)
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(len(ANSWER)) == ANSWER
        for byte in whole:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    serving(test)


def test_a_body_that_is_too_large_is_not_waited_for() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"[")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"65\r\n" + b"[" * 101)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413")
        writer.close()

    serving(test, settings=RestSettings(body_bytes_max=100))


def test_no_http_at_all() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        for junk in (b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"\r\n\r\n\0"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(junk)
            writer.write_eof()
            await reader.read()
            writer.close()
        assert (await asyncio.to_thread(exchange, port, ("POST", PREDICT, BODY, {})))[0][0] == 200

    serving(test)


def test_a_client_that_disconnects_cancels() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        async with asyncio.timeout(10):
            while not client.requests:
                await asyncio.sleep(0.001)  # polls a condition of another task, bounded by the test
            writer.close()
            while not client.cancelled:
                await asyncio.sleep(0.001)  # polls a condition of another task, bounded by the test
        assert client.cancelled == [1]

    serving(test, answers=False)


def test_drain_finishes_what_runs_and_closes_what_idles() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        _, idle_writer = idle = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        async with asyncio.timeout(20):
            while not client.requests:
                await asyncio.sleep(0.001)  # polls a condition of another task, bounded by the test
            draining = asyncio.create_task(server.drain(15.0))
            assert await idle[0].read() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            assert not draining.done()
            lane, rows, payloads, _, reply = client.requests[0]
            reply.answer(half_plus_two(lane, rows, payloads), 0, rows)
            answer = await reader.read()
            await draining
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(ANSWER)
        assert server.connections_count == 0
        for each in (idle_writer, writer):
            each.close()

    serving(test, answers=False)


def test_the_end_of_the_drain_is_answered_503(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        async with asyncio.timeout(20):
            while not client.requests:
                await asyncio.sleep(0.001)  # polls a condition of another task, bounded by the test
            await server.drain(0.0)
            await server.close()
            assert (await reader.read()).startswith(b"HTTP/1.1 503")
        assert client.cancelled == [1]
        writer.close()

    with caplog.at_level(logging.CRITICAL):
        serving(test, answers=False)


def test_connections_beyond_the_limit_are_refused() -> None:
    async def test(server: RestServer, port: int, client: LoopbackClient) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        statuses = await asyncio.to_thread(exchange, port, ("POST", PREDICT, BODY, {}))
        assert statuses[0][0] == 503
        for _, writer in held:
            writer.close()

    serving(test, limits=RestLimits(connections_max=3))
