"""The access log around real engines and the real APIs, over a stand-in for the workers; lines as the file has them.

Held here: what a line tells of a call, over gRPC by both engines and over REST; ids that came, and ids that were made,
which the client is told; failures, refusals of the engines themselves, clients that leave; who asked; what is not
logged; no line, no id without a reason; a file that cannot be written harms nobody and is counted.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.broker.messages import Code, Result
from ringserve.frontend.grpc_api import GET_MODEL_STATUS, PREDICT
from tests.e2e.server import wait_until
from tests.frontend.access_log_kit import Logged, call, half_plus_two, post, predict
from tests.frontend.http2.service import GRPCIO, NATIVE, connect

MADE_CHARS = 24

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


@pytest.mark.parametrize(
    "target",
    ["/healthz", "/readyz", "/readyz/m", "/metrics", "/metrics?x", "/ringserve/v1/models", "/v2/health/live",
     "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/7/ready"],
)  # fmt: skip
def test_what_watchers_and_operators_ask_is_not_logged(start: Start, target: str) -> None:
    logged = start()
    logged.rest(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    logged.rest(b"GET /v1/models/m HTTP/1.1\r\nHost: h\r\n\r\n")
    assert logged.line()["path"] == "/v1/models/m"


@pytest.mark.parametrize("path", ["/metricsfoo", "/healthz/../v1/models/m", "/readyzzz", "/v2/ready", "/x/live", "/v2"])
def test_what_only_begins_or_ends_like_theirs_is_logged(start: Start, path: str) -> None:
    logged = start()
    logged.rest(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert logged.line()["path"] == path


@pytest.mark.parametrize("target", ["/v1/models/m?key=secret", "/v1/models/m/versions/7?secret", "/v1/models?secret"])
def test_no_query_is_logged(start: Start, target: str) -> None:
    """A GET's query is part of its model's name, as in TF Serving, and so of what the client is told."""
    logged = start(guarded=True)
    for key in ("good", "other"):
        logged.rest(f"GET {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        line = logged.line()
        assert line["error"]
        assert "secret" not in json.dumps(line)


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

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in logged.path.read_text().splitlines()]

    def left_out() -> int:
        """As told by one line, or by more where this takes long."""
        return sum(line["left_out_failures"] for line in lines() if line["level"] == "warning")

    wait_until(lambda: left_out() == 7, "all that was left out to be told of")
    found = lines()
    assert [line["status"] for line in found if "status" in line] == ["INTERNAL"] * 3
    assert sum(line.get("left_out_others", 0) for line in found) == 0
    wait_until(lambda: logged.counts == {"over_rate": 7, "written": len(found)}, "the lines to be counted")


def test_a_full_disk_harms_nobody_and_is_counted(start: Start, engine: str) -> None:
    logged = start(engine, to="/dev/full")
    for _ in range(5):
        assert call(logged, PREDICT, predict([1]))[0] == 0
    assert logged.rest(post("/v1/models/m:predict", b'{"instances": [1.0]}'))[0] == 200
    wait_until(lambda: logged.counts["lost"] == 6, f"{logged.counts}")
