"""TensorProto <-> Tensor, by the rules of TensorFlow's C++ `Tensor::FromProto` and `AsProtoField`.

Decoding is lenient where TensorFlow is (missing values are filled up, surplus ones dropped, values in the wrong field
ignored) and strict where it is strict (a tensor_content must be complete to the byte). Numeric values are never
handled one by one in Python, except that protobuf yields varint-coded fields as iterators of int.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import TensorProto, TensorShapeProto
from ringserve.frontend.handler import Buffer
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import DTYPES
from ringserve.shm.tensor import AXES_MAX

#: TensorFlow's largest rank (TensorShape::MaxDimensions). Above it a TensorProto is none; how many axes are carried is
#: another matter, see `check_axes`.
RANK_MAX: Final = 254
#: So many elements of 16 bytes are more bytes than an int64 counts.
_ELEMENTS_MAX: Final = 2**59 - 1
_POINTER_BYTES: Final = 8
#: Strings of one tensor that comes as bytes: each takes forty and more, however few it is sent with.
STRINGS_MAX: Final = 8_000_000
#: Bytes of one tensor that its shape may promise and its message need not hold: a read holds a hundred such messages,
#: and all of them are filled up before others have their turn, be there room for them or not.
FILLED_BYTES_MAX: Final = 64 * 2**20
#: Strings of one tensor that its shape may promise and its message need not hold. Each is a length to write, one by one
#: in the event loop: as many as the ring takes are 20 s.
STRINGS_FILLED_MAX: Final = 65_536
_SMALL_COUNT: Final = 32
_VARINT_BYTES_MAX: Final = 10
#: Lengths of strings that are found at once: it takes a hundred bytes for each.
_LENGTHS_AT_ONCE: Final = 65_536


class Tensor(NamedTuple):
    """A tensor outside of a ring. dtype: DataType number.

    data: raw little-endian row-major bytes (int4 and the like: one byte per element), or the elements of a string
    tensor, row-major. Whoever made the tensor owns the data; nobody may write to it.
    """

    dtype: int
    shape: tuple[int, ...]
    data: Buffer | list[bytes]

    @property
    def held_bytes(self) -> int:
        """Memory that its elements take at least."""
        return len(self.data) * (_POINTER_BYTES if isinstance(self.data, list) else 1)


class TypedField(NamedTuple):
    """Where a dtype's values live outside of tensor_content.

    raw: the field's packed bytes are the tensor's own bytes (fixed-width little-endian values, or bytes).
    numpy: the type in which varint-coded values are read before they are cut down to the dtype.
    """

    name: str
    number: int
    raw: bool
    numpy: type[np.generic] | None


_FLOAT: Final = TypedField("float_val", 5, True, None)
_DOUBLE: Final = TypedField("double_val", 6, True, None)
_INT: Final = TypedField("int_val", 7, False, np.int32)
_STRING: Final = TypedField("string_val", 8, False, None)
_SCOMPLEX: Final = TypedField("scomplex_val", 9, True, None)
_INT64: Final = TypedField("int64_val", 10, False, np.int64)
_BOOL: Final = TypedField("bool_val", 11, False, np.uint8)
_DCOMPLEX: Final = TypedField("dcomplex_val", 12, True, None)
_HALF: Final = TypedField("half_val", 13, False, np.int32)
_UINT32: Final = TypedField("uint32_val", 16, False, np.uint32)
_UINT64: Final = TypedField("uint64_val", 17, False, np.uint64)
_FLOAT8: Final = TypedField("float8_val", 18, True, None)

_FIELDS: Final[dict[int, TypedField]] = {
    dt.FLOAT: _FLOAT,
    dt.DOUBLE: _DOUBLE,
    dt.STRING: _STRING,
    dt.COMPLEX64: _SCOMPLEX,
    dt.COMPLEX128: _DCOMPLEX,
    dt.INT64: _INT64,
    dt.BOOL: _BOOL,
    dt.UINT32: _UINT32,
    dt.UINT64: _UINT64,
    dt.HALF: _HALF,
    dt.BFLOAT16: _HALF,
    **dict.fromkeys((dt.INT32, dt.INT16, dt.INT8, dt.UINT8, dt.UINT16), _INT),
    **dict.fromkeys((dt.INT4, dt.UINT4, dt.INT2, dt.UINT2), _INT),
    **dict.fromkeys((dt.QINT8, dt.QUINT8, dt.QINT32, dt.QINT16, dt.QUINT16), _INT),
    **dict.fromkeys((dt.FLOAT8_E5M2, dt.FLOAT8_E4M3FN), _FLOAT8),
    **dict.fromkeys((dt.FLOAT8_E4M3FNUZ, dt.FLOAT8_E4M3B11FNUZ, dt.FLOAT8_E5M2FNUZ, dt.FLOAT4_E2M1FN), _FLOAT8),
}

#: DataType number -> typed field, of every dtype that can be carried.
TYPED_FIELDS: Final = {number: field for number, field in _FIELDS.items() if number in DTYPES}

#: Bytes per element -> a type that moves them as they are. A void type of as many takes thirteen times as long to fill
#: up what a large shape promises (0.16 s for 64 MiB), and nobody else is served meanwhile.
_BITS: Final[dict[int, Any]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}

#: Dtypes of less than a byte, one byte per element; TensorFlow never reads its upper bits, and neither clears them.
_NARROW: Final = (dt.INT4, dt.UINT4, dt.INT2, dt.UINT2)


class _ParseError(Exception):
    """The TensorProto means no tensor. Never leaves this module."""


class _FillError(Exception):
    """It means one of which too little was sent; so many bytes are missing. Never leaves this module."""


# ----------------------------------------------------------------------------------------------------------- decoding


def decode(proto: Any, alias: str, bytes_max: int) -> Tensor | Failure:
    """The tensor that a TensorProto means. alias: named in the failure's text.

    bytes_max: a shape may promise more than the message holds (values are filled up); a tensor that would take more
    than this many bytes is refused with RESOURCE_EXHAUSTED before it is made. So is one that would have to be filled up
    with more than FILLED_BYTES_MAX, or to more than STRINGS_FILLED_MAX strings.
    """
    dtype = proto.dtype
    field = TYPED_FIELDS.get(dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = elements_count(shape)
    if field is None or count < 0:
        return _unparsable(alias)
    itemsize = _POINTER_BYTES if dtype == dt.STRING else DTYPES[dtype].itemsize
    content = proto.tensor_content
    if count * itemsize > bytes_max and not content:
        return _too_large(alias, count * itemsize, bytes_max)
    try:
        if dtype == dt.STRING:
            failure = _check_strings(proto.string_val, content, count, alias, bytes_max)
            if failure is not None:
                return failure
            return Tensor(dtype, shape, _string_values(proto.string_val, content, count))
        if not count:
            return Tensor(dtype, shape, b"")
        if content:
            if len(content) != count * itemsize or (dtype == dt.BOOL and not bools_valid(content)):
                return _unparsable(alias)
            return Tensor(dtype, shape, content)
        return Tensor(dtype, shape, _typed_values(proto, field, dtype, count, itemsize))
    except _FillError as error:
        return Failure(
            Code.RESOURCE_EXHAUSTED,
            f"tensor {alias} would be filled up with {error} bytes that were not sent, more than {FILLED_BYTES_MAX}",
        )
    except _ParseError:
        return _unparsable(alias)


def _check_strings(typed: Any, content: bytes, count: int, alias: str, bytes_max: int) -> Failure | None:
    """Whether so many strings may be made of what was sent."""
    if content:
        if STRINGS_MAX < count <= len(content):
            return Failure(Code.RESOURCE_EXHAUSTED, f"tensor {alias} has {count} strings, more than {STRINGS_MAX}")
        return None
    missing = count - len(typed)
    if missing <= 0:
        return None
    if count > STRINGS_FILLED_MAX:
        return Failure(
            Code.RESOURCE_EXHAUSTED,
            f"tensor {alias} has {len(typed)} of its {count} strings; more than {STRINGS_FILLED_MAX} must all be sent",
        )
    size = missing * len(typed[-1]) if len(typed) else 0
    return _too_large(alias, size, bytes_max) if size > bytes_max else None


def _too_large(alias: str, size: int, bytes_max: int) -> Failure:
    return Failure(
        Code.RESOURCE_EXHAUSTED,
        f"tensor {alias} would need {size} bytes, and of what a request may hold {bytes_max} are left",
    )


def _unparsable(alias: str) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, f"tensor parsing error: {alias}")


def elements_count(shape: Sequence[int]) -> int:
    """The number of elements, or -1 for a shape that is refused: negative size, too many axes, overflow."""
    if len(shape) > RANK_MAX:
        return -1
    count = extent = 1
    for size in shape:
        if size < 0:
            return -1
        count *= size
        # An axis of size 0 excuses no other one: TensorFlow says so of those before it, numpy of all.
        extent *= size or 1
    return count if extent <= _ELEMENTS_MAX else -1


def check_axes(name: str, shape: Sequence[int]) -> Failure | None:
    """Whether a tensor of this shape can be carried. name: of the input, for the failure's text; empty for none."""
    if len(shape) <= AXES_MAX:
        return None
    whose = f"input {name}" if name else "the array"
    text = f"{whose} has {len(shape)} axes, and tensors of more than {AXES_MAX} axes are not served"
    return Failure(Code.INVALID_ARGUMENT, text)


