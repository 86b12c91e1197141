"""Rows of many requests -> the arrays that one run is fed. No TensorFlow here, and no copy where none is needed.

A request's record lies in its frontend's request ring, which is mapped read-only. What is fed is

- a view of the ring, when the rows of the batch lie in it one behind the other (always so for a batch of one part, and
  for requests that arrived back to back when their records fill whole 64-byte lines),
- otherwise one gathered array in scratch memory, filled by one strided copy where the records lie at equal distances,
  and run by run of neighbouring records where they do not.

64-byte aligned arrays are taken by TensorFlow as they are, others are copied by it once more; records are aligned by
the ring, scratch memory is aligned here, and a split request's part is as aligned as its first row happens to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ringserve.broker.messages import Code, InputSpec
from ringserve.shm import dtype as dtypes
from ringserve.shm import tensor
from ringserve.workers.failures import RunFailure

ALIGN = 64

#: Scratch memory larger than this is given back after the batch that needed it.
_SCRATCH_KEPT_BYTES_MAX = 64 * 2**20

#: Where the fields of a part of an Execute message stand.
FRONTEND, REQUEST, ROWS, ROW_START, OFFSETS = range(5)

#: [frontend_id, request_id, rows, row_start, offset, ...], see Execute.
Part = list[int]


#: TensorFlow's quantized types are plain integers in a record and structures of one integer in its arrays.
_QUANTIZED = ("qint", "quint")


class InputLayout(NamedTuple):
    """One input of a lane in memory. row_bytes is 0 for strings; row_elements counts elements of a row.

    For a lane that is not batchable a "row" is the whole tensor and `shape` its shape; else `shape` is of one row. Both
    counts mean nothing when `is_open`: then each record says its own shape (see `padding.py`).
    """

    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    row_elements: int
    row_bytes: int

    @property
    def is_open(self) -> bool:
        """Whether the lane leaves some axis to each request."""
        return -1 in self.shape


def layout_of(spec: InputSpec) -> InputLayout:
    """Raises RunFailure for a dtype that no tensor of a request has."""
    try:
        entry = dtypes.dtype_of(spec.dtype)
    except ValueError as error:
        raise RunFailure(Code.INVALID_ARGUMENT, f'Input "{spec.alias}": {error}') from None
    elements = math.prod(spec.shape)
    if entry.numpy is None:
        return InputLayout(None, spec.shape, elements, 0)
    numpy = entry.numpy if not entry.name.startswith(_QUANTIZED) else np.dtype([(entry.name, entry.numpy)])
    return InputLayout(numpy, spec.shape, elements, elements * numpy.itemsize)


#: What reading a record raises that is not there: stale, or a bug of its frontend; and what too large a batch does.
READ_ERRORS = (tensor.TensorError, ValueError, TypeError, IndexError, MemoryError)


def unreadable(error: Exception) -> RunFailure:
    """What one of READ_ERRORS means for the requests. The request fails, not the worker."""
    if isinstance(error, MemoryError):
        return RunFailure(Code.RESOURCE_EXHAUSTED, "Out of memory while a batch was gathered.")
    return RunFailure(Code.INTERNAL, f"An input does not lie where its frontend said: {error}")


class Columns:
    """The parts of one batch that lie in one frontend's ring, field by field."""

    __slots__ = ("count", "equal_rows", "offsets", "parts", "ring", "row_starts", "rows", "rows_count")

    def __init__(self, ring: memoryview, parts: list[Part]) -> None:
        self.ring = ring
        self.parts = parts
        self.count = len(parts)
        fields = list(zip(*parts, strict=True))
        self.rows: tuple[int, ...] = fields[ROWS]
        self.row_starts: tuple[int, ...] = fields[ROW_START]
        self.offsets: list[tuple[int, ...]] = fields[OFFSETS:]
        first = self.rows[0]
        #: The rows of each part when all have the same number and none is a piece of a split request, else 0.
        self.equal_rows = first if self.rows.count(first) == self.count and not any(self.row_starts) else 0
        self.rows_count = first * self.count if self.equal_rows else sum(self.rows)

    def stride_bytes(self, position: int) -> int:
        """Distance of the parts' records of one input when it is the same for all and positive, else 0."""
        offsets = self.offsets[position]
        stride = offsets[1] - offsets[0]
        last = offsets[0] + stride * (self.count - 1)
        # The last one tells nearly always, before all are compared.
        if stride <= 0 or offsets[-1] != last or offsets != tuple(range(offsets[0], last + 1, stride)):
            return 0
        return stride


