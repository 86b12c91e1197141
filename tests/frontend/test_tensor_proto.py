"""TensorProto decoding and encoding against expectations written by hand; test_tensor_proto_tf.py asks TensorFlow."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import TensorProto
from ringserve.frontend.tensor_proto import TYPED_FIELDS, Tensor, decode, encode, varint
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import DTYPES

BYTES_MAX = 1 << 20
PARSE_ERROR = Failure(Code.INVALID_ARGUMENT, "tensor parsing error: x")


def proto(dtype: int, shape: list[int] | None, **fields: Any) -> Any:
    made = TensorProto(dtype=dtype, **fields)
    if shape is not None:
        made.tensor_shape.SetInParent()
        for size in shape:
            made.tensor_shape.dim.add(size=size)
    return made


def decoded(dtype: int, shape: list[int] | None, **fields: Any) -> Any:
    """The elements decoded, as the dtype's Python values in one flat list."""
    tensor = decode(proto(dtype, shape, **fields), "x", BYTES_MAX)
    assert isinstance(tensor, Tensor), tensor
    assert tensor.dtype == dtype
    assert tensor.shape == tuple(shape or ())
    if isinstance(tensor.data, list):
        return tensor.data
    numpy_type = DTYPES[dtype].numpy
    assert numpy_type is not None
    assert len(tensor.data) == int(np.prod(tensor.shape)) * numpy_type.itemsize
    return np.frombuffer(tensor.data, dtype=numpy_type).tolist()


def test_every_carried_dtype_has_a_field() -> None:
    assert set(TYPED_FIELDS) == set(DTYPES)
    for dtype, field in TYPED_FIELDS.items():
        descriptor = TensorProto.DESCRIPTOR.fields_by_name[field.name]
        assert descriptor.number == field.number, dtype


# ------------------------------------------------------------------------------------------------ filling and cutting


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], [0, 0, 0, 0]), ([1, 2], [1, 2, 2, 2]), ([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4, 5], [1, 2, 3, 4])],
)
@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        (dt.FLOAT, "float_val"),
        (dt.DOUBLE, "double_val"),
        (dt.INT32, "int_val"),
        (dt.INT16, "int_val"),
        (dt.UINT16, "int_val"),
        (dt.INT8, "int_val"),
        (dt.UINT8, "int_val"),
        (dt.QINT8, "int_val"),
        (dt.QUINT8, "int_val"),
        (dt.QINT16, "int_val"),
        (dt.QUINT16, "int_val"),
        (dt.QINT32, "int_val"),
        (dt.INT64, "int64_val"),
        (dt.UINT32, "uint32_val"),
        (dt.UINT64, "uint64_val"),
    ],
)
def test_values_are_filled_up_and_cut(dtype: int, field: str, values: list[int], expected: list[int]) -> None:
    assert decoded(dtype, [2, 2], **{field: values}) == expected


def test_other_dtypes_are_filled_up_and_cut() -> None:
    assert decoded(dt.BOOL, [3], bool_val=[False, True]) == [False, True, True]
    assert decoded(dt.STRING, [3], string_val=[b"a", b"\xff"]) == [b"a", b"\xff", b"\xff"]
    assert decoded(dt.STRING, [2]) == [b"", b""]
    assert decoded(dt.STRING, [1], string_val=[b"a", b"b"]) == [b"a"]
    assert decoded(dt.COMPLEX64, [2], scomplex_val=[1, 2, 3]) == [1 + 2j, 1 + 2j]  # the odd one is dropped
    assert decoded(dt.COMPLEX64, [2], scomplex_val=[1]) == [0, 0]
    assert decoded(dt.COMPLEX128, [2], dcomplex_val=[1, 2, 3, 4, 5, 6]) == [1 + 2j, 3 + 4j]
    assert decoded(dt.HALF, [2], half_val=[0x3C00]) == [1.0, 1.0]
    assert decoded(dt.HALF, [1], half_val=[0x1C000]) == [-2.0]  # the low 16 bits count
    assert [float(value) for value in decoded(dt.BFLOAT16, [2], half_val=[0x3F80, 0x4000])] == [1.0, 2.0]
    assert [float(value) for value in decoded(dt.FLOAT8_E5M2, [3], float8_val=b"\x3c\x40")] == [1.0, 2.0, 2.0]


def test_small_integers_wrap() -> None:
    assert decoded(dt.INT8, [4], int_val=[300, -129, 127, 128]) == [44, 127, 127, -128]
    assert decoded(dt.UINT8, [2], int_val=[-1, 256]) == [255, 0]
    assert decoded(dt.UINT16, [2], int_val=[65536, -1]) == [0, 65535]
    assert decoded(dt.INT16, [1], int_val=[32768]) == [-32768]
    assert [int(value) for value in decoded(dt.INT4, [3], int_val=[7, 9, -1])] == [7, -7, -1]
    assert [int(value) for value in decoded(dt.UINT4, [2], int_val=[17, -1])] == [1, 15]


