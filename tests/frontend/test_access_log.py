"""The access log around real engines and the real APIs, over a stand-in for the workers; lines as the file has them.

Held here: what a line tells of a call, over gRPC by both engines and over REST; ids that came, and ids that were made,
which the client is told; failures, refusals of the engines themselves, clients that leave; who asked; what is not
logged; no line, no id without a reason; a file that cannot be written harms nobody and is counted.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.broker.messages import Code, Result
from ringserve.config.access_log import AccessLog
from ringserve.config.keys_file import RATE_SLOTS, Entry, Scopes, digest_of
from ringserve.config.protos import ModelSpec, PredictRequest
from ringserve.frontend.access import Access
from ringserve.frontend.access_lines import LineMaker
from ringserve.frontend.access_log import AccessLogger
from ringserve.frontend.grpc_access import GrpcGuard
from ringserve.frontend.grpc_api import GET_MODEL_STATUS, PREDICT, make_methods
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
from tests.frontend.http2.service import GRPCIO, NATIVE, Running, connect, grpc

MADE_CHARS = 24


def half_plus_two(lane: Any, rows: int, payloads: list[Any]) -> list[Output] | tuple[int, str]:
    values = [float(each) for each in memoryview(payloads[0]).cast("f")]
    if 99.0 in values:
        return int(Code.INTERNAL), "it broke at x = 99"
    return [make_output(FLOAT, (rows,), _halved(values), batchable=True)]


def _halved(values: list[float]) -> Any:
    import numpy as np

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


Start = Callable[..., Logged]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Logged] = []

    def make(engine: str = NATIVE, **settings: Any) -> Logged:
        started.append(Logged(engine, tmp_path, **settings))
        return started[-1]

    yield make
    for each in started:
        each.stop()


@pytest.fixture(params=[NATIVE, GRPCIO])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


# --------------------------------------------------------------------------------------------------------------- gRPC


def test_a_calls_line(start: Start, engine: str) -> None:
    logged = start(engine)
    message = predict([1, 2, 3])
    code, trailers, size = call(logged, PREDICT, message, x_request_id="abc-1")
    assert (code, trailers["x-request-id"]) == (0, "abc-1")
    line = logged.line()
    assert line.pop("time").endswith("Z")
    assert line.pop("peer").startswith("ipv4:127.0.0.1:")
    assert 0 < line.pop("duration_ms") < 60_000
    assert line.pop("pid") > 0
    assert line == {
        "level": "info", "process": "frontend-0", "logger": "ringserve.access", "request_id": "abc-1",
        "protocol": "grpc", "method": PREDICT, "model": "m", "version": 7, "status": "OK", "rows": 3,
        "request_bytes": len(message), "response_bytes": size,
    }  # fmt: skip


def test_a_call_without_a_usable_id_is_given_one(start: Start, engine: str) -> None:
    logged = start(engine)
    for given in ({}, {"x_request_id": "two words"}, {"x_request_id": "x" * 129}):
        _, trailers, _ = call(logged, PREDICT, predict([1]), **given)
        assert len(trailers["x-request-id"]) == MADE_CHARS
        assert logged.line()["request_id"] == trailers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "message", "code", "told"),
    [
        pytest.param(PREDICT, predict([1], "n\n\x1b"), 5, {"model": "n\n\x1b", "status": "NOT_FOUND"}, id="model"),
        pytest.param(PREDICT, predict([99]), 13, {"model": "m", "version": 7, "status": "INTERNAL"}, id="run"),
        pytest.param(PREDICT, b"\xff", 13, {"status": "INTERNAL"}, id="no protobuf"),
        pytest.param(GET_MODEL_STATUS, predict([1], "no"), 5, {"model": "no", "status": "NOT_FOUND"}, id="status"),
        pytest.param("/no.Such/Method", b"", 12, {"method": "/no.Such/Method", "status": "UNIMPLEMENTED"}, id="method"),
    ],
)
def test_failures_are_logged_whatever_the_share(
    start: Start, engine: str, method: str, message: bytes, code: int, told: dict[str, Any]
) -> None:
    logged = start(engine, share=0.0, slow_ms=0)
    assert call(logged, PREDICT, predict([1]))[0] == 0
    found, trailers, _ = call(logged, method, message, x_request_id="abc")
    assert (found, trailers["x-request-id"]) == (code, "abc")
    line = logged.line()
    assert {key: line.get(key) for key in told} == told
    assert line["request_id"] == "abc"
    assert line["error"]
    assert "99" not in line["error"]


def test_a_call_that_is_not_written_gets_no_id(start: Start, engine: str) -> None:
    logged = start(engine, share=0.0, slow_ms=0, failures="none")
    assert "x-request-id" not in call(logged, PREDICT, predict([1]))[1]
    assert "x-request-id" not in call(logged, PREDICT, predict([99]))[1]
    assert call(logged, PREDICT, predict([1]), x_request_id="abc")[1]["x-request-id"] == "abc"
    logged.flush()
    assert logged.lines(0) == []


def test_what_the_native_engine_refuses_is_logged(start: Start) -> None:
    logged = start()
    assert call(logged, PREDICT, bytes(10_001), x_request_id="abc")[0] == Code.RESOURCE_EXHAUSTED
    line = logged.line()
    assert (line["status"], line["request_id"], line["method"]) == ("RESOURCE_EXHAUSTED", "abc", PREDICT)


def test_a_client_that_leaves(start: Start, engine: str) -> None:
    logged = start(engine)
    logged.client.model = None
    with connect(logged.running.target) as channel:
        pending = channel.unary_unary(PREDICT).future(predict([1, 2]), metadata=[("x-request-id", "abc")])
        wait_until(lambda: logged.client.requests, "the request")
        pending.cancel()
        line = logged.line()
    assert (line["status"], line["rows"], line["request_id"]) == ("CANCELLED", 2, "abc")


def test_who_asked_over_grpc(start: Start, engine: str) -> None:
    logged = start(engine, guarded=True)
    assert call(logged, PREDICT, predict([1]), x_api_key="good")[0] == 0
    line = logged.line()
    assert line["key"] == "good"
    assert call(logged, PREDICT, predict([1]), x_api_key="other")[0] == Code.PERMISSION_DENIED
    assert logged.line()["key"] == "other"
    assert call(logged, PREDICT, predict([1]), x_api_key="stolen-secret")[0] == Code.UNAUTHENTICATED
    line = logged.line()
    assert "key" not in line
    assert "stolen" not in json.dumps(line)


def test_the_batch_that_a_call_was_in(start: Start) -> None:
    logged = start()
    logged.client.model = None
    with connect(logged.running.target) as channel:
        pending = channel.unary_unary(PREDICT).future(predict([1]))
        wait_until(lambda: logged.client.requests, "the request")

        async def answer() -> None:
            logged.client.result = Result(3, 17, b"", -1, [], [], [], run=[1_000_000, 3_500_000, 8])
            lane, rows, payloads, _, reply = logged.client.requests[0]
            outputs = half_plus_two(lane, rows, payloads)
            assert isinstance(outputs, list)
            reply.answer(outputs, 0, rows)
            logged.client.result = None

        logged.running.call(answer())
        pending.result(timeout=30)
    line = logged.line()
    assert (line["run_ms"], line["batch_rows"], line["worker"]) == (2.5, 8, 3)


# --------------------------------------------------------------------------------------------------------------- REST


def test_a_requests_line(start: Start) -> None:
    logged = start()
    body = b'{"instances": [1.0, 2.0]}'
    status, headers, answer = logged.rest(post("/v1/models/m:predict?x=secret", body, "X-Request-Id: abc"))
    assert status == 400
    logged.line()
    status, headers, answer = logged.rest(post("/v1/models/m:predict", body, "X-Request-Id: abc"))
    assert (status, headers["x-request-id"]) == (200, "abc")
    line = logged.line()
    assert line["peer"].startswith("127.0.0.1:")
    expected = {
        "protocol": "rest", "method": "POST", "path": "/v1/models/m:predict", "status": 200, "model": "m", "version": 7,
        "rows": 2, "request_id": "abc",
    }  # fmt: skip
    assert {key: line.get(key) for key in expected} == expected
    assert (line["request_bytes"], line["response_bytes"]) == (len(body), len(answer))


@pytest.mark.parametrize("given", [(), ("X-Request-Id: two words",), ("X-Request-Id: a\tb",)])
def test_a_request_without_a_usable_id_is_given_one(start: Start, given: tuple[str, ...]) -> None:
    logged = start()
    _, headers, _ = logged.rest(post("/v1/models/m:predict", b'{"instances": [1.0]}', *given))
    assert len(headers["x-request-id"]) == MADE_CHARS
    assert logged.line()["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        pytest.param(post("/v1/models/no%0Aline:predict", b"{"), {"status": 400, "model": "no\nline"}, id="body"),
        pytest.param(
            post("/v1/models/no%0Aline/versions/3:predict", b'{"instances": [1.0]}'),
            {"status": 404, "model": "no\nline", "version": 3},
            id="model",
        ),
        pytest.param(post("/v1/models/m:predict", b'{"instances": [99.0]}'), {"status": 500, "model": "m"}, id="run"),
        pytest.param(b"GET /admin.php HTTP/1.1\r\nHost: h\r\n\r\n", {"status": 404, "path": "/admin.php"}, id="page"),
        pytest.param(post("/v1/models/m:predict", bytes(10_001)), {"status": 413, "method": "POST"}, id="413"),
        pytest.param(b"\x16\x03\x01 no HTTP\r\n\r\n", {"status": 501}, id="no HTTP"),
    ],
)
def test_failures_over_rest(start: Start, request_: bytes, told: dict[str, Any]) -> None:
    logged = start(share=0.0, slow_ms=0)
    assert logged.rest(request_)[0] == told["status"]
    line = logged.line()
    assert {key: line.get(key) for key in told} == told
    assert "99" not in line.get("error", "")


def test_a_rest_client_that_leaves(start: Start) -> None:
    logged = start()
    logged.client.model = None
    with socket.create_connection(("127.0.0.1", logged.rest_port)) as sock:
        sock.sendall(post("/v1/models/m:predict", b'{"instances": [1.0]}', "X-Request-Id: abc"))
        wait_until(lambda: logged.client.requests, "the request")
    line = logged.line()
    assert (line["status"], line["request_id"], line["model"]) == ("CANCELLED", "abc", "m")
    assert line["peer"].startswith("127.0.0.1:")


def test_who_asked_over_rest(start: Start) -> None:
    logged = start(guarded=True)
    body = b'{"instances": [1.0]}'
    for token, status, key in (("good", 200, "good"), ("other", 403, "other"), ("stolen-secret", 401, None)):
        assert logged.rest(post("/v1/models/m:predict", body, f"Authorization: Bearer {token}"))[0] == status
        line = logged.line()
        assert line.get("key") == key
        assert "stolen" not in json.dumps(line)


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/readyz/m", "/metrics", "/ringserve/v1/models"])
def test_what_watchers_and_operators_ask_is_not_logged(start: Start, target: str) -> None:
    logged = start()
    logged.rest(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    logged.rest(b"GET /v1/models/m HTTP/1.1\r\nHost: h\r\n\r\n")
    assert logged.line()["path"] == "/v1/models/m"


# -------------------------------------------------------------------------------------------------------------- floods


def test_a_flood_of_failures_is_bounded_counted_and_told(start: Start) -> None:
    logged = start(lines_per_s_max=3, share=0.0, slow_ms=0)
    now_ns = 10**15

    async def stop_the_clock() -> None:
        logged.logger.clock_ns = lambda: now_ns

    logged.running.call(stop_the_clock())
    trailers = [call(logged, PREDICT, predict([99]))[1] for _ in range(10)]
    assert sum("x-request-id" in each for each in trailers) == 3
    logged.flush()
    wait_until(lambda: logged.counts["over_rate"] == 7 and logged.counts["written"] >= 4, f"{logged.counts}")
    lines = [json.loads(line) for line in logged.path.read_text().splitlines()]
    assert [line["status"] for line in lines if "status" in line] == ["INTERNAL"] * 3
    told = [line for line in lines if line["level"] == "warning"]  # one, or more where this takes long
    assert sum(line["left_out_failures"] for line in told) == 7
    assert sum(line["left_out_others"] for line in told) == 0
    assert len(lines) == logged.counts["written"]


def test_a_full_disk_harms_nobody_and_is_counted(start: Start, engine: str) -> None:
    logged = start(engine, to="/dev/full")
    for _ in range(5):
        assert call(logged, PREDICT, predict([1]))[0] == 0
    assert logged.rest(post("/v1/models/m:predict", b'{"instances": [1.0]}'))[0] == 200
    wait_until(lambda: logged.counts["lost"] == 6, f"{logged.counts}")
