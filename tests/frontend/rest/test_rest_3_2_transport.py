"""Spec 3.2, 3.9, 3.10 and the metrics page (8.1): encodings, OPTIONS, CORS, timeouts, and what is counted."""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest

from ringserve.broker.messages import Code
from ringserve.frontend.rest_api import RestSettings, make_app
from ringserve.frontend.rest_timeout import parse_timeout
from ringserve.frontend.tally import Tally
from tests.frontend.fakes import half_plus_two
from tests.frontend.rest.served import (
    PREDICT,
    CountingTally,
    FakeExchange,
    RestLoopback,
    call,
    default_model,
    head_of,
    post,
    serve,
)

BODY = b'{"instances":[1]}'
EMPTY = "JSON Parse error: The document is empty"


# --------------------------------------------------------------------------------------------------- 3.2 transport


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "image/png", ""])
def test_rest_3_2_the_content_type_is_ignored(content_type: str) -> None:
    assert call(None, "POST", PREDICT, BODY, {"Content-Type": content_type, "Accept": "image/png"}).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "gzip, identity"])
def test_rest_3_2_encodings_that_contain_gzip(encoding: str) -> None:
    response = call(None, "POST", PREDICT, gzip.compress(BODY), {"Content-Encoding": encoding})
    assert (response.status, response.json) == (200, {"predictions": [2.5]})
    assert set(response.headers) == {"content-type"}, "answers are never compressed"


GZIP_EMPTY = [
    ("too large", gzip.compress(BODY + b" " * (1001 - len(BODY)))),
    ("cut off", gzip.compress(BODY)[:-1]),
    ("a wrong length in the trailer", gzip.compress(BODY)[:-4] + b"\0\0\0\1"),
    ("not compressed", BODY),
    ("zlib's format", zlib.compress(BODY)),
    ("a second member", gzip.compress(BODY[:8]) + gzip.compress(BODY[8:])),
    ("something behind it", gzip.compress(BODY) + b"x"),
    ("nothing", b""),
]


@pytest.mark.parametrize(("what", "body"), GZIP_EMPTY, ids=[what for what, _ in GZIP_EMPTY])
def test_rest_3_2_bad_gzip_is_an_empty_document(what: str, body: bytes) -> None:
    app = serve(settings=RestSettings(gunzip_bytes_max=1000))
    response = call(app, "POST", PREDICT, body, {"Content-Encoding": "gzip"})
    assert (response.status, response.error) == (400, EMPTY), what


def test_rest_3_2_the_gzip_limit_is_100_mib() -> None:
    app = serve(settings=RestSettings(gunzip_bytes_max=1000))
    fits = gzip.compress(BODY + b" " * (1000 - len(BODY)))
    assert call(app, "POST", PREDICT, fits, {"Content-Encoding": "gzip"}).status == 200
    assert RestSettings().gunzip_bytes_max == 104_857_600
    large = gzip.compress(bytes(101 * 2**20), 1)
    assert call(None, "POST", PREDICT, large, {"Content-Encoding": "gzip"}).error == EMPTY


def test_rest_3_2_other_encodings_are_not_decoded() -> None:
    assert call(None, "POST", PREDICT, BODY, {"Content-Encoding": "br"}).status == 200
    response = call(None, "POST", PREDICT, gzip.compress(BODY), {"Content-Encoding": "deflate"})
    assert response.error.startswith("JSON Parse error: ")


def test_rest_3_2_gzip_for_classify_too() -> None:
    body = gzip.compress(b'{"signature_name":"regress","examples":[{"a":1}]}')
    assert call(None, "POST", "/v1/models/examples:regress", body, {"Content-Encoding": "gzip"}).status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://a", 200), ("https://a.b:8080", 200), ("xhttp://", 200), ("a", 400), ("", 400), (None, 400)],
)
@pytest.mark.parametrize("cors", [False, True])
def test_rest_3_2_options(origin: str | None, status: int, cors: bool) -> None:
    headers = {} if origin is None else {"Origin": origin}
    app = serve(settings=RestSettings(cors=cors))
    response = call(app, "OPTIONS", "/v1/models/default", headers=headers)
    assert (response.status, response.body) == (status, b"")
    assert response.headers["content-type"] == "text/html; charset=ISO-8859-1"


# -------------------------------------------------------------------------------------------------------- 3.9 CORS

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}


@pytest.mark.parametrize(
    ("method", "target", "body", "has"),
    [
        ("POST", PREDICT, '{"instances":[1]}', True),
        ("POST", PREDICT, "{", True),
        ("POST", "/v1/models/examples:classify", "{}", True),
        ("GET", "/v1/models/default", "", True),
        ("GET", "/v1/models/nope/metadata", "", True),
        ("GET", "/v1/models/m/versions/99999999999999999999", "", True),
        ("PUT", "/v1/models/m", "", True),
        ("OPTIONS", "/v1/models/m", "", True),
        ("GET", "/healthz", "", False),
        ("GET", "/metrics", "", False),
        ("GET", "/monitoring/prometheus/metrics", "", False),
        ("GET", "/ringserve/v1/models", "", False),
        ("GET", "/", "", False),
    ],
)
def test_rest_3_9_cors(method: str, target: str, body: str, has: bool) -> None:
    with_cors = call(serve(settings=RestSettings(cors=True)), method, target, body).headers
    without = call(serve(), method, target, body).headers
    assert {name: with_cors.get(name) for name in CORS} == (CORS if has else dict.fromkeys(CORS))
    assert not CORS.keys() & without.keys()


