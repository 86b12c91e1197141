"""Rows of different inner shapes -> one array that holds them all, each padded at the end of its axes.

A lane that pads leaves axes open (-1 in its spec), and each request's record says its own shape (`shm/head.py`). What
is fed is as large, on every axis, as the largest request of the batch; the rest is zeros, or, as in TF Serving, each
request's own first element. Outputs are not cut back: that a padded place of an input shows in a certain place of an
output is nowhere said (think of a reversed sequence, of a convolution), and TF Serving does not cut them either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringserve.broker.messages import Code
from ringserve.shm import head, tensor
from ringserve.workers.failures import RunFailure
from ringserve.workers.gather import READ_ERRORS, Columns, Gatherer, InputLayout, unreadable, view_of

#: A batch that padding makes larger than this, and four times as large as its requests, is run one by one instead.
_PADDED_BYTES_MAX = 256 * 2**20
_PADDED_TIMES_MAX = 4


class _Piece:
    """Rows of one request, in its own shape [rows, ...], and the element that it is padded with."""

    __slots__ = ("array", "fill")

    def __init__(self, array: Any, fill: Any) -> None:
        self.array = array
        self.fill = fill


def padded_feeds(
    gatherer: Gatherer,
    layouts: Sequence[InputLayout],
    groups: Sequence[Columns],
    rows_count: int,
    rows_padded: int,
    *,
    with_first: bool,
) -> list[Any]:
    """As `Gatherer.feeds`, for a lane in which some layouts are open. with_first: pad with each first element."""
    rows_fed = max(rows_count, rows_padded)
    try:
        return [
            _padded(gatherer, layout, position, groups, rows_fed, with_first)
            if layout.is_open
            else gatherer.column(layout, position, groups, rows_count, rows_fed)
            for position, layout in enumerate(layouts)
        ]
    except READ_ERRORS as error:
        raise unreadable(error) from None


def _padded(
    gatherer: Gatherer,
    layout: InputLayout,
    position: int,
    groups: Sequence[Columns],
    rows_fed: int,
    with_first: bool,
) -> Any:
    """One array [rows_fed, ...]. Rows beyond those of `groups` repeat the first row of the last part."""
    read = _strings if layout.dtype is None else _numbers
    pieces = [
        read(layout, group.ring, rows, row_start, offset, with_first)
        for group in groups
        for rows, row_start, offset in zip(group.rows, group.row_starts, group.offsets[position], strict=True)
    ]
    if len(pieces) == 1 and len(pieces[0].array) == rows_fed:
        return pieces[0].array
    shapes = {piece.array.shape[1:] for piece in pieces}
    inner = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    fed = _empty(gatherer, position, layout, (rows_fed, *inner), pieces)
    first = 0
    for piece in pieces:
        array = piece.array
        target = fed[first : first + len(array)]
        if array.shape[1:] != inner:
            target[...] = piece.fill
            target = target[(slice(None), *map(slice, array.shape[1:]))]
        target[...] = array
        first += len(array)
    if rows_fed > first:
        fed[first:] = fed[first - len(pieces[-1].array)]
    return fed


def is_piece(layouts: Sequence[InputLayout], ring: memoryview, rows: int, offsets: Sequence[int]) -> bool:
    """Whether a part of so many rows is a piece of a larger request. Pieces run by themselves: padded together with
    other requests, each might come out in another shape, and they could not be joined. False for what is not there."""
    for layout, offset in zip(layouts, offsets, strict=True):
        if layout.is_open:
            try:
                shape = head.read_string_head(ring, offset) if layout.dtype is None else head.read_head(ring, offset)
            except tensor.TensorError:
                return False
            return shape[0] != rows
    return False


def _empty(
    gatherer: Gatherer, position: int, layout: InputLayout, shape: tuple[int, ...], pieces: Sequence[_Piece]
) -> Any:
    itemsize = 8 if layout.dtype is None else layout.dtype.itemsize
    nbytes = math.prod(shape) * itemsize
    if len(pieces) > 1 and nbytes > _PADDED_BYTES_MAX:
        own_bytes = sum(piece.array.size for piece in pieces) * itemsize
        if nbytes > _PADDED_TIMES_MAX * own_bytes:
            text = f"Padding turns {own_bytes} bytes of inputs into {nbytes}."
            raise RunFailure(Code.RESOURCE_EXHAUSTED, text)
    if layout.dtype is None:
        return np.empty(shape, dtype=object)
    return gatherer.scratch_bytes(position, nbytes).view(layout.dtype).reshape(shape)


def _numbers(
    layout: InputLayout, ring: memoryview, rows: int, row_start: int, offset: int, with_first: bool
) -> _Piece:
    assert layout.dtype is not None
    inner = _inner(layout, head.read_head(ring, offset), rows, row_start)
    start = offset + head.HEAD_BYTES
    row_bytes = math.prod(inner) * layout.dtype.itemsize
    array = view_of((rows, *inner), layout.dtype, ring, start + row_start * row_bytes)
    fill = view_of((), layout.dtype, ring, start) if with_first else np.zeros((), layout.dtype)
    return _Piece(array, fill)


def _strings(
    layout: InputLayout, ring: memoryview, rows: int, row_start: int, offset: int, with_first: bool
) -> _Piece:
    inner = _inner(layout, head.read_string_head(ring, offset), rows, row_start)
    each = math.prod(inner)
    array = np.empty(rows * each, dtype=object)
    array[:] = tensor.read_strings(ring, offset, 1 + row_start * each, rows * each)
    fill = tensor.read_strings(ring, offset, 1, 1)[0] if with_first else b""
    return _Piece(array.reshape((rows, *inner)), fill)


def _inner(layout: InputLayout, shape: tuple[int, ...], rows: int, row_start: int) -> tuple[int, ...]:
    """The inner shape that a record says it has. TensorError when its lane cannot have it."""
    inner = shape[1:]
    fits = len(inner) == len(layout.shape) and all(
        size > 0 and declared in (-1, size) for size, declared in zip(inner, layout.shape, strict=True)
    )
    if not fits or shape[0] < row_start + rows:
        raise tensor.TensorError(f"a record of shape {list(shape)} in a lane of rows {list(layout.shape)}")
    return inner
