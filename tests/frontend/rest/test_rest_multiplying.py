"""Few bytes of a REST client never become many, nor many steps: what would, is refused before it is made."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code, Failure
from ringserve.frontend import (
    json_exact,
    json_examples,
    json_parse,
    json_pieces,
    json_text,
    json_write,
    open_inference_write,
    rest_open_inference,
    rest_reply,
)
from ringserve.frontend.json_parse import SlowError, parse_object
from ringserve.frontend.json_pieces import CutError, read_in_pieces
from ringserve.frontend.json_write import NamedOutput, arrays_count, write_columns, write_rows
from ringserve.frontend.rest_api import RestSettings, make_app
from ringserve.frontend.rest_reply import COPY_BYTES_MIN, named_outputs
from ringserve.shm import dtype as dt
from tests.frontend.fakes import make_output
from tests.frontend.rest.served import RestLoopback, call, default_model, post, serve

EXHAUSTED = Code.RESOURCE_EXHAUSTED

# ------------------------------------------------------------------------------------------------------------ contexts


@pytest.mark.parametrize("verb", ["classify", "regress"])
@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_a_context_is_not_copied_for_more_examples_than_fit(verb: str, headers: dict[str, str]) -> None:
    asked = {"signature_name": verb, "context": {"c": "a" * 1_000}, "examples": [{"x": 1.0}] * 500}
    body = json.dumps(asked).encode()
    body = gzip.compress(body) if headers else body
    client = RestLoopback(model=default_model)
    target = f"/v1/models/examples:{verb}"
    refused = call(make_app(client, RestSettings(tensor_bytes_max=500_000)), "POST", target, body, headers)
    assert refused.status == 429
    assert "500 examples with a context of" in refused.error
    assert not client.requests
    assert call(make_app(client, RestSettings(tensor_bytes_max=600_000)), "POST", target, body, headers).status == 200


# ------------------------------------------------------------------------------------------------------- empty arrays


def of(shape: tuple[int, ...], alias: str = "y", dtype: int = dt.FLOAT) -> NamedOutput:
    """An output of zeros."""
    size = int(np.prod(shape, dtype=object))
    return NamedOutput(alias, dtype, shape, [b""] * size if dtype == dt.STRING else bytes(size * 4))


@pytest.mark.parametrize("write", [write_rows, write_columns])
@pytest.mark.parametrize(
    "shapes", [[(2**20, 0, 1)], [(2**40, 0)], [(2, 2**20, 0)], [(600_000, 0), (600_000, 0)], [(2**40, 0), (2**40,)]]
)
def test_arrays_that_hold_nothing_are_counted_first(
    write: Callable[[Any], Any], shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_on_one_line", "_on_many_lines"):
        monkeypatch.delattr(json_write, name)  # nobody writes any
    outputs = [NamedOutput(f"y{at}", dt.FLOAT, shape, b"") for at, shape in enumerate(shapes)]
    refused = write(outputs)
    assert isinstance(refused, Failure)
    assert refused.code == EXHAUSTED
    assert "empty arrays, more than 1000000" in refused.text


@pytest.mark.parametrize("shape", [(3, 0), (2, 3, 0), (0, 2**40), (0,), (5, 0, 2**40), (2, 0, 3)])
def test_few_arrays_that_hold_nothing_are_written(shape: tuple[int, ...]) -> None:
    expected = np.zeros(shape[: shape.index(0) + 1]).tolist()
    for write, key in ((write_rows, "predictions"), (write_columns, "outputs")):
        written = write([of(shape)])
        assert isinstance(written, bytes)
        assert json.loads(written) == {key: expected}


SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple)


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.sampled_from([dt.FLOAT, dt.STRING]), st.sampled_from(["y", "y_bytes"]), st.booleans())
def test_what_stands_around_values_is_known_before_it_is_written(
    shape: tuple[int, ...], dtype: int, alias: str, several: bool
) -> None:
    """It is bounded by that number, so the number must be no less."""
    outputs = [of(shape, alias, dtype), of(shape, "other")][: 1 + several]
    texts = 3 * sum(int(np.prod(output.shape)) for output in outputs)
    depth = 1 + several
    for written, frame in (
        (write_rows(outputs), json_write._row_frame_bytes(outputs)),
        (write_columns(outputs), sum(json_write._column_frame_bytes(each, depth) for each in outputs)),
    ):
        assert isinstance(written, bytes)
        assert len(written) <= frame + texts + 200
        assert frame <= 2 * len(written) + 200
    assert str(json.loads(write_columns([of(shape)]))).count("[") == arrays_count(shape)  # type: ignore[arg-type]


def test_many_axes_are_not_indented_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MiB of bools in lists of one, 30 levels deep, are 8 GiB in columnar format."""
    output = NamedOutput("y", dt.BOOL, (2**21,) + (1,) * 30, bytes(2**21))
    monkeypatch.delattr(json_write, "_on_many_lines")
    refused = write_columns([output])
    assert isinstance(refused, Failure)
    assert refused.code == EXHAUSTED
    assert "bytes around its values" in refused.text


