"""Pure: what a row of a lane takes in a request ring, for bounds in bytes."""

from __future__ import annotations

from math import prod
from typing import Final

from ringserve.broker.messages import LaneSpec

#: Bytes of one element by TensorFlow's number of its dtype, where it is not one. Strings count as their bare records.
ITEM_BYTES: Final = {
    1: 4, 2: 8, 3: 4, 5: 2, 7: 8, 8: 8, 9: 8, 13: 4, 14: 2, 15: 2, 16: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8,
}


def row_bytes(spec: LaneSpec) -> int:
    """Bytes of the inputs of one row (of a whole request when the lane is not batchable), as far as the spec tells: an
    open axis counts as one, a string as 8 bytes."""
    return sum(ITEM_BYTES.get(one.dtype, 1) * prod(max(axis, 1) for axis in one.shape) for one in spec.inputs)
