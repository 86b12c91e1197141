"""numpy's file format (.npy) as a body: an array's bytes without a copy, and the head that goes before such bytes.

Nothing is unpickled, whatever the file says. A head is read by numpy once; clients that call in a loop send the same
one again and again, and are known by its bytes.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import tokenize
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.tensor_proto import STRINGS_MAX, Tensor, bools_valid, check_axes, elements_count
from ringserve.shm.dtype import BOOL, STRING, dtype_of, dtype_of_numpy

CONTENT_TYPE: Final = b"application/x-npy"

#: A plain array's head has 128 bytes. numpy's own reader takes up to 10,000.
_HEAD_BYTES_MAX: Final = 4_096
_MAGIC: Final = b"\x93NUMPY"
#: Magic, version, and the length of what follows: two bytes in version 1, four in version 2.
_LENGTH_AT: Final = 8
_READERS: Final[dict[bytes, tuple[int, Any]]] = {
    b"\x01\x00": (2, npy_format.read_array_header_1_0),
    b"\x02\x00": (4, npy_format.read_array_header_2_0),
}
#: What Python's own reader of literals, which numpy uses, may raise for hostile ones.
_UNREADABLE: Final = (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError, tokenize.TokenError)

#: What a head may be written with. All else that Python's reader knows (escapes, `1L`, `0in`) may have it warn into the
#: log, on the side of whoever sent it.
_WORDS: Final = re.compile(rb"""(?:'[^'\\]*+'|"[^"\\]*+"|True|False|-?[0-9]++(?![\w.])|[{}()\[\]:,\s])*+""")

_HEADS_MAX: Final = 1_024


class _Head(NamedTuple):
    """What a file's head says. elements: how many, -1 for an impossible shape. is_plain: the bytes behind it are a
    tensor's as they are: little-endian, row-major."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    elements: int
    is_fortran: bool
    is_plain: bool


_HEADS: Final[dict[bytes, _Head]] = {}


def read(body: bytes | bytearray, dtype_wanted: int, *, hurry: bool = False) -> Tensor | Failure | None:
    """The array of a file, as a tensor whose data is a view of `body` where that is possible.

    dtype_wanted: a DataType number. It only says what bytes mean that numpy has no name for (bfloat16); an array of
    another type is given as it is. hurry: return None when its elements would have to be gone through.
    """
    head = _head(body)
    if isinstance(head, Failure):
        return head
    found, start = head
    dtype = _tensor_dtype(found.dtype, dtype_wanted)
    if isinstance(dtype, Failure):
        return dtype
    failure = check_axes("", found.shape)
    if failure is not None:
        return failure
    count = found.elements
    if count < 0:
        return _invalid(f"the head of the npy file has an impossible shape: {found.shape}")
    size = len(body) - start
    if size != count * found.dtype.itemsize:
        return _invalid(
            f"the npy file has {size} bytes of data, and an array of {_type_text(found.dtype)} and shape {found.shape} "
            f"has {count * found.dtype.itemsize}"
        )
    if hurry and not found.is_plain:
        return None
    if dtype == STRING and count > STRINGS_MAX:
        return _invalid(f"the npy file has more than {STRINGS_MAX} strings")
    if dtype == STRING:
        array = _array(body, start, found)
        if found.dtype.kind == "U" and not _is_text(array):
            return _invalid("the npy file has strings of what is no Unicode character")
        return Tensor(dtype, found.shape, _strings(array))
    data = memoryview(body)[start:] if found.is_plain else _plain(_array(body, start, found))
    if dtype == BOOL and not bools_valid(data):
        return _invalid("the npy file has bools that are neither 0 nor 1")
    return Tensor(dtype, found.shape, data)


def _head(body: bytes | bytearray) -> tuple[_Head, int] | Failure:
    """What the head says, and where the data begins."""
    if body[: len(_MAGIC)] != _MAGIC:
        return _invalid("the body is no npy file: it does not begin with \\x93NUMPY")
    length_bytes, reader = _READERS.get(bytes(body[len(_MAGIC) : _LENGTH_AT]), (0, None))
    if reader is None:
        return _invalid("only versions 1.0 and 2.0 of the npy format are read")
    start = _LENGTH_AT + length_bytes
    start += int.from_bytes(body[_LENGTH_AT:start], "little")
    if start > min(len(body), _HEAD_BYTES_MAX):
        return _invalid(f"the npy file has no whole head of at most {_HEAD_BYTES_MAX} bytes")
    data = bytes(body[:start])
    head = _HEADS.get(data)
    if head is None:
        if _WORDS.fullmatch(data, _LENGTH_AT + length_bytes) is None:
            return _invalid("the head of the npy file cannot be read: it is no dictionary of strings and numbers")
        try:
            shape, is_fortran, dtype = reader(io.BytesIO(data[_LENGTH_AT:]), _HEAD_BYTES_MAX)
        except _UNREADABLE as error:
            return _invalid(f"the head of the npy file cannot be read: {str(error)[:200]}")
        # numpy's reader takes True for a number. It is equal to 1, and has its hash: whatever is remembered by a shape
        # would be remembered with it, for everybody who sends that shape.
        if not all(type(size) is int for size in shape):
            return _invalid("the head of the npy file has a shape of what is no number")
        is_turned = (is_fortran and len(shape) > 1) or dtype != dtype.newbyteorder("<")
        is_plain = not is_turned and dtype.kind not in "SU"
        head = _Head(dtype, shape, elements_count(shape), is_fortran, is_plain)
        if len(_HEADS) >= _HEADS_MAX:
            _HEADS.clear()
        _HEADS[data] = head
    return head, start


@functools.lru_cache(maxsize=_HEADS_MAX)
def _tensor_dtype(dtype: np.dtype[Any], wanted: int) -> int | Failure:
    if dtype.hasobject:
        return _invalid("the npy file holds Python objects, which are not read; send numbers, bools or strings")
    if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None:
        named = dtype_of(wanted)
        if _is_nameless(named.numpy) and named.itemsize == dtype.itemsize:
            return wanted
    try:
        if dtype.kind == "U" and dtype.itemsize:
            return STRING
        if dtype.itemsize:
            return dtype_of_numpy(dtype.newbyteorder("=")).number
    except ValueError:
        pass
    return _invalid(f"the npy file has elements of {_type_text(dtype)}, which no tensor can have")


def _is_nameless(dtype: np.dtype[Any] | None) -> bool:
    """Whether it is one of ml_dtypes', whose arrays are saved as so many bytes for each element."""
    return dtype is not None and dtype.isbuiltin != 1


