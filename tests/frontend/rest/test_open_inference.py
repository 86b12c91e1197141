"""The Open Inference protocol's codec: tensors of every type there and back, and what is wrong with a body, by name."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.json_write import NamedOutput
from ringserve.frontend.open_inference import DATATYPES, NAMES, Asked, Wanted, raw_input, read
from ringserve.frontend.open_inference_write import Answer, Form, write
from ringserve.frontend.tensor_proto import Tensor
from ringserve.shm import dtype as dt


def body_of(*inputs: dict[str, Any], tail: bytes = b"", **members: Any) -> tuple[bytes, int]:
    head = json.dumps({"inputs": list(inputs), **members}).encode()
    return head + tail, len(head)


def binary(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def asked(body: tuple[bytes, int]) -> Asked:
    found = read(*body)
    assert isinstance(found, Asked), found
    return found


def refusal(body: tuple[bytes, int]) -> str:
    found = read(*body)
    assert isinstance(found, Failure)
    return found.text


_SHAPES = st.lists(st.integers(0, 3), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    number = draw(st.sampled_from(sorted(NAMES)))
    shape = tuple(draw(_SHAPES))
    count = int(np.prod(shape))
    if number == dt.STRING:
        return Tensor(number, shape, draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count)))
    if number == dt.BOOL:
        return Tensor(number, shape, bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))))
    size = count * dt.dtype_of(number).itemsize
    return Tensor(number, shape, draw(st.binary(min_size=size, max_size=size)))


def raw(tensor: Tensor) -> bytes:
    if isinstance(tensor.data, list):
        return b"".join(struct.pack("<I", len(value)) + value for value in tensor.data)
    return bytes(tensor.data)


@given(st.lists(tensors(), min_size=1, max_size=3), st.integers(0, 40))
def test_binary_tensors_come_back(sent: list[Tensor], padding: int) -> None:
    inputs = [
        binary(f"t{number}", NAMES[each.dtype], list(each.shape), len(raw(each))) for number, each in enumerate(sent)
    ]
    body = body_of(*inputs, tail=b"".join(map(raw, sent)), model_name="x" * padding)  # unknown keys are nobody's matter
    found = asked(body)
    for number, tensor in enumerate(sent):
        got = found.tensors[f"t{number}"]
        assert (got.dtype, got.shape, raw(got)) == (tensor.dtype, tensor.shape, raw(tensor))
    assert (found.places is None) == any(each.dtype == dt.STRING for each in sent)
    named = [NamedOutput(name, each.dtype, each.shape, each.data) for name, each in found.tensors.items()]
    form = Form("m", 7, "an id", [], True, list(found.tensors))
    first, again = write(form, named), write(form, named)
    assert first == again
    assert isinstance(first, Answer)
    head = json.loads(first.body[: first.json_bytes])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "7", "an id")
    assert head["outputs"] == inputs
    assert first.body[first.json_bytes :] == b"".join(map(raw, sent))


@given(tensors().filter(lambda tensor: tensor.dtype != dt.STRING))
def test_outputs_in_json_are_requests_again(tensor: Tensor) -> None:
    form = Form("m", 1, None, [Wanted("x", False)], True, ["x"])
    answer = write(form, [NamedOutput("x", *tensor)])
    assert isinstance(answer, Answer)
    assert answer.json_bytes == -1
    outputs = json.loads(answer.body)["outputs"]
    (got,) = asked(body_of(*outputs)).tensors.values()
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    numpy_type = dt.dtype_of(tensor.dtype).numpy
    assert numpy_type is not None
    sent, back = (np.frombuffer(each.data, numpy_type) for each in (tensor, got))  # type: ignore[arg-type]
    assert np.array_equal(sent, back) or np.array_equal(np.isnan(sent), np.isnan(back))


DATA: list[tuple[str, list[int], Any, Any]] = [
    ("FP32", [2, 2], [1, 2.5, -3, 4], [[1, 2.5], [-3, 4]]),
    ("FP32", [2, 2], [[1, 2.5], [-3, 4]], [[1, 2.5], [-3, 4]]),
    ("FP16", [1], [0.5], [0.5]),
    ("BF16", [1], [256.5], [256.0]),
    ("FP64", [], [0.1], 0.1),
    ("INT8", [2], [-128, 127], [-128, 127]),
    ("UINT8", [2], [0, 255], [0, 255]),
    ("UINT64", [1], [2**64 - 1], [2**64 - 1]),
    ("BOOL", [1, 2], [[True, False]], [[True, False]]),
    ("FP32", [0, 3], [], np.zeros((0, 3))),
]


@pytest.mark.parametrize(("datatype", "shape", "data", "expected"), DATA)
def test_data_flat_or_nested(datatype: str, shape: list[int], data: Any, expected: Any) -> None:
    one = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    (tensor,) = asked(body_of(one)).tensors.values()
    assert not isinstance(tensor.data, list)
    array = np.frombuffer(tensor.data, dt.dtype_of(tensor.dtype).numpy).reshape(tensor.shape)
    assert tensor.dtype == DATATYPES[datatype]
    assert np.array_equal(array, np.array(expected, array.dtype))


def test_strings_in_json() -> None:
    one = {"name": "x", "datatype": "BYTES", "shape": [2], "data": ["a", "é"]}
    assert asked(body_of(one)).tensors["x"].data == [b"a", "é".encode()]
    coded = {**one, "data": ["AP8=", ""], "parameters": {"content_type": "base64"}}
    assert asked(body_of(coded)).tensors["x"].data == [b"\0\xff", b""]
    form = Form("m", 1, None, [], False, ["x"])
    told = write(form, [NamedOutput("x", dt.STRING, (1,), [b'a"\n'])])
    assert isinstance(told, Answer)
    assert json.loads(told.body)["outputs"][0]["data"] == ['a"\n']
    assert write(form, [NamedOutput("x", dt.STRING, (1,), [b"\xff"])]) == Failure(
        Code.INVALID_ARGUMENT, "output 'x' has an element that is no UTF-8; ask for it with 'binary_data': true"
    )


def test_numbers_that_strict_json_has_not() -> None:
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[NaN,-Infinity]}]}'
    (tensor,) = asked((head, len(head))).tensors.values()
    assert not isinstance(tensor.data, list)
    assert np.array_equal(np.frombuffer(tensor.data, "<f4"), [np.nan, -np.inf], equal_nan=True)


def test_what_a_request_says_beside_its_tensors() -> None:
    one = binary("x", "FP32", [1], 4)
    about = {"binary_data_output": True, "signature_name": "s", "timeout": 2500, "priority": 1}
    outputs = [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}]
    found = asked(body_of(one, tail=bytes(4), id="7", parameters=about, outputs=outputs))
    assert (found.id, found.signature_name, found.timeout_ns, found.is_binary) == ("7", "s", 2_500_000, True)
    assert found.outputs == (Wanted("b", False), Wanted("a", None))
    form = Form("m", 1, found.id, found.outputs, found.is_binary, ("a", "b"))
    assert (form.places, form.binary) == ([1, 0], [False, True])


FOUR = binary("x", "FP32", [1], 4)
JSON_X = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
WRONG: list[tuple[tuple[bytes, int], str]] = [
    ((b"{}", 3), "Inference-Header-Content-Length is 3, and the body has 2 bytes"),
    ((b"{", 1), "JSON Parse error: "),
    ((b"[]", 2), "JSON Value: [] Is not object"),
    ((b"{}", 2), "'inputs' must be a list of tensors, at least one"),
    (body_of(), "'inputs' must be a list of tensors, at least one"),
    (body_of({"name": 1}), "each input must be an object with a 'name'"),
    (body_of(JSON_X, JSON_X), "input 'x' is there twice"),
    (body_of({**JSON_X, "datatype": "float"}), "'datatype' of input 'x' must be one of BOOL, "),
    (body_of({**JSON_X, "datatype": ["FP32"]}), "'datatype' of input 'x' must be one of BOOL, "),
    (body_of({**JSON_X, "shape": [-1]}), "'shape' of input 'x' must be a list of numbers, none below 0"),
    (body_of({**JSON_X, "shape": [True]}), "'shape' of input 'x' must be a list of numbers, none below 0"),
    (body_of({**JSON_X, "shape": [2**40, 2**40]}), "'shape' of input 'x' must be a list of numbers, none below 0"),
    (body_of({**JSON_X, "shape": [2]}), "'data' of input 'x' must be FP32 of shape [2], flat or nested"),
    (body_of({**JSON_X, "shape": [2, 2], "data": [[1.0], [1.0, 2.0, 3.0]]}), "'data' of input 'x' must be FP32 of "),
    (body_of({**JSON_X, "data": ["1"]}), "'data' of input 'x' must be FP32 of shape [1], flat or nested"),
    (body_of({**JSON_X, "data": 1.0}), "'data' of input 'x' must be FP32 of shape [1], flat or nested"),
    (body_of({**JSON_X, "datatype": "INT8", "data": [128]}),
     "'data' of input 'x' must be INT8 of shape [1], flat or nested: a number is out of range"),
    (body_of({**JSON_X, "datatype": "UINT32", "data": [-1]}), "'data' of input 'x' must be UINT32 of shape [1]"),
    (body_of({**JSON_X, "datatype": "INT64", "data": [2**63]}), "'data' of input 'x' must be INT64 of shape [1]"),
    (body_of({**JSON_X, "datatype": "INT32", "data": [1.5]}), "'data' of input 'x' must be INT32 of shape [1]"),
    (body_of({"name": "x", "datatype": "FP32", "shape": [1]}),
     "input 'x' has neither 'data' nor 'binary_data_size'"),
    (body_of({**FOUR, "data": [1.0]}, tail=bytes(4)), "input 'x' has both 'data' and 'binary_data_size'"),
    (body_of(FOUR, tail=bytes(3)), "unexpected size for input 'x': 4 bytes, and 3 are left"),
    (body_of(FOUR, tail=bytes(5)), "unexpected additional input data: 1 bytes behind the last input"),
    (body_of(JSON_X, tail=bytes(1)), "unexpected additional input data: 1 bytes behind the last input"),
    (body_of(binary("x", "FP32", [2], 4), tail=bytes(4)),
     "unexpected size for input 'x': 4 bytes, and FP32 of shape [2] has 8"),
    (body_of(binary("x", "FP32", [1], -4)), "'binary_data_size' of input 'x' must be a number of bytes"),
    (body_of(binary("x", "BOOL", [1], 1), tail=b"\x02"), "input 'x' has bools that are neither 0 nor 1"),
    (body_of(binary("x", "BYTES", [2], 5), tail=b"\1\0\0\0a"), "unexpected data of input 'x': 5 bytes that "),
    (body_of(binary("x", "BYTES", [1], 6), tail=b"\1\0\0\0ab"), "unexpected data of input 'x': 6 bytes that "),
    (body_of(binary("x", "BYTES", [1], 4), tail=b"\xff" * 4), "unexpected data of input 'x': 4 bytes that are not 1 "),
    (body_of(binary("x", "BYTES", [1], 3), tail=b"\0\0\0"), "unexpected data of input 'x': 3 bytes that are not 1 "),
    (body_of(binary("x", "BYTES", [2**40], 0)), "input 'x' has more than 8000000 elements"),
    (body_of({**JSON_X, "datatype": "BYTES", "data": ["?"], "parameters": {"content_type": "base64"}}),
     "'data' of input 'x' is no base64: "),
    (body_of(JSON_X, id=1), "'id' must be a string"),
    (body_of(JSON_X, parameters=[]), "'parameters' of the request must be an object"),
    (body_of(JSON_X, parameters={"binary_data_output": 1}), "'binary_data_output' of the request must be true or "),
    (body_of(JSON_X, parameters={"timeout": -1}), "'timeout' must be a number of microseconds"),
    (body_of(JSON_X, parameters={"signature_name": 1}), "'signature_name' must be a string"),
    (body_of(JSON_X, outputs={}), "'outputs' must be a list"),
    (body_of(JSON_X, outputs=[{"name": "y", "parameters": {"classification": 3}}]),
     "the extension 'classification' is not served here"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named(body: tuple[bytes, int], text: str) -> None:
    assert refusal(body).startswith(text)


def test_who_is_in_a_hurry_is_told_what_is_slow() -> None:
    long = body_of(binary("x", "BYTES", [1], 40_004), tail=struct.pack("<I", 40_000) + bytes(40_000))
    assert read(*long, hurry=True) is None
    assert asked(long).tensors["x"].data == [bytes(40_000)]
    nan = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}'
    assert read(nan, len(nan), hurry=True) is None


def test_a_body_without_json() -> None:
    assert raw_input(bytes(24), "x", dt.FLOAT, (-1, 2, -1), has_row_axis=True) == Tensor(
        dt.FLOAT, (1, 2, 3), memoryview(bytes(24))
    )
    assert raw_input(b"text", "x", dt.STRING, (-1,), has_row_axis=True) == Tensor(dt.STRING, (1,), [b"text"])
    for size, dtype, shape, is_row in (
        (23, dt.FLOAT, (-1, 2, -1), True), (24, dt.FLOAT, (-1, -1, -1), True), (4, dt.FLOAT, (-1, 0), True),
        (4, dt.FLOAT, None, False), (4, dt.STRING, (-1, 2), True), (8, dt.FLOAT, (), False),
    ):  # fmt: skip
        assert isinstance(raw_input(bytes(size), "x", dtype, shape, has_row_axis=is_row), Failure)


def test_types_that_the_protocol_has_no_name_for() -> None:
    form = Form("m", 1, None, [], True, ["x"])
    assert write(form, [NamedOutput("x", dt.COMPLEX64, (1,), bytes(8))]) == Failure(
        Code.INVALID_ARGUMENT, "output 'x' is of type complex64, which the Open Inference protocol has no name for"
    )
