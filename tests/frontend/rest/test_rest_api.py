"""The REST API against TF Serving's texts, whole requests through the application."""
# long: one case table per rule of the REST API, read side by side

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.rest_api import RestSettings, make_app
from tests.frontend.fakes import LoopbackClient, half_plus_two, make_output
from tests.frontend.rest.asgi import call, default_model, echo, models, post, request, serve

PREDICT = "/v1/models/default:predict"

ANSWERS: list[tuple[str, str, str]] = [
    # model, body, answer
    ("default", '{"instances":[1.0,2.0,5.0]}', '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'),
    ("default", '{"instances":[1.0,2.0,5.0]}zzz', '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'),
    ("default", '\ufeff{"instances":[1]}', '{\n    "predictions": [2.5\n    ]\n}'),
    ("default", '{"instances":[[1,2],[3,4]]}', '{\n    "predictions": [[2.5, 3.0], [3.5, 4.0]\n    ]\n}'),
    ("default", '{"instances":[{"x":3}]}', '{\n    "predictions": [3.5\n    ]\n}'),
    ("default", '{"inputs":[3.0,4.0]}', '{\n    "outputs": [\n        3.5,\n        4.0\n    ]\n}'),
    ("default", '{"inputs":{"x":[3],"extra":1}}', '{\n    "outputs": [\n        3.5\n    ]\n}'),
    ("default", '{"inputs":3}', '{\n    "outputs": 3.5\n}'),
    ("default", '{"inputs":[]}', '{\n    "outputs": []\n}'),
    ("default", '{"instances":[NaN, Inf, -Infinity]}', '{\n    "predictions": [NaN, Infinity, -Infinity\n    ]\n}'),
    ("default", '{"instances":[1],"instances":[2]}', '{\n    "predictions": [2.5\n    ]\n}'),
    ("default", '{"inputs":{"x":[1],"x":[2]}}', '{\n    "outputs": [\n        2.5\n    ]\n}'),
    ("default", '{"signature_name":"","instances":[1],"x":{}}', '{\n    "predictions": [2.5\n    ]\n}'),
    ("default", '{"instances":[1e300,-1e300,1e-300]}', '{\n    "predictions": [Infinity, -Infinity, 2.0\n    ]\n}'),
    ("echo_float", '{"inputs":[1e10,0.333333333333,16777217]}', "[1e+10, 0.333333343, 16777216.0]"),
    (
        "echo_float",
        '{"inputs":[9000000,999999,123456789,3e-5,-0.0,0.1,-0]}',
        "[9e+06, 999999.0, 123456792.0, 3e-05, -0.0, 0.1, 0.0]",
    ),
    ("echo_double", '{"inputs":[0.3333333333333333,0.1]}', "[0.33333333333333331, 0.1]"),
    ("echo_int8", '{"inputs":[300,-129,5]}', "[44, 127, 5]"),
    ("echo_uint8", '{"inputs":[300,-1]}', "[44, 255]"),
    (
        "echo_int64",
        '{"inputs":[9223372036854775807,-9223372036854775808]}',
        "[9223372036854775807, -9223372036854775808]",
    ),
    ("echo_uint64", '{"inputs":[18446744073709551615,0]}', "[18446744073709551615, 0]"),
    ("echo_uint16", '{"inputs":[65535]}', "[65535]"),
    ("echo_half", '{"inputs":[0.5,1,100000]}', "[0.5, 1.0, Infinity]"),
    ("echo_bfloat16", '{"inputs":[0.5,256.5]}', "[0.5, 256.0]"),
    ("echo_bool", '{"inputs":[[true,false]]}', "[[true, false]]"),
    ("echo_string", r'{"inputs":["a\"b\\\u0001\n\u00e9","\ud83d\ude00"]}', r'["a\"b\\\u0001\n' + 'é", "😀"]'),
    ("echo_string", '{"inputs":{"b64":"aGk="}}', '"hi"'),
    ("echo_string", '{"inputs":[{"b64":"aG k"},{"b64":"aGk."}]}', '["hi", "hi"]'),
    (
        "bytes",
        '{"inputs":{"k":["a"],"k_bytes":[{"b64":"AP8="}]}}',
        '{\n    "outputs": {\n        "k": [\n            "a"\n        ],\n        "k_bytes": [\n            {\n'
        '                "b64": "AP8="\n            }\n        ]\n    }\n}',
    ),
    (
        "bytes",
        '{"instances":[{"k":"a","k_bytes":"b"}]}',
        '{\n    "predictions": [\n        {\n            "k": "a",\n            "k_bytes": {\n'
        '                "b64": "Yg=="\n            }\n        }\n    ]\n}',
    ),
    (
        "two",
        '{"instances":[{"a":[1,2],"b":7},{"b":8,"a":[3,4]}]}',
        '{\n    "predictions": [\n        {\n            "a": [1.0, 2.0],\n            "b": 7\n        },\n        {\n'
        '            "a": [3.0, 4.0],\n            "b": 8\n        }\n    ]\n}',
    ),
]