class Gatherer:
    """Builds feeds. Its scratch memory belongs to the latest batch: use a batch's feeds up before the next `feeds`."""

    def __init__(self) -> None:
        self._scratch: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}

    def feeds(
        self, layouts: Sequence[InputLayout], groups: Sequence[Columns], rows_count: int, rows_padded: int = 0
    ) -> list[Any]:
        """One array [rows, *shape] per input, rows in the order of `groups` and their parts. Raises RunFailure.

        With `rows_padded` > `rows_count` the first row of the last part is repeated up to that many rows.
        """
        if len(self._scratch) and sum(s.nbytes for s in self._scratch.values()) > _SCRATCH_KEPT_BYTES_MAX:
            self._scratch.clear()
        rows_fed = max(rows_count, rows_padded)
        try:
            return [
                self.column(layout, position, groups, rows_count, rows_fed) for position, layout in enumerate(layouts)
            ]
        except READ_ERRORS as error:
            raise unreadable(error) from None

    def column(
        self, layout: InputLayout, position: int, groups: Sequence[Columns], rows_count: int, rows_fed: int
    ) -> Any:
        """One input's array of `feeds`. Raises READ_ERRORS."""
        if layout.dtype is None:
            return self._strings(layout, position, groups, rows_count, rows_fed)
        return self._numbers(layout, layout.dtype, position, groups, rows_count, rows_fed)

    def _numbers(
        self,
        layout: InputLayout,
        dtype: np.dtype[Any],
        position: int,
        groups: Sequence[Columns],
        rows_count: int,
        rows_fed: int,
    ) -> Any:
        shape = (rows_fed, *layout.shape)
        if not layout.row_bytes:
            return np.empty(shape, dtype)
        if rows_fed == rows_count and len(groups) == 1:
            group = groups[0]
            offset = group.offsets[position][0]
            if group.count == 1:
                return view_of(shape, dtype, group.ring, offset + group.row_starts[0] * layout.row_bytes)
            if group.equal_rows and group.stride_bytes(position) == group.equal_rows * layout.row_bytes:
                return view_of(shape, dtype, group.ring, offset)
        batch = self.scratch_bytes(position, rows_fed * layout.row_bytes)
        start = 0
        for group in groups:
            end = start + group.rows_count * layout.row_bytes
            _copy_group(batch[start:end], group, position, layout.row_bytes)
            start = end
        if rows_fed > rows_count:
            first = start - groups[-1].rows[-1] * layout.row_bytes
            batch[start:].reshape(-1, layout.row_bytes)[:] = batch[first : first + layout.row_bytes]
        return batch.view(dtype).reshape(shape)

    def _strings(
        self, layout: InputLayout, position: int, groups: Sequence[Columns], rows_count: int, rows_fed: int
    ) -> Any:
        values: list[bytes] = []
        each = layout.row_elements
        for group in groups:
            for rows, row_start, offset in zip(group.rows, group.row_starts, group.offsets[position], strict=True):
                values += tensor.read_strings(group.ring, offset, row_start * each, rows * each)
        if rows_fed > rows_count:
            first = len(values) - groups[-1].rows[-1] * each
            values += values[first : first + each] * (rows_fed - rows_count)
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape((rows_fed, *layout.shape))

    def scratch_bytes(self, position: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """`nbytes` of aligned memory, used again by the next batch: fresh pages would cost more than the copy."""
        scratch = self._scratch.get(position)
        if scratch is None or scratch.nbytes < nbytes:
            raw = np.empty((1 << max(12, (nbytes - 1).bit_length())) + ALIGN, np.uint8)
            start = -raw.ctypes.data % ALIGN
            scratch = self._scratch[position] = raw[start : start + raw.nbytes - ALIGN]
        return scratch[:nbytes]


def whole_feeds(layouts: Sequence[InputLayout], ring: memoryview, part: Part) -> list[Any]:
    """The inputs of one request of a lane that is not batchable, in their own shapes. Raises RunFailure."""
    feeds: list[Any] = []
    try:
        for layout, offset in zip(layouts, part[OFFSETS:], strict=True):
            if layout.dtype is None:
                array = np.empty(layout.row_elements, dtype=object)
                array[:] = tensor.read_strings(ring, offset, 0, layout.row_elements)
                feeds.append(array.reshape(layout.shape))
            elif not layout.row_bytes:
                feeds.append(np.empty(layout.shape, layout.dtype))
            else:
                feeds.append(view_of(layout.shape, layout.dtype, ring, offset))
    except READ_ERRORS as error:
        raise unreadable(error) from None
    return feeds


def view_of(
    shape: tuple[int, ...], dtype: np.dtype[Any], ring: memoryview, offset: int, strides: tuple[int, ...] | None = None
) -> Any:
    """An array over the ring. Raises when it does not lie inside; numpy sees to the upper end only."""
    if offset < 0:
        raise IndexError(f"offset {offset}")
    return np.ndarray(shape, dtype, ring, offset, strides)


def _copy_group(batch: np.ndarray[Any, np.dtype[np.uint8]], group: Columns, position: int, row_bytes: int) -> None:
    """All rows of a group, one behind the other, into `batch`."""
    offsets = group.offsets[position]
    if group.equal_rows and group.count > 1:
        part_bytes = group.equal_rows * row_bytes
        stride = group.stride_bytes(position)
        if stride:
            shape = (group.count, part_bytes)
            batch.reshape(shape)[:] = view_of(shape, np.dtype(np.uint8), group.ring, offsets[0], (stride, 1))
            return
    target, ring, ring_bytes = batch.data, group.ring, len(group.ring)
    at = run_start = run_end = 0
    for rows, row_start, offset in zip(group.rows, group.row_starts, offsets, strict=True):
        start = offset + row_start * row_bytes
        if start != run_end:
            if run_end:
                target[at : at + run_end - run_start] = ring[run_start:run_end]
                at += run_end - run_start
            if start < 0:
                raise IndexError(f"offset {start} of a ring of {ring_bytes} bytes")
            run_start = start
        run_end = start + rows * row_bytes
        if run_end > ring_bytes:
            raise IndexError(f"bytes {start} to {run_end} of a ring of {ring_bytes} bytes")
    target[at:] = ring[run_start:run_end]