# ---------------------------------------------------------------------------------------------------- 3.10 timeout


@pytest.mark.parametrize(
    ("header", "timeout_ns"),
    [(None, 30_000_000_000), ("0.5", 500_000_000), ("60", 60_000_000_000), ("250ms", 250_000_000)],
)
def test_rest_3_10_timeouts(header: str | None, timeout_ns: int) -> None:
    """What is left of it is handed on: the time counts from when the request was there."""
    client, tally, times_ns = RestLoopback(model=half_plus_two), Tally(), itertools.count(0, 1_000)
    tally.clock_ns = lambda: next(times_ns)
    headers = {} if header is None else {"X-Request-Timeout": header}
    assert call(make_app(client, tally=tally), "POST", PREDICT, BODY, headers).status == 200
    assert timeout_ns - 100_000 < client.requests[0][3] < timeout_ns


async def test_a_timeout_of_its_own_counts_from_the_head() -> None:
    """And the server's from when the body was there: a slow line must not use it up."""
    for headers, left in (({"X-Request-Timeout": "2"}, False), ({}, True)):
        client = RestLoopback(model=half_plus_two)
        exchange = FakeExchange(head_of("POST", PREDICT, headers), BODY)
        exchange.upload_ns = 31_000_000_000
        make_app(client).handle(exchange)
        assert (client.requests[0][3] > 0) == left


async def test_who_has_waited_for_long_in_the_socket_is_turned_away() -> None:
    """A quarter of its time; what is left counts from when it came, and from its head if that came earlier."""
    body = b"not looked at"
    for waited_ms, upload_ms, is_refused in ((501, 0, True), (499, 0, False), (499, 700, False)):
        client, tally = RestLoopback(model=None), CountingTally()
        head = head_of("POST", PREDICT, {"X-Request-Timeout": "2"})
        exchange = FakeExchange(head, body if is_refused else BODY)
        exchange.waited_ns, exchange.upload_ns = waited_ms * 1_000_000, upload_ms * 1_000_000
        make_app(client, tally=tally).handle(exchange)
        if is_refused:
            assert exchange.response is not None
            assert (exchange.response.status, exchange.response.headers["retry-after"]) == (429, "1")
            assert "waited too long to be read" in exchange.response.error
            assert exchange.body == body
            assert tally.requests == [("REST", "predict", "default", 8)]
        else:
            assert client.requests[0][3] < (2_000 - max(waited_ms, upload_ms)) * 1_000_000


async def test_who_has_long_is_not_asked_for_how_long_it_waited() -> None:
    no_limit = RestSettings(timeout_ms=0)
    for headers, settings in (({}, RestSettings()), ({"X-Request-Timeout": "5"}, None), ({}, no_limit)):
        client = RestLoopback(model=None)
        exchange = FakeExchange(head_of("POST", PREDICT, headers), BODY)
        exchange.waited_ns = 4_900_000_000
        make_app(client, settings).handle(exchange)
        assert (client.requests[0][3] == 0) == (settings is no_limit)
    exchange = FakeExchange(head_of("POST", PREDICT), BODY)
    exchange.waited_ns = 1_000_000_000
    make_app(RestLoopback(), RestSettings(timeout_ms=3_000)).handle(exchange)
    assert exchange.response is not None
    assert exchange.response.status == 429


@pytest.mark.parametrize(
    ("value", "timeout_ns"),
    [
        (b"1", 1_000_000_000),
        (b"1.", 1_000_000_000),
        (b".5", 500_000_000),
        (b" 2.5 ", 2_500_000_000),
        (b"1e-3", 1_000_000),
        (b"1s", 1_000_000_000),
        (b"0.25s", 250_000_000),
        (b"250ms", 250_000_000),
        (b"1.5ms", 1_500_000),
        (b"900us", 900_000),
        (b"0.0001us", 1),
        (b"1e9", 10**18),
        *((value, -1) for value in (b"", b"s", b"ms", b"x", b"0", b"0ms", b"-1", b"+1", b"nan", b"inf", b"1e10")),
        *((value, -1) for value in (b"1 ms", b"1m", b"1S", b"1MS", b"1h", b"1_0", b"1,5", b"0x1", b"1e", b"1e999")),
        *((value, -1) for value in ("\u0663".encode(), b"1\x00", b"9" * 400)),
    ],
)
def test_values_of_the_header(value: bytes, timeout_ns: int) -> None:
    assert parse_timeout(value) == timeout_ns


