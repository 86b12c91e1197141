"""Children that were not started here: workers whose pool died come to the nearest subreaper, to be collected.

They leave by themselves as soon as they see that it is gone. One that hangs never sees it, and is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
from collections.abc import Collection
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


class Orphans:
    """Which of them stay for too long. limit_ns: how long one may.

    wake_ns: when to look again at the latest; 0 = no need to. Only members of process groups that a child of ours led:
    in a container the first process inherits everybody's, and what others started is none of ours.
    """

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._since_ns: dict[int, int] = {}  # by process id
        self._groups: set[int] = set()
        self.wake_ns = 0

    def leader_died(self, pid: int) -> None:
        """This child has ended, and those of its group are nobody's."""
        self._groups.add(pid)

    def look(self, pids: Collection[int], now_ns: int) -> list[int]:
        """Those to be ended now, of these orphans. Time counts from when one was first seen here, and anew from when it
        was named."""
        group_of = {pid: _group_of(pid) for pid in pids}
        self._groups &= set(group_of.values())  # the number of a group without members may become another's
        self._since_ns = {pid: self._since_ns.get(pid, now_ns) for pid in pids if group_of[pid] in self._groups}
        late = [pid for pid, since_ns in self._since_ns.items() if now_ns - since_ns >= self._limit_ns]
        self._since_ns.update(dict.fromkeys(late, now_ns))
        self.wake_ns = min(self._since_ns.values()) + self._limit_ns if self._since_ns else 0
        return late


def _group_of(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0
