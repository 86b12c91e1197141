"""Who waits for a REST request's outputs: writes the answer's JSON while they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.json_write import NamedOutput, write_columns, write_rows
from ringserve.frontend.outputs import Output
from ringserve.shm.dtype import STRING

#: Answers of more tensor bytes than this are copied, to be written elsewhere than in the event loop.
_COPY_BYTES_MIN: Final = 2**17


class RestReply:
    """The waiting side of one request; a `Reply`.

    future: the body of the answer, a Failure, the copied outputs (to be given to `write`), or None when nobody waits
    any more. request_id: set by whoever calls `infer`.
    """

    __slots__ = ("_aliases", "_by_row", "future", "request_id")

    def __init__(self, aliases: Sequence[str], *, by_row: bool) -> None:
        self._aliases = aliases
        self._by_row = by_row
        self.request_id = -1
        self.future: asyncio.Future[bytes | Failure | list[NamedOutput] | None]
        self.future = asyncio.get_running_loop().create_future()

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        """Write the answer, or copy the outputs when that would take long."""
        if self.future.done():
            return
        size = sum(output.row_bytes * rows for output in outputs)
        large = size > _COPY_BYTES_MIN
        named: list[NamedOutput] = []
        try:
            for alias, output in zip(self._aliases, outputs, strict=True):
                data: bytes | memoryview | list[bytes]
                if output.dtype == STRING:
                    data = output.strings(row_first, rows)
                else:
                    data = output.raw(row_first, rows)
                    if large:
                        data = bytes(data)
                named.append(NamedOutput(alias, output.dtype, output.shape_of(rows), data))
            self.future.set_result(named if large else self.write(named))
        except Exception as error:
            # A bug in writing one answer must not take the others of the same batch along.
            self.future.set_exception(error)

    def fail(self, code: int, text: str) -> None:
        """The request has no answer."""
        if not self.future.done():
            try:
                known = Code(code)
            except ValueError:
                known = Code.UNKNOWN
            self.future.set_result(Failure(known, text))

    def abandon(self) -> None:
        """Nobody waits any more."""
        if not self.future.done():
            self.future.set_result(None)

    def write(self, outputs: Sequence[NamedOutput]) -> bytes | Failure:
        """The body of an answer."""
        return write_rows(outputs) if self._by_row else write_columns(outputs)