def weight(dtype: int, shape: tuple[int, ...], data: Any) -> int:
    return named_outputs(lane_of_one(), [make_output(dtype, shape, data, batchable=False)], 0, 1)[1]


def lane_of_one() -> Any:
    """A lane of one output."""
    client = RestLoopback(model=default_model)
    assert post('{"instances":[1]}', "echo_float", make_app(client)).status == 200
    return client.requests[0][0]


def test_what_has_no_bytes_counts_all_the_same() -> None:
    """It would be written in the event loop."""
    assert weight(dt.FLOAT, (10_000, 0), np.zeros(0, np.float32)) > COPY_BYTES_MIN
    assert weight(dt.BOOL, (1_000, *(1,) * 20), np.zeros(1_000, np.bool_)) > COPY_BYTES_MIN
    assert weight(dt.STRING, (10_000,), [b""] * 10_000) > COPY_BYTES_MIN
    assert weight(dt.FLOAT, (10, 100), np.zeros(1_000, np.float32)) == 4_000


def test_an_npy_body_of_nothing_is_answered_in_few_bytes() -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 0, 1), }\n"
    for count, status in ((1_000, 200), (2**40, 429)):
        head = (text % count).encode()
        body = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
        headers = {"Content-Type": "application/x-npy", "Accept": "application/json"}
        answer = call(serve(), "POST", "/v1/models/echo_float:predict", body, headers)
        assert answer.status == status
        assert len(answer.body) < 10_000


# ------------------------------------------------------------------------------------------------ where it is written


class Threads:
    """Which threads a function ran on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.names: set[str] = set()

    def __call__(self, *arguments: Any) -> Any:
        self.names.add(threading.current_thread().name.partition("_")[0])
        return self._function(*arguments)


@pytest.mark.parametrize("signature", ["classify", "labels", "scores", "regress"])
@pytest.mark.parametrize(("count", "thread"), [(10, "MainThread"), (20_000, "rest-side")])
def test_long_answers_to_examples_are_written_aside(
    signature: str, count: int, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = "regress" if signature == "regress" else "classify"
    name = "write_regressions" if verb == "regress" else "write_classes"
    threads = Threads(getattr(json_examples, name))
    monkeypatch.setattr(rest_reply, name, threads)
    body = json.dumps({"signature_name": signature, "examples": [{}] * count})
    answer = call(serve(), "POST", f"/v1/models/examples:{verb}", body)
    assert answer.status == 200
    results = answer.json["results"]
    assert len(results) == count
    assert results[0] == results[-1]
    assert threads.names == {thread}


def test_strings_behind_the_json_are_gone_through_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(open_inference_write.write)
    monkeypatch.setattr(rest_open_inference, "write", threads)
    for count, thread in ((10, "MainThread"), (20_000, "rest-side")):
        threads.names.clear()
        tensor = {"name": "x", "datatype": "BYTES", "shape": [count], "data": ["a"] * count}
        asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        answer = call(serve(), "POST", "/v2/models/echo_string/infer", json.dumps(asked))
        assert answer.status == 200
        assert answer.body.endswith(b"\1\0\0\0a" * count)
        assert threads.names == {thread}


# --------------------------------------------------------------------------------------------------- quotes and names


class Matches:
    """A pattern that counts how often it is asked."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern
        self.count = 0

    def match(self, *arguments: Any) -> Any:
        self.count += 1
        return self._pattern.match(*arguments)


@pytest.mark.parametrize("unit", [b'\\"', b"\\\\", b"a", b'\\\\\\"', b"\\u0041", b"[", "ä".encode()])
def test_a_long_string_is_read_in_few_steps(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    matches = Matches(json_pieces._INSIDE)
    monkeypatch.setattr(json_pieces, "_INSIDE", matches)
    text = b'{"instances":["' + unit * (2 * 2**20 // len(unit)) + b'","b"]}'
    assert parse_object(text, hurry=True) == orjson.loads(text)
    assert matches.count < 2 * len(text) // json_pieces._INSIDE_BYTES + 20


@pytest.mark.parametrize("unit", [b'\\"', b"\\\\", b"a", b"\\n/\\/"])
def test_the_exact_parser_reads_a_long_string_in_few_steps(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    matches = Matches(json_exact._STRING_PART)
    monkeypatch.setattr(json_exact, "_STRING_PART", matches)
    text = b'["' + unit * (2**20 // len(unit)) + b'",NaN]'
    assert json_exact.parse(text)[0] == orjson.loads(text.replace(b"NaN", b"1"))[0]
    assert matches.count < 2 * len(text) // json_exact._STRING_BYTES + 20


STRINGS = st.text(st.sampled_from('a"\\/\b\f\n\r\té\x00\x7f'), max_size=30)


@settings(max_examples=300, deadline=None)
@given(STRINGS, st.integers(1, 9), st.booleans())
def test_the_exact_parser_reads_strings_wherever_they_are_cut(value: str, size: int, ascii_only: bool) -> None:
    text = json.dumps([value, "\\"], ensure_ascii=ascii_only).replace("/", "\\/").encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_exact, "_STRING_BYTES", size)
        assert json_exact.parse(text) == [value, "\\"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"\\", b'"', b"a", b'\\"', b"\\\\", b"\\" * 65, b"\\" * 66]), max_size=12),
       st.integers(2, 9))  # fmt: skip
