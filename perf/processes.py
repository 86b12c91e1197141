"""CPU time and memory of a server's processes, from /proc: what each of them costs, named by its role.

Memory is told as PSS: a page that several processes map is divided among them, so that the sum counts it once. A
mapping that only one process has counts as its private memory, shared by nature or not. Pages of a memfd that nobody
maps are in no process's PSS: `shared_files` finds them.

The processes of one server are those of its session (the server is started as a session's leader), so that workers
which the pool forked, and orphans, are seen as well.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_TITLE = re.compile(r"rs-([a-z]+)")
_MIB = 1024.0  # /proc counts in KiB


@dataclass(frozen=True)
class Usage:
    """One process at one moment. `start_ticks` tells a process from a later one with the same pid."""

    pid: int
    role: str
    start_ticks: int
    cpu_s: float


@dataclass(frozen=True)
class Memory:
    """MiB. pss: shared pages divided among their sharers; private: pages of its own. Parts of pss: shm, memory that is
    shared by nature (rings, weights); file: pages of files such as TensorFlow's library, which are divided among all
    processes of the machine that map them, other people's too."""

    pid: int
    role: str
    pss_mib: float
    private_mib: float
    shm_mib: float
    file_mib: float = 0.0


def _stat(pid: int) -> tuple[str, list[str]] | None:
    """(comm, fields after it) of /proc/PID/stat; None when the process is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    comm, _, rest = text[text.index("(") + 1 :].rpartition(")")
    fields = rest.split()
    return None if fields[0] in "ZX" else (comm, fields)


def role_of(comm: str) -> str:
    """`rs-worker-0` -> `worker`; other names stay as they are."""
    match = _TITLE.match(comm)
    return match.group(1) if match else comm


def machine_busy_s() -> float:
    """CPU seconds that all CPUs together have spent since the start, also for other guests of the host (steal)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _TICK_S


def machine_steal_s() -> float:
    """CPU seconds since the start that the host gave to other guests while this one had something to run."""
    return int(Path("/proc/stat").read_text().split()[8]) * _TICK_S


def usages(session: int, leader: str = "supervisor") -> list[Usage]:
    """Every live process of that session. `leader`: the role of its first process, unless that has a title itself."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or (stat := _stat(int(name))) is None:
            continue
        comm, fields = stat
        if int(fields[3]) != session:
            continue
        role = leader if int(name) == session and not comm.startswith("rs-") else role_of(comm)
        cpu_s = (int(fields[11]) + int(fields[12])) * _TICK_S
        found.append(Usage(int(name), role, int(fields[19]), cpu_s))
    return found


def everyone() -> list[Usage]:
    """Every live process of the machine that may be looked at."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            comm, fields = stat
            cpu_s = (int(fields[11]) + int(fields[12])) * _TICK_S
            found.append(Usage(int(name), role_of(comm), int(fields[19]), cpu_s))
    return found


def family(session: int) -> list[Usage]:
    """Every live process of that session, and what descends from one of them in whatever session."""
    stats = {int(name): stat for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(int(name)))}
    inside = {pid for pid, (_, fields) in stats.items() if int(fields[3]) == session}
    while more := {pid for pid, (_, fields) in stats.items() if int(fields[1]) in inside} - inside:
        inside |= more
    return [usage for usage in everyone() if usage.pid in inside]


def cpu_between(before: list[Usage], after: list[Usage]) -> dict[str, float]:
    """CPU seconds by role. A process that started in between counts whole, one that ended counts nothing."""
    earlier = {(usage.pid, usage.start_ticks): usage.cpu_s for usage in before}
    spent: dict[str, float] = {}
    for usage in after:
        spent[usage.role] = spent.get(usage.role, 0.0) + usage.cpu_s - earlier.get((usage.pid, usage.start_ticks), 0.0)
    return spent


@dataclass(frozen=True)
class CoreTime:
    """Of a role's threads, summed: seconds on a core, and seconds that they were ready to run and no core was free."""

    run_s: float = 0.0
    wait_s: float = 0.0


#: (role, pid, thread) -> nanoseconds on a core, nanoseconds of waiting for one.
ThreadTimes = dict[tuple[str, int, str], tuple[int, int]]


