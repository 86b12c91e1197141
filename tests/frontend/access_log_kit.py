"""The access log around a gRPC engine and the REST server, both APIs on them, and its file: for tests of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ringserve.broker.messages import Code, Result
from ringserve.config.access_log import AccessLog
from ringserve.config.keys_file import RATE_SLOTS, Entry, Scopes, digest_of
from ringserve.config.protos import ModelSpec, PredictRequest
from ringserve.frontend.access import Access
from ringserve.frontend.access_lines import LineMaker
from ringserve.frontend.access_log import AccessLogger
from ringserve.frontend.grpc_access import GrpcGuard
from ringserve.frontend.grpc_api import make_methods
from ringserve.frontend.handler import EngineLimits, Methods
from ringserve.frontend.http1.exchange import Http1Limits
from ringserve.frontend.http1.server import serve_http1
from ringserve.frontend.outputs import Output
from ringserve.frontend.rest_access import RestGuard
from ringserve.frontend.rest_api import error_page, make_app
from ringserve.frontend.tally import Tally
from ringserve.shm.dtype import FLOAT
from tests.e2e.server import wait_until
from tests.frontend.fakes import LoopbackClient, catalog_of, float_proto, make_output, version_info
from tests.frontend.http2.service import Running, connect, grpc


def half_plus_two(lane: Any, rows: int, payloads: list[Any]) -> list[Output] | tuple[int, str]:
    values = [float(each) for each in memoryview(payloads[0]).cast("f")]
    if 99.0 in values:
        return int(Code.INTERNAL), "it broke at x = 99"
    return [make_output(FLOAT, (rows,), _halved(values), batchable=True)]


def _halved(values: list[float]) -> Any:
    return np.asarray([value / 2 + 2 for value in values], "<f4")


class Client(LoopbackClient):
    """As the whole client is: with a result while it answers, and what REST needs."""

    connected = True
    recorder = None
    result: Result | None = None


class Logged:
    """Both APIs on one loop, and the file. Keys: `good` may run all models, `other` none of them."""

    def __init__(self, engine: str, folder: Path, *, guarded: bool = False, to: str = "", **settings: Any) -> None:
        self.path = folder / "access.log"
        self.counts: Counter[str] = Counter()
        self.bugs: list[BaseException] = []
        self.client = Client(catalog_of(version_info("m", 7)), half_plus_two)
        self._settings = AccessLog(to=to or str(self.path), **settings)
        self._guarded = guarded
        self._engine = engine
        self.rest_port = 0
        self.running = Running(engine, self, EngineLimits(message_bytes_max=10_000), 2, "")  # type: ignore[arg-type]
        self.running.call(self._start_rest())

    def on_bug(self, error: BaseException) -> None:
        self.bugs.append(error)

    def _count(self, end: str, count: int) -> None:
        self.counts[end] += count

    def methods(self) -> Methods:
        loop = asyncio.get_running_loop()
        self.logger = AccessLogger(self._settings, LineMaker("frontend-0", "json"), loop.call_later, self._count)
        self.access = Access([0] * RATE_SLOTS, lambda: 1, None) if self._guarded else None
        guard = None
        if self.access is not None:
            self.access.told = self.logger.asked
            scopes = {"good": Scopes(("*",), True, False), "other": Scopes(("no*",), False, False)}
            self.access.use([Entry(name, digest_of(name.encode()), "", each, 0.0, 1) for name, each in scopes.items()])
            guard = GrpcGuard(self.access, Tally(), lambda _: None)
        seen = self.logger.client(self.client)  # type: ignore[arg-type]
        self.seen = seen
        return self.logger.methods(make_methods(seen, tally=Tally(), guard=guard))

    async def _start_rest(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.rest_port = listener.getsockname()[1]
        guard = RestGuard(self.access, lambda _: None) if self.access is not None else None
        app = make_app(self.seen, guard=guard)
        limits = Http1Limits(body_bytes_max=10_000)
        handle = self.logger.rest(app.handle)
        self._rest = await serve_http1(handle, [listener], limits, error_page, on_refusal=self.logger.refused)

    def lines(self, count: int) -> list[dict[str, Any]]:
        """All lines so far, which must become that many."""

        def read() -> list[Any]:
            found = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
            return found if len(found) >= count else []

        found = wait_until(read, f"{count} lines") if count else []
        assert len(found) == count
        return found

    def line(self) -> dict[str, Any]:
        """The only line; the file is empty then."""
        (line,) = self.lines(1)
        self.path.write_bytes(b"")
        return line

    def flush(self) -> None:
        async def flush() -> None:
            self.logger.flush(at_end=True)

        self.running.call(flush())

    def rest(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.rest_port), timeout=30) as sock:
            sock.sendall(request)
            data = b""
            while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < _length(data):
                data += sock.recv(65_536)
        head, _, body = data.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return int(first.split()[1]), {line.split(": ")[0].lower(): line.split(": ")[1] for line in rest}, body

    def stop(self) -> None:
        async def close() -> None:
            await self._rest.close()
            self.logger.close()

        self.running.call(close())
        self.running.stop()
        assert not self.bugs


def _length(data: bytes) -> int:
    for line in data.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def predict(values: list[float], model: str = "m") -> bytes:
    inputs = {"x": float_proto(values, [len(values)], content=True)}
    message: bytes = PredictRequest(model_spec=ModelSpec(name=model), inputs=inputs).SerializeToString()
    return message


def call(logged: Logged, method: str, message: bytes, **metadata: str) -> tuple[int, dict[str, str], int]:
    """Code, trailers and length of the answer."""
    pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    with connect(logged.running.target) as channel:
        try:
            answer, done = channel.unary_unary(method).with_call(message, metadata=pairs)
        except grpc.RpcError as error:
            return error.code().value[0], dict(error.trailing_metadata() or ()), 0
        return 0, dict(done.trailing_metadata() or ()), len(answer)


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
