"""A block of private memory: given by the system page by page as it is written, and back to it whole."""

from __future__ import annotations

import mmap


def private_block(nbytes: int) -> mmap.mmap | None:
    """`nbytes` > 0 bytes of zeros, kept by whoever holds a view of them; None: the system has no room for them."""
    try:
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError):
        return None
