"""Arrays of numbers straight from JSON text to a tensor, without a Python object for any number.

A request is mostly one regular array of numbers. `outline` finds such arrays by the quotes around them, and gives the
little that is left of the body to the ordinary parser, each array replaced by a mark. `read_block` then has simdjson
read an array into plain memory, as soon as the dtype is known that it is to have.

Nothing here judges: whatever is not strict JSON, not regular or not of the dtype gives None, and the caller goes the
ordinary way, which knows every rule and every error text.
"""

from __future__ import annotations

import re
import threading
import time
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from ringserve.shm import dtype as dt
from ringserve.shm.dtype import dtype_of

#: Arrays of fewer bytes are left to the ordinary parser.
BLOCK_BYTES_MIN: Final = 128
#: Larger arrays are read piece by piece: a piece and its numbers stay in the processor's cache, and between two pieces
#: other threads get their turn.
PIECE_BYTES: Final = 131_072
#: How long a thread that reads a large array steps aside after each piece.
_ASIDE_S: Final = 20e-6

#: What is left of a body is parsed in one go, while no other thread runs.
_REST_BYTES_MAX: Final = 2**20
_BLOCKS_MAX: Final = 1024
#: Strings looked at before the first array is found. Bodies of many strings are not for this file.
_VAIN_STRINGS_MAX: Final = 24
#: What marks an array's place. No other string of such a body has U+0001 in it: that takes a backslash.
_MARK: Final = "\x01"
_RANK_MAX: Final = 32

_NUMBER_BYTES: Final = b"0123456789+-.eE \n\r\t"

#: Which of simdjson's number types a dtype is read as, and the integers that it takes (see json_tensor.py).
_INTEGERS: Final[dict[int, tuple[str, int, int]]] = {
    **dict.fromkeys((dt.INT32, dt.INT16, dt.INT8, dt.UINT8), ("i", -(2**31), 2**31 - 1)),
    dt.INT64: ("i", -(2**63), 2**63 - 1),
    dt.UINT16: ("i", 0, 2**16 - 1),
    dt.UINT32: ("i", 0, 2**32 - 1),
    dt.UINT64: ("u", 0, 2**64 - 1),
}
_KINDS: Final[dict[int, str]] = {
    **dict.fromkeys((dt.FLOAT, dt.DOUBLE, dt.HALF, dt.BFLOAT16), "d"),
    **{dtype: kind for dtype, (kind, _, _) in _INTEGERS.items()},
}
_NUMPY: Final[dict[int, Any]] = {dtype: dtype_of(dtype).numpy for dtype in _KINDS}

#: Numbers that strict JSON has not, and what stands for them while simdjson reads the others. Should a client send just
#: these doubles, the count tells.
_SPECIALS: Final = (
    (re.compile(rb"-?NaN"), 3.0517578125678901e-283, float("nan")),
    (re.compile(rb"-Inf(?:inity)?"), 3.0517578125678901e-284, float("-inf")),
    (re.compile(rb"Inf(?:inity)?"), 3.0517578125678901e-285, float("inf")),
)

_Text = bytes | bytearray


class Outline(NamedTuple):
    """A body without its arrays. members: the rest, parsed. spans: where each array stands in the body.

    outline: the text of the rest, for who must know whether a key is written twice.
    """

    members: dict[str, Any]
    spans: list[tuple[int, int]]
    text: bytes


def outline(body: _Text) -> Outline | None:
    """Take the arrays of numbers out of a body; None when there are none, or when that is not easily said."""
    if b"\\" in body:
        return None
    spans = _spans(body)
    if not spans:
        return None
    pieces: list[_Text] = []
    position = 0
    for index, (start, stop) in enumerate(spans):
        pieces += (body[position:start], b'"\\u0001%d"' % index)
        position = stop
    pieces.append(body[position:])
    text = b"".join(pieces)
    if len(text) > _REST_BYTES_MAX:
        return None
    try:
        members = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return Outline(members, spans, text) if type(members) is dict else None


