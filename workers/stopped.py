"""Children that were stopped (SIGSTOP) and do nothing until somebody continues them, which nobody does here.

What they hold would wait for a lease to run out, or for a load to take too long. The kernel tells their parent at once,
so looking costs nothing until it does. A process that a debugger holds counts as running.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from types import FrameType

#: A tool that stops a process to look at it continues it within this time.
_LIMIT_NS = 1_000_000_000


class StoppedChildren:
    """Make it in the main thread. limit_ns: how long one may be stopped. fd: readable when one was stopped, was
    continued, or ended. wake_ns: when to look even if it is not; 0 = no need to."""

    def __init__(self, limit_ns: int = _LIMIT_NS) -> None:
        self._limit_ns = limit_ns
        self._since_ns: dict[int, int] = {}  # by process id
        self.wake_ns = 0
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        signal.signal(signal.SIGCHLD, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        os.eventfd_write(self.fd, 1)

    def look(self, pids: Collection[int], now_ns: int) -> list[int]:
        """Those of these children that have been stopped for too long: end them. Time counts from when it was first
        seen here, as we may have been stopped along with them."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        self._since_ns = {pid: self._since_ns.get(pid, now_ns) for pid in pids if is_stopped(pid)}
        late = [pid for pid, since_ns in self._since_ns.items() if now_ns - since_ns >= self._limit_ns]
        waiting = [since_ns for pid, since_ns in self._since_ns.items() if pid not in late]
        self.wake_ns = min(waiting) + self._limit_ns if waiting else 0
        return late

    def leave(self) -> None:
        """In a forked child: it has no children."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self.fd)


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped this process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[0] == b"T"
    except OSError:
        return False
