"""Predict answers in JSON, byte for byte as TF Serving writes them: RapidJSON's pretty printing with four spaces.

Row format puts each row's arrays on one line; columnar format gives every element a line of its own.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Sequence
from math import prod
from typing import Final, NamedTuple

import numpy as np

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.handler import Buffer
from ringserve.frontend.json_numbers import float_texts, number_texts
from ringserve.frontend.json_text import decode, encode, string_text
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import dtype_of

_INDENT: Final = "    "

#: dtypes that JSON can carry. half, bfloat16 and uint16 are ours: TF Serving refuses them.
_WRITABLE: Final = frozenset(
    (
        *(dt.FLOAT, dt.DOUBLE, dt.HALF, dt.BFLOAT16, dt.BOOL, dt.STRING),
        *(dt.INT8, dt.INT16, dt.INT32, dt.INT64, dt.UINT8, dt.UINT16, dt.UINT32, dt.UINT64),
    )
)


#: Arrays that hold nothing, of one answer: they have no byte of data, so a request of a hundred bytes can ask for as
#: many as it can count.
EMPTY_ARRAYS_MAX: Final = 1_000_000
#: Brackets, line ends and indentation of one answer. Deep in a tensor of many axes they are thousands of bytes for each
#: byte of data; and as much as this is what all answers together may take that wait for their clients, by default.
FRAME_BYTES_MAX: Final = 2**30


class NamedOutput(NamedTuple):
    """One output of an answer. data: raw little-endian bytes, or the elements of a string tensor; row-major."""

    alias: str
    dtype: int
    shape: tuple[int, ...]
    data: Buffer | list[bytes]


def write_rows(outputs: Sequence[NamedOutput], gently: bool = False) -> bytes | Failure:
    """`{"predictions": [...]}`: one entry per row, a value or, of several outputs, an object.

    gently: let other threads run now and then.
    """
    if len(outputs) == 1:
        written = _one_row(outputs[0])
        if written is not None:
            return written
    failure = _check(outputs) or _check_rows(outputs) or _check_frame(_row_frame_bytes(outputs), outputs)
    if failure is not None:
        return failure
    rows = outputs[0].shape[0]
    if len(outputs) == 1:
        # The first row follows the bracket, unlike in any other array that RapidJSON prints.
        texts = _on_one_line(outputs[0], 2, gently)
        start, separator = "", ", "
    else:
        columns = [_on_one_line(output, 3, gently) for output in outputs]
        inner = "\n" + _INDENT * 3
        start, separator = "\n" + _INDENT * 2, ",\n" + _INDENT * 2
        template = ",".join(f"{inner}{string_text(output.alias)}: \0" for output in outputs).split("\0")
        texts = []
        for row in zip(*columns, strict=True):
            pieces = [piece for pair in zip(template, row, strict=False) for piece in pair]
            texts.append("{" + "".join(pieces) + "\n" + _INDENT * 2 + "}")
    body = f"[{start}{separator.join(texts)}\n{_INDENT}]" if rows else "[]"
    return encode(f'{{\n{_INDENT}"predictions": {body}\n}}')


#: Up to so many numbers of one row are written without looking for anything out of the ordinary.
_ROW_COUNT_MAX: Final = 32


def _one_row(output: NamedOutput) -> bytes | None:
    """The whole body for one row of a few floats, the commonest answer; None for any other."""
    _, dtype, shape, data = output
    if dtype != dt.FLOAT or len(shape) != 2 or shape[0] != 1 or not 0 < shape[1] <= _ROW_COUNT_MAX:
        return None
    assert not isinstance(data, list)
    texts = float_texts(struct.unpack(f"<{shape[1]}f", data), single=True)
    return f'{{\n    "predictions": [[{", ".join(texts)}]\n    ]\n}}'.encode()


def write_columns(outputs: Sequence[NamedOutput], gently: bool = False) -> bytes | Failure:
    """`{"outputs": value}`, or of several outputs an object of values. gently: as in write_rows."""
    depth = 1 if len(outputs) == 1 else 2
    failure = _check(outputs) or _check_frame(sum(_column_frame_bytes(each, depth) for each in outputs), outputs)
    if failure is not None:
        return failure
    if len(outputs) == 1:
        body = _on_many_lines(outputs[0], 1, gently)
    else:
        inner = "\n" + _INDENT * 2
        members = [f"{inner}{string_text(output.alias)}: {_on_many_lines(output, 2, gently)}" for output in outputs]
        body = "{" + ",".join(members) + f"\n{_INDENT}}}"
    return encode(f'{{\n{_INDENT}"outputs": {body}\n}}')


def _check(outputs: Sequence[NamedOutput]) -> Failure | None:
    if not outputs:
        return _invalid("Cannot convert empty tensor map to JSON")
    for output in outputs:
        if output.dtype not in _WRITABLE and 0 not in output.shape:
            return _invalid(f"Failed to write JSON value for tensor type: {dtype_of(output.dtype).name}")
    return None


def _check_rows(outputs: Sequence[NamedOutput]) -> Failure | None:
    rows = -1
    for output in outputs:
        if not output.shape:
            return _invalid(f"Tensor name: {output.alias} has no shape information ")
        if rows not in (-1, output.shape[0]):
            return _invalid(
                f"Tensor name: {output.alias} has inconsistent batch size: {output.shape[0]} expecting: {rows}"
            )
        rows = output.shape[0]
    return None


def arrays_count(shape: Sequence[int]) -> int:
    """How many arrays a tensor of this shape is, the whole included; 0 for a scalar."""
    arrays, count = 0, 1
    for size in shape:
        arrays += count
        count *= size
    return arrays


def _check_frame(frame_bytes: int, outputs: Sequence[NamedOutput]) -> Failure | None:
    """Whether what stands around the elements is little enough to be written."""
    empty = sum(prod(output.shape[: output.shape.index(0)]) for output in outputs if 0 in output.shape)
    if empty > EMPTY_ARRAYS_MAX:
        return _too_large(f"would hold {empty} empty arrays, more than {EMPTY_ARRAYS_MAX}")
    if frame_bytes > FRAME_BYTES_MAX:
        return _too_large(f"would need {frame_bytes} bytes around its values, more than {FRAME_BYTES_MAX}")
    return None


def _row_frame_bytes(outputs: Sequence[NamedOutput]) -> int:
    """Bytes of an answer in row format beside its elements: a bracket and a comma each time, and rows with names."""
    size = sum(4 * arrays_count(output.shape) + 2 * prod(output.shape) for output in outputs)
    if len(outputs) > 1:
        line_bytes = len(_INDENT) * 3 + 6
        size += outputs[0].shape[0] * sum(line_bytes + len(output.alias) for output in outputs)
    return size + sum(_base64_frame_bytes(output, 2 + len(output.shape)) for output in outputs)


def _column_frame_bytes(output: NamedOutput, depth: int) -> int:
    """Likewise of an output in columnar format, where each element and each bracket has a line of its own."""
    size, count = 0, 1
    for axis, length in enumerate(output.shape):
        indent = len(_INDENT) * (depth + axis)
        size += count * (indent + 3)
        count *= length
        size += count * (indent + len(_INDENT) + 2)
    return size + _base64_frame_bytes(output, depth + len(output.shape))


def _base64_frame_bytes(output: NamedOutput, depth: int) -> int:
    """What stands around base64 texts."""
    if not isinstance(output.data, list) or not output.alias.endswith("_bytes"):
        return 0
    return len(output.data) * (len(_INDENT) * (2 * depth + 1) + 12)


def _on_one_line(output: NamedOutput, depth: int, gently: bool) -> list[str]:
    """One text per row. depth: containers that are open around a row's value."""
    inner = output.shape[1:]
    texts = _elements(output, depth + len(inner), gently)
    for axis in range(len(inner) - 1, -1, -1):
        size = inner[axis]
        if size:
            texts = [f"[{', '.join(texts[i : i + size])}]" for i in range(0, len(texts), size)]
        else:
            texts = ["[]"] * (output.shape[0] * prod(inner[:axis]))
    return texts


