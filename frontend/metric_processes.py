"""Memory and CPU time of the server's processes, from /proc. Whoever asks must be one of the supervisor's children, or
one of systemd's, with all others of that server beside it.

The processes are found by their parents and known by the names that they give themselves (`rs-broker`), so that nobody
has to keep a list of them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

#: How `config.process.begin` names processes for ps and top.
_TITLE: Final = "rs-"
_SUPERVISOR: Final = "supervisor"

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
#: Where /proc/PID/stat has user and system time and the start (in ticks since boot), counted behind the process's name.
_USER_TIME: Final = 11
_START: Final = 19


class ProcessUse(NamedTuple):
    """One process: `frontend-0`, `broker`, `worker-3`.

    proportional_bytes: PSS; 0 when it was not asked for. started_s: since 1970 began.
    """

    name: str
    resident_bytes: int
    proportional_bytes: int
    cpu_s: float
    started_s: float


def process_uses(*, proportional: bool) -> list[ProcessUse]:
    """Every process of the server. proportional: add up the shares of shared pages, which takes milliseconds each."""
    found = []
    booted_s = _booted_s()
    for pid, name in sorted(_family(os.getppid()), key=lambda member: member[1]):
        try:
            found.append(_use_of(pid, name, proportional, booted_s))
        except OSError:
            continue  # it has just ended
    return found


def _family(parent: int) -> Iterator[tuple[int, str]]:
    pids = [parent]
    if _name_of(parent) != _SUPERVISOR:
        own = os.getpid()
        if not os.environ.get("INVOCATION_ID"):
            yield own, _name_of(own) or str(own)  # started by hand, or by a test
            return
        # Each a service of its own. A whole server beside them is another one.
        pids = [pid for pid in _children(parent) if _is_part(pid)]
    while pids:
        pid = pids.pop()
        name = _name_of(pid)
        if name:
            yield pid, name
        pids += _children(pid)


def _name_of(pid: int) -> str:
    """The name without its prefix; empty for processes that are none of ours."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            title = file.read().strip()
    except OSError:
        return ""
    return title.removeprefix(_TITLE) if title.startswith(_TITLE) else ""


def _is_part(pid: int) -> bool:
    try:
        own = os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False
    return own and _name_of(pid) not in ("", _SUPERVISOR)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            with open(path, encoding="ascii") as file:
                found += map(int, file.read().split())
        except OSError:
            continue
    return found


def _booted_s() -> int:
    with open("/proc/stat", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("btime ")), 0)


def _use_of(pid: int, name: str, proportional: bool, booted_s: int) -> ProcessUse:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        resident_bytes = int(file.read().split()[1]) * _PAGE_BYTES
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    cpu_s = (int(fields[_USER_TIME]) + int(fields[_USER_TIME + 1])) / _TICKS_PER_S
    proportional_bytes = _proportional_bytes(pid) if proportional else 0
    return ProcessUse(name, resident_bytes, proportional_bytes, cpu_s, booted_s + int(fields[_START]) / _TICKS_PER_S)


def _proportional_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
