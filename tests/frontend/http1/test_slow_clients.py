"""Clients that are slow on purpose, over real sockets: none of them holds a connection for long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

import pytest

from ringserve.frontend.http1.exchange import Http1Limits
from ringserve.frontend.http1.server import Http1Server
from tests.frontend.http1.loopback import HEAD, REQUEST, serving, until
from tests.frontend.rest.served import RestLoopback

#: Limits whose time passes fifty times as fast.
FAST = Http1Limits(
    idle_s=0.2, head_s=0.2, body_window_s=0.2, body_window_bytes_min=10, write_s=0.4, linger_s=0.2, tick_s=0.02
)

SLOW: list[tuple[str, bytes, Iterable[bytes], bytes]] = [
    # what the client does, what it sends at once, what it drips, the first line of the answer
    ("nothing", b"", (), b""),
    ("a head, byte by byte", b"", (b"GET /v1/models/default HTTP/1.1\r\n" + b"X: y\r\n" * 1000,), b"HTTP/1.1 408 "),
    ("half a head", b"GET / HTTP/1.1\r\n", (), b"HTTP/1.1 408 "),
    ("half a body", REQUEST[:-1], (), b"HTTP/1.1 408 "),
    ("a body, byte by byte", HEAD + b"Content-Length: 5000\r\n\r\n", (b" " * 5000,), b"HTTP/1.1 408 "),
    ("half a chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", (), b"HTTP/1.1 408 "),
    ("empty lines", b"", (b"\r\n" * 5000,), b""),
]


@pytest.mark.parametrize(("what", "first", "drip", "line"), SLOW, ids=[what for what, *_ in SLOW])
def test_slow_clients_are_ended(what: str, first: bytes, drip: Iterable[bytes], line: bytes) -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)

        async def drips() -> None:
            for text in drip:
                for byte in text:
                    writer.write(bytes((byte,)))
                    await asyncio.sleep(0.03)  # what makes this client slow

        dripping = asyncio.create_task(drips())
        answer = await reader.read()
        assert answer.startswith(line)
        assert bool(answer) == bool(line)
        dripping.cancel()
        await until(lambda: not server.connections_count)
        writer.close()

    serving(test, limits=FAST)


def test_a_client_that_never_reads_is_ended() -> None:
    async def test(server: Http1Server, port: int, client: RestLoopback) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        body = b'{"instances":[' + b",".join([b"1.5"] * 2_000_000) + b"]}"
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: client.requests)
        await until(lambda: not server.connections_count)
        sock.close()

    serving(test, limits=FAST)
