"""Outputs of one run -> records of this worker's result ring, one for each frontend that gets rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ringserve.shm.dtype import STRING
from ringserve.shm.layout import align
from ringserve.shm.tensor import string_record_bytes, write_strings


class Block:
    """One frontend's share of the outputs, measured and ready to be written.

    nbytes: what to claim in the ring. `write` may come later than the run, as long as the feeds are untouched: outputs
    may share their memory.
    """

    __slots__ = ("_outputs", "nbytes")

    def __init__(self, outputs: Sequence[Any], dtype_numbers: Sequence[int]) -> None:
        """`outputs`: this frontend's rows of each output, whatever their shapes."""
        self._outputs: list[tuple[int, Any, list[bytes] | None, int]] = []
        at = 0
        for output, number in zip(outputs, dtype_numbers, strict=True):
            values: list[bytes] | None = None
            if number == STRING:
                values = output.reshape(-1).tolist()
                nbytes = string_record_bytes(values)
            else:
                nbytes = output.nbytes
            self._outputs.append((number, output, values, at))
            at += align(nbytes)
        self.nbytes = at

    def write(self, data: memoryview, offset: int) -> list[list[Any]]:
        """Write at `offset` (claimed, 64-byte aligned) of the ring; the `outputs` field of a Result."""
        described: list[list[Any]] = []
        for number, output, values, at in self._outputs:
            start = offset + at
            if values is not None:
                write_strings(data, start, values)
            elif output.nbytes:
                # Bytes on both sides: numpy does not lend bfloat16 and its kind as a buffer.
                source = np.ascontiguousarray(output).reshape(-1).view(np.uint8)
                np.ndarray(source.shape, np.uint8, data, start)[:] = source
            described.append([number, list(output.shape), start])
        return described
