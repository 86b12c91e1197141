"""TensorProto decoding and encoding against TensorFlow itself: its C++ parser, serializer, and Python helpers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Failure
from ringserve.config.protos import TensorProto
from ringserve.frontend.tensor_proto import Tensor, decode, encode
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import DTYPES

tf: Any = pytest.importorskip("tensorflow")

BYTES_MAX = 1 << 20
NARROW = (dt.INT4, dt.UINT4, dt.INT2, dt.UINT2)


def parsed_by_tensorflow(proto: Any) -> list[bytes] | bytes | None:
    """What `Tensor::FromProto` makes of it: raw bytes, or strings; None for a parse error."""
    try:
        parsed = tf.io.parse_tensor(proto.SerializeToString(), tf.dtypes.as_dtype(proto.dtype))
    except tf.errors.InvalidArgumentError:
        return None
    values = parsed.numpy()
    if proto.dtype == dt.STRING:
        return [bytes(value) for value in np.asarray(values, dtype=object).ravel()]
    return bytes(values.tobytes())


ints = st.integers(-(2**31), 2**31 - 1)
f32 = st.floats(width=32, allow_nan=False)
values = {
    "float_val": st.lists(f32, max_size=7),
    "double_val": st.lists(st.floats(allow_nan=False), max_size=7),
    "int_val": st.lists(ints, max_size=7),
    "string_val": st.lists(st.binary(max_size=4), max_size=7),
    "scomplex_val": st.lists(f32, max_size=9),
    "dcomplex_val": st.lists(st.floats(allow_nan=False), max_size=9),
    "int64_val": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=7),
    "bool_val": st.lists(st.booleans(), max_size=7),
    "half_val": st.lists(ints, max_size=7),
    "uint32_val": st.lists(st.integers(0, 2**32 - 1), max_size=7),
    "uint64_val": st.lists(st.integers(0, 2**64 - 1), max_size=7),
    "float8_val": st.binary(max_size=7),
}


@st.composite
def protos(draw: st.DrawFn) -> Any:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    proto = TensorProto(dtype=dtype, **draw(st.fixed_dictionaries(values)))
    size = st.one_of(st.integers(0, 3), st.sampled_from([1, 2, -1, 2**61]))
    shape = draw(st.lists(size, max_size=3))
    for each in shape:
        proto.tensor_shape.dim.add(size=each)
    kind = draw(st.sampled_from(["typed", "typed", "complete", "random"]))
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if kind == "complete" and 0 < count < 100 and dtype != dt.STRING:
        length = count * DTYPES[dtype].itemsize
        proto.tensor_content = draw(st.binary(min_size=length, max_size=length))
    elif kind == "complete" and 0 < count < 100:
        lengths = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
        proto.tensor_content = bytes(lengths) + b"s" * sum(lengths)
    elif kind == "random":
        proto.tensor_content = draw(st.binary(max_size=12))
    return proto


@given(protos())
@settings(deadline=None, max_examples=600)
def test_decodes_as_tensorflow_does(proto: Any) -> None:
    ours = decode(proto, "x", BYTES_MAX)
    if isinstance(ours, Failure) and any(dim.size > BYTES_MAX for dim in proto.tensor_shape.dim):
        return  # TensorFlow would try to allocate it, or hold an empty tensor that numpy cannot
    theirs = parsed_by_tensorflow(proto)
    if isinstance(ours, Failure):
        assert theirs is None
        assert ours.text == "tensor parsing error: x"
    else:
        assert (ours.data if isinstance(ours.data, list) else bytes(ours.data)) == theirs


def sample(dtype: int, shape: tuple[int, ...]) -> Any:
    """A finite array of the dtype, of all bytes that it can have."""
    entry = DTYPES[dtype]
    count = int(np.prod(shape))
    rng = np.random.default_rng(dtype)
    if entry.numpy is None:
        made = np.empty(count, dtype=object)
        made[:] = [rng.bytes(index % 5) for index in range(count)]
        return made.reshape(shape)
    if entry.numpy.kind in "fcV":
        return rng.normal(size=count).astype(np.float32).astype(entry.numpy).reshape(shape)
    if dtype in NARROW:
        low, high = {dt.INT4: (-8, 8), dt.UINT4: (0, 16), dt.INT2: (-2, 2), dt.UINT2: (0, 4)}[dtype]
        return rng.integers(low, high, count).astype(entry.numpy).reshape(shape)
    if dtype == dt.BOOL:
        return rng.integers(0, 2, count).astype(bool).reshape(shape)
    return rng.integers(0, 256, count * entry.itemsize, dtype=np.uint8).view(entry.numpy).reshape(shape)


def tensor_of(dtype: int, array: Any) -> Tensor:
    return Tensor(dtype, array.shape, list(array.ravel()) if dtype == dt.STRING else array.tobytes())


def plain(tensor: Tensor) -> Any:
    """What a tensor holds, comparable: its bytes, but values where a byte's upper bits mean nothing."""
    if isinstance(tensor.data, list):
        return tensor.data
    if tensor.dtype in NARROW:
        return np.frombuffer(tensor.data, DTYPES[tensor.dtype].numpy).astype(int).tolist()
    return bytes(tensor.data)


def parsed(proto: Any, shape: tuple[int, ...]) -> Any:
    data = parsed_by_tensorflow(proto)
    assert data is not None
    return plain(Tensor(proto.dtype, shape, data))


#: Dtypes that `tf.make_ndarray` can read.
NDARRAY = sorted(set(DTYPES) & {*range(1, 11), 14, 17, 18, 19, 22, 23, 24, 25})

CASES = list(itertools.product(sorted(DTYPES), [(), (1,), (2, 3), (50,), (0, 2)]))


@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
def test_typed_fields_mean_the_same_to_tensorflow(dtype: int, shape: tuple[int, ...]) -> None:
    array = sample(dtype, shape)
    tensor = tensor_of(dtype, array)
    proto = TensorProto.FromString(encode(tensor))
    assert parsed(proto, shape) == plain(tensor)
    if dtype in NDARRAY:
        made = tf.make_ndarray(proto)
        assert made.shape == shape
        assert made.tolist() == array.tolist()


@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
def test_content_is_what_tensorflow_writes(dtype: int, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(dtype, sample(dtype, shape))
    proto = TensorProto.FromString(encode(tensor, tensor_content=True))
    assert parsed(proto, shape) == plain(tensor)
    if dtype == dt.STRING:
        return  # SerializeTensor writes string_val
    try:
        theirs = tf.io.serialize_tensor(tf.io.parse_tensor(proto.SerializeToString(), dtype)).numpy()
    except tf.errors.NotFoundError:
        return  # no kernel to serialize this dtype with
    assert proto == TensorProto.FromString(theirs)


@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
def test_decodes_what_clients_make(dtype: int, shape: tuple[int, ...]) -> None:
    """`tf.make_tensor_proto` is how Python clients build requests."""
    array = sample(dtype, shape)
    try:
        proto = tf.make_tensor_proto(array, dtype=tf.dtypes.as_dtype(dtype))
    except TypeError:
        pytest.skip("make_tensor_proto does not take this dtype")
    decoded = decode(proto, "x", BYTES_MAX)
    assert isinstance(decoded, Tensor)
    assert decoded.shape == shape
    assert plain(decoded) == plain(tensor_of(dtype, array))
