"""A request body as a JSON object: strict JSON by orjson, the rest by `json_exact`, large arrays of numbers apart.

A large body is nearly always one regular array of numbers. As nested lists it would take more time to allocate than to
parse, so `NumberBlock` keeps such an array flat: its brackets are checked as a pattern, and its numbers are parsed in
pieces that stay in the processor's cache and let other threads run in between.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from ringserve.frontend.json_exact import JsonError, number, parse
from ringserve.frontend.json_text import quoted

__all__ = ["JsonError", "NumberBlock", "SlowError", "parse_object"]

#: Bodies below this are not tried as a block: while everything fits the processor's cache the general way is as fast.
BLOCK_BYTES_MIN: Final = 2**20

#: Arrays and objects that a large body may hold; each takes 60 bytes and more, however few it is written with.
CONTAINERS_MAX: Final = 8_000_000

_PIECE_BYTES: Final = 2**20

_SIGNATURE: Final = rb'"signature_name"\s*:\s*"([^"\\\x00-\x1f\x80-\xff]*)"'
_HEAD: Final = re.compile(
    rb'\s*\{\s*(?:' + _SIGNATURE + rb'\s*,\s*)?"(instances|inputs)"\s*:\s*(?=\[)', re.ASCII
)
_TAIL: Final = re.compile(rb'\s*(?:,\s*' + _SIGNATURE + rb"\s*)?\}\s*\Z", re.ASCII)

_NUMBER_BYTES: Final = b"0123456789+-.eENaInfity"
_SPACES: Final = b" \n\r\t"
#: Every byte of a number as `0`, brackets and commas as they are, anything else as `!`.
_CLASSES: Final = bytes(
    ord("0") if code in _NUMBER_BYTES else code if code in b"[]," else ord("!") for code in range(256)
)
_BRACKETS_TO_SPACES: Final = bytes(ord(" ") if code in b"[]" else code for code in range(256))


class NumberBlock:
    """A regular array of numbers of any rank >= 1 without empty axes.

    values: flat, row-major, int64 (or uint64) when every token is an integer, else float64. shape: its axes.
    """

    __slots__ = ("_text", "shape", "values")

    def __init__(self, values: npt.NDArray[Any], shape: tuple[int, ...], text: bytes) -> None:
        self.values = values
        self.shape = shape
        self._text = text

    def nested(self) -> list[Any]:
        """The same as the general way reads it, each number as it was written."""
        value: list[Any] = _read(self._text, False)
        return value


class SlowError(Exception):
    """Only the exact parser can tell, and the caller is in a hurry."""


def parse_object(body: bytes, *, hurry: bool = False) -> dict[str, Any]:
    """The JSON object at the start of `body`: scalars, lists, dicts; a NumberBlock for `instances` or `inputs` at best.

    Of equal keys at the top level, and in the object of `inputs`, the first one counts. Raises JsonError with TF
    Serving's text. hurry: raise SlowError rather than begin what takes a second per megabyte.
    """
    if not body:
        raise JsonError("JSON Parse error: The document is empty")
    if len(body) >= BLOCK_BYTES_MIN:
        block = _block_object(body)
        if block is not None:
            return block
        if body.count(b"[") + body.count(b"{") > CONTAINERS_MAX:
            raise JsonError(f"JSON Parse error: more than {CONTAINERS_MAX} arrays and objects")
    value = _read(body, hurry)
    if type(value) is not dict:
        raise JsonError(f"JSON Value: {quoted(value)} Is not object")
    # orjson keeps the last of equal keys. Where a key may be written twice the exact parser looks.
    members: dict[str, Any] = value
    inputs = members.get("inputs")
    names = [*_TOP_KEYS, *inputs] if isinstance(inputs, dict) else _TOP_KEYS
    if any(name in body and body.count(name) > 1 for name in map(_key_text, names)):
        members = _parse_exactly(body, hurry)
    return members


_TOP_KEYS: Final = ("signature_name", "instances", "inputs")


def _key_text(name: str) -> bytes:
    return b'"' + name.encode("utf-8", "surrogateescape") + b'"'


def _read(body: bytes, hurry: bool) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The commonest departure from strict JSON is text behind the value; its position counts characters.
        if error.msg.startswith("unexpected content") and body.isascii():
            try:
                return orjson.loads(body[: error.pos])
            except orjson.JSONDecodeError:
                pass
    return _parse_exactly(body, hurry)


def _parse_exactly(body: bytes, hurry: bool) -> Any:
    if hurry:
        raise SlowError
    return parse(body)


def _block_object(body: bytes) -> dict[str, Any] | None:
    """`{"instances": numbers}` or `{"inputs": numbers}`, with or without a signature_name; None when it is not that."""
    head = _HEAD.match(body)
    if head is None:
        return None
    start, stop = head.end(), body.rfind(b"]") + 1
    tail = _TAIL.match(body, stop)
    if tail is None or stop <= start:
        return None
    signature, other = head[1], tail[1]
    if signature is not None and other is not None:
        return None
    block = _block(body[start:stop])
    if block is None:
        return None
    found: dict[str, Any] = {head[2].decode(): block}
    name = signature if signature is not None else other
    if name is not None:
        found["signature_name"] = name.decode("ascii")
    return found


def _block(text: bytes) -> NumberBlock | None:
    """`text`, which begins with `[` and ends with `]`, as a block; None when it is anything but a regular one."""
    classes = text.translate(_CLASSES, _SPACES)
    if b"!" in classes:
        return None
    # A number next to the wrong side of a bracket would not be seen below, where brackets and numbers are read apart.
    codes = np.frombuffer(classes, np.uint8)
    before, after = codes[:-1], codes[1:]
    if ((before == ord("]")) & (after == ord("0"))).any() or ((before == ord("0")) & (after == ord("["))).any():
        return None
    brackets = classes.translate(None, b"0")
    shape = _shape(brackets)
    if shape is None:
        return None
    values = _numbers(text.translate(_BRACKETS_TO_SPACES))
    if values is None or values.size != np.prod(shape, dtype=np.int64):
        return None
    return NumberBlock(values, shape, text)


def _shape(brackets: bytes) -> tuple[int, ...] | None:
    """The shape of an array whose brackets and commas these are, if it is regular and has no empty axis.

    Commas are all that tells an array of one element from an empty one here; the count of the numbers does later.
    """
    rank = len(brackets) - len(brackets.lstrip(b"["))
    if rank > 32:
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


def _numbers(text: bytes) -> npt.NDArray[Any] | None:
    """Numbers between commas; None when something is no number. Parsed piece by piece."""
    pieces: list[npt.NDArray[Any]] = []
    start, end = 0, len(text)
    while start < end:
        stop = start + _PIECE_BYTES
        stop = end if stop >= end else text.rfind(b",", start, stop)
        if stop < 0:
            return None
        values = _piece(text[start:stop])
        if values is None:
            return None
        pieces.append(values)
        start = stop + 1
        if start == end:
            return None  # a comma with nothing behind it
    # Integers among floats are rounded to double as they would be alone; so are those of both 64-bit types together.
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _piece(text: bytes) -> npt.NDArray[Any] | None:
    try:
        try:
            values = orjson.loads(b"[" + text + b"]")
        except orjson.JSONDecodeError:
            values = [number(token.strip(_SPACES)) for token in text.split(b",")]
    except (ValueError, OverflowError):
        return None
    array = np.array(values)
    return array if values and array.dtype.kind in "iuf" else None