def on_one_line(text: bytes) -> str:
    """The value of a columnar answer without the line breaks of pretty printing."""
    inner = text.decode().removeprefix('{\n    "outputs": ').removesuffix("\n}")
    lines = [line.strip() for line in inner.split("\n")]
    return "".join(line + " " if line.endswith(",") else line for line in lines)


@pytest.mark.parametrize(("model", "body", "answer"), ANSWERS)
def test_answers(model: str, body: str, answer: str) -> None:
    response = post(body, model)
    assert response.status == 200, response.body
    assert response.headers[b"content-type"] == b"application/json"
    if answer.startswith("{"):
        assert response.body.decode() == answer
    else:
        assert on_one_line(response.body) == answer


DEEP = "[" * 500_000

ERRORS: list[tuple[str, str, int, str]] = [
    # model, body, HTTP status, text
    ("default", "", 400, "JSON Parse error: The document is empty"),
    ("default", " ", 400, "JSON Parse error: The document is empty. at offset: 1"),
    ("nope", "{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
    ("nope", "{}", 404, "Servable not found for request: Latest(nope)"),
    ("loading", "{}", 404, "Servable not found for request: Latest(loading)"),
    ("default/versions/9", "{}", 404, "Servable not found for request: Specific(default, 9)"),
    ("default/labels/L", "{}", 400, "Unrecognized servable version label: L"),
    ("default", "[1]", 400, "JSON Value: [1] Is not object"),
    ("default", '{"signature_name":7}', 400, "JSON Value: {\n    \"signature_name\": 7\n} not formatted correctly. "
     "'signature_name' key must be a string value."),
    ("nope", '{"signature_name":7}', 400, "JSON Value: {\n    \"signature_name\": 7\n} not formatted correctly. "
     "'signature_name' key must be a string value."),
    ("default", '{"signature_name":"s"}', 400, 'Serving signature name: "s" not found in signature def'),
    ("default", '{"signature_name":"none"}', 400, "Failed to get input map for signature: none"),
    ("default", "{}", 400, "Missing 'inputs' or 'instances' key"),
    ("default", '{"inputs":1,"instances":[1]}', 400, 'JSON Value: {\n    "inputs": 1,\n    "instances": [1]\n} '
     "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "),
    ("default", '{"instances":3}', 400, 'JSON Value: {\n    "instances": 3\n} '
     "Expecting 'instances' to be an list/array"),
    ("default", '{"instances":[]}', 400, 'JSON Value: {\n    "instances": []\n} No values in \'instances\' array'),
    ("default", '{"instances":[1,[1]]}', 400, "Failed to process element: 1 of 'instances' list. Error: "
     "INVALID_ARGUMENT: Expecting shape [] but got: [1]"),
    ("default", '{"instances":[[1,2],[3,4],[5,6,7]]}', 400, "Failed to process element: 2 of 'instances' list. "
     "Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 3"),
    ("default", '{"instances":[[[1,2],[3]]]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     "INVALID_ARGUMENT: Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ("default", '{"instances":[[1,[2]]]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     "INVALID_ARGUMENT: Encountered list at unexpected level: 1 expected < 1"),
    ("default", '{"instances":[[[1],2]]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     "INVALID_ARGUMENT: JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ("default", '{"instances":[1,true]}', 400, "Failed to process element: 1 of 'instances' list. Error: "
     "INVALID_ARGUMENT: JSON Value: true Type: True is not of expected type: float"),
    ("default", '{"instances":["1"]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     'INVALID_ARGUMENT: JSON Value: "1" Type: String is not of expected type: float'),
    ("default", '{"instances":[null]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     "INVALID_ARGUMENT: JSON Value: null Type: Null is not of expected type: float"),
    ("default", '{"instances":[[{"a":1}]]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     'INVALID_ARGUMENT: JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: float'),
    ("default", '{"instances":[{"x":1},2]}', 400, "Expecting object but got list at item 1 of input list"),
    ("default", '{"instances":[1,{"x":1}]}', 400, "Expecting value/list but got object at item 1 of input list"),
    ("default", '{"instances":[{"x":3,"extra":1}]}', 400, "Failed to process element: 0 key: extra of 'instances' "
     "list. Error: INVALID_ARGUMENT: JSON object: does not have named input: extra"),
    ("default", '{"instances":[{"x":3},{"x":[1]}]}', 400, "Failed to process element: 1 key: x of 'instances' "
     "list. Error: INVALID_ARGUMENT: Expecting shape [] but got: [1]"),
    ("two", '{"instances":[1]}', 400, "instances is a plain list, but expecting list of objects as multiple input "
     "tensors required as per tensorinfo_map"),
    ("two", '{"instances":[{"b":1}]}', 400, "Failed to process element: 0 of 'instances' list. JSON object: {\n"
     '    "b": 1\n} keys must be equal to: a,b'),
    ("two", '{"inputs":[1]}', 400, "inputs is a plain value/list, but expecting an object as multiple input tensors "
     "required as per tensorinfo_map"),
    ("two", '{"inputs":{"a":[[1]]}}', 400, "Missing named input: b in 'inputs' object."),
    ("default", '{"inputs":{"x":[1,"a"]}}', 400, 'JSON Value: "a" Type: String is not of expected type: float'),
    ("echo_int32", '{"inputs":[1.0]}', 400, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    ("echo_int32", '{"inputs":[1e2]}', 400, "JSON Value: 100.0 Type: Number is not of expected type: int32"),
    ("echo_int8", '{"inputs":2147483648}', 400, "JSON Value: 2147483648 Type: Number is not of expected type: int8"),
    ("echo_int64", '{"inputs":9223372036854775808}', 400, "JSON Value: 9223372036854775808 Type: Number is not of "
     "expected type: int64"),
    ("echo_uint32", '{"inputs":[-1]}', 400, "JSON Value: -1 Type: Number is not of expected type: uint32"),
    ("echo_uint64", '{"inputs":[1,-1]}', 400, "JSON Value: -1 Type: Number is not of expected type: uint64"),
    ("echo_uint16", '{"inputs":[65536]}', 400, "JSON Value: 65536 Type: Number is not of expected type: uint16"),
    ("echo_bool", '{"inputs":[1]}', 400, "JSON Value: 1 Type: Number is not of expected type: bool"),
    ("echo_string", '{"inputs":[1]}', 400, "JSON Value: 1 Type: Number is not of expected type: string"),
    ("echo_string", '{"inputs":[{"b64":"a"}]}', 400, "Unable to base64 decode"),
    ("echo_string", '{"inputs":[{"b64":"aGk=="}]}', 400, "Unable to base64 decode"),
    ("echo_string", '{"inputs":[{"b64":"a_k="}]}', 400, "Unable to base64 decode"),
    ("echo_string", '{"inputs":[{"b64":1}]}', 400, 'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 '
     "data"),
    ("echo_complex64", '{"inputs":[1]}', 501, "Conversion of JSON Value: 1 to type: complex64"),
    ("echo_complex64", '{"instances":[1]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     "UNIMPLEMENTED: Conversion of JSON Value: 1 to type: complex64"),
    ("echo_float", '{"instances":[1e400]}', 400, "JSON Parse error: Number too big to be stored in double. at "
     "offset: 14"),
    ("default", '{"instances":' + DEEP, 400, "JSON Parse error: Invalid value. at offset: 500013"),
    ("default", '{"instances":' + DEEP + "]" * 500_000 + "}", 400, "Failed to process element: 0 of 'instances' list. "
     "Error: INVALID_ARGUMENT: Encountered list at unexpected level: 254 expected < 254"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "status", "text"), ERRORS, ids=[str(i) for i in range(len(ERRORS))])
def test_errors(model: str, body: str, status: int, text: str) -> None:
    response = post(body, model)
    assert (response.status, response.error) == (status, text)
    assert response.headers[b"content-type"] == b"application/json"


def test_quoted_values_are_cut() -> None:
    response = post('{"instances":[' + ",".join(["[1]"] * 1000) + '],"inputs":1}')
    assert len(response.error) < 400
    assert response.error.startswith('JSON Value: {\n    "instances": [[1], [1], ')
    long = "x" * 100_000
    assert len(post(f'{{"instances":["{long}"]}}').error) < 600


def test_a_body_in_pieces() -> None:
    body = b'{"instances":[1.0,2.0,5.0]}'
    expected = post(body).body
    for cut in range(len(body) + 1):
        assert post([body[:cut], b"", body[cut:]]).body == expected
    assert post([bytes((byte,)) for byte in body]).body == expected


def test_the_version_that_is_asked_for_runs() -> None:
    app = serve()
    body = b'{"instances":[1]}'
    for where in ("default", "default/versions/123", "default/versions/0000123", "default/labels/stable"):
        assert call(app, "POST", f"/v1/models/{where}:predict", body).status == 200
    refused = call(app, "POST", "/v1/models/default/versions/18446744073709551615:predict", body)
    assert (refused.status, refused.body) == (400, b"")


def test_classify_and_regress_say_that_they_are_not_there() -> None:
    for verb in ("classify", "regress"):
        response = call(serve(), "POST", f"/v1/models/default:{verb}", b"{}")
        assert response.status == 501
        assert verb in response.error


def test_status() -> None:
    response = call(serve(), "GET", "/v1/models/default")
    assert response.status == 200
    assert response.json == {
        "model_version_status": [
            {"version": "124", "state": "END", "status": {"error_code": "INTERNAL", "error_message": "no such file"}},
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
        ]
    }
    one = call(serve(), "GET", "/v1/models/default/versions/123")
    assert one.body.startswith(b'{\n "model_version_status": [\n  {\n   "version": "123",\n')
    assert call(serve(), "GET", "/v1/models/default/labels/nope").body == response.body
    missing = call(serve(), "GET", "/v1/models/default/versions/7")
    assert (missing.status, missing.error) == (404, "Could not find version 7 of model default")
    unknown = call(serve(), "GET", "/v1/models/default?x")
    assert (unknown.status, unknown.error) == (404, "Could not find any versions of model default?x")
    loading = call(serve(), "GET", "/v1/models/loading")
    assert (loading.status, loading.json["model_version_status"][0]["state"]) == (200, "LOADING")


def test_metadata() -> None:
    response = call(serve(), "GET", "/v1/models/default/metadata")
    assert response.status == 200
    assert response.json["model_spec"] == {"name": "default", "signature_name": "", "version": "123"}
    signature = response.json["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature == {
        "inputs": {
            "x": {
                "name": "x:0",
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            }
        },
        "outputs": {
            "y": {
                "name": "y:0",
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            }
        },
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    label = call(serve(), "GET", "/v1/models/default/labels/L/metadata")
    assert (label.status, label.error) == (400, "Unrecognized servable version label: L")


def test_health() -> None:
    assert call(serve(), "GET", "/healthz").status == 200
    waiting = call(serve(), "GET", "/readyz")
    assert waiting.status == 503
    assert b"loading" in waiting.body
    assert call(make_app(LoopbackClient(Catalog())), "GET", "/readyz").status == 503


def test_options() -> None:
    allowed = call(serve(), "OPTIONS", "/v1/models/default", headers={"Origin": "http://a"})
    assert (allowed.status, allowed.body) == (200, b"")
    refused = call(serve(), "OPTIONS", "/v1/models/default")
    assert (refused.status, refused.body) == (400, b"")


def test_cors() -> None:
    app = serve(settings=RestSettings(cors=True))
    for response in (call(app, "POST", PREDICT, b"{"), call(app, "OPTIONS", "/v1/models/m")):
        assert response.headers[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-origin" not in call(app, "GET", "/healthz").headers
    assert b"access-control-allow-origin" not in call(serve(), "POST", PREDICT, b"{").headers


def test_gzip() -> None:
    body = b'{"instances":[1]}'
    headers = {"Content-Encoding": "x-gzip"}
    app = serve(settings=RestSettings(gunzip_bytes_max=1000))
    assert call(app, "POST", PREDICT, gzip.compress(body), headers).status == 200
    assert call(app, "POST", PREDICT, gzip.compress(body + b" " * (1000 - len(body))), headers).status == 200
    empty = "JSON Parse error: The document is empty"
    for bad in (
        gzip.compress(body + b" " * (1001 - len(body))),
        gzip.compress(body)[:-1],
        gzip.compress(body)[:-4] + b"\0\0\0\1",
        body,
        b"",
    ):
        response = call(app, "POST", PREDICT, bad, headers)
        assert (response.status, response.error) == (400, empty)
    large = gzip.compress(bytes(101 * 2**20), 1)
    assert call(serve(), "POST", PREDICT, large, headers).error == empty
    other = call(app, "POST", PREDICT, body, {"Content-Encoding": "br"})
    assert other.status == 200


def test_the_body_limit() -> None:
    body = b'{"instances":[1]}'
    app = serve(settings=RestSettings(body_bytes_max=len(body)))
    assert call(app, "POST", PREDICT, body).status == 200
    assert call(app, "POST", PREDICT, [body], length=False).status == 200
    for pieces in ([body + b" "], [body, b" "], [b" "] * 1000):
        assert call(app, "POST", PREDICT, pieces).status == 413
        assert call(app, "POST", PREDICT, pieces, length=False).status == 413


@pytest.mark.parametrize(
    ("header", "timeout_ns"),
    [(None, 30_000_000_000), ("0.5", 500_000_000), ("60", 60_000_000_000), ("1e-3", 1_000_000)],
)
def test_timeouts(header: str | None, timeout_ns: int) -> None:
    client = LoopbackClient(models(), half_plus_two)
    headers = {} if header is None else {"X-Request-Timeout": header}
    assert call(make_app(client), "POST", PREDICT, b'{"instances":[1]}', headers).status == 200
    assert client.requests[0][3] == timeout_ns


def test_no_timeout_and_senseless_timeouts() -> None:
    client = LoopbackClient(models(), half_plus_two)
    app = make_app(client, RestSettings(timeout_ms=0))
    body = b'{"instances":[1]}'
    assert call(app, "POST", PREDICT, body).status == 200
    assert client.requests[0][3] == 0
    for header in ("", "x", "0", "-1", "nan", "inf"):
        assert call(app, "POST", PREDICT, body, {"X-Request-Timeout": header}).status == 400
    assert len(client.requests) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.DEADLINE_EXCEEDED, 504),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.UNAVAILABLE, 503),
        (Code.INTERNAL, 500),
        (Code.FAILED_PRECONDITION, 400),
    ],
)
def test_failures_of_the_run(code: Code, status: int) -> None:
    text = "Timed out waiting for notification" + "x" * 5000
    response = post(b'{"instances":[1]}', app=serve(lambda *_: (code, text)))
    assert (response.status, response.error) == (status, text)


def test_outputs_that_are_no_rows() -> None:
    def scalar(*_: Any) -> Any:
        return [make_output(1, (), np.array(1, np.float32), batchable=False)]

    response = post(b'{"instances":[1]}', app=serve(scalar))
    assert (response.status, response.error) == (400, "Tensor name: y has no shape information ")

    def uneven(*_: Any) -> Any:
        return [
            make_output(1, (2,), np.zeros(2, np.float32), batchable=False),
            make_output(3, (1,), np.zeros(1, np.int32), batchable=False),
        ]

    body = b'{"instances":[{"a":[1],"b":1}]}'
    response = post(body, "two", serve(uneven))
    assert (response.status, response.error) == (400, "Tensor name: b has inconsistent batch size: 1 expecting: 2")

    def complex_numbers(*_: Any) -> Any:
        return [make_output(8, (1,), np.zeros(1, np.complex64), batchable=False)]

    response = post(b'{"instances":[1]}', app=serve(complex_numbers))
    assert (response.status, response.error) == (400, "Failed to write JSON value for tensor type: complex64")


def test_a_bug_in_one_answer_is_answered() -> None:
    def broken(*_: Any) -> Any:
        return [make_output(1, (1,), np.zeros(1, np.float32), batchable=False)] * 2

    assert post(b'{"instances":[1]}', app=serve(broken)).status == 500


def test_a_client_that_leaves_while_sending() -> None:
    client = LoopbackClient(models())

    async def run() -> None:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": PREDICT.encode(),
            "query_string": b"",
            "headers": [(b"content-length", b"10")],
        }
        await make_app(client)(scope, receive, send)
        assert not sent

    asyncio.run(run())
    assert not client.requests


def test_a_client_that_leaves_while_waiting_cancels_its_request() -> None:
    client = LoopbackClient(models())

    async def run() -> None:
        gone = asyncio.Event()
        events = [{"type": "http.request", "body": b'{"instances":[1]}', "more_body": False}]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if events:
                return events.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": PREDICT.encode(),
            "query_string": b"",
            "headers": [],
        }
        task = asyncio.create_task(make_app(client)(scope, receive, send))
        while not client.requests:
            await asyncio.sleep(0)
        gone.set()
        await task
        assert not sent
        reply = client.requests[0][4]
        reply.fail(Code.CANCELLED, "late")  # whoever answers late does no harm

    asyncio.run(run())
    assert client.cancelled == [1]


def test_a_cancelled_request_is_answered_503() -> None:
    client = LoopbackClient(models())

    async def run() -> int:
        task = asyncio.create_task(request(make_app(client), "POST", PREDICT, b'{"instances":[1]}'))
        while not client.requests:
            await asyncio.sleep(0)
        task.cancel()
        response = await task
        assert response is not None
        return response.status

    assert asyncio.run(run()) == 503
    assert client.cancelled == [1]


def test_large_answers_are_written_aside() -> None:
    values = np.random.default_rng(3).random((700, 64)).astype(np.float32)
    text = "[" + ",".join("[" + ",".join(map(repr, row)) + "]" for row in values.tolist()) + "]"
    response = post(f'{{"inputs":{text}}}', "echo_float")
    assert np.array_equal(np.array(response.json["outputs"], np.float32), values)
    strings = ["é" * 100] * 2000
    body = ('{"inputs":[' + ",".join(f'"{each}"' for each in strings) + "]}").encode()
    assert post(body, "echo_string").json["outputs"] == strings


def test_large_requests_are_read_aside() -> None:
    values = np.random.default_rng(4).random((400, 500)).round(3)
    rows = [list(map(repr, row)) for row in values.tolist()]
    for change, answer in (("NaN", 200), ("-0.5", 200), ("[1]", 400), ("true", 400), ("]", 400)):
        rows[399][499] = change
        text = "[" + ",".join("[" + ",".join(row) + "]" for row in rows) + "]"
        assert len(text) > 2**20
        response = post(f'{{"inputs":{text}}}', "echo_float")
        assert response.status == answer
        if answer == 200:
            read = np.array(response.json["outputs"], np.float32)
            assert np.array_equal(read.ravel()[:-1], values.astype(np.float32).ravel()[:-1])
    rows = [["1"] * 100 for _ in range(200)]  # too small for the other thread, too slow for this one
    rows[199][99] = "null"
    response = post('{"instances":[' + ",".join("[" + ",".join(row) + "]" for row in rows) + "]}", "echo_float")
    assert response.error.startswith("Failed to process element: 199 of 'instances' list. Error: INVALID_ARGUMENT: ")
    rows[199][99] = "Infinity"
    response = post('{"instances":[' + ",".join("[" + ",".join(row) + "]" for row in rows) + "]}", "echo_float")
    assert response.status == 200


def test_what_is_no_utf8_comes_back_unchanged() -> None:
    response = post(b'{"inputs":["\xff\xfe"]}', "echo_string")
    assert response.status == 200
    assert b'"\xff\xfe"' in response.body


def test_models_are_called_with_rows() -> None:
    client = LoopbackClient(models(), default_model)
    call(make_app(client), "POST", PREDICT, b'{"instances":[1,2,3]}')
    lane, rows, payloads, _, _ = client.requests[0]
    assert (rows, lane.spec.batchable, lane.spec.version) == (3, True, 123)
    assert payloads == [np.array([1, 2, 3], np.float32).tobytes()]
    assert echo(lane, rows, payloads)[0].shape == (3,)