def test_extreme_integers() -> None:
    assert decoded(dt.INT64, [2], int64_val=[-(2**63), 2**63 - 1]) == [-(2**63), 2**63 - 1]
    assert decoded(dt.UINT64, [1], uint64_val=[2**64 - 1]) == [2**64 - 1]
    assert decoded(dt.UINT32, [1], uint32_val=[2**32 - 1]) == [2**32 - 1]
    assert decoded(dt.INT32, [1], int_val=[-(2**31)]) == [-(2**31)]


def test_floats_keep_their_bits() -> None:
    bits = struct.pack("<3I", 0x7FC00001, 0x80000000, 0x7F800000)
    made = TensorProto.FromString(b"\x2a\x0c" + bits)  # a packed float_val: NaN with a payload, -0, inf
    made.dtype = dt.FLOAT
    made.tensor_shape.dim.add(size=3)
    tensor = decode(made, "x", BYTES_MAX)
    assert isinstance(tensor, Tensor)
    assert bytes(tensor.data) == bits  # type: ignore[arg-type]


def test_values_in_the_wrong_field_are_ignored() -> None:
    assert decoded(dt.FLOAT, [2], double_val=[1.0], int_val=[3]) == [0, 0]
    assert decoded(dt.INT32, [1], int64_val=[5]) == [0]
    assert [float(value) for value in decoded(dt.BFLOAT16, [1], int_val=[0x3F80])] == [0.0]


# ------------------------------------------------------------------------------------------------------- tensor_content


def test_content_is_used_and_typed_values_are_ignored() -> None:
    assert decoded(dt.FLOAT, [2], tensor_content=struct.pack("<2f", 5, 6), float_val=[1, 2]) == [5, 6]
    assert decoded(dt.INT16, [2], tensor_content=struct.pack("<2h", -5, 6)) == [-5, 6]


@pytest.mark.parametrize("length", [8, 11, 13, 16, 1])
def test_content_must_be_complete(length: int) -> None:
    assert decode(proto(dt.FLOAT, [3], tensor_content=bytes(length)), "x", BYTES_MAX) == PARSE_ERROR


def test_bool_content_is_0_or_1() -> None:
    assert decoded(dt.BOOL, [3], tensor_content=b"\x00\x01\x01") == [False, True, True]
    assert decode(proto(dt.BOOL, [2], tensor_content=b"\x00\x02"), "x", BYTES_MAX) == PARSE_ERROR


def test_string_content() -> None:
    assert decoded(dt.STRING, [2], tensor_content=b"\x02\x00ab") == [b"ab", b""]
    long = b"\xac\x02\x01" + b"a" * 300 + b"b"
    assert decoded(dt.STRING, [2], tensor_content=long) == [b"a" * 300, b"b"]


@pytest.mark.parametrize("content", [b"\x02\x00abc", b"\x02\x00a", b"\x00", b"\x80", b"\x01\x80", b"\xff" * 20])
def test_bad_string_content(content: bytes) -> None:
    assert decode(proto(dt.STRING, [2], tensor_content=content), "x", BYTES_MAX) == PARSE_ERROR


# --------------------------------------------------------------------------------------------------------------- shapes


def test_scalars() -> None:
    assert decoded(dt.FLOAT, [], float_val=[3]) == [3]
    assert decoded(dt.FLOAT, None, float_val=[3, 4]) == [3]
    unknown = proto(dt.FLOAT, [], float_val=[3])
    unknown.tensor_shape.unknown_rank = True
    assert decode(unknown, "x", BYTES_MAX) == Tensor(dt.FLOAT, (), struct.pack("<f", 3))


def test_empty_tensors_are_not_examined() -> None:
    assert decoded(dt.FLOAT, [2, 0], float_val=[1]) == []
    assert decoded(dt.FLOAT, [0], tensor_content=b"abc") == []
    assert decoded(dt.STRING, [0], tensor_content=b"abc") == []


@pytest.mark.parametrize(
    "shape", [[-1], [2, -3], [0, -1], [2**62, 4], [2**62, 4, 0], [0, 2**62, 4], [1] * 255], ids=str
)
def test_impossible_shapes(shape: list[int]) -> None:
    assert decode(proto(dt.FLOAT, shape), "x", BYTES_MAX) == PARSE_ERROR


def test_many_axes_are_possible() -> None:
    assert decoded(dt.FLOAT, [1] * 254, float_val=[1]) == [1]


@pytest.mark.parametrize("dtype", [0, 20, 21, 34, 101, 107, 9999, -1])
def test_impossible_dtypes(dtype: int) -> None:
    assert decode(proto(dtype, [1]), "x", BYTES_MAX) == PARSE_ERROR


@pytest.mark.parametrize("dtype", [dt.FLOAT, dt.UINT8, dt.STRING])
def test_a_shape_may_not_promise_more_than_the_ring_holds(dtype: int) -> None:
    failure = decode(proto(dtype, [2**30, 2**20], float_val=[1]), "x", BYTES_MAX)
    assert isinstance(failure, Failure)
    assert failure.code == Code.RESOURCE_EXHAUSTED
    assert isinstance(decode(proto(dtype, [2**16]), "x", BYTES_MAX), Tensor)
    # a complete content is in memory already
    whole = decode(proto(dt.UINT8, [2], tensor_content=b"ab"), "x", 1)
    assert whole == Tensor(dt.UINT8, (2,), b"ab")


