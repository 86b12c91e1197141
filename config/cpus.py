"""Which CPUs this process may use: its affinity mask, and how many of them its cgroup's quota pays for.

A container with `--cpus=2` on a machine of 64 cores still sees 64 in its mask; 64 workers would then be throttled
most of the time. Limits can stand at every level of the cgroup tree, and the smallest counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cpus:
    """usable: the CPU numbers of the affinity mask, ascending. count: how many to plan for, at least 1."""

    usable: tuple[int, ...]
    count: int


def usable_cpus(*, proc: str = "/proc/self", cgroup_root: str = "/sys/fs/cgroup") -> Cpus:
    """The CPUs of this process. A quota is rounded up: 1.5 CPUs keep two workers busier than one.

    proc, cgroup_root: where the kernel's files are; tests put their own there.
    """
    usable = tuple(sorted(os.sched_getaffinity(0)))
    quota = cgroup_quota(proc=proc, cgroup_root=cgroup_root)
    count = len(usable) if quota is None else min(len(usable), max(1, math.ceil(quota)))
    return Cpus(usable, count)


def cgroup_quota(*, proc: str = "/proc/self", cgroup_root: str = "/sys/fs/cgroup") -> float | None:
    """CPUs that this process's cgroups allow (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), None where there is no limit."""
    quotas: list[float] = []
    for line in read_text(os.path.join(proc, "cgroup")).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        hierarchy, controllers, path = parts
        if hierarchy == "0" and not controllers:
            quotas += _walk(cgroup_root, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            mounts = (controllers, "cpu", "cpu,cpuacct")
            root = next((os.path.join(cgroup_root, name) for name in mounts if _is_dir(cgroup_root, name)), None)
            if root is not None:
                quotas += _walk(root, path, _quota_v1)
    return min(quotas, default=None)


def _walk(root: str, path: str, quota_of: Callable[[str], float | None]) -> list[float]:
    """Quotas of the group at `path` and all above it. Inside a container the path often is the host's, which cannot
    be seen from there: the mount's root then is the container's own group and is what counts."""
    quotas = []
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        quota = quota_of(os.path.join(root, *parts[:depth]))
        if quota is not None:
            quotas.append(quota)
    return quotas


def _quota_v2(group: str) -> float | None:
    words = read_text(os.path.join(group, "cpu.max")).split()
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _quota_v1(group: str) -> float | None:
    quota = read_text(os.path.join(group, "cpu.cfs_quota_us")).strip()
    return _ratio(quota, read_text(os.path.join(group, "cpu.cfs_period_us")).strip())


def _ratio(quota_us: str, period_us: str) -> float | None:
    """`max` and -1 mean no limit; so does what is no number."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _is_dir(root: str, name: str) -> bool:
    return os.path.isdir(os.path.join(root, name))


def read_text(path: str) -> str:
    """A file of the kernel's; empty where it is missing or may not be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
