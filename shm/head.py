"""The head of a record that says its tensor's shape itself, because its lane leaves some axes open.

    numeric record   │ head, 64 bytes │ the elements, as in tensor.py │
    string record    the head is the first string of the record, the elements follow it

The head holds the rank and the whole shape, axis 0 (the request's rows) included, as 64-bit numbers, zeros after them.
It fills one line of 64 bytes, so the elements behind it are as aligned as those of any record. A reader checks it as
everything else in a segment: it may be stale.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from ringserve.shm.layout import ALIGN
from ringserve.shm.tensor import TensorError, read_strings

HEAD_BYTES: Final = ALIGN
#: Largest rank of a tensor with a head; TF Serving pads tensors up to this rank, too.
RANK_MAX: Final = 6

_HEAD: Final = struct.Struct("<8Q")
_ZEROS: Final = (0,) * 7


def pack_head(shape: Sequence[int]) -> bytes:
    """The head of a tensor of this shape, of rank 1 to RANK_MAX."""
    if not 1 <= len(shape) <= RANK_MAX:
        raise ValueError(f"a tensor with a head has rank 1 to {RANK_MAX}, not shape {list(shape)}")
    return _HEAD.pack(len(shape), *shape, *_ZEROS[len(shape) :])


def read_head(data: memoryview, offset: int) -> tuple[int, ...]:
    """The shape that the numeric record at `offset` says it has. TensorError when there is no head."""
    if offset < 0 or offset + HEAD_BYTES > len(data):
        raise TensorError(f"no head fits at byte {offset} of {len(data)}")
    return _shape(data[offset : offset + HEAD_BYTES])


def read_string_head(data: memoryview, offset: int) -> tuple[int, ...]:
    """The same of a string record."""
    (head,) = read_strings(data, offset, 0, 1)
    if len(head) != HEAD_BYTES:
        raise TensorError(f"a head of {len(head)} bytes")
    return _shape(head)


def _shape(head: bytes | memoryview) -> tuple[int, ...]:
    rank, *sizes = _HEAD.unpack(head)
    if not 1 <= rank <= RANK_MAX:
        raise TensorError(f"a head says rank {rank}")
    return tuple(sizes[:rank])
