"""Real OOM kills: the kernel's killer is made to choose one process, in a memory control group made for the occasion.

The process and a hog are alone in the group; the hog takes more than the group may have, and by `oom_score_adj` the
killer prefers the process. Version 1 groups only, as a process cannot join a version 2 group below one with members.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.server import wait_until

_ROOT = Path("/sys/fs/cgroup/memory")
_LIMIT_BYTES = 64 << 20
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
        group = _make("probe")
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


def _make(name: str) -> Path:
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
        (group / "memory.limit_in_bytes").write_text(str(_LIMIT_BYTES))
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