def _spans(body: _Text) -> list[tuple[int, int]]:
    """Where between two strings something stands that begins as an array and ends as one."""
    find = body.find
    spans: list[tuple[int, int]] = []
    position, end = 0, len(body)
    vain = 0
    while position < end:
        quote = find(b'"', position)
        stop = quote if quote >= 0 else end
        if stop - position >= BLOCK_BYTES_MIN:
            start = find(b"[", position, stop)
            if start >= 0:
                brace = find(b"}", start, stop)
                close = body.rfind(b"]", start, brace if brace >= 0 else stop) + 1
                if close - start >= BLOCK_BYTES_MIN:
                    spans.append((start, close))
                    vain = 0
        vain += 1
        if quote < 0:
            break
        position = find(b'"', quote + 1) + 1
        if not position or vain > _VAIN_STRINGS_MAX or len(spans) > _BLOCKS_MAX:
            return []
    return spans


def block_of(value: Any) -> int:
    """The index of the array that a value of an Outline stands for; -1 when it is an ordinary value."""
    return int(value[1:]) if type(value) is str and value[:1] == _MARK else -1


# -------------------------------------------------------------------------------------------------------- one array


class _Local(threading.local):
    """A parser keeps the memory of its last document, so each thread has one and goes on using it."""

    def __init__(self) -> None:
        self.parser = simdjson.Parser()


_LOCAL: Final = _Local()


def _parse(text: bytes) -> Any:
    try:
        return _LOCAL.parser.parse(text)
    except RuntimeError:
        # Somebody still holds a part of the last document; leave them the parser.
        _LOCAL.parser = simdjson.Parser()
        return _LOCAL.parser.parse(text)


def read_block(body: _Text, span: tuple[int, int], dtype: int) -> npt.NDArray[Any] | None:
    """The array at `span`, in a dtype's own type; None when it is not regular, or not of numbers that the dtype takes.

    Floats are rounded (beyond a dtype's range to infinity), narrow integers keep their low bits.
    """
    kind = _KINDS.get(dtype)
    if kind is None:
        return None
    start, stop = span
    try:
        if stop - start <= PIECE_BYTES:
            return _read_small(bytes(body[start:stop]), dtype, kind)
        return _read_large(body, start, stop, dtype, kind)
    except (ValueError, TypeError, OverflowError):
        return None
    except RuntimeError:
        return None  # simdjson's word for nesting too deep and other rare refusals


def _read_small(text: bytes, dtype: int, kind: str) -> npt.NDArray[Any] | None:
    try:
        array = _parse(text)
    except ValueError:
        values = _with_specials(text, dtype) if kind == "d" else None
        return None if values is None else _shaped(values, _shape(text.translate(None, _NUMBER_BYTES + b"NaInfity")))
    values = _values(array, dtype, kind)
    if values is None or not values.size:
        return None
    shape = _quick_shape(text, array, values.size) or _shape(text.translate(None, _NUMBER_BYTES))
    return _shaped(values, shape)


def _with_specials(text: bytes, dtype: int) -> npt.NDArray[Any] | None:
    """The floats of an array with `NaN`, `Infinity` and the like among them, which is not strict JSON."""
    found: list[tuple[int, float, float]] = []
    for pattern, stand_in, value in _SPECIALS:
        # The blanks keep a number next to such a word apart from it: the two are not one number, but no JSON.
        text, count = pattern.subn(b" %r " % stand_in, text)
        if count:
            found.append((count, stand_in, value))
    if not found:
        return None
    values = np.frombuffer(_parse(text).as_buffer(of_type="d"), np.float64).copy()
    for count, stand_in, value in found:
        places = values == stand_in
        if np.count_nonzero(places) != count:
            return None
        values[places] = value
    return _narrow(values, dtype)


def _shaped(values: npt.NDArray[Any], shape: tuple[int, ...] | None) -> npt.NDArray[Any] | None:
    """An array without a comma looks the same empty as with one number; the count of the numbers tells."""
    if shape is None or values.size != prod(shape):
        return None
    return values.reshape(shape)


_RAW: Final[dict[str, Any]] = {"d": np.float64, "i": np.int64, "u": np.uint64}