def thread_times(session: int) -> ThreadTimes:
    """Of every thread; empty where the kernel does not count it."""
    found: ThreadTimes = {}
    for usage in usages(session):
        try:
            for thread in os.listdir(f"/proc/{usage.pid}/task"):
                run, wait, _ = Path(f"/proc/{usage.pid}/task/{thread}/schedstat").read_text().split()
                found[usage.role, usage.pid, thread] = int(run), int(wait)
        except OSError:
            continue  # the process or that thread is gone, or nothing is counted
    return found


def core_time(before: ThreadTimes, after: ThreadTimes) -> dict[str, CoreTime]:
    """By role, of the threads that were there at both times."""
    total: dict[str, CoreTime] = {}
    for key in before.keys() & after.keys():
        one = total.get(key[0], CoreTime())
        run_s, wait_s = ((later - earlier) / 1e9 for earlier, later in zip(before[key], after[key], strict=True))
        total[key[0]] = CoreTime(one.run_s + run_s, one.wait_s + wait_s)
    return total


def family_cpu_s(session: int) -> float:
    """CPU seconds of that session's processes, those that ended and were waited for included."""
    total = 0
    for usage in usages(session):
        stat = _stat(usage.pid)
        if stat is not None:
            total += sum(map(int, stat[1][11:15]))  # own and waited-for children's, user and system
    return total * _TICK_S


def memory(usage: Usage) -> Memory | None:
    """None when the process is gone."""
    try:
        lines = Path(f"/proc/{usage.pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    shm, file = kib.get("Pss_Shmem", 0), kib.get("Pss_File", 0)
    return Memory(usage.pid, usage.role, kib["Pss"] / _MIB, private / _MIB, shm / _MIB, file / _MIB)


def memories(session: int, members: list[Usage] | None = None) -> list[Memory]:
    """Of every process of that session; `members`: when they are known already."""
    found = (memory(usage) for usage in (usages(session) if members is None else members))
    return sorted((m for m in found if m is not None), key=lambda m: (m.role, m.pid))


@dataclass(frozen=True)
class SharedFiles:
    """Memory of files without a name (memfd) that the processes hold or map, MiB, each counted once.

    unmapped_mib: the part of it that is in nobody's PSS: allocated, and mapped or touched by no process.
    """

    count: int = 0
    allocated_mib: float = 0.0
    unmapped_mib: float = 0.0


def shared_files(members: list[Usage], mapped_mib: float) -> SharedFiles:
    """`mapped_mib`: the sum of these processes' Pss_Shmem at the same moment."""
    blocks: dict[int, int] = {}
    for usage in members:
        folder = Path(f"/proc/{usage.pid}/fd")
        try:
            for entry in folder.iterdir():
                if os.readlink(entry).startswith("/memfd:"):
                    about = entry.stat()
                    blocks[about.st_ino] = about.st_blocks
        except OSError:
            continue  # the process, or that descriptor, is gone
    allocated_mib = sum(blocks.values()) * 512 / 2**20
    return SharedFiles(len(blocks), allocated_mib, max(allocated_mib - mapped_mib, 0.0))


def others_with_tensorflow(session: int) -> int:
    """How many processes outside that session map TensorFlow's library, and so lower the PSS of those inside."""
    inside = {usage.pid for usage in usages(session)}
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in inside:
            try:
                count += "libtensorflow" in Path(f"/proc/{name}/maps").read_text()
            except OSError:
                continue
    return count


@dataclass(frozen=True)
class MachineMemory:
    """MiB. group_mib: what the kernel charges to this process's control group, page cache included; 0: unknown."""

    available_mib: float
    group_mib: float


def _group_file() -> Path | None:
    """Of the memory that this process's control group uses, version 2 or 1."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        base, name = Path("/sys/fs/cgroup"), "memory.current"
        if controllers == "memory":
            base, name = base / "memory", "memory.usage_in_bytes"
        elif controllers:
            continue
        for candidate in (base / path.lstrip("/") / name, base / name):  # a container may see its own group as the root
            if candidate.exists():
                return candidate
    return None


def machine_memory() -> MachineMemory:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    file = _group_file()
    return MachineMemory(kib["MemAvailable"] / _MIB, int(file.read_text()) / 2**20 if file is not None else 0.0)