# ------------------------------------------------------------------------------------------------------------- encoding

NUMERIC = sorted(set(DTYPES) - {dt.STRING})


@pytest.mark.parametrize("tensor_content", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (10, 10), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("dtype", NUMERIC)
def test_numeric_round_trip(dtype: int, shape: tuple[int, ...], tensor_content: bool) -> None:
    entry = DTYPES[dtype]
    count = int(np.prod(shape))
    raw = np.random.default_rng(dtype).integers(0, 256, count * entry.itemsize, dtype=np.uint8)
    bits = {dt.BOOL: 1, dt.INT4: 15, dt.UINT4: 15, dt.INT2: 3, dt.UINT2: 3}.get(dtype, 255)
    data = np.asarray(np.frombuffer((raw & bits).tobytes(), entry.numpy)).tobytes()
    made = TensorProto.FromString(encode(Tensor(dtype, shape, data), tensor_content=tensor_content))
    assert made.dtype == dtype
    assert made.HasField("tensor_shape")
    assert [dim.size for dim in made.tensor_shape.dim] == list(shape)
    if tensor_content:
        assert made.tensor_content == data
        assert not made.ListFields()[3:]
    else:
        assert made.tensor_content == b""
        typed = getattr(made, TYPED_FIELDS[dtype].name)
        assert len(typed) == count * (2 if dtype in (dt.COMPLEX64, dt.COMPLEX128) else 1)
    back = decode(made, "x", BYTES_MAX)
    assert isinstance(back, Tensor)
    same = np.frombuffer(back.data, entry.numpy) if count else np.empty(0, entry.numpy)  # type: ignore[arg-type]
    if dtype in (dt.INT4, dt.INT2, dt.UINT4, dt.UINT2):
        assert same.tolist() == np.frombuffer(data, entry.numpy).tolist()  # the upper bits mean nothing
    else:
        assert same.tobytes() == data


def test_encoded_fields_by_hand() -> None:
    def typed(dtype: int, values: list[Any]) -> Any:
        numpy_type = np.uint8 if dtype == dt.INT4 else DTYPES[dtype].numpy
        return TensorProto.FromString(encode(Tensor(dtype, (len(values),), np.array(values, numpy_type).tobytes())))

    assert list(typed(dt.INT8, [-1, 5]).int_val) == [-1, 5]
    assert list(typed(dt.UINT16, [65535]).int_val) == [65535]
    assert list(typed(dt.INT64, [-(2**63), 1]).int64_val) == [-(2**63), 1]
    assert list(typed(dt.UINT64, [2**64 - 1]).uint64_val) == [2**64 - 1]
    assert list(typed(dt.HALF, [1.0, -2.0]).half_val) == [0x3C00, 0xC000]
    assert list(typed(dt.BOOL, [1, 0]).bool_val) == [True, False]
    assert list(typed(dt.COMPLEX64, [1 + 2j]).scomplex_val) == [1, 2]
    assert list(typed(dt.INT4, [0xFF, 0x2C]).int_val) == [-1, -4]


@pytest.mark.parametrize("tensor_content", [False, True])
@pytest.mark.parametrize("values", [[], [b""], [b"a", b"", b"\xff" * 200], [b"x"] * 100])
def test_strings_round_trip(values: list[bytes], tensor_content: bool) -> None:
    made = TensorProto.FromString(
        encode(Tensor(dt.STRING, (len(values),), values), tensor_content=tensor_content)
    )
    assert bool(made.tensor_content) == (tensor_content and bool(values))
    assert list(made.string_val) == ([] if tensor_content else values)
    assert decode(made, "x", BYTES_MAX) == Tensor(dt.STRING, (len(values),), values)


# ------------------------------------------------------------------------------------------ the short form of integers


@given(st.integers(1, 80), st.data())
@settings(deadline=None)
def test_integers_of_every_size(count: int, data: st.DataObject) -> None:
    element = data.draw(st.sampled_from([st.integers(0, 127), st.integers(0, 128), st.integers(-(2**63), 2**63 - 1)]))
    values = data.draw(st.lists(element, min_size=count, max_size=count))
    tensor = Tensor(dt.INT64, (count,), np.array(values, dtype="<i8").tobytes())
    assert list(TensorProto.FromString(encode(tensor)).int64_val) == values


@pytest.mark.parametrize("value", sorted({(1 << power) + step for power in range(0, 64, 7) for step in (-1, 0)}))
def test_varint(value: int) -> None:
    assert TensorProto.FromString(b"\x18" + varint(value % 2**31)).version_number == value % 2**31
    assert list(TensorProto.FromString(b"\x8a\x01" + varint(len(varint(value))) + varint(value)).uint64_val) == [value]
