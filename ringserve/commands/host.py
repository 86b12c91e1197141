"""What a host is like, as far as serving goes: read from /proc, /sys and a few system calls, and judged elsewhere.

`look` is the only function that touches the host, but for `read_speed`; what cannot be read stays at its default.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import socket
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ringserve.config.cpus import cgroup_quota

_NVIDIA: Final = "0x10de"
_ENVIRONMENT: Final = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"),
    *("TF_NUM_INTEROP_THREADS", "TF_ENABLE_ONEDNN_OPTS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "CUDA_VISIBLE_DEVICES"),
)


@dataclass(frozen=True)
class Host:
    """Facts. Sizes in bytes; -1 or None for unknown, no limit where a comment says so."""

    machine: str = "x86_64"
    kernel: str = ""
    cpu_model: str = ""
    cpu_flags: frozenset[str] = frozenset()
    cpus_usable: int = 1
    cpus_online: int = 1
    #: CPUs that the cgroup pays for; None: all.
    cpu_quota: float | None = None
    governors: frozenset[str] = frozenset()
    load_1min: float = 0.0
    steal_share: float = 0.0
    numa_nodes: int = 1
    memory_total: int = -1
    memory_available: int = -1
    #: What the cgroup lets this process take, and what it takes; None: no limit.
    cgroup_memory_max: int | None = None
    cgroup_memory_used: int = 0
    swap_total: int = 0
    swappiness: int = 0
    overcommit_memory: int = 0
    address_space_max: int | None = None
    huge_pages: str = ""
    files_hard: int = 1_048_576
    #: None: no limit.
    pids_max: int | None = None
    memfd_error: str = ""
    somaxconn: int = 4096
    ephemeral_ports: tuple[int, int] = (32768, 60999)
    reserved_ports: str = ""
    clock_synchronized: bool | None = None
    clock_source: str = "tsc"
    has_proc: bool = True
    nvidia_devices: int = 0
    nvidia_driver: str = ""
    nvidia_nodes_readable: bool = True
    #: This interpreter was compiled without a profile of what programs do, as far as it tells.
    python_is_plain: bool = False
    tensorflow_version: str = ""
    tensorflow_has_cuda: bool | None = None
    environment: dict[str, str] = field(default_factory=dict)


def look(root: str = "") -> Host:
    """The host that this process is on. root: in front of /proc and /sys, for tests of the reading."""
    proc, sys_ = Path(f"{root}/proc"), Path(f"{root}/sys")
    about = _table(proc / "meminfo")
    cpuinfo = _text(proc / "cpuinfo")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    ports = _text(proc / "sys/net/ipv4/ip_local_port_range").split()
    nodes = sorted(Path(f"{root}/dev").glob("nvidia[0-9]*"))
    version, has_cuda = _tensorflow()
    return Host(
        machine=os.uname().machine,
        kernel=os.uname().release,
        has_proc=(proc / "self/fd").exists(),
        cpu_model=_field(cpuinfo, "model name"),
        cpu_flags=frozenset((_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split()),
        cpus_usable=len(os.sched_getaffinity(0)),
        cpus_online=os.cpu_count() or 1,
        cpu_quota=cgroup_quota(proc=f"{proc}/self", cgroup_root=f"{sys_}/fs/cgroup"),
        governors=frozenset(
            _text(path).strip() for path in sys_.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
        ),
        load_1min=os.getloadavg()[0],
        steal_share=_steal(_text(proc / "stat")),
        numa_nodes=len(list(sys_.glob("devices/system/node/node[0-9]*"))) or 1,
        memory_total=about.get("MemTotal", -1),
        memory_available=about.get("MemAvailable", -1),
        **_cgroup_memory(proc, sys_),
        swap_total=about.get("SwapTotal", 0),
        swappiness=_number(proc / "sys/vm/swappiness", 0),
        overcommit_memory=_number(proc / "sys/vm/overcommit_memory", 0),
        address_space_max=None if address == resource.RLIM_INFINITY else address,
        huge_pages=_chosen(_text(sys_ / "kernel/mm/transparent_hugepage/enabled")),
        files_hard=_limit(hard),
        pids_max=_pids_max(proc, sys_),
        memfd_error=_try_memfd(),
        somaxconn=_number(proc / "sys/net/core/somaxconn", 4096),
        ephemeral_ports=(int(ports[0]), int(ports[1])) if len(ports) == 2 else (32768, 60999),
        reserved_ports=_text(proc / "sys/net/ipv4/ip_local_reserved_ports").strip(),
        clock_synchronized=_clock_synchronized(),
        clock_source=_text(sys_ / "devices/system/clocksource/clocksource0/current_clocksource").strip() or "unknown",
        nvidia_devices=sum(
            _text(path / "vendor").strip() == _NVIDIA and _text(path / "class").startswith("0x03")
            for path in sys_.glob("bus/pci/devices/*")
        ),
        nvidia_driver=_nvidia_driver(proc, sys_),
        nvidia_nodes_readable=all(os.access(node, os.R_OK | os.W_OK) for node in nodes),
        python_is_plain=this_is_plain(),
        tensorflow_version=version,
        tensorflow_has_cuda=has_cuda,
        environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )


def port_error(host: str, port: int) -> str:
    """Why that port cannot be bound now; empty when it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def read_speed(path: str, bytes_max: int = 64 * 2**20, ns_max: int = 1_000_000_000) -> float | None:
    """Bytes a second at which a file's start is read past the page cache; None where that cannot be measured.

    Reads `bytes_max` at most, and stops after `ns_max`.
    """
    chunk = 4 * 2**20
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None  # a file system without direct reads (tmpfs, some overlays): its speed would be the cache's
    done = 0
    try:
        with mmap.mmap(-1, chunk) as buffer:
            begin = time.monotonic_ns()
            while done < bytes_max and time.monotonic_ns() - begin < ns_max:
                count = os.readv(fd, [buffer])
                done += count
                if count < chunk:
                    break
            took_ns = time.monotonic_ns() - begin
    except OSError:
        return None
    finally:
        os.close(fd)
    return done * 1e9 / took_ns if done >= 2**20 and took_ns > 0 else None


