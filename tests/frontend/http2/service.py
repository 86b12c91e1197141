"""The service that both engines serve in these tests, and a server of it in a thread."""

from __future__ import annotations

import asyncio
import importlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from ringserve.frontend.grpcio_engine import serve_grpcio
from ringserve.frontend.handler import Buffer, Call, EngineLimits, Methods, Stream, StreamFailure
from ringserve.frontend.http2.server import serve_native

#: Untyped, so that checks do not depend on whether stubs for it are installed.
grpc: Any = importlib.import_module("grpc")
PREFIX = "/test.Service/"
NATIVE, GRPCIO = "native", "grpcio"


def connect(target: str) -> Any:
    """A channel of the official client library, which may send and receive anything, not shared with other tests."""
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(target, options=[*unlimited, ("grpc.use_local_subchannel_pool", 1)])


class Service:
    """Handlers for every behaviour that a client can see, and notes of what they saw."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.held = threading.Event()
        self.gate = asyncio.Event()
        self.bugs: list[BaseException] = []

    def methods(self) -> Methods:
        unary = {"Echo": self.echo, "Later": self.later, "Fail": self.fail, "Hold": self.hold, "Look": self.look}
        unary |= {"Bug": self.bug, "Twice": self.twice, "Big": self.big, "Peer": self.peer}
        stream = {"Collect": self.collect, "Repeat": self.repeat, "Chat": self.chat, "StreamFail": self.stream_fail}
        stream |= {"StreamBug": self.stream_bug, "Endless": self.endless, "Dam": self.dam}
        return Methods(
            {PREFIX + name: handler for name, handler in unary.items()},
            {PREFIX + name: handler for name, handler in stream.items()},
        )

    def on_bug(self, error: BaseException) -> None:
        self.bugs.append(error)

    def echo(self, call: Call, message: Buffer) -> None:
        call.finish(bytes(message))

    def later(self, call: Call, message: Buffer) -> None:
        asyncio.get_running_loop().call_soon(call.finish, bytes(message))

    def fail(self, call: Call, message: Buffer) -> None:
        code, _, text = bytes(message).decode().partition(" ")
        call.fail(int(code), text)

    def hold(self, call: Call, message: Buffer) -> None:
        call.on_cancel(self.cancelled.set)
        self.held.set()

    def look(self, call: Call, message: Buffer) -> None:
        """Answers with what the call looks like from inside."""
        lines = [f"{name}={value!r}" for name, value in call.metadata]
        lines.append(f"timeout={'yes' if call.timeout_ns else 'no'}")
        lines.append(f"peer={call.peer.rpartition(':')[0] if call.peer != 'unix:' else call.peer}")
        call.finish("\n".join(lines).encode())

    def peer(self, call: Call, message: Buffer) -> None:
        call.finish(call.peer.encode())

    def bug(self, call: Call, message: Buffer) -> None:
        raise RuntimeError("a bug of the handler")

    def twice(self, call: Call, message: Buffer) -> None:
        call.finish(b"first")
        call.finish(b"second")
        call.fail(13, "third")

    def big(self, call: Call, message: Buffer) -> None:
        call.finish(bytes(int(bytes(message))))

    async def collect(self, stream: Stream) -> None:
        """Client streaming: the answer is all messages joined."""
        messages = []
        while (message := await stream.receive()) is not None:
            messages.append(message)
        await stream.send(b"".join(messages))

    async def dam(self, stream: Stream) -> None:
        """Client streaming that takes nothing before the gate opens; the answer is how many bytes came."""
        await self.gate.wait()
        await self.collect_size(stream)

    async def collect_size(self, stream: Stream) -> None:
        size = 0
        while (message := await stream.receive()) is not None:
            size += len(message)
        await stream.send(b"%d" % size)

    async def repeat(self, stream: Stream) -> None:
        """Server streaming: `count size` asks for that."""
        message = await stream.receive()
        assert message is not None
        count, size = map(int, message.split())
        for index in range(count):
            await stream.send(index.to_bytes(4, "big") + bytes(size))

    async def chat(self, stream: Stream) -> None:
        while (message := await stream.receive()) is not None:
            await stream.send(message.upper())

    async def stream_fail(self, stream: Stream) -> None:
        message = await stream.receive()
        if message:
            await stream.send(message)
        raise StreamFailure(9, "as asked: ümlaut %")

    async def stream_bug(self, stream: Stream) -> None:
        await stream.receive()
        raise RuntimeError("a bug of the streaming handler")

    async def endless(self, stream: Stream) -> None:
        self.held.set()
        try:
            while True:
                await stream.send(bytes(1000))
        finally:
            self.cancelled.set()


class Running:
    """A server in a thread. target: for clients."""

    def __init__(self, engine: str, service: Service, limits: EngineLimits, family: int, path: str) -> None:
        self.service = service
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.engine: Any = self.call(self._start(engine, limits, family, path))

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _start(self, engine: str, limits: EngineLimits, family: int, path: str) -> Any:
        methods, on_bug = self.service.methods(), self.service.on_bug
        host = "[::1]" if family == socket.AF_INET6 else "127.0.0.1"
        self.port = 0
        if engine == GRPCIO:
            self.target = f"unix:{path}" if path else f"{host}:0"
            server: Any = await serve_grpcio(methods, [self.target], limits, on_bug)
            self.port = server.ports[0]
        else:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.bind(path or (host.strip("[]"), 0))
            listener.setblocking(False)
            self.port = 0 if path else listener.getsockname()[1]
            server = await serve_native(methods, [listener], limits, on_bug)
        self.target = f"unix:{path}" if path else f"{host}:{self.port}"
        return server

    def stop(self) -> None:
        self.call(self.engine.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def running(
    engine: str, limits: EngineLimits | None = None, family: int = socket.AF_INET, path: str = ""
) -> Iterator[Running]:
    """A server of `Service` by that engine, for the length of a test."""
    server = Running(engine, Service(), limits or EngineLimits(), socket.AF_UNIX if path else family, path)
    try:
        yield server
    finally:
        server.stop()
