"""Children that were not started here: workers whose pool died come to the nearest subreaper, to be collected."""

from __future__ import annotations

import ctypes
import glob
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36


def become_subreaper() -> None:
    """Orphans of this process's children become children of its own."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of_this_process() -> set[int]:
    """The process ids of all children, zombies included."""
    pids: set[int] = set()
    for path in glob.glob("/proc/self/task/*/children"):
        try:
            with open(path, encoding="ascii") as file:
                pids.update(int(word) for word in file.read().split())
        except OSError:
            continue
    return pids
