"""Real OOM kills, by the kernel's killer in a memory control group made for the occasion.

`kill`: the process and a hog are alone in the group; the hog takes more than the group may have, and by `oom_score_adj`
the killer prefers the process. `Shortage`: a whole server is in the group, with hogs that are smaller than any process
with TensorFlow, and the choice is the killer's. Version 1 groups only, as a process cannot join a version 2 group below
one with members.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.e2e.server import wait_until

_ROOT = Path("/sys/fs/cgroup/memory")
_LIMIT_BYTES = 64 << 20
#: What a server under `Shortage` has beside what it takes already, page cache not counted.
_LEFT_BYTES = 300 << 20
#: Hogs take most of that at once, and the rest so slowly that who ends is seen before more must.
_HOGS = 4
_HOG_BYTES = 60 << 20
_HOG_BYTES_MAX = 300 << 20
#: Joins the group, takes so much memory at once, and more until it has so much.
_SLOW_HOG = """
import sys, time
open(sys.argv[1], "w").write("0")
at_once, most = int(sys.argv[2]) >> 20, int(sys.argv[3]) >> 20
kept = [bytearray(b"x") * (1 << 20) for _ in range(at_once)]
for _ in range(most - at_once):
    time.sleep(0.05)
    kept.append(bytearray(b"x") * (1 << 20))
time.sleep(600)
"""
#: Joins the group, and takes memory without end.
_HOG = """
import sys
open(sys.argv[1], "w").write("0")
kept = []
while True:
    kept.append(bytearray(b"x") * (1 << 20))
"""


@functools.cache
def why_not() -> str:
    """Why there can be no OOM kill on this machine; empty when there can."""
    try:
        group = _make(f"probe-{os.getpid()}")  # the test runner's processes look at the same moment
    except OSError as error:
        return f"no memory control group can be made here ({error.strerror})"
    group.rmdir()
    return ""


def kill(pid: int) -> None:
    """Have the kernel's OOM killer end this process. Raises AssertionError when it chose otherwise."""
    group = _make(f"{os.getpid()}-{pid}")
    hog: subprocess.Popen[bytes] | None = None
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        (group / "cgroup.procs").write_text(str(pid))
        hog = subprocess.Popen([sys.executable, "-c", _HOG, str(group / "cgroup.procs")])
        wait_until(lambda: _ended(pid), f"the OOM killer to end process {pid}", 20)
        assert _kills(group) >= 1, "it ended by something else"
    finally:
        if hog is not None:
            hog.kill()
            hog.wait(10)
        for _ in range(2):
            with contextlib.suppress(OSError):  # a zombie that nobody has collected yet does not count, a thread does
                wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group to be empty", 10)
                group.rmdir()
                break


class Shortage:
    """A group for a server that has just been started, whose memory ends on `begin`. Use it as a context manager."""

    def __init__(self, supervisor_pid: int) -> None:
        """The server's processes follow their supervisor into the group as long as it has not started any."""
        self._group = _make(f"{os.getpid()}-{supervisor_pid}-all", 1 << 40)
        self._hogs: list[subprocess.Popen[bytes]] = []
        (self._group / "cgroup.procs").write_text(str(supervisor_pid))

    def pids(self) -> set[int]:
        return {int(word) for word in (self._group / "cgroup.procs").read_text().split()}

    def begin(self) -> None:
        """Who ends from now on, ends by the OOM killer."""
        taken = int((self._group / "memory.usage_in_bytes").read_text())
        (self._group / "memory.limit_in_bytes").write_text(str(taken + _LEFT_BYTES))
        sizes = str(_HOG_BYTES), str(_HOG_BYTES_MAX)
        command = [sys.executable, "-c", _SLOW_HOG, str(self._group / "cgroup.procs"), *sizes]
        self._hogs += [subprocess.Popen(command) for _ in range(_HOGS)]

    def hogs_alive(self) -> int:
        return sum(hog.poll() is None for hog in self._hogs)

    def end(self) -> int:
        """There is memory again. Returns how many processes the killer ended."""
        (self._group / "memory.limit_in_bytes").write_text(str(1 << 40))
        for hog in self._hogs:
            hog.kill()
            hog.wait(10)
        self._hogs.clear()
        return _kills(self._group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        wait_until(lambda: not self.pids(), "the group to be empty", 30)
        wait_until(self._removed, "the group to go", 10)

    def _removed(self) -> bool:
        with contextlib.suppress(OSError):
            self._group.rmdir()
        return not self._group.exists()


def _make(name: str, limit_bytes: int = _LIMIT_BYTES) -> Path:
    """A group below this process's own, so that whatever bounds this process bounds it as well. Raises OSError."""
    own = next(
        line.split(":", 2)[2]
        for line in [*Path("/proc/self/cgroup").read_text().splitlines(), ":memory:"]
        if line.split(":", 2)[1] == "memory"
    )
    if not own:
        raise OSError(0, "no version 1 memory groups")
    group = _ROOT / own.lstrip("/") / f"ringserve-faults-{name}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        Path("/proc/self/oom_score_adj").read_text()
    except OSError:
        group.rmdir()
        raise
    return group


def _kills(group: Path) -> int:
    fields = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
    return int(fields["oom_kill"])


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