def _type_text(dtype: np.dtype[Any]) -> str:
    return str(dtype.newbyteorder("="))[:100]


def _array(body: bytes | bytearray, start: int, head: _Head) -> npt.NDArray[Any]:
    flat = np.frombuffer(body, head.dtype, offset=start) if start < len(body) else np.empty(0, head.dtype)
    return flat.reshape(head.shape, order="F" if head.is_fortran else "C")


def _plain(array: npt.NDArray[Any]) -> memoryview:
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return native.reshape(-1).view(np.uint8).data


def _is_text(array: npt.NDArray[Any]) -> bool:
    """numpy takes the code points for what they say: some that no character has are a SystemError, others no UTF-8."""
    points = np.ascontiguousarray(array).reshape(-1).view(f"{array.dtype.byteorder}u4")
    return not points.size or int(points.max()) <= sys.maxunicode


def _strings(array: npt.NDArray[Any]) -> list[bytes]:
    values = array.ravel().tolist()
    return [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value for value in values]


@functools.lru_cache(maxsize=_HEADS_MAX)
def head_of(dtype: int, shape: tuple[int, ...]) -> bytes | Failure:
    """What goes before a tensor's raw bytes to make them a file."""
    found = dtype_of(dtype)
    if found.numpy is None:
        return _invalid("strings do not go into an npy file; ask for JSON with Accept: application/json")
    out = io.BytesIO()
    descr = f"|V{found.itemsize}" if _is_nameless(found.numpy) else found.numpy.str
    # Equal shapes have one head, so it is written of plain numbers, whatever the first of them was made of.
    about = {"descr": descr, "fortran_order": False, "shape": tuple(map(int, shape))}
    npy_format.write_array_header_1_0(out, about)
    return out.getvalue()


def _invalid(text: str) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, text)
