"""Parsing: TF Serving's dialect and texts, what a strict parser reads as well, and hostile texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import example, given, settings

from ringserve.frontend import json_exact, json_parse
from ringserve.frontend.json_parse import JsonError, SlowError, parse_object

ERRORS: list[tuple[bytes, str, int]] = [
    (b" \n", "The document is empty.", 2),
    (b"}", "The document is empty.", 0),
    (b"\xef\xbb\xbf", "The document is empty.", 3),
    (b"zzz", "Invalid value.", 0),
    (b"nul", "Invalid value.", 3),
    (b"trux", "Invalid value.", 3),
    (b"[fals]", "Invalid value.", 5),
    (b"-a", "Invalid value.", 1),
    (b".5", "Invalid value.", 0),
    (b"+1", "Invalid value.", 0),
    (b"[Nan]", "Invalid value.", 3),
    (b"Infinitx", "Invalid value.", 7),
    (b"{", "Missing a name for object member.", 1),
    (b'{"a":1,}', "Missing a name for object member.", 7),
    (b"{1:2}", "Missing a name for object member.", 1),
    (b'{"a"', "Missing a colon after a name of object member.", 4),
    (b'{"a" 1}', "Missing a colon after a name of object member.", 5),
    (b'{"a":', "Invalid value.", 5),
    (b'{"a":}', "Invalid value.", 5),
    (b'{"a":1', "Missing a comma or } after an object member.", 6),
    (b'{"a":1]', "Missing a comma or } after an object member.", 6),
    (b"[", "Invalid value.", 1),
    (b"[1,]", "Invalid value.", 3),
    (b"[,]", "Invalid value.", 1),
    (b"[1", "Missing a comma or ] after an array element.", 2),
    (b"[1 2]", "Missing a comma or ] after an array element.", 3),
    (b"[01]", "Missing a comma or ] after an array element.", 2),
    (b"[1}", "Missing a comma or ] after an array element.", 2),
    (b"[1\x00]", "Missing a comma or ] after an array element.", 2),
    (b"1.", "Miss fraction part in number.", 2),
    (b"[1.e5]", "Miss fraction part in number.", 3),
    (b"1e", "Miss exponent in number.", 2),
    (b"1e+", "Miss exponent in number.", 3),
    (b"[2, -1e400]", "Number too big to be stored in double.", 4),
    (b"[NaN, -1e400]", "Number too big to be stored in double.", 6),
    (b"[-Infinity, 1" + b"0" * 400 + b"]", "Number too big to be stored in double.", 12),
    (b'"abc', "Missing a closing quotation mark in string.", 4),
    (b'"a\x01"', "Invalid encoding in string.", 2),
    (b'"a\\q"', "Invalid escape character in string.", 2),
    (b'"a\\', "Invalid escape character in string.", 2),
    (b'"\\u12"', "Incorrect hex digit after \\u escape in string.", 1),
    (b'"\\ud800"', "The surrogate pair in string is invalid.", 1),
    (b'"\\ud800\\u0041"', "The surrogate pair in string is invalid.", 1),
    (b'"\\udc00"', "The surrogate pair in string is invalid.", 1),
]


@pytest.mark.parametrize(("text", "reason", "offset"), ERRORS)
def test_errors(text: bytes, reason: str, offset: int) -> None:
    with pytest.raises(JsonError) as caught:
        json_exact.parse(text)
    assert caught.value.text == f"JSON Parse error: {reason} at offset: {offset}"
    with pytest.raises(JsonError) as caught:
        parse_object(b'{"instances":' + text)
    assert caught.value.text.startswith("JSON Parse error: ")


VALUES: list[tuple[bytes, Any]] = [
    (b'{"a":1}garbage', {"a": 1}),
    (b"\xef\xbb\xbf [1]", [1]),
    (b"[Inf,-Inf,Infinity,-Infinity,1,2.5]", [math.inf, -math.inf, math.inf, -math.inf, 1, 2.5]),
    (b'{"a":1,"a":2}', {"a": 1}),
    (b"18446744073709551615", 2**64 - 1),
    (b"18446744073709551616", 2.0**64),
    (b"-9223372036854775809", -(2.0**63)),
    (b"0.1e-400", 0.0),
    (b'"\\ud83d\\ude00\\/\xc3\xa9"', "😀/é"),
    (b'"\xff"', "\udcff"),
    (b"[1]\x00[", [1]),
    (b"01", 0),
    (b"Infx", math.inf),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_the_dialect(text: bytes, value: Any) -> None:
    parsed = json_exact.parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_not_a_number() -> None:
    assert all(math.isnan(value) for value in json_exact.parse(b"[NaN, -NaN,NaN]"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(max_size=3), children, max_size=5),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(JSON, st.sampled_from([None, 1]), st.booleans())
def test_strict_json_is_read_alike(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        return  # lone surrogates
    assert repr(json_exact.parse(text)) == repr(expected)
    assert repr(json_exact.parse(text + b" ]trailing")) == repr(expected)


TOKENS = st.lists(
    st.sampled_from(
        [
            *(b"{", b"}", b"[", b"]", b",", b":", b'"', b'"a"', b'"instances"', b'"inputs"', b'{"b64":"aGk="}'),
            *(b"1", b"-", b"2.5", b"e", b".", b"NaN", b"Inf", b"-Infinity", b"true", b"null"),
            *(b" ", b"\\", b"\\u", b"\xff", b"\x00"),
        ]
    ),
    max_size=30,
).map(b"".join)


@settings(max_examples=600, deadline=None)
@given(TOKENS | st.binary(max_size=60))
@example(b'{"instances":[1]}')
def test_any_bytes_give_an_object_or_the_error(text: bytes) -> None:
    exact, quick = outcome(json_exact.parse, text), outcome(parse_object, text)
    if text and not quick.endswith(" Is not object"):
        assert quick == exact


@settings(max_examples=100, deadline=None)
@given(TOKENS)
def test_a_body_that_was_put_together_is_read_alike(text: bytes) -> None:
    assert outcome(parse_object, bytearray(text)) == outcome(parse_object, text)  # type: ignore[arg-type]


def outcome(parse: Callable[[bytes], Any], text: bytes) -> str:
    """What a parser makes of a text: the value as Python writes it, or the error's text."""
    try:
        return repr(parse(text))
    except JsonError as error:
        return error.text


