"""Goal: handshakes that are begun and not gone on with hold nobody up and have an end. Method: real sockets on both
event loops; a door with few places and short times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from ringserve.config.tls import SslConfig, server_context
from ringserve.frontend.tls_door import TlsDoor
from tests.frontend.http2.certificates import HAS_OPENSSL, Certificates, certificates

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def made() -> Certificates:
    return certificates()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    def run(work: Any) -> None:
        async def bounded() -> None:
            bugs: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
            async with asyncio.timeout(30):
                await work
            assert not bugs

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Place:
    """A door and its clients."""

    def __init__(self, made: Certificates, **options: Any) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = listener.getsockname()
        self.refusals: Counter[str] = Counter()
        context = server_context(SslConfig(made.server.key, made.server.cert, "", False))
        self.door = TlsDoor(listener, Echo, context, self.refusals, **options)
        self._context = ssl.create_default_context(cadata=made.authority.cert)
        self._context.check_hostname = False
        self._writers: list[asyncio.StreamWriter] = []

    async def begin(self, data: bytes = b"") -> asyncio.StreamReader:
        """A client that connects and sends what may not be TLS."""
        reader, writer = await asyncio.open_connection(*self.address)
        self._writers.append(writer)
        writer.write(data)
        return reader

    async def ask(self) -> bytes:
        """An honest client's answer."""
        reader, writer = await asyncio.open_connection(*self.address, ssl=self._context)
        writer.write(b"hello")
        answer = await reader.readexactly(5)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)  # a poll; `run` bounds it

    def close(self) -> None:
        self.door.abort()
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def place(made: Certificates, **options: Any) -> AsyncIterator[Place]:
    made_place = Place(made, **options)
    try:
        yield made_place
    finally:
        made_place.close()


async def gone(reader: asyncio.StreamReader) -> bool:
    """Whether the server ended the connection; returns when it has."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


def test_a_handshake_that_does_not_begin_ends(made: Certificates, run: Any) -> None:
    async def test() -> None:
        async with place(made, handshake_s=0.2) as here:
            reader = await here.begin()
            assert await gone(reader)
            await here.until(lambda: not here.door.handshakes_count)
            assert here.refusals == {"handshake": 1}

    run(test())


def test_when_all_places_are_taken_the_oldest_has_to_go(made: Certificates, run: Any) -> None:
    async def test() -> None:
        async with place(made, handshakes_max=3, crowded_s=0.2) as here:
            idle = [await here.begin() for _ in range(3)]
            await here.until(lambda: here.door.handshakes_count == 3)
            assert await here.ask() == b"hello"
            assert await gone(idle[0])
            assert here.refusals["handshake"] >= 1

    run(test())


def test_no_more_are_under_way_than_there_are_places(made: Certificates, run: Any) -> None:
    async def test() -> None:
        async with place(made, handshakes_max=3, crowded_s=0.1) as here:
            idle = [await here.begin() for _ in range(12)]
            ended = asyncio.gather(*(gone(reader) for reader in idle[:9]))
            while not ended.done():
                assert here.door.handshakes_count <= 3
                await asyncio.sleep(0)
            assert here.refusals["handshake"] >= 9

    run(test())


def test_while_there_is_room_a_slow_handshake_has_its_time(made: Certificates, run: Any) -> None:
    async def test() -> None:
        async with place(made, handshakes_max=3, crowded_s=0.0) as here:
            reader = await here.begin()
            for _ in range(3):
                assert await here.ask() == b"hello"
            assert here.door.handshakes_count == 1
            assert not reader.at_eof()
            assert not here.refusals

    run(test())


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", bytes(100)])
def test_what_is_no_tls_is_ended_at_once(data: bytes, made: Certificates, run: Any) -> None:
    async def test() -> None:
        async with place(made) as here:
            reader = await here.begin(data)
            await reader.read()  # perhaps an alert
            await here.until(lambda: not here.door.handshakes_count)
            assert not here.refusals

    run(test())


def test_the_end_leaves_no_descriptor(made: Certificates, run: Any) -> None:
    async def test() -> None:
        async with place(made) as here:  # what loops open once
            await here.ask()
        before = len(os.listdir("/proc/self/fd"))
        here = Place(made)
        readers = [await here.begin() for _ in range(5)]
        await here.until(lambda: here.door.handshakes_count == 5)
        here.close()
        assert all([await gone(reader) for reader in readers])
        await here.until(lambda: not here.door.handshakes_count)
        await here.until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(here.address, 1)

    run(test())


def test_handshakes_under_way_go_on_when_nothing_more_is_accepted(made: Certificates, run: Any) -> None:
    async def test() -> None:
        async with place(made) as here:
            raw = socket.create_connection(here.address)
            raw.setblocking(False)
            await here.until(lambda: here.door.handshakes_count == 1)
            here.door.close()
            context = ssl.create_default_context(cadata=made.authority.cert)
            context.check_hostname = False
            reader, writer = await asyncio.open_connection(sock=raw, ssl=context, server_hostname="x")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()

    run(test())


def test_a_system_without_descriptors_is_asked_again(made: Certificates, run: Any, monkeypatch: Any) -> None:
    async def test() -> None:
        monkeypatch.setattr("ringserve.frontend.tls_door._PAUSE_S", 0.05)
        async with place(made) as here:
            listener, fails = here.door._sock, [OSError(24, "Too many open files")] * 2

            class Failing:
                def accept(self) -> Any:
                    if fails:
                        raise fails.pop()
                    return listener.accept()

                def __getattr__(self, name: str) -> Any:
                    return getattr(listener, name)

            here.door._sock = Failing()  # type: ignore[assignment]
            assert await here.ask() == b"hello"
            assert not fails

    run(test())
