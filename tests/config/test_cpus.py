"""CPUs under affinity masks and control groups, over made-up kernel files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringserve.config.cpus import cgroup_quota, usable_cpus


class Kernel:
    """A made-up /proc/self and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.root = folder / "cgroup"
        self.proc.mkdir()
        self.root.mkdir()

    def belongs_to(self, text: str) -> None:
        (self.proc / "cgroup").write_text(text)

    def group(self, path: str, **files: str) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    def quota(self) -> float | None:
        return cgroup_quota(proc=str(self.proc), cgroup_root=str(self.root))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_no_control_groups_no_limit(kernel: Kernel) -> None:
    assert kernel.quota() is None


def test_v2_smallest_of_the_tree_counts(kernel: Kernel) -> None:
    kernel.belongs_to("0::/system.slice/server.service\n")
    kernel.group("system.slice", cpu__max="150000 100000\n")
    kernel.group("system.slice/server.service", cpu__max="400000 100000\n")
    assert kernel.quota() == 1.5


def test_v2_max_is_no_limit(kernel: Kernel) -> None:
    kernel.belongs_to("0::/a\n")
    kernel.group("a", cpu__max="max 100000\n")
    assert kernel.quota() is None


def test_v2_path_of_the_host_inside_a_container(kernel: Kernel) -> None:
    # The container sees the host's path but its own group as the root.
    kernel.belongs_to("0::/../kubepods/pod1\n")
    kernel.group("", cpu__max="200000 100000\n")
    assert kernel.quota() == 2.0


def test_v1_quota(kernel: Kernel) -> None:
    kernel.belongs_to("12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n")
    kernel.group("cpu,cpuacct/docker/x", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    kernel.group("cpu,cpuacct", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert kernel.quota() == 0.5


@pytest.mark.parametrize("text", ["", "nonsense\n", "100000\n", "x y\n", "0 100000\n", "100000 0\n"])
def test_nonsense_is_no_limit(kernel: Kernel, text: str) -> None:
    kernel.belongs_to("0::/\n")
    kernel.group("", cpu__max=text)
    assert kernel.quota() is None


@pytest.mark.parametrize(
    ("quota_us", "expected"), [(10_000, 1), (100_000, 1), (110_000, 2), (200_000, 2), (10_000_000, 4)]
)
def test_count_is_the_quota_rounded_up_within_the_mask(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, quota_us: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {6, 2, 4, 0})
    kernel.belongs_to("0::/\n")
    kernel.group("", cpu__max=f"{quota_us} 100000\n")
    cpus = usable_cpus(proc=str(kernel.proc), cgroup_root=str(kernel.root))
    assert cpus.usable == (0, 2, 4, 6)
    assert cpus.count == expected


def test_this_machine_has_at_least_one() -> None:
    cpus = usable_cpus()
    assert 1 <= cpus.count <= len(cpus.usable)
