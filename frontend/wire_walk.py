"""Where the payload bytes of a serialized PredictRequest lie: a small, strict walk over protobuf's wire format.

It serves the template cache of `predict_codec` only, after the official parser has accepted the same bytes, and it
answers "do not know" (None) for everything unusual that the official parser understands: groups, fields or map
entries given twice, values that are not packed. A wrong position would hand garbage to a model; a None costs time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_REQUEST_INPUTS: Final = 2
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2

#: TensorProto.tensor_content.
CONTENT: Final = 4
#: TensorProto's fields whose bytes are the tensor's own: content, float, double, scomplex, dcomplex, float8.
_RAW_FIELDS: Final = frozenset((CONTENT, 5, 6, 9, 12, 18))

#: A request of more fields than this is not worth a template; it also bounds what a hostile one can cost.
_FIELDS_MAX: Final = 128

#: Field number in the TensorProto -> [start, end) of its bytes in the message.
Places = dict[int, tuple[int, int]]


class _UnknownError(Exception):
    """This message is not of the plain form that the walk understands."""


def find_payloads(message: bytes) -> dict[str, Places] | None:
    """Places of the raw fields of each input, by alias; None when the message is not of the plain form.

    `message` must be a PredictRequest that the official parser has accepted.
    """
    budget = [_FIELDS_MAX]
    inputs: dict[str, Places] = {}
    try:
        for number, kind, start, end in _fields(message, 0, len(message), budget):
            if number != _REQUEST_INPUTS:
                continue
            if kind != _BYTES:
                raise _UnknownError
            alias, value_start, value_end = _entry(message, start, end, budget)
            if alias in inputs:
                raise _UnknownError
            inputs[alias] = _tensor(message, value_start, value_end, budget)
    except (_UnknownError, UnicodeDecodeError):
        return None
    return inputs


def model_sent(message: bytes) -> str:
    """The model that a request of any kind with a `model_spec` in front names; empty where that is not plain."""
    try:
        for start, end in _first_field(message, *next(_first_field(message, 0, len(message)))):
            return message[start:end].decode("utf-8", "replace")
    except (_UnknownError, StopIteration):
        pass
    return ""


def _first_field(message: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the value of the first field is, if that is number 1 and bytes."""
    for number, kind, value_start, value_end in _fields(message, start, end, [1]):
        if (number, kind) == (1, _BYTES):
            yield value_start, value_end
        return


def _entry(message: bytes, start: int, end: int, budget: list[int]) -> tuple[str, int, int]:
    """The alias of one map entry, and where its TensorProto is: each exactly once, and nothing else."""
    key: bytes | None = None
    value: tuple[int, int] | None = None
    for number, kind, field_start, field_end in _fields(message, start, end, budget):
        if kind != _BYTES:
            raise _UnknownError
        if number == _ENTRY_KEY and key is None:
            key = message[field_start:field_end]
        elif number == _ENTRY_VALUE and value is None:
            value = (field_start, field_end)
        else:
            raise _UnknownError
    if key is None or value is None:
        raise _UnknownError
    return key.decode("utf-8"), *value


def _tensor(message: bytes, start: int, end: int, budget: list[int]) -> Places:
    places: Places = {}
    for number, kind, field_start, field_end in _fields(message, start, end, budget):
        if number in _RAW_FIELDS:
            if kind != _BYTES or number in places:
                raise _UnknownError
            places[number] = (field_start, field_end)
    return places


def _fields(message: bytes, start: int, end: int, budget: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start and end of its value) of each field in [start, end)."""
    while start < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise _UnknownError
        tag, start = _varint(message, start, end, 5)
        number, kind = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise _UnknownError
        value_start = start
        if kind == _BYTES:
            length, value_start = _varint(message, start, end, 5)
            start = value_start + length
        elif kind == _VARINT:
            _, start = _varint(message, start, end, 10)
        elif kind == _FIXED64:
            start += 8
        elif kind == _FIXED32:
            start += 4
        else:
            raise _UnknownError
        if start > end:
            raise _UnknownError
        yield number, kind, value_start, start


def _varint(message: bytes, start: int, end: int, bytes_max: int) -> tuple[int, int]:
    value = 0
    for position in range(bytes_max):
        if start + position >= end:
            raise _UnknownError
        byte = message[start + position]
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, start + position + 1
    raise _UnknownError
