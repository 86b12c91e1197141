"""A connection without a socket: what a client sends, in whatever pieces, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ringserve.frontend.http1.answers import plain_page
from ringserve.frontend.http1.connection import Http1Connection
from ringserve.frontend.http1.exchange import Exchange, Handler, Http1Limits
from ringserve.frontend.http1.server import Http1Server

HOST = b"Host: a\r\n"
GET = b"GET /x HTTP/1.1\r\n%b\r\n" % HOST


def post(body: bytes, headers: bytes = b"", target: bytes = b"/p") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (target, HOST, headers, len(body), body)


def chunked(body: bytes, size: int = 3, target: bytes = b"/c") -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    text = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (target, HOST, text)


class FakeTransport(asyncio.Transport):
    """Keeps what is written; holds back what arrives while reading is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False
        self.is_aborted = False
        self.has_eof = False
        self.is_paused = False
        self.unsent_bytes = 0
        self.pauses = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        assert not self.has_eof
        self.written += bytes(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True
        self.pauses += 1

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes


class Peer:
    """One connection to a server whose application is `handler`."""

    def __init__(self, handler: Handler, limits: Http1Limits | None = None, server: Http1Server | None = None) -> None:
        self.server = server or Http1Server(handler, limits or Http1Limits(), plain_page)
        self.transport = FakeTransport()
        self.connection = Http1Connection(self.server, asyncio.get_running_loop())
        self.connection.connection_made(self.transport)

    async def send(self, *pieces: bytes) -> None:
        """Bytes from the client, each piece in one read; waits while the server does not read."""
        for piece in pieces:
            async with asyncio.timeout(20):
                while self.transport.is_paused and not self.transport.is_closed:
                    await asyncio.sleep(0)
            if self.transport.is_closed:
                return
            if piece:
                self.connection.data_received(piece)
        await asyncio.sleep(0)

    def push(self, data: bytes) -> None:
        """Bytes that arrive now."""
        assert not self.transport.is_paused
        self.connection.data_received(data)

    def ticks(self, count: int) -> None:
        """Time passes."""
        for _ in range(count):
            self.server.tick += 1
            self.connection.on_tick(self.server.tick)

    def lose(self) -> None:
        """The connection is lost."""
        self.connection.connection_lost(None)

    def is_paused(self) -> bool:
        """Whether the server does not read."""
        return self.transport.is_paused

    def is_closed(self) -> bool:
        """Whether the server has closed the connection."""
        return self.transport.is_closed

    def take(self) -> bytes:
        """What was written since the last time."""
        written, self.transport.written = self.transport.written, b""
        return written


class Answer(NamedTuple):
    """One answer as the client reads it. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_answers(data: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """All answers in a client's bytes; interim ones too. methods: of the requests, because HEAD has no body."""
    answers = []
    asked = iter(methods)
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for line in lines:
            name, value = line.split(": ", 1)
            assert name.lower() not in headers
            headers[name.lower()] = value
        if status == "100":
            assert not headers
            answers.append(Answer(100, {}, b""))
            continue
        assert "date" in headers
        size = 0 if next(asked, "GET") == "HEAD" else int(headers["content-length"])
        assert len(data) >= size
        answers.append(Answer(int(status), headers, data[:size]))
        data = data[size:]
    return answers


def mirror(exchange: Exchange) -> None:
    """Answers at once with what it was asked."""
    head = exchange.head
    body = bytes(exchange.take_body())
    exchange.answer(200, f"{head.method} {head.target} {len(head.headers)} ".encode() + body, b"text/plain")


class Holding:
    """An application that answers when the test says so."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.cancelled = 0

    def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        exchange.on_cancel(self._cancel)

    def _cancel(self) -> None:
        self.cancelled += 1


def on_loop(test: Callable[[], Any]) -> None:
    """Run a test on an event loop."""

    async def main() -> None:
        await test()

    asyncio.run(main())