def _values(array: Any, dtype: int, kind: str) -> npt.NDArray[Any] | None:
    """The numbers of a parsed array, one behind the other. Raises TypeError or ValueError where there are others."""
    values: npt.NDArray[Any] = np.frombuffer(array.as_buffer(of_type=kind), _RAW[kind])
    if kind != "d":
        _, low, high = _INTEGERS[dtype]
        if values.size and (int(values.min()) < low or int(values.max()) > high):
            return None
        return values.astype(_NUMPY[dtype], copy=False)
    return _narrow(values, dtype)


def _narrow(values: npt.NDArray[Any], dtype: int) -> npt.NDArray[Any]:
    """Doubles to a dtype's own floats."""
    if dtype == dt.DOUBLE:
        return values
    with np.errstate(over="ignore"):
        return values.astype(_NUMPY[dtype])


_QUICK_ROWS_MAX: Final = 32


def _quick_shape(text: bytes, array: Any, count: int) -> tuple[int, ...] | None:
    """The shape of an array of rank 1, or of rank 2 with few rows; None when it is another, or irregular."""
    find = text.find
    opened = find(b"[", 1)
    if opened < 0:
        return (count,)
    rows = 0
    while opened >= 0:
        closed = find(b"]", opened)
        following = find(b"[", opened + 1)
        if 0 <= following < closed or rows == _QUICK_ROWS_MAX:
            return None
        rows += 1
        opened = following
    # `rows` lists without lists in them; now nothing but these may be in the array, and all as long as the first.
    if len(array) != rows:
        return None
    size = count // rows
    for row in array:
        if type(row) is not simdjson.Array or len(row) != size:
            return None
    return rows, size


def _read_large(body: _Text, start: int, stop: int, dtype: int, kind: str) -> npt.NDArray[Any] | None:
    """Cut at commas. The brackets that are open at a cut are closed for the piece before it and opened for the next."""
    pieces: list[npt.NDArray[Any]] = []
    brackets: list[bytes] = []
    depth = 0
    while start < stop:
        end = start + PIECE_BYTES
        end = stop if end >= stop else body.rfind(b",", start, end)
        if end <= start:
            return None
        text = bytes(body[start:end])
        here = text.translate(None, _NUMBER_BYTES)
        before = depth
        depth += here.count(b"[") - here.count(b"]")
        if not 0 <= depth <= _RANK_MAX or (depth == 0) != (end == stop):
            return None
        whole = b"[" * before + text + b"]" * depth
        if kind == "d" and (b"N" in here or b"I" in here):
            here = here.translate(None, b"NaInfity")
            values = _with_specials(whole, dtype)
        else:
            values = _values(_parse(whole), dtype, kind)
        if values is None:
            return None
        pieces.append(values)
        brackets.append(here)
        start = end + 1
        time.sleep(_ASIDE_S)
    return _shaped(np.concatenate(pieces), _shape(b",".join(brackets)))


def _shape(brackets: bytes) -> tuple[int, ...] | None:
    """The shape of an array whose brackets and commas these are, if it is regular and has no empty axis."""
    rank = len(brackets) - len(brackets.lstrip(b"["))
    if not 0 < rank <= _RANK_MAX:
        return None
    shape: list[int] = []
    pattern = b""
    for _ in range(rank):
        opened = b"[" + pattern
        more = b"," + pattern
        size = 1 + _repeats(brackets, more, rank - len(shape) - 1 + len(opened))
        shape.append(size)
        pattern = opened + more * (size - 1) + b"]"
        if len(pattern) > len(brackets):
            return None
    return tuple(reversed(shape)) if pattern == brackets else None


def _repeats(text: bytes, unit: bytes, position: int) -> int:
    """How often `unit` stands in `text` from `position` on; few comparisons find out, however often that is."""
    count, step = 0, 1
    while text.startswith(unit * step, position):
        position += len(unit) * step
        count += step
        step *= 2
    while step:
        if text.startswith(unit * step, position):
            position += len(unit) * step
            count += step
        step //= 2
    return count
