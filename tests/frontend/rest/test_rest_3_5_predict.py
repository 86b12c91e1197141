"""Spec 3.5: predict requests, rows and columns, coercions and their texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ringserve.frontend.rest_api import RestSettings, make_app
from tests.frontend.fakes import catalog_of, signature_def, version_info
from tests.frontend.rest.served import DTYPES, RestLoopback, call, cases, default_model, post

ANSWERS: list[tuple[str, str, str]] = [
    # model, body, the columnar answer on one line
    # FLOAT and DOUBLE take any number; float rounds silently
    ("echo_float", '{"inputs":[1e10,0.333333333333,16777217]}', "[1e+10, 0.333333343, 16777216.0]"),
    ("echo_float", '{"inputs":[1,NaN,Inf,-Infinity,-Inf,Infinity]}',
     "[1.0, NaN, Infinity, -Infinity, -Infinity, Infinity]"),
    ("echo_float", '{"inputs":[1e300,-1e300,1e-300,-1e-300]}', "[Infinity, -Infinity, 0.0, -0.0]"),
    ("echo_double", '{"inputs":[0.3333333333333333,1e300,7]}', "[0.33333333333333331, 1e+300, 7.0]"),
    # INT32, INT16, INT8, UINT8 take what fits 32 bits and keep the low bits
    ("echo_int32", '{"inputs":[2147483647,-2147483648]}', "[2147483647, -2147483648]"),
    ("echo_int16", '{"inputs":[40000,-1]}', "[-25536, -1]"),
    ("echo_int8", '{"inputs":[300,-129,5]}', "[44, 127, 5]"),
    ("echo_uint8", '{"inputs":[300,-1]}', "[44, 255]"),
    # INT64, UINT32, UINT64 take what fits
    ("echo_int64", '{"inputs":[9223372036854775807,-9223372036854775808]}',
     "[9223372036854775807, -9223372036854775808]"),
    ("echo_uint32", '{"inputs":[4294967295,0]}', "[4294967295, 0]"),
    ("echo_uint64", '{"inputs":[18446744073709551615,0]}', "[18446744073709551615, 0]"),
    # ours: UINT16, HALF, BFLOAT16
    ("echo_uint16", '{"inputs":[65535]}', "[65535]"),
    ("echo_half", '{"inputs":[0.5,1,100000,NaN]}', "[0.5, 1.0, Infinity, NaN]"),
    ("echo_bfloat16", '{"inputs":[0.5,256.5]}', "[0.5, 256.0]"),
    ("echo_bool", '{"inputs":[[true,false]]}', "[[true, false]]"),
    # STRING takes text, and b64 objects whatever the input's name
    ("echo_string", r'{"inputs":["a\"b\\\u0001\n\u00e9","\ud83d\ude00"]}', r'["a\"b\\\u0001\n' + 'é", "😀"]'),
    ("echo_string", '{"inputs":{"b64":"aGk="}}', '"hi"'),
    ("echo_string", '{"inputs":[{"b64":"aG k"},{"b64":"aGk."},{"b64":"aGk"},{"b64":""}]}', '["hi", "hi", "hi", ""]'),
    # shapes follow the first elements
    ("echo_float", '{"inputs":3}', "3.0"),
    ("echo_float", '{"inputs":[]}', "[]"),
    ("echo_float", '{"inputs":[[],[]]}', "[[], []]"),
    ("echo_int32", '{"inputs":[[[1],[2]],[[3],[4]]]}', "[[[1], [2]], [[3], [4]]]"),
    # columns: extra keys are ignored, batch sizes need not agree
    ("default", '{"inputs":{"x":[3],"extra":1}}', "[3.5]"),
    ("echo_float", '{"inputs":{"x":7}}', "7.0"),
]  # fmt: skip


def on_one_line(text: bytes) -> str:
    """The value of a columnar answer without the line breaks of pretty printing."""
    inner = text.decode().removeprefix('{\n    "outputs": ').removesuffix("\n}")
    lines = [line.strip() for line in inner.split("\n")]
    return "".join(line + " " if line.endswith(",") else line for line in lines)


@pytest.mark.parametrize(("model", "body", "answer"), ANSWERS, ids=cases(ANSWERS))
def test_rest_3_5_coercions(model: str, body: str, answer: str) -> None:
    response = post(body, model)
    assert (response.status, on_one_line(response.body)) == (200, answer)


ROWS: list[tuple[str, str, Any]] = [
    # model, body, predictions
    ("default", '{"instances":[1.0,2.0,5.0]}', [2.5, 3.0, 4.5]),
    ("default", '{"instances":[[1,2],[3,4]]}', [[2.5, 3.0], [3.5, 4.0]]),
    ("default", '{"instances":[{"x":3},{"x":4}]}', [3.5, 4.0]),
    ("default", '{"signature_name":"serving_default","instances":[1]}', [2.5]),
    ("echo_string", '{"instances":["a",{"b64":"Yg=="}]}', ["a", "b"]),
    ("echo_string", '{"instances":[{"b64":"Yg=="},"a"]}', ["b", "a"]),
    ("echo_bool", '{"instances":[true]}', [True]),
    ("two", '{"instances":[{"a":[1,2],"b":7},{"b":8,"a":[3,4]}]}', [{"a": [1, 2], "b": 7}, {"a": [3, 4], "b": 8}]),
]


@pytest.mark.parametrize(("model", "body", "predictions"), ROWS, ids=cases(ROWS))
def test_rest_3_5_rows(model: str, body: str, predictions: Any) -> None:
    response = post(body, model)
    assert (response.status, response.json) == (200, {"predictions": predictions})


_ROW0 = "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
_ROW1 = "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
_DEEP = "[" * 500_000 + "]" * 500_000
ERRORS: list[tuple[str, str, int, str]] = [
    # model, body, HTTP status, text
    ("loading", "{}", 404, "Servable not found for request: Latest(loading)"),
    ("default/versions/9", "{}", 404, "Servable not found for request: Specific(default, 9)"),
    ("default/labels/L", "{}", 400, "Unrecognized servable version label: L"),
    ("nope/labels/L", "{}", 400, "Unrecognized servable version label: L"),
    ("default", '{"signature_name":"none"}', 400, "Failed to get input map for signature: none"),
    ("default", "{}", 400, "Missing 'inputs' or 'instances' key"),
    ("default", '{"inputs":1,"instances":[1]}', 400, 'JSON Value: {\n    "inputs": 1,\n    "instances": [1]\n} '
     "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "),
    # rows
    ("default", '{"instances":3}', 400, 'JSON Value: {\n    "instances": 3\n} '
     "Expecting 'instances' to be an list/array"),
    ("default", '{"instances":{"x":[1]}}', 400,
     'JSON Value: {\n    "instances": {\n        "x": [1]\n    }\n} Expecting \'instances\' to be an list/array'),
    ("default", '{"instances":[]}', 400, 'JSON Value: {\n    "instances": []\n} No values in \'instances\' array'),
    ("default", '{"instances":[{"x":1},2]}', 400, "Expecting object but got list at item 1 of input list"),
    ("default", '{"instances":[1,{"x":1}]}', 400, "Expecting value/list but got object at item 1 of input list"),
    ("two", '{"instances":[1]}', 400, "instances is a plain list, but expecting list of objects as multiple input "
     "tensors required as per tensorinfo_map"),
    ("default", '{"instances":[{"x":3,"extra":1}]}', 400, "Failed to process element: 0 key: extra of 'instances' "
     "list. Error: INVALID_ARGUMENT: JSON object: does not have named input: extra"),
    ("two", '{"instances":[{"b":1}]}', 400, "Failed to process element: 0 of 'instances' list. JSON object: {\n"
     '    "b": 1\n} keys must be equal to: a,b'),
    ("default", '{"instances":[1,[1]]}', 400, _ROW1 + "Expecting shape [] but got: [1]"),
    ("default", '{"instances":[[1,2],[3,4],[5,6,7]]}', 400, "Failed to process element: 2 of 'instances' list. "
     "Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 3"),
    ("default", '{"instances":[[[1,2]],[[1],[2]]]}', 400, _ROW1 + "Expecting shape [1,2] but got: [2,1]"),
    ("default", '{"instances":[{"x":3},{"x":[1]}]}', 400, "Failed to process element: 1 key: x of 'instances' "
     "list. Error: INVALID_ARGUMENT: Expecting shape [] but got: [1]"),
    # shapes
    ("default", '{"instances":[[[1,2],[3]]]}', 400,
     _ROW0 + "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ("default", '{"instances":[[1,[2]]]}', 400, _ROW0 + "Encountered list at unexpected level: 1 expected < 1"),
    ("default", '{"instances":[[[1],2]]}', 400,
     _ROW0 + "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ("default", '{"instances":' + _DEEP + "}", 400,
     _ROW0 + "Encountered list at unexpected level: 254 expected < 254"),
    # types
    ("default", '{"instances":[1,true]}', 400, _ROW1 + "JSON Value: true Type: True is not of expected type: float"),
    ("default", '{"instances":[false]}', 400, _ROW0 + "JSON Value: false Type: False is not of expected type: float"),
    ("default", '{"instances":["1"]}', 400, _ROW0 + 'JSON Value: "1" Type: String is not of expected type: float'),
    ("default", '{"instances":[null]}', 400, _ROW0 + "JSON Value: null Type: Null is not of expected type: float"),
    ("default", '{"instances":[[{"a":1}]]}', 400,
     _ROW0 + 'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: float'),
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
    ("echo_string", '{"inputs":[null]}', 400, "JSON Value: null Type: Null is not of expected type: string"),
    ("echo_complex64", '{"inputs":[1]}', 501, "Conversion of JSON Value: 1 to type: complex64"),
    ("echo_complex64", '{"instances":[1]}', 400, "Failed to process element: 0 of 'instances' list. Error: "
     "UNIMPLEMENTED: Conversion of JSON Value: 1 to type: complex64"),
    # base64
    ("echo_string", '{"inputs":[{"b64":"a"}]}', 400, "Unable to base64 decode"),
    ("echo_string", '{"inputs":[{"b64":"aGk=="}]}', 400, "Unable to base64 decode"),
    ("echo_string", '{"inputs":[{"b64":"a_k="}]}', 400, "Unable to base64 decode"),
    ("echo_string", '{"inputs":[{"b64":1}]}', 400, 'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 '
     "data"),
    # columns
    ("two", '{"inputs":[1]}', 400, "inputs is a plain value/list, but expecting an object as multiple input tensors "
     "required as per tensorinfo_map"),
    ("two", '{"inputs":{"a":[[1]]}}', 400, "Missing named input: b in 'inputs' object."),
    ("default", '{"inputs":{"x":[1,"a"]}}', 400, 'JSON Value: "a" Type: String is not of expected type: float'),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "status", "text"), ERRORS, ids=cases(ERRORS))
def test_rest_3_5_errors(model: str, body: str, status: int, text: str) -> None:
    response = post(body, model)
    assert (response.status, response.error) == (status, text)


def test_rest_3_5_the_version_that_is_asked_for_runs() -> None:
    for where in ("default", "default/versions/123", "default/versions/0000123", "default/labels/stable"):
        assert post('{"instances":[1]}', where).status == 200


def test_rest_3_5_a_signature_without_inputs_and_name() -> None:
    nothing = signature_def({}, {"y": (DTYPES["float"], None)})
    app = make_app(RestLoopback(catalog_of(version_info("default", 1, {"serving_default": nothing}))))
    assert post('{"instances":[1]}', app=app).error == "Failed to get input map for signature: DEFAULT"


def test_rest_3_5_defaults_cannot_be_used() -> None:
    with_default = signature_def({"x": (1, [-1]), "n": (3, [])}, {"y": (1, [-1])}, defaults={})
    app = make_app(RestLoopback(catalog_of(version_info("default", 1, {"serving_default": with_default}))))
    assert post('{"inputs":{"x":[1]}}', app=app).error == "Missing named input: n in 'inputs' object."


def test_rest_3_5_models_are_called_with_rows() -> None:
    client = RestLoopback(model=default_model)
    call(make_app(client), "POST", "/v1/models/default:predict", b'{"instances":[1,2,3]}')
    lane, rows, payloads, _, _ = client.requests[0]
    assert (rows, lane.spec.batchable, lane.spec.version) == (3, True, 123)
    assert payloads == [np.array([1, 2, 3], np.float32).tobytes()]


def test_rest_the_check_of_method_names() -> None:
    """enable_signature_method_name_check: spec 4.2, after everything that is read of the request."""
    odd = signature_def({"x": (1, [-1])}, {"y": (1, [-1])}, "odd/method")
    client = RestLoopback(catalog_of(version_info("default", 1, {"serving_default": odd})), default_model)
    assert post('{"instances":[1]}', app=make_app(client)).status == 200
    app = make_app(client, RestSettings(check_method_name=True))
    for body in ('{"instances":[1]}', '{"instances":[' + "1.5," * 100 + "2.5]}"):
        response = post(body, app=app)
        assert response.status == 500
        assert response.error.startswith("Expected prediction signature method_name to be one of {")
        assert response.error.endswith(". Was: odd/method")
    assert post('{"instances":["a"]}', app=app).status == 400
