"""Numbers that several processes read and write, without an order between them: each is one machine word."""

from __future__ import annotations

import mmap
import os
from typing import Final

WORD_BYTES: Final = 8


def make_words(name: str, count: int) -> int:
    """A descriptor of `count` words, all zero, for processes to inherit; the caller's to close."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, count * WORD_BYTES)
    return fd


def map_words(fd: int, count: int) -> memoryview[int]:
    """The words behind a descriptor, as signed 64-bit numbers. Reading or writing one of them is atomic."""
    mapping = mmap.mmap(fd, count * WORD_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return memoryview(mapping).cast("q")
