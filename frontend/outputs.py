"""What a finished request looks like to the code that encodes its answer: views into a worker's result ring.

Nothing here owns memory: an Output is valid only while `Reply.answer` runs, because the record goes back to the
worker right after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Final, Protocol

from ringserve.broker.messages import Result
from ringserve.shm.dtype import STRING, dtype_of
from ringserve.shm.tensor import read_strings


class Output:
    """One output of one result record; rows of several requests when its lane is batchable.

    dtype: TensorFlow DataType number. shape: of the whole record (axis 0 counts all its rows when batchable).
    batchable: False for every output of a lane that is not, and for one whose axis 0 does not follow the rows: it is
    the answer of one request, whole, whatever rows are asked for. row_bytes: bytes of one row (or of the whole), 0 for
    strings.
    """

    __slots__ = ("_data", "_offset", "batchable", "dtype", "row_bytes", "row_elements", "shape")

    def __init__(self, dtype: int, shape: tuple[int, ...], data: memoryview, offset: int, batchable: bool) -> None:
        self.dtype = dtype
        self.shape = shape
        self.batchable = batchable
        self.row_elements = prod(shape[1:] if batchable else shape)
        self.row_bytes = 0 if dtype == STRING else self.row_elements * dtype_of(dtype).itemsize
        self._data = data
        self._offset = offset

    @property
    def whole_bytes(self) -> int:
        """Bytes of the whole output in its record; of strings, at least 8 for each."""
        rows = self.shape[0] if self.batchable else 1
        return rows * (self.row_bytes or 8 * self.row_elements)

    def raw(self, row_first: int, rows: int) -> memoryview:
        """Row-major little-endian bytes of rows [row_first, row_first + rows)."""
        row_bytes = self.row_bytes
        if not self.batchable:
            return self._data[self._offset : self._offset + row_bytes]
        start = self._offset + row_first * row_bytes
        return self._data[start : start + rows * row_bytes]

    def strings(self, row_first: int, rows: int) -> list[bytes]:
        """Elements of those rows, row-major, of a string output."""
        elements = self.row_elements
        if not self.batchable:
            return read_strings(self._data, self._offset, 0, elements)
        return read_strings(self._data, self._offset, row_first * elements, rows * elements)

    def shape_of(self, rows: int) -> tuple[int, ...]:
        """The shape of an answer that has `rows` rows of this output."""
        return (rows, *self.shape[1:]) if self.batchable else self.shape


class Reply(Protocol):
    """Who waits for a request. Exactly one of the two is called, exactly once, on the event loop."""

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        """The outputs in the lane's order. They are valid during this call only."""

    def fail(self, code: int, text: str) -> None:
        """The request has no answer; the code is a `Code`."""


#: A reply, and which rows of the outputs are its answer.
Answered = tuple[Reply, int, int]
#: Of fewer each is answered by itself.
TOGETHER_MIN: Final = 4


def answer_all(answered: list[Answered], outputs: Sequence[Output]) -> None:
    """Call each one's `answer`; those of one class together, where that has a method `answer_together`."""
    while len(answered) >= TOGETHER_MIN:
        kind = answered[0][0].__class__
        together: Callable[[list[Answered], Sequence[Output]], None] | None = getattr(kind, "answer_together", None)
        if together is None:
            break
        alike = [one for one in answered if one[0].__class__ is kind]
        together(alike, outputs)
        if len(alike) == len(answered):
            return
        answered = [one for one in answered if one[0].__class__ is not kind]
    for reply, row_first, rows in answered:
        reply.answer(outputs, row_first, rows)


def outputs_of(result: Result, data: memoryview, batchable: bool) -> list[Output]:
    """The outputs of a record. Only one request's record can hold outputs that do not follow the rows."""
    last = result.answers[-1]
    rows_count = last[1] + last[2]
    return [
        Output(dtype, tuple(shape), data, offset, batchable and bool(shape) and shape[0] == rows_count)
        for dtype, shape, offset in result.outputs
    ]
