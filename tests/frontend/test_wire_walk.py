"""The wire walk finds what the official parser found, or says that it does not know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.config.protos import PredictRequest, TensorProto
from ringserve.frontend.tensor_proto import varint
from ringserve.frontend.wire_walk import CONTENT, find_payloads

RAW = {4: "tensor_content", 5: "float_val", 6: "double_val", 9: "scomplex_val", 12: "dcomplex_val", 18: "float8_val"}

f32 = st.floats(width=32)
tensors = st.builds(
    TensorProto,
    dtype=st.integers(0, 33),
    tensor_content=st.binary(max_size=20),
    float_val=st.lists(f32, max_size=4),
    double_val=st.lists(st.floats(), max_size=4),
    int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    string_val=st.lists(st.binary(max_size=5), max_size=3),
    scomplex_val=st.lists(f32, max_size=4),
    dcomplex_val=st.lists(st.floats(), max_size=4),
    bool_val=st.lists(st.booleans(), max_size=3),
    half_val=st.lists(st.integers(-5, 70000), max_size=3),
    float8_val=st.binary(max_size=6),
    version_number=st.integers(-1, 3),
)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    request = PredictRequest(output_filter=draw(st.lists(st.text(max_size=3), max_size=2)))
    if draw(st.booleans()):
        request.model_spec.name = draw(st.text(max_size=5))
        request.model_spec.version.value = draw(st.integers(-(2**63), 2**63 - 1))
    if draw(st.booleans()):
        request.client_id = draw(st.binary(max_size=5))
    for alias, tensor in draw(st.dictionaries(st.text(max_size=4), tensors, max_size=3)).items():
        request.inputs[alias].CopyFrom(tensor)
        for size in draw(st.lists(st.integers(-2, 300), max_size=3)):
            request.inputs[alias].tensor_shape.dim.add(size=size, name=draw(st.sampled_from(["", "batch"])))
    return request


def raw_of(tensor: Any, number: int) -> bytes:
    """The field's bytes on the wire, by an encoder that is not the walk's."""
    only = TensorProto()
    value = getattr(tensor, RAW[number])
    if isinstance(value, bytes):
        return value
    getattr(only, RAW[number]).extend(value)
    serialized: bytes = only.SerializeToString()
    head = 1 + len(varint(len(value) * (8 if number in (6, 12) else 4)))
    return serialized[head:]


@given(requests())
@settings(deadline=None, max_examples=200)
def test_places_are_the_official_parsers(request: Any) -> None:
    message = request.SerializeToString()
    found = find_payloads(message)
    assert found is not None
    assert found.keys() == set(request.inputs)
    for alias, tensor in request.inputs.items():
        present = {number for number in RAW if getattr(tensor, RAW[number])}
        assert found[alias].keys() == present
        for number, (start, end) in found[alias].items():
            assert message[start:end] == raw_of(tensor, number)


@given(requests(), st.data())
@settings(deadline=None, max_examples=200)
def test_changing_payload_bytes_changes_those_values_only(request: Any, data: st.DataObject) -> None:
    """What the template cache relies on: the structure of a message does not depend on the bytes at these places."""
    message = bytearray(request.SerializeToString())
    found = find_payloads(bytes(message))
    assert found is not None
    expected = PredictRequest()
    expected.CopyFrom(request)
    for alias, places in found.items():
        for number, (start, end) in places.items():
            value = data.draw(st.binary(min_size=end - start, max_size=end - start))
            message[start:end] = value
            if isinstance(getattr(request.inputs[alias], RAW[number]), bytes):
                setattr(expected.inputs[alias], RAW[number], value)
            else:
                expected.inputs[alias].ClearField(RAW[number])
                packed = varint(number << 3 | 2) + varint(len(value)) + value
                expected.inputs[alias].MergeFrom(TensorProto.FromString(packed))
    again = PredictRequest.FromString(bytes(message))
    # bytes, because NaN is unequal to itself; the order of map entries is made the same
    assert again.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert find_payloads(bytes(message)) == found


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_garbage_is_survived(data: bytes) -> None:
    found = find_payloads(data)
    for places in (found or {}).values():
        assert all(0 <= start <= end <= len(data) for start, end in places.values())


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


X = field(1, b"x")
TENSOR = field(CONTENT, b"abcd")
ENTRY = X + field(2, TENSOR)


@pytest.mark.parametrize(
    "message",
    [
        field(2, ENTRY) + field(2, ENTRY),  # the last entry of a key wins
        field(2, X + X + field(2, TENSOR)),
        field(2, X + field(2, TENSOR) + field(2, TENSOR)),  # the two are merged
        field(2, X),
        field(2, field(2, TENSOR)),
        field(2, ENTRY + field(3, b"")),
        field(2, X + field(2, TENSOR + TENSOR)),  # the last content wins
        field(2, X + field(2, field(5, bytes(4)) + field(5, bytes(4)))),  # two chunks of packed floats
        field(2, X + field(2, varint(5 << 3 | 5) + bytes(4))),  # a float that is not packed
        b"\x0b\x0c" + field(2, ENTRY),  # a group
        b"\x10\x01" + field(2, ENTRY),  # inputs as a number: an unknown field to the parser
        field(2, ENTRY)[:-1],
        field(2, ENTRY) + b"\x80",
        field(2, ENTRY) + b"\x08" + b"\xff" * 10,
        field(2, ENTRY) + b"\x08\x01" * 600,
    ],
)
def test_unusual_forms_are_not_known(message: bytes) -> None:
    assert find_payloads(message) is None


def test_plain_form() -> None:
    assert find_payloads(b"") == {}
    assert find_payloads(field(2, ENTRY)) == {"x": {CONTENT: (9, 13)}}