def bools_valid(content: Buffer) -> bool:
    """Whether every byte is 0 or 1; TensorFlow has no third bool."""
    return not bytes(content).translate(None, b"\x00\x01")


def _string_values(typed: Any, content: bytes, count: int) -> list[bytes]:
    if not count:
        return []
    if content:
        return _split_strings(content, count)
    values: list[bytes] = list(typed[:count])
    return values + [values[-1] if values else b""] * (count - len(values))


def _split_strings(content: bytes, count: int) -> list[bytes]:
    """`count` varint lengths, then the bytes one after another, to the last byte."""
    if count > len(content):
        raise _ParseError
    lengths, offset = _few_lengths(content, count) if count <= _SMALL_COUNT else _many_lengths(content, count)
    if max(lengths) > len(content) or offset + sum(lengths) != len(content):
        raise _ParseError
    cuts = accumulate(lengths, initial=offset)
    return [content[start:end] for start, end in pairwise(cuts)]


def _few_lengths(content: bytes, count: int) -> tuple[Sequence[int], int]:
    """So many varints, and where they end."""
    lengths = []
    offset = 0
    for _ in range(count):
        length = shift = 0
        while True:
            if offset >= len(content) or shift > 63:
                raise _ParseError
            byte = content[offset]
            offset += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        lengths.append(length)
    return lengths, offset


