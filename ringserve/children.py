"""One child process of the supervisor: how it is started, what its end means, when it is started again. No clock here.

A child is *starting* until it says READY, then *ready*, until it ends; then *waiting* for its next start. One that
ends while starting has failed to start, and too many failures in a row mean that starting again is no help.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ringserve.config.process import Exit
from ringserve.config.schema import Workers

_MS_NS = 1_000_000


class Stage(IntEnum):
    """The order of stopping: those who take requests, those who run them, the one between."""

    FRONTEND = 0
    POOL = 1
    BROKER = 2


@dataclass(frozen=True)
class ChildSpec:
    """What to start. arguments: of the ringserve command; fds: descriptors that it inherits, by the same numbers.
    patience: see `hangs.Watched`."""

    name: str
    stage: Stage
    arguments: tuple[str, ...]
    fds: tuple[int, ...]
    patience: int = 1


class Fatal(NamedTuple):
    """Why the server cannot go on, and the exit status that says so."""

    reason: str
    status: int


@dataclass
class Child:
    """A place that is to be filled with a running process. `due_ns`: when to start it, while it has none.

    heard_ns, condemned, patience: see `hangs.Watched`.
    """

    spec: ChildSpec
    ready: bool = False
    due_ns: int = 0
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    heard_ns: int = 0
    condemned: bool = False
    _started_ns: int = 0
    _start_failures: int = 0
    _strikes: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else -1

    @property
    def alive(self) -> bool:
        """It has a process, which may have ended but is not yet reaped."""
        return self.process is not None

    @property
    def patience(self) -> int:
        return self.spec.patience

    def start(self, command: list[str], environment: dict[str, str], now_ns: int) -> None:
        """Start the process. Its own process group: a Ctrl-C in the terminal reaches the supervisor only, which then
        stops its children in the right order. Raises OSError when the system has no room for one more."""
        started = subprocess.Popen(
            command, env=environment, pass_fds=self.spec.fds, stdin=subprocess.DEVNULL, process_group=0
        )
        try:
            self.pidfd = os.pidfd_open(started.pid)
        except OSError:
            started.kill()
            started.wait()
            raise
        self.process = started
        self.ready = self.condemned = False
        self.heard_ns = self._started_ns = now_ns

    def could_not_start(self, now_ns: int, limits: Workers) -> None:
        """The system had no room for it, which says nothing about it: tried again, after longer and longer pauses."""
        self._pause(now_ns, limits)

    def became_ready(self) -> None:
        self.ready = True
        self._start_failures = 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is a process. May be called by a handler of signals in the middle of `reap`."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> int:
        """Collect the process, which has ended. Returns its exit status, negative for a signal."""
        assert self.process is not None
        status = self.process.wait()
        pidfd, self.pidfd = self.pidfd, -1
        os.close(pidfd)
        self.process = None
        return status

    def after(self, status: int, now_ns: int, limits: Workers) -> Fatal | None:
        """Decide what follows an end that nobody asked for: a new start at `due_ns`, or the end of the server."""
        if status == Exit.CONFIG:
            return Fatal(f"{self.spec.name} cannot work as configured (see its last lines)", status)
        if status == Exit.FATAL:
            return Fatal(f"{self.spec.name} says that the server must end (see its last lines)", status)
        if not self.ready:
            self._start_failures += 1
            if self._start_failures >= limits.start_failures_max:
                return Fatal(
                    f"{self.spec.name} failed to start {self._start_failures} times in a row, at last with "
                    f"{describe_status(status)} (see its last lines)",
                    shell_status(status),
                )
        if self.ready and now_ns - self._started_ns >= limits.restart_wait_ms_max * _MS_NS:
            self._strikes = 0
        # One that served well is replaced at once; one that keeps dying is given longer and longer pauses.
        self._pause(now_ns, limits)
        return None

    def _pause(self, now_ns: int, limits: Workers) -> None:
        wait_ms = 0
        if self._strikes or not self.ready:
            doublings = min(max(self._strikes - 1, 0), 30)
            wait_ms = min(limits.restart_wait_ms_min << doublings, limits.restart_wait_ms_max)
        self._strikes += 1
        self.ready = False
        self.due_ns = now_ns + wait_ms * _MS_NS


#: From what to start to the command line that starts it; tests put stand-ins here.
CommandOf = Callable[[ChildSpec], list[str]]


def describe_status(status: int) -> str:
    """`status 3`, or `signal SIGKILL` for what subprocess calls -9. Most real-time signals have no name."""
    if status >= 0:
        return f"status {status}"
    names = {int(each): each.name for each in signal.Signals}
    return f"signal {names.get(-status, -status)}"


def shell_status(status: int) -> int:
    """An exit status of our own that says the same; never 0, since an end that nobody asked for is a failure."""
    return 128 - status if status < 0 else status or int(Exit.FAILED)
