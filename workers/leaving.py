"""Letting go of mapped memory, and of the cores, without holding up those that serve.

A process that ends gives its pages back in the kernel, at the priority that it has and on a core that others are pinned
to: for a worker with a large model that took 100 ms, in which a kernel without preemption let nobody else run for up to
48 ms. Pages of files (weights, code) can be let go of before, a few at a time; the rest goes at low priority.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_MADV_DONTNEED = 4
#: So much at a time: about 20 us in the kernel, after which whoever waits for the core has it.
_STEP_BYTES = 1 << 20
_NICENESS = 19


def let_go_of_code(maps: str = "/proc/self/maps") -> int:
    """Take the pages of executable file mappings out of this process, and return how many bytes were looked at.

    For the pool: importing TensorFlow touches most of its code, about 250 MB, and the pool runs next to none of it
    again. The pages stay in the page cache, and what is run comes back by a minor fault; but what nobody maps the
    kernel can reclaim when memory is short, and it does not count as this process's. Only executable mappings: they are
    never written to, while what the loader has relocated must not be thrown away.
    """
    return sum(_let_go(start, end) for start, end, mode in _file_mappings(maps) if mode == "r-xp")


def leave_gently(maps: str = "/proc/self/maps") -> None:
    """Right before a process ends: give way to all others, then let go of what it maps of files. Everything still works
    afterwards, a little slower at first."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and threads end
            os.setpriority(os.PRIO_PROCESS, int(thread), _NICENESS)
            os.sched_setscheduler(int(thread), os.SCHED_BATCH, os.sched_param(0))
    for start, end, mode in _file_mappings(maps):
        if mode in ("r--s", "r-xp"):
            _let_go(start, end)


def _file_mappings(maps: str) -> Iterator[tuple[int, int, str]]:
    with open(maps, encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    for line in lines:
        addresses, mode, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield start, end, mode


def _let_go(start: int, end: int) -> int:
    """Returns how many bytes that was."""
    for at in range(start, end, _STEP_BYTES):
        if _madvise(at, min(_STEP_BYTES, end - at), _MADV_DONTNEED) != 0:
            return 0
    return end - start


_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
