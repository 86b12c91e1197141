"""How much memory this process may use: the host's, or what its control groups allow where that is less.

A container with `--memory=2g`, or a systemd unit with `MemoryMax=2G`, still sees all of the host's memory in
/proc/meminfo. Limits can stand at every level of the cgroup tree, and the smallest counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ringserve.config.cpus import read_text

_KIB = 1024


class UsableMemory(NamedTuple):
    """count_bytes: how much; 0 when nobody knows. source: where that limit comes from, in words."""

    count_bytes: int
    source: str


def usable_memory(*, proc: str = "/proc", cgroup_root: str = "/sys/fs/cgroup") -> UsableMemory:
    """The memory that this process may use, together with all others of the same host or control group.

    proc, cgroup_root: where the kernel's files are; tests put their own there.
    """
    found = [UsableMemory(_total_bytes(proc), "the host's memory")]
    found += [UsableMemory(limit, f"the control group's limit in {path}") for path, limit in _limits(proc, cgroup_root)]
    return min((each for each in found if each.count_bytes), default=UsableMemory(0, ""))


def _limits(proc: str, cgroup_root: str) -> Iterator[tuple[str, int]]:
    """(file, bytes) of every limit that holds for this process: v2 `memory.max`, v1 `memory.limit_in_bytes`."""
    for line in read_text(os.path.join(proc, "self", "cgroup")).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        hierarchy, controllers, path = parts
        if hierarchy == "0" and not controllers:
            yield from _walk(cgroup_root, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _walk(os.path.join(cgroup_root, "memory"), path, "memory.limit_in_bytes")


def _walk(root: str, path: str, name: str) -> Iterator[tuple[str, int]]:
    """The group at `path` and all above it. Inside a container the path often is the host's, which cannot be seen from
    there: the mount's root then is the container's own group and is what counts."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        file = os.path.join(root, *parts[:depth], name)
        text = read_text(file).strip()  # `max` means no limit; v1 says a number larger than any memory
        if text.isascii() and text.isdigit() and int(text):
            yield file, int(text)


def _total_bytes(proc: str) -> int:
    for line in read_text(os.path.join(proc, "meminfo")).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemTotal:" and words[1].isdigit():
            return int(words[1]) * _KIB
    return 0
