"""Large texts in pieces: what comes out is what the parser makes of the whole, wherever the cuts are."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import example, given, settings

from ringserve.frontend import json_blocks, json_exact, json_parse, json_pieces, json_tensor
from ringserve.frontend.json_exact import JsonError
from ringserve.frontend.json_pieces import CutError, read_in_pieces
from ringserve.shm import dtype as dt
from tests.frontend.rest.test_json_parse import JSON, TOKENS


def pieces_of(text: bytes, size: int) -> Any:
    """What is read of it in pieces of so many bytes; None when that is refused."""
    before = json_pieces.PIECE_BYTES
    json_pieces.PIECE_BYTES = size  # type: ignore[misc]
    try:
        return read_in_pieces(text)
    except (CutError, orjson.JSONDecodeError):
        return None
    finally:
        json_pieces.PIECE_BYTES = before  # type: ignore[misc]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(JSON) | st.dictionaries(st.text(max_size=3), JSON),
    st.integers(1, 60),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from(["", " ", " ]trailing"]),
)
@example([], 1, None, True, "")
@example({"a": []}, 1, None, True, "")
@example([[[[1, 2], [3]], [[4]]], [[[]]]] * 3, 7, None, True, "")
@example([["a,b", '"],'], {"},": [[]]}], 4, None, True, "")
def test_the_cuts_change_nothing(value: Any, size: int, indent: int | None, ascii_only: bool, behind: str) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        return  # lone surrogates
    found = pieces_of(text + behind.encode(), size)
    assert found is not None
    assert repr(found) == repr(expected)


@settings(max_examples=400, deadline=None)
@given((TOKENS | st.binary(max_size=60)).map(lambda text: b"[" + text), st.integers(1, 30))
@example(b"[1,]", 1)
@example(b"[,1]", 2)
@example(b"[1,,1]", 2)
@example(b"[[[,1]]]", 4)
@example(b"[[1,2],[,1]]", 8)
@example(b'{"a":1,}', 3)
@example(b'["\\",","]', 5)
def test_nothing_is_read_that_is_no_json(text: bytes, size: int) -> None:
    found = pieces_of(text, size)
    if found is not None:
        assert repr(found) == repr(json_exact.parse(text))


@pytest.mark.parametrize(
    "row",
    [b"1.0", b'""', b'"a,b],"', b"[0]", b'["a"]', b'[[["a"]]]', b'{"a":1.25,"b":2}', b'{"a":{"b64":"AAAA"}}', b"true",
     b'[[["a"],[1]],[[[]]],{"c":[]}]', b"[[[1,2,3],[4]],[[5]]]", b'{"a":[1,"x"]}',
     b'{ "a" : [ 1 ] , "b" : "\xc3\xa4" }'],
)  # fmt: skip
@pytest.mark.parametrize("comma", [b",", b" ,\n "])
def test_large_bodies_of_every_kind_are_read(row: bytes, comma: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hurry, so that nothing is left to the exact parser; and never much at once."""
    body = b'{"instances":[' + comma.join([row] * (2 * 2**20 // len(row))) + b"]}"
    loads = orjson.loads
    expected = loads(body)
    sizes: list[int] = []

    def load(text: bytes) -> Any:
        sizes.append(len(text))
        return loads(text)

    monkeypatch.setattr(orjson, "loads", load)
    assert json_parse.parse_object(body, hurry=True) == expected
    assert max(sizes) <= json_pieces.PIECE_BYTES + 2
    assert sum(sizes) < 3 * len(body)


def test_strings_longer_than_a_piece() -> None:
    """Images, as a rule."""
    value = {"instances": [{"b64": "A" * 300_000}, {"b64": 'B\\"' * 200_000}] * 3, "signature_name": "x"}
    assert json_parse.parse_object(json.dumps(value).encode(), hurry=True) == value


@pytest.mark.parametrize("unit", [b'{"},":[', b'["],",', b"[1,[2],{},", b"[" * 20_000 + b"]" * 20_000 + b","])
def test_texts_that_cannot_be_cut_cost_little(unit: bytes) -> None:
    with pytest.raises(CutError):
        read_in_pieces(unit * (4 * 2**20 // len(unit)))
    with pytest.raises(JsonError):
        json_parse.parse_object(b'{"instances":' + unit * (2 * 2**20 // len(unit)))


def test_what_is_left_beside_arrays_is_never_parsed_whole() -> None:
    """A body with one array of numbers, and megabytes of other things."""
    array = b"[" + b"1.0," * 100 + b"1.0]"
    assert json_blocks.outline(b'{"a":' + array + b',"b":[' + b"{}," * 1_000 + b"{}]}") is not None
    assert json_blocks.outline(b'{"a":' + array + b',"b":[' + b"{}," * 500_000 + b"{}]}") is None


@pytest.mark.parametrize(
    ("leaf", "dtype"), [(1.5, dt.FLOAT), (True, dt.BOOL), (2**40, dt.INT64), (2**63, dt.UINT64), ("a", dt.STRING)]
)
def test_tensors_of_many_values(leaf: Any, dtype: int) -> None:
    size = 200_000
    flat = json_tensor.regular_tensor([leaf] * size, dtype)
    nested = json_tensor.regular_tensor([[leaf]] * size, dtype)
    few = json_tensor.regular_tensor([leaf], dtype)
    assert flat is not None
    assert nested is not None
    assert few is not None
    assert (flat.shape, nested.shape) == ((size,), (size, 1))
    assert flat.data == nested.data == (few.data if isinstance(few.data, list) else bytes(few.data)) * size
    assert json_tensor.regular_tensor([leaf] * size + [None], dtype) is None


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"text": text}, lambda text: [[text, 1], [text]]])
def test_texts_of_json_and_of_speech_are_cut_as_well(wrap: Any) -> None:
    """In them every end of a value stands before a comma somewhere, behind a backslash or within a string."""
    speech = 'he said "well", and went [1], then {home}, "and", so on' * 20
    nested = json.dumps([{"id": number, "tags": ["a", "b"], "of": "x,y"} for number in range(30)])
    text = orjson.dumps({"instances": [wrap(each) for each in [speech, nested] * 400]})
    assert len(text) > 4 * json_pieces.PIECE_BYTES
    assert read_in_pieces(text) == orjson.loads(text)