def test_a_string_ends_where_the_parser_says(units: list[bytes], size: int) -> None:
    """Wherever it is cut, and however many backslashes stand before a quote."""
    text = b'["' + b"".join(units) + b'"]'
    found = None
    with pytest.MonkeyPatch.context() as patch, suppress(CutError, orjson.JSONDecodeError):
        patch.setattr(json_pieces, "_INSIDE_BYTES", size)
        patch.setattr(json_pieces, "PIECE_BYTES", 2)
        found = read_in_pieces(text)
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        return
    assert found == expected


@pytest.mark.parametrize("name", ['"' * 300_000, "\n" * 300_000, "é\x01\\" * 100_000])
def test_errors_that_quote_names_are_cut(name: str) -> None:
    answer = post(json.dumps({"instances": [1], "signature_name": name}))
    assert answer.status == 400
    assert len(answer.error) == json_text.ERROR_CHARS_MAX + len("...TRUNCATED")
    assert answer.error.startswith('Serving signature name: "')


@given(st.text(st.sampled_from('a"\\\n\x00\x1f\x7fé'), max_size=20), st.integers(0, 5))
def test_long_strings_are_escaped_as_short_ones(text: str, least: int) -> None:
    short = json_text.string_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_ONE_BY_ONE_CHARS_MAX", least)
        assert json_text.string_text(text) == short
    assert json.loads(short) == text


# -------------------------------------------------------------------------------------------------------- keys twice

TWICE = [
    r'{"\u0069nputs":1,"inputs":2}',
    r'{"inputs":1,"\u0069nputs":2}',
    r'{"\u0069nputs":1,"i\u006Eputs" : 2}',
    r'{"inputs":{"a\/b":1,"a/b":2}}',
    r'{"inputs":{"ä":1,"\u00e4":2},"x":"\\"}',
    r'{"inputs":{"ä":1,"\u00e4" ' + "\n" * 50 + r':2}}',
    '{"instances":["' + "a" * 2**20 + r'"],"signature_name":"b","signature_nam\u0065":"c"}',
]
ONCE = [
    r'{"\u0069nputs":1,"instances":[2]}',
    r'{"inputs":{"\u00e4":1,"b":[{"\u00e5":1},{"\u00e5":2}]}}',
    r'{"instances":["\"\u0069nputs\":","\u0069nputs"],"inputs":1}',
    r'{"instances":["\u00e4","\u00e4",{"\u00e4":1},{"\u00e4":2}]}',
]


@pytest.mark.parametrize("text", TWICE)
def test_of_equal_keys_the_first_counts_however_it_is_written(text: str) -> None:
    data = text.encode()
    with pytest.raises(SlowError):
        parse_object(data, hurry=True)
    assert parse_object(data) == json_exact.parse(data) != orjson.loads(data)


@pytest.mark.parametrize("text", ONCE)
@pytest.mark.parametrize("stretch", [1, 7, 65_536])
def test_escapes_alone_need_no_second_look(text: str, stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parse, "_STRETCH_BYTES", stretch)
    assert parse_object(text.encode(), hurry=True) == orjson.loads(text)


@pytest.mark.parametrize("stretch", [1, 7, 65_536])
def test_such_keys_are_found_wherever_a_stretch_ends(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parse, "_STRETCH_BYTES", stretch)
    with pytest.raises(SlowError):
        parse_object(TWICE[0].encode(), hurry=True)


def test_very_many_escaped_keys_need_no_second_look() -> None:
    """As json.dumps writes the names of features that are not in ASCII."""
    text = b'{"instances":[' + b",".join([b'{"\\u5e74":1,"\\u6708":2}'] * 550_000) + b"]}"
    found = parse_object(text, hurry=True)["instances"]
    assert len(found) == 550_000
    assert found[-1] == {"\u5e74": 1, "\u6708": 2}
    twice = text[:-1] + b',"inst\\u0061nces":1}'
    with pytest.raises(SlowError):
        parse_object(twice, hurry=True)