def file_system(path: str, mounts: str | None = None) -> str:
    """The type of the file system that holds a path, such as `ext4` or `nfs4`; empty when unknown."""
    real, best, found = os.path.realpath(path), -1, ""
    for line in (_text(Path("/proc/self/mounts")) if mounts is None else mounts).splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = words[1].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, found = len(point), words[2]
    return found


# ----------------------------------------------------------------------------------------------------------- reading


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(path: Path, default: int) -> int:
    with contextlib.suppress(ValueError):
        return int(_text(path))
    return default


def _table(path: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _chosen(text: str) -> str:
    """The word in brackets: `always [madvise] never`."""
    return text.partition("[")[2].partition("]")[0]


def _steal(stat: str) -> float:
    """The share of all CPU time since the start that the hypervisor gave to others."""
    words = stat.partition("\n")[0].split()[1:]
    values = [int(word) for word in words if word.isdecimal()]
    total = sum(values[:8])
    return values[7] / total if len(values) >= 8 and total else 0.0


def _limit(value: int) -> int:
    return 2**31 if value == resource.RLIM_INFINITY else value


def _cgroup_files(proc: Path, sys_: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroups from its own upwards, for v2 or for that controller of v1."""
    found: list[Path] = []
    for line in _text(proc / "self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base = sys_ / "fs/cgroup"
        elif controller in controllers.split(","):
            base = sys_ / "fs/cgroup" / controllers
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return found


def _cgroup_memory(proc: Path, sys_: Path) -> dict[str, int]:
    """The tightest limit of memory, and what that group uses."""
    best: dict[str, int] = {}
    for group in _cgroup_files(proc, sys_, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(group / limit_name, -1)
            # v1 writes "no limit" as a number near 2**63.
            if 0 < limit < 2**60 and limit < best.get("cgroup_memory_max", 2**60):
                best = {"cgroup_memory_max": limit, "cgroup_memory_used": _number(group / used_name, 0)}
    return best


def _pids_max(proc: Path, sys_: Path) -> int | None:
    limits = [_number(group / "pids.max", -1) for group in _cgroup_files(proc, sys_, "pids")]
    return min((limit for limit in limits if limit > 0), default=None)


def _nvidia_driver(proc: Path, sys_: Path) -> str:
    """Its version; containers often see only one of the two places."""
    words = _text(proc / "driver/nvidia/version").partition("Kernel Module")[2].split()
    return _text(sys_ / "module/nvidia/version").strip() or next((word for word in words if word[0].isdecimal()), "")


def _try_memfd() -> str:
    try:
        fd = os.memfd_create("ringserve-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return error.strerror or str(error)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        mmap.mmap(fd, mmap.PAGESIZE).close()
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(fd)
    return ""


def _clock_synchronized() -> bool | None:
    """What the kernel says of its clock (adjtimex); None where it cannot be asked."""
    import ctypes

    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5  # TIME_ERROR


def this_is_plain() -> bool:
    """`is_plain` of the interpreter that runs this."""
    return is_plain(sys.base_prefix, str(sysconfig.get_config_var("CONFIG_ARGS")))


def is_plain(prefix: str, configured: str) -> bool:
    """Of an interpreter there that was configured with these words. Distributions, which install under /usr, compile
    theirs with profiles whatever that says: Debian does so in its own steps."""
    return prefix != "/usr" and "--enable-optimizations" not in configured


def _tensorflow() -> tuple[str, bool | None]:
    """TensorFlow's version, and whether its CUDA libraries are there; by files alone."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-intel"):
        with contextlib.suppress(PackageNotFoundError):
            found = version(name)
            if name != "tensorflow":
                return found, False
            for cuda in ("nvidia-cudnn-cu12", "nvidia-cuda-runtime-cu12", "nvidia-cudnn-cu13"):
                with contextlib.suppress(PackageNotFoundError):
                    version(cuda)
                    return found, True
            return found, any(Path("/usr/local").glob("cuda*"))
    return "", None