def _many_lengths(content: bytes, count: int) -> tuple[Sequence[int], int]:
    """The same without going from byte to byte, and without an object for each."""
    if count <= len(content) and content[:count].isascii():
        return content[:count], count  # none is longer than 127: the bytes are the lengths
    lengths = array("Q", (0,)) * count
    found, whole, offset = np.frombuffer(lengths, np.uint64), np.frombuffer(content, np.uint8), 0
    for start in range(0, count, _LENGTHS_AT_ONCE):
        offset += _read_lengths(whole[offset:], found[start : start + _LENGTHS_AT_ONCE])
    return lengths, offset


def _read_lengths(content: npt.NDArray[np.uint8], lengths: npt.NDArray[np.uint64]) -> int:
    """Read varints from the start of `content` into `lengths`, all of which are 0 yet. How many bytes they take."""
    head = content[: _VARINT_BYTES_MAX * len(lengths)]
    ends = np.flatnonzero(head < 0x80)[: len(lengths)]
    if len(ends) < len(lengths):
        raise _ParseError
    starts = np.concatenate(([0], ends[:-1] + 1))
    widths = ends - starts + 1
    widest = int(widths.max())
    if widest > _VARINT_BYTES_MAX:
        raise _ParseError
    for index in range(widest):
        is_there = widths > index
        digits = (head[starts[is_there] + index] & 0x7F).astype(np.uint64)
        if index == _VARINT_BYTES_MAX - 1 and digits.any():
            raise _ParseError  # more than any length
        lengths[is_there] |= digits << np.uint64(7 * index)
    return int(ends[-1]) + 1


