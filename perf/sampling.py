"""Memory of a server's processes over time, sampled gently by one thread of the measuring program.

Reading /proc/PID/smaps_rollup makes the kernel walk the process's page tables: about 10 ms of a core for one that
maps TensorFlow, half a percent of two cores for each worker at a sample every second. So samples are few, and
the thread that takes them is nice: what it measures comes first. `cost_ms` tells the CPU time of a sample; baselines
are sampled as well.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from perf import processes

#: Columns of roles in tables and plots, in this order. An author is a process that loads weights and ends.
ROLES = ("supervisor", "broker", "frontend", "pool", "worker", "author")


NICENESS = 15


@dataclass(frozen=True)
class Sample:
    """One moment, MiB. at_s: time.monotonic(). by_role: PSS. total_mib: all PSS, and shared files that nobody maps.

    made_mib: the same without pages of files: what these processes made, whoever else maps TensorFlow's library.
    """

    at_s: float
    total_mib: float
    made_mib: float
    by_role: dict[str, float]
    unmapped_mib: float
    private_mib: float
    processes_count: int
    available_mib: float
    group_mib: float
    cost_ms: float


def sample(session: int) -> Sample:
    """Of every process of that session, now."""
    at_s, began_s = time.monotonic(), time.thread_time()
    members = processes.usages(session)
    memories = processes.memories(session, members)
    by_role: dict[str, float] = {}
    for memory in memories:
        by_role[memory.role] = by_role.get(memory.role, 0.0) + memory.pss_mib
    unmapped_mib = processes.shared_files(members, sum(memory.shm_mib for memory in memories)).unmapped_mib
    machine = processes.machine_memory()
    total_mib = sum(by_role.values()) + unmapped_mib
    return Sample(
        at_s, total_mib, total_mib - sum(memory.file_mib for memory in memories), by_role, unmapped_mib,
        sum(memory.private_mib for memory in memories), len(memories),
        machine.available_mib, machine.group_mib, (time.thread_time() - began_s) * 1e3,
    )  # fmt: skip


class Sampler:
    """Samples every `pause_s` between `start` (or `with`) and `stop`."""

    def __init__(self, session: int, pause_s: float) -> None:
        self.samples: list[Sample] = []
        self._session = session
        self._pause_s = pause_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._over.is_set():
            self.samples.append(sample(self._session))
            self._over.wait(self._pause_s)

    def between(self, from_s: float, until_s: float) -> list[Sample]:
        return [one for one in self.samples if from_s <= one.at_s < until_s]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def write_tsv(path: Path, samples: Sequence[Sample], from_s: float) -> None:
    """A line per sample, seconds counted from `from_s`."""
    header = ["seconds", "total MiB", "without files MiB", *(f"{role} PSS MiB" for role in ROLES), "unmapped MiB",
              "private MiB", "processes", "MemAvailable MiB", "control group MiB", "sampling ms"]  # fmt: skip
    lines = ["\t".join(header)]
    for one in samples:
        roles = [one.by_role.get(role, 0.0) for role in ROLES]
        figures = [one.at_s - from_s, one.total_mib, one.made_mib, *roles, one.unmapped_mib, one.private_mib]
        rest = [one.available_mib, one.group_mib, one.cost_ms]
        lines.append("\t".join([*(f"{v:.2f}" for v in figures), str(one.processes_count), *(f"{v:.2f}" for v in rest)]))
    path.write_text("\n".join(lines) + "\n")
