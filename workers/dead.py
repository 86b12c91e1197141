"""Children that have ended: how, is known at once; reaped they are later.

Reaping takes a process out of /proc, in the kernel, which *spins* there as long as somebody else is at the same
entries: whoever watches processes, and the threads of the dead one, which clear away their own at the lowest priority.
On a busy host that took the pool half a second, in which it neither forked nor said that it lives. Later it is alone.
"""

from __future__ import annotations

import os
from collections import deque

#: By then its threads are through, even where others want the cores.
_REAP_AFTER_NS = 1_000_000_000


class DeadChildren:
    """Zombies, oldest first. wake_ns: when to call `reap`; 0 = no need to."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int]] = deque()  # (when, process id)
        self.wake_ns = 0

    def ended(self, pidfd: int, now_ns: int) -> int:
        """This child has ended: its exit status, negative for a signal. Its number is not given to another process
        before it is reaped; the descriptor stays the caller's."""
        how = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert how is not None
        self._waiting.append((now_ns + _REAP_AFTER_NS, how.si_pid))
        self.wake_ns = self._waiting[0][0]
        return int(how.si_status if how.si_code == os.CLD_EXITED else -how.si_status)

    def reap(self, now_ns: int) -> None:
        """One that is due, if there is one: others may wait for what the caller does next."""
        if self._waiting and self._waiting[0][0] <= now_ns:
            os.waitpid(self._waiting.popleft()[1], 0)
        self.wake_ns = self._waiting[0][0] if self._waiting else 0

    def reap_all(self) -> None:
        """At the end: whoever inherits them would have them to reap."""
        while self._waiting:
            os.waitpid(self._waiting.popleft()[1], 0)
        self.wake_ns = 0
