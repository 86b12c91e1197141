"""The bytes of a segment: one header page, then the data. Offsets and constants only, no code paths.

     byte 0                                              4096 (DATA_START)                    4096 + capacity
       │ magic │ version │ header │ capacity │ pid │ inc. │ zeros │ data: records, 64-byte aligned │ rounding │
       0       8        12       16         24    32     40                                                  file end

    field        bytes    type   meaning
    magic        0..8     8s     MAGIC; written last, so a header that shows it is complete
    version      8..12    u32    LAYOUT_VERSION
    header       12..16   u32    DATA_START of the writer
    capacity     16..24   u64    data bytes
    pid          24..32   u64    the owner's process id, for people who look at a dump
    incarnation  32..40   u64    drawn anew for each segment: tells two segments of one process apart

All integers are little-endian. Offsets that travel in messages count from DATA_START: offset 0 is the first data byte.
What lies inside the data is the ring's and the tensors' business (`ring.py`, `tensor.py`); nothing there is shared
bookkeeping, so a reader can corrupt nothing and waits for nothing.
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"RINGSEG\x00"
LAYOUT_VERSION: Final = 1
DATA_START: Final = 4096

#: version, header, capacity, pid, incarnation; follows the magic.
HEADER: Final = struct.Struct("<IIQQQ")
HEADER_AT: Final = len(MAGIC)

#: Records start on a cache line. TensorFlow aliases a buffer without copying only when it is aligned like this.
ALIGN: Final = 64


def align(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of ALIGN."""
    return (nbytes + (ALIGN - 1)) & -ALIGN
