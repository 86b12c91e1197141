"""The parts of a split request, gathered until they are all there.

Parts are copied: each lies in another batch's record, which goes back to its worker at once. Rows can come twice: their
worker died after sending them, or the broker did, and they ran again. Where a request is cut depends on what stands
before it, so that those that ran again need not lie in a part as the first ones did: only what is missing is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringserve.frontend.outputs import Output
from ringserve.shm.dtype import STRING
from ringserve.shm.tensor import string_record_bytes, write_strings

NOT_PER_ROW_TEXT = (
    "an output of this model does not have one row for each input row, so the answer to a request that had to be split "
    "cannot be joined; send fewer rows at a time, or raise batch_rows_max"
)
NOT_ALIKE_TEXT = (
    "the parts of a request that had to be split have outputs of different inner shapes, which cannot be joined; send "
    "fewer rows at a time, or raise batch_rows_max"
)


#: Of each output its rows, copied.
_Columns = list[tuple[Output, bytes | list[bytes]]]


class Joins(dict[int, "Join"]):
    """By request id, those of requests of which some parts have run."""

    def of(self, request_id: int, rows_whole: int) -> Join:
        join = self.get(request_id)
        if join is None:
            join = self[request_id] = Join(rows_whole)
        return join


class Join:
    """Collects the parts of one request of `rows_whole` rows. complete: nothing of it runs any more."""

    def __init__(self, rows_whole: int) -> None:
        self._rows_whole = rows_whole
        self._has_failed = False
        #: By their first row, none of which two have: how many rows, and each output's; none of a request that failed.
        self._parts: dict[int, tuple[int, _Columns]] = {}

    @property
    def complete(self) -> bool:
        return sum(rows for rows, _ in self._parts.values()) == self._rows_whole

    def add(self, outputs: Sequence[Output], row_first: int, rows: int, row_start: int) -> str:
        """Rows [row_first, row_first + rows) of `outputs` are the request's rows from `row_start` on.

        Why they cannot be joined with those that are here: a model may make rows as wide as the widest of a batch.
        Empty: they can, or the request has failed and they are only counted.
        """
        if self._has_failed:
            self.fail(rows, row_start)
            return ""
        if not all(output.batchable for output in outputs):
            return NOT_PER_ROW_TEXT
        for _, part in self._parts.values():
            if any(output.shape[1:] != here.shape[1:] for output, (here, _) in zip(outputs, part, strict=True)):
                return NOT_ALIKE_TEXT
            break
        for start, stop in self._missing(row_start, row_start + rows):
            at, count = row_first + start - row_start, stop - start
            self._parts[start] = count, [
                (output, output.strings(at, count) if output.dtype == STRING else bytes(output.raw(at, count)))
                for output in outputs
            ]
        return ""

    def fail(self, rows: int, row_start: int) -> bool:
        """These rows will not come, so that nobody needs the others. They are counted: whether all have run now."""
        self._has_failed = True
        self._parts = {start: (count, []) for start, (count, _) in self._parts.items()}
        for start, stop in self._missing(row_start, row_start + rows):
            self._parts[start] = stop - start, []
        return self.complete

    def _missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The rows from `start` to `stop` that are not here yet."""
        missing = []
        for here in sorted(self._parts):
            rows = self._parts[here][0]
            if start < min(here, stop):
                missing.append((start, min(here, stop)))
            start = max(start, here + rows)
        if start < stop:
            missing.append((start, stop))
        return missing

    def outputs(self) -> list[Output]:
        """The whole request's outputs, over memory of their own."""
        parts = [self._parts[row_start][1] for row_start in sorted(self._parts)]
        joined = []
        for column in zip(*parts, strict=True):
            first = column[0][0]
            shape = (self._rows_whole, *first.shape[1:])
            if first.dtype == STRING:
                values = [value for _, part in column for value in part]
                record = bytearray(string_record_bytes(values))
                write_strings(memoryview(record), 0, values)
            else:
                record = bytearray().join(part for _, part in column)
            joined.append(Output(first.dtype, shape, memoryview(record), 0, True))
        return joined
