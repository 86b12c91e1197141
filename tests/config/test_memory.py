"""Memory under control groups, over made-up kernel files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringserve.config.memory import usable_memory

GIB = 1024**3


class Kernel:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.root = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.root.mkdir()
        (self.proc / "meminfo").write_text(f"MemTotal:       {64 * GIB // 1024} kB\nMemFree:  1000 kB\n")

    def belongs_to(self, text: str) -> None:
        (self.proc / "self" / "cgroup").write_text(text)

    def group(self, path: str, name: str, text: str) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def usable(self) -> tuple[int, str]:
        return usable_memory(proc=str(self.proc), cgroup_root=str(self.root))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_without_control_groups_the_hosts_memory(kernel: Kernel) -> None:
    assert kernel.usable() == (64 * GIB, "the host's memory")


def test_v2_smallest_of_the_tree_counts(kernel: Kernel) -> None:
    kernel.belongs_to("0::/system.slice/server.service\n")
    kernel.group("system.slice", "memory.max", f"{4 * GIB}\n")
    kernel.group("system.slice/server.service", "memory.max", f"{8 * GIB}\n")
    count_bytes, source = kernel.usable()
    assert count_bytes == 4 * GIB
    assert source == f"the control group's limit in {kernel.root}/system.slice/memory.max"


def test_v2_path_of_the_host_inside_a_container(kernel: Kernel) -> None:
    kernel.belongs_to("0::/../kubepods/pod1\n")
    kernel.group("", "memory.max", f"{2 * GIB}\n")
    assert kernel.usable()[0] == 2 * GIB


def test_v1_limit(kernel: Kernel) -> None:
    kernel.belongs_to("12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n")
    kernel.group("memory/docker/x", "memory.limit_in_bytes", f"{3 * GIB}\n")
    kernel.group("memory", "memory.limit_in_bytes", "9223372036854771712\n")
    assert kernel.usable()[0] == 3 * GIB


@pytest.mark.parametrize("text", ["", "max\n", "nonsense\n", "-1\n", "0\n", f"{65 * GIB}\n"])
def test_no_limit_or_none_that_matters(kernel: Kernel, text: str) -> None:
    kernel.belongs_to("0::/a\n")
    kernel.group("a", "memory.max", text)
    assert kernel.usable() == (64 * GIB, "the host's memory")


def test_nobody_knows(tmp_path: Path) -> None:
    assert usable_memory(proc=str(tmp_path), cgroup_root=str(tmp_path)) == (0, "")


def test_this_machine_has_some() -> None:
    assert usable_memory().count_bytes > 0
