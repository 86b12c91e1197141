"""Spec 3.3, 3.4: error bodies, and the JSON dialect as whole requests see it (test_json_parse.py has the parser's)."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import Code
from ringserve.frontend.status import HTTP_STATUS
from tests.frontend.rest.served import PREDICT, call, cases, golden, post, serve

# ------------------------------------------------------------------------------------------------------- 3.3 errors

#: Spec 3.3: gRPC code -> HTTP.
STATUSES: list[tuple[Code, int]] = [
    (Code.CANCELLED, 499),
    (Code.INVALID_ARGUMENT, 400),
    (Code.FAILED_PRECONDITION, 400),
    (Code.OUT_OF_RANGE, 400),
    (Code.DEADLINE_EXCEEDED, 504),
    (Code.NOT_FOUND, 404),
    (Code.ALREADY_EXISTS, 409),
    (Code.ABORTED, 409),
    (Code.PERMISSION_DENIED, 403),
    (Code.UNAUTHENTICATED, 401),
    (Code.RESOURCE_EXHAUSTED, 429),
    (Code.UNIMPLEMENTED, 501),
    (Code.UNAVAILABLE, 503),
    (Code.UNKNOWN, 500),
    (Code.INTERNAL, 500),
    (Code.DATA_LOSS, 500),
]


@pytest.mark.parametrize(("code", "status"), STATUSES)
def test_rest_3_3_statuses_and_whole_texts(code: Code, status: int) -> None:
    text = f"a failure of the run {'x' * 5000}"
    response = post('{"instances":[1]}', app=serve(lambda *_: (code, text)))
    assert (response.status, response.error) == (status, text)


def test_rest_3_3_the_table_is_complete() -> None:
    assert {code for code, _ in STATUSES} | {Code.OK} == set(HTTP_STATUS) == set(Code)


def test_rest_3_3_a_number_that_is_no_code() -> None:
    response = post('{"instances":[1]}', app=serve(lambda *_: (77, "odd")))
    assert (response.status, response.error) == (500, "odd")


def test_rest_3_3_the_body_byte_for_byte() -> None:
    assert post("{}").body == golden("error.json")
    odd = 'a "quoted" \\ word,\n\ttwo lines, \x01, é, \udcff'
    response = post('{"instances":[1]}', app=serve(lambda *_: (Code.INTERNAL, odd)))
    assert response.body == golden("error_escapes.json")


# ------------------------------------------------------------------------------------------------------ 3.4 parsing

ACCEPTED: list[tuple[bytes, str]] = [
    # what stands in the body, what the rule is
    (b'{"instances":[1]}', "plain"),
    (b'\xef\xbb\xbf{"instances":[1]}', "a byte order mark is skipped"),
    (b'{"instances":[1]}garbage', "what follows the value is ignored"),
    (b'{"instances":[1]}\xff\xfe', "also when it is no text"),
    (b'{"instances":[1]}{"instances":[2]}', "also when it is JSON"),
    (b'{"instances":[1],"instances":[7]}', "of equal keys the first counts"),
    (b'{"signature_name":"","signature_name":7,"instances":[1]}', "at the top level, each of them"),
    (b'{"instances":[1],"output_filter":["z"],"x":{"y":null}}', "unknown keys are ignored"),
    (b' \r\n\t{ "instances" : [ 1 ] } ', "white space"),
    (b'{"\\u0069nstances":[1]}', "escapes in keys"),
    (b'{"instances":[1],"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "any depth"),
]


@pytest.mark.parametrize(("body", "rule"), ACCEPTED, ids=[rule for _, rule in ACCEPTED])
def test_rest_3_4_accepted(body: bytes, rule: str) -> None:
    response = post(body)
    assert (response.status, response.body) == (200, b'{\n    "predictions": [2.5\n    ]\n}'), rule


DEEP = b"[" * 500_000
ERRORS: list[tuple[str, bytes, int, str]] = [
    # model, body, HTTP status, text
    ("default", b"", 400, "JSON Parse error: The document is empty"),
    ("default", b" ", 400, "JSON Parse error: The document is empty. at offset: 1"),
    ("default", b"[1]", 400, "JSON Value: [1] Is not object"),
    ("default", b"NaN", 400, "JSON Value: NaN Is not object"),
    ("default", b'{"instances":[1] // comment\n}', 400,
     "JSON Parse error: Missing a comma or } after an object member. at offset: 17"),
    ("default", b'{"instances":[1]', 400,
     "JSON Parse error: Missing a comma or } after an object member. at offset: 16"),
    ("default", b'{"instances":[1 2]}', 400,
     "JSON Parse error: Missing a comma or ] after an array element. at offset: 16"),
    ("default", b'{"instances":[nan]}', 400, "JSON Parse error: Invalid value. at offset: 15"),
    ("default", b"{instances:[1]}", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
    ("default", b'{"instances"[1]}', 400,
     "JSON Parse error: Missing a colon after a name of object member. at offset: 12"),
    ("default", b'{"instances":["a]}', 400,
     "JSON Parse error: Missing a closing quotation mark in string. at offset: 18"),
    ("default", b'{"instances":[1e400]}', 400,
     "JSON Parse error: Number too big to be stored in double. at offset: 14"),
    ("default", b'{"instances":' + DEEP, 400, "JSON Parse error: Invalid value. at offset: 500013"),
    # the order: URL, text, signature_name's type, model, signature, tensors
    ("nope", b"{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
    ("nope", b'{"instances":[1.5,' + b"2.5," * 100 + b"x]}", 400, "JSON Parse error: Invalid value. at offset: 418"),
    ("nope", b'{"signature_name":7}', 400, 'JSON Value: {\n    "signature_name": 7\n} not formatted correctly. '
     "'signature_name' key must be a string value."),
    ("nope", b'{"signature_name":null}', 400, 'JSON Value: {\n    "signature_name": null\n} not formatted correctly. '
     "'signature_name' key must be a string value."),
    ("nope", b'{"signature_name":"s","instances":1}', 404, "Servable not found for request: Latest(nope)"),
    ("default", b'{"signature_name":"s","instances":1}', 400,
     'Serving signature name: "s" not found in signature def'),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "status", "text"), ERRORS, ids=cases(ERRORS))
def test_rest_3_4_errors(model: str, body: bytes, status: int, text: str) -> None:
    response = post(body, model)
    assert (response.status, response.error) == (status, text)
    assert response.headers == {"content-type": "application/json"}


def test_rest_3_4_quoted_values_are_cut_behind_256_bytes() -> None:
    response = post('{"instances":[' + ",".join(["[1]"] * 1000) + '],"inputs":1}')
    assert len(response.error) < 400
    assert response.error.startswith('JSON Value: {\n    "instances": [[1], [1], ')
    long = "x" * 100_000
    assert len(post(f'{{"instances":["{long}"]}}').error) < 600


def test_rest_3_4_malformed_urls_come_before_the_text() -> None:
    assert call(None, "POST", PREDICT + "?a", b"{").error.startswith("Malformed request: ")