def _typed_values(proto: Any, field: TypedField, dtype: int, count: int, itemsize: int) -> Buffer:
    """Raw bytes of `count` > 0 elements from the typed field: cut, or filled up with the last value, or zeros."""
    values = getattr(proto, field.name)
    if field.raw:
        raw = values if field is _FLOAT8 else _packed(field.name, values)
        sent = min(len(raw) // itemsize, count)
        array = np.frombuffer(raw, dtype=_BITS[itemsize], count=sent)
    else:
        sent = min(len(values), count)
        array = _narrow(np.fromiter(values, dtype=field.numpy, count=sent), dtype)
    if (count - sent) * itemsize > FILLED_BYTES_MAX:
        raise _FillError((count - sent) * itemsize)
    if not sent:
        return np.zeros(count * itemsize, dtype=np.uint8).data
    if sent < count:
        whole = np.empty(count, dtype=array.dtype)
        whole[:sent] = array
        whole[sent:] = array[-1]
        array = whole
    return array.view(np.uint8).data


def _packed(name: str, values: Any) -> memoryview:
    """The raw bytes of a repeated field of fixed-width values: protobuf's own packed encoding, without its prefix."""
    holder = TensorProto()
    getattr(holder, name).MergeFrom(values)
    serialized = holder.SerializeToString()
    width = 8 if name in ("double_val", "dcomplex_val") else 4
    return memoryview(serialized)[len(serialized) - len(values) * width :]


def _narrow(values: npt.NDArray[Any], dtype: int) -> npt.NDArray[Any]:
    """Varint-coded values cut down to the dtype's width, modulo its range as a C++ cast does."""
    if dtype in (dt.HALF, dt.BFLOAT16):
        return values.astype(np.uint16)
    if dtype in _NARROW:
        return values.astype(np.uint8)
    target = DTYPES[dtype].numpy
    return values if target is None or values.dtype == target else values.astype(target)


# ----------------------------------------------------------------------------------------------------------- encoding


def header(dtype: int, shape: Sequence[int]) -> bytes:
    """The serialized start of a TensorProto: dtype and shape, always present, even for a scalar."""
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    serialized: bytes = TensorProto(dtype=dtype, tensor_shape=dims).SerializeToString()
    return serialized


def payload_tag(dtype: int, *, tensor_content: bool) -> bytes | None:
    """The field tag before a payload that is the tensor's raw bytes as they lie in memory; None when it is not so."""
    if dtype == dt.STRING:
        return None
    if tensor_content:
        return b"\x22"
    field = TYPED_FIELDS[dtype]
    # A packed bool is one byte, 0 or 1, in memory and as a varint.
    return varint(field.number << 3 | 2) if field.raw or dtype == dt.BOOL else None


def coded_values(dtype: int, data: Buffer | list[bytes], *, tensor_content: bool) -> bytes:
    """The whole values field, tag included, of a dtype for which `payload_tag` is None."""
    if isinstance(data, list):
        if tensor_content:
            content = b"".join([varint(len(value)) for value in data]) + b"".join(data)
            return b"\x22" + varint(len(content)) + content if content else b""
        strings: bytes = TensorProto(string_val=data).SerializeToString()
        return strings
    field = TYPED_FIELDS[dtype]
    values = _widened(dtype, data)
    if len(values) > _SMALL_COUNT and values.min() >= 0 and values.max() < 0x80:
        # Labels and masks: one byte each. For larger values protobuf's own loop is as fast as any made of numpy's.
        packed = values.astype(np.uint8).tobytes()
        return varint(field.number << 3 | 2) + varint(len(packed)) + packed
    coded: bytes = TensorProto(**{field.name: values.tolist()}).SerializeToString()
    return coded


def encode(tensor: Tensor, *, tensor_content: bool = False) -> bytes:
    """A serialized TensorProto with every element written out (TensorFlow's `AsProtoField` does not shorten)."""
    head = header(tensor.dtype, tensor.shape)
    tag = payload_tag(tensor.dtype, tensor_content=tensor_content)
    if tag is None or isinstance(tensor.data, list):
        return head + coded_values(tensor.dtype, tensor.data, tensor_content=tensor_content)
    return b"".join((head, tag, varint(len(tensor.data)), tensor.data)) if len(tensor.data) else head


def _widened(dtype: int, data: Buffer) -> npt.NDArray[Any]:
    """The integers that a varint-coded field holds for these raw bytes."""
    if dtype in (dt.HALF, dt.BFLOAT16):
        return np.frombuffer(data, dtype=np.uint16)
    values: npt.NDArray[Any] = np.frombuffer(data, dtype=DTYPES[dtype].numpy)
    return values.astype(np.int32) if dtype in _NARROW else values


def varint(value: int) -> bytes:
    """One non-negative integer in protobuf's varint coding."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