def _on_many_lines(output: NamedOutput, depth: int, gently: bool) -> str:
    """depth: containers that are open around the output's value."""
    shape = output.shape
    texts = _elements(output, depth + len(shape), gently)
    for axis in range(len(shape) - 1, -1, -1):
        size = shape[axis]
        if not size:
            texts = ["[]"] * prod(shape[:axis])
            continue
        outer = "\n" + _INDENT * (depth + axis)
        inner = outer + _INDENT
        separator = "," + inner
        texts = [f"[{inner}{separator.join(texts[i : i + size])}{outer}]" for i in range(0, len(texts), size)]
    return texts[0]


def _elements(output: NamedOutput, depth: int, gently: bool) -> list[str]:
    """The text of every element. depth: containers that are open around one."""
    data = output.data
    if isinstance(data, list):
        if not output.alias.endswith("_bytes"):
            return [string_text(decode(value)) for value in data]
        outer = "\n" + _INDENT * depth
        return [
            f'{{{outer}{_INDENT}"b64": "{binascii.b2a_base64(value, newline=False).decode()}"{outer}}}'
            for value in data
        ]
    if 0 in output.shape:
        return []
    return number_texts(np.frombuffer(data, dtype_of(output.dtype).numpy), gently=gently)


def _too_large(text: str) -> Failure:
    return Failure(Code.RESOURCE_EXHAUSTED, f"the answer {text}; ask for binary tensors, or over gRPC")


def _invalid(text: str) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, text)
