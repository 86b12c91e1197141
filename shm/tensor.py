"""Tensors as bytes in a segment: how they are written, and how they are read without trusting what is there.

Numeric record: the elements, row-major, little-endian, nothing else; dtype and shape travel in the message.

String record (any number of strings; the shape travels in the message):

    │ total_bytes u64 │ count u64 │ ends u64[count] │ the strings' bytes, one after the other │
    0                 8           16                16 + 8 × count                            total_bytes

String i is bytes [ends[i - 1], ends[i]) of the last part; the first starts at 0, the last ends where the record ends.

A reader may look at a record that was given back and written over in the meantime (its answer is thrown away later,
by the broker). So every function here checks what it reads, works on its own copy of what it checked, and raises
TensorError for nonsense; none reads outside of the record, or outside of `data`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Final

import numpy as np

from ringserve.shm.dtype import DTYPES, dtype_of_numpy, name_of

#: The largest number of axes that an input may have. numpy 1 has no arrays of more. numpy 2 has, of up to 64, but over
#: one of strings TensorFlow's Python layer ends its process with SIGSEGV.
AXES_MAX: Final = 32

_HEAD: Final = struct.Struct("<QQ")
_HEAD_BYTES: Final = _HEAD.size
_END_BYTES: Final = 8


class TensorError(Exception):
    """A record is not what the message says: stale, or never written, or from a peer that is out of its mind."""


def string_record_bytes(values: Sequence[bytes]) -> int:
    """Size of the record that `write_strings` makes of `values`."""
    return _HEAD_BYTES + _END_BYTES * len(values) + sum(map(len, values))


def write_strings(data: memoryview, offset: int, values: Sequence[bytes]) -> int:
    """Write a string record at `offset` of `data` (bytes, writable); returns its size in bytes.

    TensorError when it does not fit before the end of `data`: the caller claimed too little, nothing is written.
    """
    # No numpy on this path: below some hundred strings its fixed cost is most of the time, above it gains a tenth.
    count = len(values)
    ends = array("Q", accumulate(map(len, values)))
    text_at = offset + _HEAD_BYTES + _END_BYTES * count
    stop = text_at + (ends[-1] if count else 0)
    if offset < 0 or stop > len(data):
        raise TensorError(f"{count} strings end at byte {stop} of {len(data)}")
    _HEAD.pack_into(data, offset, stop - offset, count)
    data[offset + _HEAD_BYTES : text_at] = ends.tobytes()
    data[text_at:stop] = b"".join(values)
    return stop - offset


def string_count(data: memoryview, offset: int) -> int:
    """How many strings the record at `offset` says it holds; TensorError when it cannot hold that many."""
    return _string_head(data, offset)[1]


def read_strings(data: memoryview, offset: int, first: int, count: int) -> list[bytes]:
    """Strings [first, first + count) of the record at `offset`, copied. TensorError when it is no such record."""
    total_bytes, held = _string_head(data, offset)
    if first < 0 or count < 0 or first + count > held:
        raise TensorError(f"strings {first}..{first + count} of a record of {held}")
    if count == 0:
        return []
    ends_at = offset + _HEAD_BYTES + _END_BYTES * first
    text_at = offset + _HEAD_BYTES + _END_BYTES * held
    if first:
        cuts = list(struct.unpack_from(f"<{count + 1}Q", data, ends_at - _END_BYTES))
    else:
        cuts = [0, *struct.unpack_from(f"<{count}Q", data, ends_at)]
    # Sorting what is sorted is one pass in C; with the last cut inside the record, all of them are.
    if cuts[-1] > offset + total_bytes - text_at or cuts != sorted(cuts):
        raise TensorError("a string record's ends are out of order or past its end")
    start = cuts[0]
    text = bytes(data[text_at + start : text_at + cuts[-1]])
    if start:
        cuts = [cut - start for cut in cuts]
    return [text[cut:end] for cut, end in pairwise(cuts)]


def view(data: memoryview, offset: int, dtype_number: int, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """A read-only array over the numeric record at `offset`, without a copy; it is as aligned as `offset` is.

    shape: the array's, () for a scalar; any dimension may be 0. The array keeps the segment from closing. TensorError
    when the bytes are not all inside `data`, or type and shape are not such an array's.
    """
    dtype = DTYPES.get(dtype_number)
    if dtype is None or dtype.numpy is None:
        raise TensorError(f"no numeric record has type {name_of(dtype_number)} (DataType {dtype_number})")
    try:
        # Not left to numpy: it takes a negative offset or count and reads outside of the buffer, or everything in it.
        if offset < 0 or min(shape, default=0) < 0 or offset + prod(shape) * dtype.itemsize > len(data):
            raise ValueError("not inside")
        found = _over(data, offset, dtype.numpy, tuple(shape))
    except (TypeError, ValueError, OverflowError) as error:
        asked = f"no {dtype.name} tensor of shape {list(shape)} at byte {offset} of {len(data)}"
        raise TensorError(f"{asked}: {error}") from None
    found.setflags(write=False)
    return found


def tensor_bytes(dtype_number: int, shape: Sequence[int]) -> int:
    """Size of a numeric record in bytes. TensorError when there is no such tensor."""
    dtype = DTYPES.get(dtype_number)
    if dtype is None or dtype.numpy is None or any(size < 0 for size in shape):
        raise TensorError(f"no numeric record has type {name_of(dtype_number)} and shape {list(shape)}")
    return prod(shape) * dtype.itemsize


def write_array(data: memoryview, offset: int, values: np.ndarray[Any, Any]) -> int:
    """Write an array of any layout (strided, transposed, big-endian) as a numeric record; returns its bytes.

    TensorError when it does not fit before the end of `data`, or is an array of strings or objects.
    """
    try:
        dtype = dtype_of_numpy(values.dtype.newbyteorder("<"))
    except ValueError as error:
        raise TensorError(str(error)) from None
    if dtype.numpy is None:
        raise TensorError("strings are written with write_strings")
    if offset < 0 or offset + values.nbytes > len(data):
        raise TensorError(f"{values.nbytes} bytes at byte {offset} of {len(data)} do not fit")
    np.copyto(_over(data, offset, dtype.numpy, values.shape), values)
    return values.nbytes


def _over(data: memoryview, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array over bytes of `data`, which the caller has checked to be there.

    `frombuffer` and not `np.ndarray(buffer=...)`: only the former's array *exports* the mapping, so that closing it
    raises BufferError. The latter keeps the mapping object, lets it be unmapped, and the next access kills the process.
    """
    count = prod(shape)
    if count == 0:
        return np.empty(shape, dtype)  # frombuffer refuses to look at nothing
    return np.frombuffer(data, dtype, count, offset).reshape(shape)


def _string_head(data: memoryview, offset: int) -> tuple[int, int]:
    """(total_bytes, count) of a string record whose index, if not its ends, is known to lie inside `data`."""
    room_bytes = len(data) - offset
    if offset < 0 or room_bytes < _HEAD_BYTES:
        raise TensorError(f"no string record fits at byte {offset} of {len(data)}")
    total_bytes, count = _HEAD.unpack_from(data, offset)
    if total_bytes > room_bytes or _HEAD_BYTES + _END_BYTES * count > total_bytes:
        raise TensorError(f"a string record of {count} strings in {total_bytes} bytes where {room_bytes} are left")
    return total_bytes, count