@pytest.mark.parametrize("timeout_ms", [0, -1])
def test_rest_3_10_no_timeout(timeout_ms: int) -> None:
    client = RestLoopback(model=half_plus_two)
    assert post(BODY, app=make_app(client, RestSettings(timeout_ms=timeout_ms))).status == 200
    assert client.requests[0][3] == 0


@pytest.mark.parametrize("header", ["", "x", "0", "-1", "nan", "inf"])
@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
def test_senseless_timeouts(header: str, verb: str) -> None:
    response = call(None, "POST", f"/v1/models/default:{verb}", BODY, {"X-Request-Timeout": header})
    assert response.status == 400
    assert response.error.startswith("X-Request-Timeout must be a number greater than 0, in seconds or with a unit")


def test_rest_3_10_a_timeout_is_504() -> None:
    response = post(BODY, app=serve(lambda *_: (Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")))
    assert (response.status, response.error) == (504, "Timed out waiting for notification")


# -------------------------------------------------------------------------------------------- 8.1, 8.3 the metrics


class Pages:
    async def render_tfs(self) -> bytes:
        return b"# TYPE x counter\n"

    async def render(self) -> tuple[bytes, str]:
        return b"# HELP y why\n", "text/plain; version=0.0.4"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/monitoring/prometheus/metrics", "/v1/metrics", "/healthz"])
def test_rest_8_1_the_metrics_path(method: str, path: str) -> None:
    app = serve(settings=RestSettings(metrics_path=path), metrics=Pages())
    response = call(app, method, path)
    assert (response.status, response.body) == (200, b"# TYPE x counter\n")
    assert response.headers == {"content-type": "text/plain"}
    refused = call(app, method, path + "?a=1")
    assert (refused.status, refused.body) == (400, f"Unexpected path: {path}?a=1. Should be {path}".encode())
    assert refused.headers == {"content-type": "text/plain"}


def test_rest_8_1_no_metrics_path() -> None:
    app = serve(settings=RestSettings(metrics_path=""), metrics=Pages())
    assert call(app, "GET", "/monitoring/prometheus/metrics").status == 404
    assert call(app, "TRACE", "/metrics").status == 501


def test_the_page_of_all_metrics() -> None:
    response = call(serve(metrics=Pages()), "GET", "/metrics")
    assert (response.status, response.body) == (200, b"# HELP y why\n")
    assert response.headers == {"content-type": "text/plain; version=0.0.4"}


COUNTED: list[tuple[str, str, str, tuple[str, str, int] | None, tuple[str, str] | None]] = [
    # method, target, body, (api, model, code) as counted, (api, model) of the run
    ("POST", PREDICT, '{"instances":[1]}', ("predict", "default", 0), ("Predict", "default")),
    ("POST", PREDICT, "{", ("predict", "default", 3), None),
    ("POST", "/v1/models/nope:predict", "{}", ("predict", "nope", 5), None),
    ("POST", "/v1/models/examples:classify", '{"signature_name":"classify","examples":[{}]}',
     ("classify", "examples", 0), ("Classify", "examples")),
    ("POST", "/v1/models/examples:regress", '{"signature_name":"regress","examples":[{}]}',
     ("regress", "examples", 0), ("Regress", "examples")),
    ("POST", "/v1/models/examples:regress", '{"examples":[{}]}', ("regress", "examples", 3), None),
    ("GET", "/v1/models/default", "", ("", "default", 0), None),
    ("GET", "/v1/models/a%2Fb", "", ("", "a/b", 5), None),
    ("GET", "/v1/models/default/metadata", "", ("", "default", 0), None),
    ("GET", "/v1/models/default/versions/99999999999999999999", "", ("", "", 3), None),
    ("GET", "/v1/models", "", ("", "", 3), None),
    ("PUT", "/v1/models/default", "", ("", "", 3), None),
    ("OPTIONS", "/v1/x", "", ("", "", 3), None),
    ("GET", "/healthz", "", None, None),
    ("GET", "/metrics", "", None, None),
    ("GET", "/ringserve/v1/models", "", None, None),
    ("GET", "/", "", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "body", "counted", "run"), COUNTED)
def test_rest_8_3_what_is_counted(
    method: str, target: str, body: str, counted: tuple[str, str, int] | None, run: tuple[str, str] | None
) -> None:
    tally = CountingTally()
    call(make_app(RestLoopback(model=default_model), tally=tally, metrics=Pages()), method, target, body)
    assert tally.requests == ([] if counted is None else [("REST", *counted)])
    assert tally.runs == ([] if run is None else [run])


def test_rest_8_3_a_failed_run_is_no_run() -> None:
    tally = CountingTally()
    post(BODY, app=serve(lambda *_: (Code.INTERNAL, "no"), tally=tally))
    assert tally.requests == [("REST", "predict", "default", 13)]
    assert tally.runs == []