def test_hurry_refuses_what_is_slow_and_nothing_else() -> None:
    assert parse_object(b'{"instances":[1]}', hurry=True) == {"instances": [1]}
    assert parse_object(b'{"instances":[1]} trailing', hurry=True) == {"instances": [1]}
    assert parse_object(b'\xef\xbb\xbf{"instances":[1]}', hurry=True) == {"instances": [1]}
    assert parse_object(bytearray(b'{"instances":[1]} trailing'), hurry=True) == {"instances": [1]}
    for text in (b'{"instances":[NaN]}', b"{", b'{"instances":[1],"instances":[2]}'):
        with pytest.raises(SlowError):
            parse_object(text, hurry=True)


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"[" * 3_000_000, 3_000_000),
        (b"[ " * 500_000, 1_000_000),
        (b'{"a":' * 60_000, 300_000),
        (b'[{"a":' * 60_000, 360_000),
        (b"[" * 300_000 + b"]" * 299_999 + b"x", 599_999),
    ],
)
def test_deep_nesting_costs_little(text: bytes, offset: int) -> None:
    with pytest.raises(JsonError) as caught:
        json_exact.parse(text)
    assert caught.value.text.endswith(f" at offset: {offset}")


@pytest.mark.parametrize("unit", [b"[", b'{"a":', b'[{"a":'])
def test_deep_nesting_is_read(unit: bytes) -> None:
    depth = 100_000
    closing = unit.translate(None, b'":a').translate(bytes.maketrans(b"[{", b"]}"))[::-1]
    text = b'{"deep":' + unit * depth + b"1" + closing * depth + b',"instances":[1,{"a":2}]}'
    value = parse_object(text)
    assert value["instances"] == [1, {"a": 2}]
    assert value["deep"]


def test_levels_at_the_limit_of_what_is_built() -> None:
    for depth in range(json_exact.DEPTH_BUILT - 3, json_exact.DEPTH_BUILT + 3):
        value = json_exact.parse(b"[" * depth + b"7" + b"]" * depth)
        levels = 0
        while isinstance(value, list) and value:
            value = value[0]
            levels += 1
        assert min(depth, json_exact.DEPTH_BUILT) <= levels <= json_exact.DEPTH_BUILT + 1
        if depth <= json_exact.DEPTH_BUILT:
            assert value == 7


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_exact, "STEPS_MAX", 1000)
    with pytest.raises(JsonError):
        json_exact.parse(b"[" + b"[]," * 1000 + b"1]")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parse, "CONTAINERS_MAX", 400_000)
    body = b'{"instances":[' + b"[]," * 399_997 + b"[]]}"
    assert len(body) > 2**20
    assert len(parse_object(body)["instances"]) == 399_998  # and two more around them
    with pytest.raises(JsonError) as caught:
        parse_object(body.replace(b"[]]}", b"[{}]]}"))
    assert caught.value.text == "JSON Parse error: more than 400000 arrays and objects"


def test_many_inputs_are_searched_in_one_pass() -> None:
    """Once for each name would take a minute for this text: a name is written twice, the first one counts."""
    names = b",".join(b'"input-%d":[1]' % number for number in range(60_000))
    found = parse_object(b'{"inputs":{"twice":1,' + names + b',"twice":2}}')["inputs"]
    assert found["twice"] == 1
    assert len(found) == 60_001
