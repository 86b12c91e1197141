"""Below /v2: which requests there are, what they are answered, who may ask, and that they end as other calls do."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from ringserve import __version__
from ringserve.broker.messages import Code
from ringserve.frontend.http1.exchange import Head
from ringserve.frontend.rest_api import RestApp, RestSettings, make_app
from ringserve.frontend.rest_routes import Action, Page, Route, is_open_inference, route
from ringserve.shm import dtype as dt
from tests.frontend.fakes import catalog_of, signature_def, version_info
from tests.frontend.rest.served import (
    DTYPES,
    CountingTally,
    FakeExchange,
    Response,
    RestLoopback,
    call,
    default_model,
    head_of,
    serve,
)
from tests.frontend.rest.test_rest_access import Guarded

LENGTH = "Inference-Header-Content-Length"
BINARY_OUT = {"binary_data_output": True}
INFER = "/v2/models/default/infer"


def tensor(array: np.ndarray[Any, Any], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }


def encoded(array: np.ndarray[Any, Any], datatype: str = "FP32", **members: Any) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": [tensor(array, datatype)], **members}).encode()
    return head + array.tobytes(), {LENGTH: str(len(head))}


def infer(
    body: bytes | dict[str, Any], headers: dict[str, str] | None = None, model: str = "default",
    app: RestApp | None = None,
) -> Response:  # fmt: skip
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    return call(app, "POST", f"/v2/models/{model}/infer", data, headers)


def parts(answer: Response) -> tuple[dict[str, Any], bytes]:
    """The JSON of an answer, and what follows it."""
    assert answer.status == 200, answer.body
    size = int(answer.headers[LENGTH.lower()])
    assert answer.headers["content-type"] == "application/octet-stream"
    return json.loads(answer.body[:size]), answer.body[size:]


MEANINGS: list[tuple[str, str, Route | Page]] = [
    ("POST", "/v2/models/m/infer", Route(Action.INFER, "m")),
    ("POST", "/v2/models/m/versions/12/infer", Route(Action.INFER, "m", 12)),
    ("POST", "/v2/models/m/versions/stable/infer", Route(Action.INFER, "m", None, "stable")),
    ("POST", "/v2/models/a%2Fb/infer?x", Route(Action.INFER, "a/b")),
    ("POST", "/v2/models/m/versions/9999999999999999999/infer", Page.BAD_VERSION),
    ("GET", "/v2/models/m/infer", Page.NOT_ALLOWED),
    ("GET", "/v2/models/m", Route(Action.MODEL, "m")),
    ("GET", "/v2/models/m/versions/0", Route(Action.MODEL, "m", 0)),
    ("HEAD", "/v2/models/m/ready", Route(Action.READY_V2, "m")),
    ("GET", "/v2/models/m/versions/3/ready", Route(Action.READY_V2, "m", 3)),
    ("POST", "/v2/models/m", Page.NOT_ALLOWED),
    ("GET", "/v2", Route(Action.SERVER)),
    ("GET", "/v2/", Route(Action.SERVER)),
    ("PUT", "/v2", Page.NOT_ALLOWED),
    ("GET", "/v2/health/live", Route(Action.LIVE)),
    ("GET", "/v2/health/ready", Route(Action.READY_V2)),
    ("GET", "/v2/models", Page.NOT_FOUND),
    ("POST", "/v2/models/m/generate", Page.NOT_FOUND),
    ("OPTIONS", "/v2/models/m/infer", Route(Action.OPTIONS)),
    ("BREW", "/v2", Page.NOT_IMPLEMENTED),
    ("GET", "/v2x", Page.NOT_FOUND),
]


@pytest.mark.parametrize(("method", "target", "meaning"), MEANINGS)
def test_meanings(method: str, target: str, meaning: Route | Page) -> None:
    assert route(method, target) == meaning
    assert is_open_inference(target) == (target != "/v2x")


def test_json_in_and_out() -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}], "id": "a\"b", "model_name": 1}
    answer = infer(body)
    assert answer.headers["content-type"] == "application/json"
    assert LENGTH.lower() not in answer.headers
    assert answer.json == {
        "model_name": "default",
        "model_version": "123",
        "id": 'a"b',
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [2.5, 3.0]}],
    }


def test_binary_in_and_out_again_and_again() -> None:
    app = serve()
    for values in ([1.0, 2.0], [3.0, 5.0], [0.0, 0.0]):
        array = np.array(values, np.float32)
        told, tail = parts(infer(*encoded(array, parameters=BINARY_OUT), app=app))
        output = {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
        assert told == {"model_name": "default", "model_version": "123", "outputs": [output]}
        assert np.frombuffer(tail, np.float32).tolist() == [value / 2 + 2 for value in values]


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in ("string", "complex64")])
def test_every_dtype_comes_back(name: str) -> None:
    numpy_type = dt.dtype_of(DTYPES[name]).numpy
    named = {"half": "FP16", "float": "FP32", "double": "FP64", "bfloat16": "BF16"}.get(name, name.upper())
    array = np.array([[0, 1, 1]], numpy_type)
    for _ in range(2):
        told, tail = parts(infer(*encoded(array, named, parameters=BINARY_OUT), f"echo_{name}"))
        assert (told["outputs"][0]["datatype"], told["outputs"][0]["shape"]) == (named, [1, 3])
        assert tail == array.tobytes()
    answer = infer(*encoded(array, named), f"echo_{name}")
    assert np.array_equal(np.array(answer.json["outputs"][0]["data"], numpy_type), array[0])


def test_strings_come_back() -> None:
    values = [b"", b"a\0b", b"\xff" * 50_000]
    tail = b"".join(struct.pack("<I", len(value)) + value for value in values)
    one = {"name": "x", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [one], "parameters": BINARY_OUT}).encode()
    told, back = parts(infer(head + tail, {LENGTH: str(len(head))}, "echo_string"))
    assert back == tail
    assert told["outputs"][0]["parameters"] == {"binary_data_size": len(tail)}
    plain = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["é"]}
    assert infer({"inputs": [plain]}, model="echo_string").json["outputs"] == [plain]


def test_outputs_in_the_order_that_is_asked_for() -> None:
    a, b = np.array([[1.0, 2.0]], np.float32), np.array([7], np.int32)
    outputs = [{"name": "b"}, {"name": "a", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor(b, "INT32", "b"), tensor(a, name="a")], "outputs": outputs}).encode()
    told, tail = parts(infer(head + b.tobytes() + a.tobytes(), {LENGTH: str(len(head))}, "two"))
    assert told["outputs"] == [
        {"name": "b", "datatype": "INT32", "shape": [1], "data": [7]},
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
    ]
    assert tail == a.tobytes()
    one = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    assert infer({**one, "outputs": [{"name": "z"}]}).error.startswith("output tensor alias not found in signature: z")
    assert infer({**one, "outputs": [{"name": "y"}] * 2}).error == "duplicate output tensor alias: y"


def test_a_body_without_json() -> None:
    told, tail = parts(infer(struct.pack("<f", 3.0), {LENGTH: "0"}))
    assert told["outputs"][0]["shape"] == [1]
    assert struct.unpack("<f", tail) == (3.5,)
    assert infer(b"1234", {LENGTH: "0"}, "two").error == (
        "a body without JSON is one input, and model two has 2: a, b"
    )


WRONG: list[tuple[str, bytes | dict[str, Any], dict[str, str], int, str]] = [
    ("default", b"{}", {LENGTH: "-1"}, 400, "Inference-Header-Content-Length must be a number of bytes"),
    ("default", b"{}", {LENGTH: "3"}, 400, "Inference-Header-Content-Length is 3, and the body has 2 bytes"),
    ("default", b"", {}, 400, "JSON Parse error: The document is empty"),
    ("default", b"{}", {"Content-Encoding": "br"}, 501, "Content-Encoding may be gzip or deflate"),
    ("default", b"{}", {"Content-Encoding": "gzip"}, 400, "the body cannot be decompressed: "),
    ("nope", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}, {}, 404, "Servable not found"),
    ("default", {"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]}, {}, 400,
     "Signature input alias: x"),
    ("default", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1]}]}, {}, 400,
     "Expects arg[0] to be float but double is provided (input: x)"),
    ("default", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
                 "parameters": {"signature_name": "s"}}, {}, 400, 'Serving signature name: "s" not found'),
    ("default", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]},
     {"X-Request-Timeout": "soon"}, 400, "X-Request-Timeout must be a number"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "headers", "status", "text"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named(
    model: str, body: bytes | dict[str, Any], headers: dict[str, str], status: int, text: str
) -> None:
    answer = infer(body, headers, model)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert answer.error.startswith(text)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_bodies(coding: str) -> None:
    array = np.arange(100_000, dtype=np.float32)
    body, headers = encoded(array, parameters=BINARY_OUT)
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    _, tail = parts(infer(packed, headers | {"Content-Encoding": coding}))
    assert np.array_equal(np.frombuffer(tail, np.float32), array / 2 + 2)
    small = serve(settings=RestSettings(gunzip_bytes_max=1_000))
    answer = infer(packed, headers | {"Content-Encoding": coding}, app=small)
    assert answer.error == "the body has more than 1000 bytes when it is decompressed"


def test_long_json_is_read_and_written_aside() -> None:
    array = np.arange(60_000, dtype=np.float32)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [60_000], "data": array.tolist()}]}
    assert len(json.dumps(body)) > 262_144
    assert infer(body).json["outputs"][0]["data"] == (array / 2 + 2).tolist()


def test_a_plan_ends_with_the_catalog_that_it_was_made_by() -> None:
    client = RestLoopback(model=default_model)
    app = make_app(client)
    body = encoded(np.array([1.0], np.float32))
    assert infer(*body, app=app).json["model_version"] == "123"
    client.catalog.update([version_info("default", 200)])
    assert infer(*body, app=app).json["model_version"] == "200"
    client.catalog.update([version_info("default", 200, {"serving_default": signature_def(
        {"z": (dt.FLOAT, [-1])}, {"y": (dt.FLOAT, [-1])})})])  # fmt: skip
    assert infer(*body, app=app).status == 400


def test_the_same_json_before_other_bytes() -> None:
    app = serve()
    array = np.array([True, False])
    body, headers = encoded(array, "BOOL")
    assert infer(body, headers, "echo_bool", app).status == 200
    assert infer(body[:-1] + b"\x02", headers, "echo_bool", app).error == "input 'x' has bools that are neither 0 nor 1"
    assert infer(body + b"\x00", headers, "echo_bool", app).error.startswith("unexpected additional input data")
    assert infer(body, headers, "echo_bool", app).status == 200


def test_calls_are_counted_cancelled_and_have_deadlines() -> None:
    tally, client = CountingTally(), RestLoopback(model=None)
    app = make_app(client, tally=tally)
    body, headers = encoded(np.array([1.0], np.float32), parameters={"timeout": 2_000_000})
    exchanges = []
    for timeout in ("5", "1"):
        head = head_of("POST", INFER, headers | {"X-Request-Timeout": timeout})
        exchanges.append(FakeExchange(head, body))
        app.handle(exchanges[-1])
    assert [1_900_000_000 < request[3] <= 2_000_000_000 for request in client.requests] == [True, False]
    assert 0 < client.requests[1][3] <= 1_000_000_000
    assert exchanges[0].cancel is not None
    exchanges[0].cancel()
    assert client.cancelled == [1]
    client.requests[1][4].fail(Code.UNAVAILABLE, "no room")
    response = exchanges[1].response
    assert response is not None
    assert (response.status, response.error, response.headers["retry-after"]) == (503, "no room", "1")
    assert tally.requests == [("REST", "infer", "default", 1), ("REST", "infer", "default", 14)]


def test_who_may_ask() -> None:
    guarded = Guarded()
    for method, target, token, status in [
        ("POST", INFER, "", 401), ("POST", INFER, "looks", 403), ("POST", "/v2/models/two/infer", "runs", 403),
        ("GET", "/v2/models/default", "runs", 200), ("GET", "/v2/models/two", "runs", 403),
        ("GET", "/v2", "", 401), ("GET", "/v2", "runs", 403), ("GET", "/v2", "looks", 200),
        ("GET", "/v2/health/live", "", 200), ("GET", "/v2/models/default/ready", "", 200),
        ("GET", "/v2/models/default/versions/123/ready", "", 401),
        ("GET", "/v2/models/default/versions/9/ready", "", 401),
        ("GET", "/v2/models/default/versions/stable/ready", "", 401),
        ("GET", "/v2/models/default/versions/123/ready", "runs", 200),
        ("GET", "/v2/models/default/versions/123/ready", "looks", 200),
        ("GET", "/v2/models/two/versions/1/ready", "runs", 403),
        ("POST", INFER, "runs", 400),
    ]:  # fmt: skip
        assert guarded.ask(method, target, token).status == status, (method, target, token)


def test_health_and_metadata() -> None:
    app = serve()
    assert call(app, "GET", "/v2").json == {
        "name": "ringserve", "version": __version__, "extensions": ["binary_tensor_data", "parameters"],
    }  # fmt: skip
    assert call(app, "GET", "/v2/health/live").json == {"live": True}
    assert call(app, "GET", "/v2/health/ready").error.startswith("no available version of: loading")
    assert call(app, "GET", "/v2/models/default/ready").json == {"ready": True}
    for target, status in (
        ("/v2/models/loading/ready", 503), ("/v2/models/nope/ready", 404), ("/v2/models/default/versions/9/ready", 404),
        ("/v2/models/default/versions/stable/ready", 200), ("/v2/models/default/versions/123/ready", 200),
    ):  # fmt: skip
        assert call(app, "GET", target).status == status, target
    assert call(app, "GET", "/v2/models/two/versions/1").json == {
        "name": "two", "versions": ["1"], "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, -1]},
                   {"name": "b", "datatype": "INT32", "shape": [-1]}],
        "outputs": [{"name": "a", "datatype": "FP32", "shape": [-1, -1]},
                    {"name": "b", "datatype": "INT32", "shape": [-1]}],
        "properties": {"signatures": "serving_default"},
    }  # fmt: skip
    assert call(app, "GET", "/v2/models/default").json["versions"] == ["123"]
    assert call(app, "GET", "/v2/models/nope").status == 404
    assert call(app, "GET", "/v2/models/echo_complex64").status == 400
    ready = make_app(RestLoopback(catalog_of(version_info())))
    assert call(ready, "GET", "/v2/health/ready").json == {"ready": True}


def test_a_signature_that_nobody_can_ask_for_is_not_told() -> None:
    signature = signature_def({"x": (dt.FLOAT, [-1])}, {"y": (dt.FLOAT, [-1])})
    signatures = {"serving_default": signature, "__saved_model_init_op": signature_def({}, {}), "other": signature}
    app = make_app(RestLoopback(catalog_of(version_info(signatures=signatures))))
    told = call(app, "GET", "/v2/models/default").json["properties"]["signatures"]
    assert sorted(told.split(",")) == ["other", "serving_default"]


def test_what_is_not_there_is_told_in_json() -> None:
    assert (call(None, "GET", "/v2/nothing").status, call(None, "GET", "/v2/nothing").error) == (404, "Not Found")
    answer = call(None, "PUT", INFER)
    assert (answer.status, answer.error) == (405, "Method Not Allowed")
    assert answer.headers["allow"] == "POST, OPTIONS"
    for target in ("/v2", "/v2/health/live", "/v2/models/infer", "/v2/models/m/versions/1/ready"):
        assert call(None, "PUT", target).headers["allow"] == "GET, HEAD, OPTIONS"
    hidden = make_app(RestLoopback(), RestSettings(models=False))
    assert call(hidden, "POST", INFER).status == 404


@pytest.mark.parametrize("codings", [["br"], ["gzip, gzip"], ["identity", "gzip"], ["gzip", "gzip"]])
def test_codings_that_are_not_read_are_refused_with_those_that_are(codings: list[str]) -> None:
    lines = tuple((b"content-encoding", coding.encode()) for coding in codings)
    exchange = FakeExchange(Head("POST", INFER, lines), b"{}")
    make_app(RestLoopback()).handle(exchange)
    assert exchange.response is not None
    assert (exchange.response.status, exchange.response.headers["accept-encoding"]) == (501, "gzip, deflate")


def test_a_body_of_several_gzip_members() -> None:
    body, headers = encoded(np.array([1.0], np.float32))
    members = gzip.compress(body[:9]) + gzip.compress(b"") + gzip.compress(body[9:])
    answer = infer(members, headers | {"Content-Encoding": "gzip"})
    assert answer.status == 200, answer.body
    for wrong, why in ((members + b"xx", "something follows its end"), (members[:-1], "it is cut off")):
        answer = infer(wrong, headers | {"Content-Encoding": "gzip"})
        assert (answer.status, answer.error) == (400, f"the body cannot be decompressed: {why}")
