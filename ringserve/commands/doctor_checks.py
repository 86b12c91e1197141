"""Pure: what a host's facts and the settings mean for serving. Each check returns findings; none asks the host."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from typing import Final

from ringserve.commands.console import size_text
from ringserve.commands.findings import Finding, Level
from ringserve.commands.host import Host
from ringserve.config.descriptors import TooFewError, caps_of
from ringserve.config.limits import (
    BROKER_PRIVATE_BYTES,
    FRONTEND_PRIVATE_BYTES,
    POOL_PRIVATE_BYTES,
    WORKER_PRIVATE_BYTES,
    groups_of,
)
from ringserve.config.schema import Settings

_KERNEL_MIN: Final = (5, 4)
_GOOD_CLOCKS: Final = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
#: Threads of a worker beside TensorFlow's pools, and of the rest of the server.
_THREADS_OWN: Final = 16
_BACKLOG: Final = 1024
_STEAL_MAX: Final = 0.02
_SLOW_DISK: Final = 100 * 2**20
_NETWORK_FILE_SYSTEMS: Final = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse.gcsfuse", "fuse.s3fs", "9p", "ceph")


def host_findings(host: Host, settings: Settings, weights_bytes: int) -> list[Finding]:
    """All checks of a host. settings: resolved. weights_bytes: of all versions that will serve."""
    checks = (
        _cpu_flags(host),
        _cpu_share(host, settings),
        _threads(host, settings),
        _memory(host, settings, weights_bytes),
        _swap(host),
        _limits(host, settings),
        _kernel(host),
        _network(host, settings),
        _clock(host),
        _gpu(host),
        _numa(host, settings),
        _runtime(host),
    )
    return [finding for check in checks for finding in check]


def _cpu_flags(host: Host) -> Iterator[Finding]:
    if host.machine not in ("x86_64", "AMD64") or not host.cpu_flags:
        return
    fix = "on a virtual machine, let it see the host's CPU: -cpu host (QEMU), host-passthrough (libvirt)"
    if "avx" not in host.cpu_flags:
        why = "TensorFlow's packages are built for AVX: they end with an illegal instruction at import."
        yield Finding(Level.ERROR, "CPU", "it has no AVX", why, fix)
    elif not {"avx2", "fma"} <= host.cpu_flags:
        why = "Matrix multiplications and convolutions run at about half the speed that AVX2 and FMA give."
        yield Finding(Level.WARNING, "CPU", "it has no AVX2 or FMA", why, fix)
    elif "avx512f" not in host.cpu_flags:
        yield Finding(Level.NOTE, "CPU", "AVX2, and no AVX-512", "Float models run well; int8 ones gain from VNNI.")
    else:
        names = {"avx512_vnni": "VNNI (int8)", "avx512_bf16": "BF16", "amx_tile": "AMX"}
        extra = [text for flag, text in names.items() if flag in host.cpu_flags]
        yield Finding(Level.NOTE, "CPU", f"AVX-512{''.join(f', {text}' for text in extra)}: oneDNN uses them")
    if host.environment.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        why = "oneDNN's kernels are what uses the wide vector units of this CPU."
        yield Finding(Level.WARNING, "CPU", "TF_ENABLE_ONEDNN_OPTS=0 is set", why, "unset TF_ENABLE_ONEDNN_OPTS")


def _cpu_share(host: Host, settings: Settings) -> Iterator[Finding]:
    cpus = host.cpus_usable if host.cpu_quota is None else min(host.cpus_usable, host.cpu_quota)
    groups = groups_of(settings)
    wanted = sum(group.workers * group.threads_per_worker for group in groups)
    counted = " + ".join(f"{group.workers} workers × {group.threads_per_worker}" for group in groups)
    good = max(1, int(cpus) // settings.workers.threads_per_worker)
    if wanted > math.ceil(cpus):
        what = f"{wanted} threads of TensorFlow ({counted}) for {cpus:g} CPUs"
        why = "They take turns on the CPUs, and the slowest of them sets the tail of the latency."
        yield Finding(Level.WARNING, "CPUs", what, why, f"ringserve serve --workers={good} ...")
    if host.cpu_quota is not None and host.cpu_quota < host.cpus_usable and host.cpu_quota != int(host.cpu_quota):
        what = f"the cgroup pays for {host.cpu_quota:g} of {host.cpus_usable} CPUs"
        why = "A quota that is no whole number stops a worker for part of every 100 ms once it is used up."
        fix = f"systemctl set-property ringserve.service CPUQuota={math.ceil(host.cpu_quota) * 100}%"
        yield Finding(Level.WARNING, "CPUs", what, why, fix)
    if "powersave" in host.governors:
        why = "Between requests the CPU slows down, and each burst begins slowly."
        fix = "cpupower frequency-set -g performance"
        yield Finding(Level.WARNING, "CPUs", "their governor is powersave", why, fix)
    if host.load_1min > host.cpus_online * 0.75 and host.load_1min > 1:
        what = f"{host.load_1min:.1f} processes run or wait to, on {host.cpus_online} CPUs"
        why = "What runs besides the server takes its time (or this is the server itself, under load)."
        yield Finding(Level.WARNING, "CPUs", what, why, "top -b -n1 | head -20")
    if host.steal_share > _STEAL_MAX:
        what = f"the hypervisor gave {host.steal_share:.0%} of this machine's CPU time to others"
        yield Finding(Level.WARNING, "CPUs", what, "The host is overbooked: ask for dedicated CPUs.")


def _threads(host: Host, settings: Settings) -> Iterator[Finding]:
    threads = settings.workers.threads_per_worker
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS"):
        value = host.environment.get(name, "")
        if value.isdecimal() and int(value) > threads:
            why = "Libraries in a worker start so many threads, which fight for the CPUs that it is bound to."
            what = f"{name}={value} is above threads_per_worker ({threads})"
            yield Finding(Level.WARNING, "threads", what, why, f"unset {name}")
    for name in ("KMP_AFFINITY", "GOMP_CPU_AFFINITY"):
        if name in host.environment and settings.workers.pin:
            why = "It binds threads to CPUs, and so does the server (pin), to others."
            yield Finding(Level.WARNING, "threads", f"{name} is set", why, f"unset {name}")
    if threads > host.cpus_usable:
        what = f"threads_per_worker is {threads}, on {host.cpus_usable} usable CPUs"
        fix = f"ringserve serve --threads_per_worker={host.cpus_usable} ..."
        yield Finding(Level.WARNING, "threads", what, fix=fix)


def _memory(host: Host, settings: Settings, weights_bytes: int) -> Iterator[Finding]:
    free, whose = host.memory_available, "the host has free"
    if host.cgroup_memory_max is not None:
        left = host.cgroup_memory_max - host.cgroup_memory_used
        if free < 0 or left < free:
            free, whose = left, f"the cgroup's limit of {size_text(host.cgroup_memory_max)} leaves"
    if free < 0:
        return
    workers = sum(group.workers_max for group in groups_of(settings))
    own = (
        settings.server.frontends * FRONTEND_PRIVATE_BYTES + BROKER_PRIVATE_BYTES + POOL_PRIVATE_BYTES
        + workers * WORKER_PRIVATE_BYTES
    )  # fmt: skip
    rings = settings.server.frontends * settings.shm.request_ring_bytes + workers * settings.shm.result_ring_bytes
    shared = settings.memory.weight_sharing == "on"
    least, copies = own + weights_bytes, own + weights_bytes * (1 if shared else workers)
    bill = f"processes {size_text(own)}, weights {size_text(weights_bytes)}, rings up to {size_text(rings)}"
    fix = f"ringserve serve --workers={max(1, workers // 2)} ..., or more memory"
    if least > free:
        why = f"The kernel ends processes when memory runs out. The bill: {bill}."
        yield Finding(Level.ERROR, "memory", f"{size_text(free)} is what {whose}, below {size_text(least)}", why, fix)
    elif max(copies, least + rings, least + weights_bytes) > free:
        needs = max(copies, least + rings, least + weights_bytes)
        why = (
            f"With full rings, {'' if shared else 'a copy of the weights in each worker, '}or a new version beside the "
            f"old one, it takes up to {size_text(needs)}. The bill: {bill}."
        )
        yield Finding(Level.WARNING, "memory", f"{size_text(free)} is what {whose}", why, fix)
    if host.overcommit_memory == 2:
        why = "The kernel then counts rings in full, used or not, and may refuse them."
        yield Finding(Level.WARNING, "memory", "vm.overcommit_memory is 2", why, "sysctl -w vm.overcommit_memory=0")
    if host.address_space_max is not None:
        why = "TensorFlow maps far more addresses than it uses memory."
        what = f"ulimit -v is {size_text(host.address_space_max)}"
        yield Finding(Level.WARNING, "memory", what, why, "ulimit -v unlimited")
    if host.huge_pages == "always":
        why = "Compacting memory for them may stop a process for milliseconds; madvise leaves it to those who ask."
        fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        yield Finding(Level.NOTE, "memory", "transparent huge pages are on for everybody", why, fix)
    if host.memfd_error:
        why = "Tensors travel through shared memory that memfd_create makes; without it nothing works."
        fix = "allow it in the seccomp profile"
        yield Finding(Level.ERROR, "memory", f"memfd_create fails: {host.memfd_error}", why, fix)


def _swap(host: Host) -> Iterator[Finding]:
    if host.swap_total > 0 and host.swappiness > 10:
        what = f"{size_text(host.swap_total)} of swap, with vm.swappiness {host.swappiness}"
        why = "A model that nobody asked for a while is written to disk, and its next request waits for that disk."
        yield Finding(Level.WARNING, "swap", what, why, "sysctl -w vm.swappiness=1")


def _limits(host: Host, settings: Settings) -> Iterator[Finding]:
    yield from _files(host, settings)
    workers = settings.workers
    threads = (workers.workers + 1) * (2 * workers.threads_per_worker + _THREADS_OWN) + 8 * settings.server.frontends
    if host.pids_max is not None and host.pids_max < threads:
        why = "Threads count as tasks; TensorFlow ends when it cannot start one."
        what = f"the cgroup allows {host.pids_max} tasks; the server needs about {threads}"
        fix = f"systemctl set-property ringserve.service TasksMax={2 * threads}"
        yield Finding(Level.ERROR, "limits", what, why, fix)


def _files(host: Host, settings: Settings) -> Iterator[Finding]:
    needed = caps_of(settings, 2**31).needed
    # The soft limit does not matter: the server raises its own.
    what = f"a process may open {host.files_hard} files; connections_max is {settings.server.connections_max}"
    fix = f"ulimit -Hn {needed} as root, or LimitNOFILE={needed} in the service"
    try:
        caps = caps_of(settings, host.files_hard)
    except TooFewError as error:
        yield Finding(Level.ERROR, "limits", what, f"Frontends do not start: {error}.", fix)
        return
    if caps.warning:
        why = (
            f"A frontend takes {caps.clients.connections_max} connections of clients over each protocol then, and "
            "refuses more, so that it keeps descriptors for workers."
        )
        yield Finding(Level.WARNING, "limits", what, why, fix)


def _kernel(host: Host) -> Iterator[Finding]:
    match = re.match(r"(\d+)\.(\d+)", host.kernel)
    if match and (int(match[1]), int(match[2])) < _KERNEL_MIN:
        why = "The server watches its processes by pidfd, which came with Linux 5.3."
        fix = "upgrade the kernel to 5.4 or newer"
        yield Finding(Level.ERROR, "kernel", f"Linux {host.kernel} is too old", why, fix)
    if not host.has_proc:
        why = "The server's processes look after each other there, and it does not start. The rest here is guesswork."
        yield Finding(Level.ERROR, "kernel", "/proc is not mounted", why, "mount -t proc proc /proc")


def _network(host: Host, settings: Settings) -> Iterator[Finding]:
    if host.somaxconn < _BACKLOG:
        why = "When many clients connect at once, the kernel drops those that find the queue full."
        what = f"net.core.somaxconn is {host.somaxconn}"
        yield Finding(Level.WARNING, "network", what, why, f"sysctl -w net.core.somaxconn={4 * _BACKLOG}")
    low, high = host.ephemeral_ports
    for flag, port in (("port", settings.server.port), ("rest_api_port", settings.server.rest_api_port)):
        if low <= port <= high and not _reserved(host.reserved_ports, port):
            why = "A client program may be given this port for a connection of its own while the server is restarted."
            what = f"{flag} {port} lies in the range of ephemeral ports ({low} to {high})"
            fix = f"sysctl -w net.ipv4.ip_local_reserved_ports={port}"
            yield Finding(Level.WARNING, "network", what, why, fix)


def _reserved(text: str, port: int) -> bool:
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        if int(low) <= port <= int(high or low):
            return True
    return False


def _clock(host: Host) -> Iterator[Finding]:
    if host.clock_synchronized is False:
        why = "Logs and metrics of several hosts cannot be compared, and files from elsewhere seem to be of tomorrow."
        yield Finding(Level.WARNING, "clock", "nothing synchronizes it", why, "timedatectl set-ntp true")
    if host.clock_source not in (*_GOOD_CLOCKS, "unknown"):
        why = "Each look at the clock is a system call or worse; the server looks several times a request."
        fix = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
        yield Finding(Level.WARNING, "clock", f"its source is {host.clock_source}", why, fix)


def _gpu(host: Host) -> Iterator[Finding]:
    if not host.nvidia_devices and not host.nvidia_driver:
        return
    count = f"{max(host.nvidia_devices, 1)} NVIDIA GPU{'s' if host.nvidia_devices > 1 else ''}"
    if not host.nvidia_driver:
        why = "Models run on the CPU."
        yield Finding(Level.WARNING, "GPU", f"{count}, and no driver is loaded", why, "modprobe nvidia")
    elif not host.nvidia_nodes_readable:
        why = "The server's user cannot open the devices; models run on the CPU."
        yield Finding(Level.WARNING, "GPU", "/dev/nvidia* cannot be opened", why, "chmod a+rw /dev/nvidia*")
    elif host.tensorflow_has_cuda is False:
        why = "TensorFlow finds no CUDA libraries; models run on the CPU."
        what = f"{count} with driver {host.nvidia_driver}, and no CUDA libraries"
        yield Finding(Level.WARNING, "GPU", what, why, "pip install 'tensorflow[and-cuda]'")
    else:
        yield Finding(Level.NOTE, "GPU", f"{count}, driver {host.nvidia_driver}")


def _numa(host: Host, settings: Settings) -> Iterator[Finding]:
    if host.numa_nodes > 1:
        if not settings.workers.pin:
            why = "A worker that wanders between them reads its weights from the far one, at half the speed."
            fix = "ringserve serve --pin=true ..."
            yield Finding(Level.WARNING, "NUMA", f"{host.numa_nodes} nodes, and pin is off", why, fix)
        else:
            why = "Workers are bound to CPUs, so each stays on one."
            yield Finding(Level.NOTE, "NUMA", f"{host.numa_nodes} nodes", why)


def _runtime(host: Host) -> Iterator[Finding]:
    if host.python_is_plain:
        why = "Requests that cost the server more than the model are a tenth fewer; docs/how-to.md has the figures."
        fix = "use the distribution's Python, or compile it with --enable-optimizations --with-lto"
        yield Finding(Level.NOTE, "Python", "it was compiled without --enable-optimizations", why, fix)
    if not host.tensorflow_version:
        why = "Workers run models with it."
        yield Finding(Level.ERROR, "TensorFlow", "it is not installed for this Python", why, "pip install tensorflow")


# ------------------------------------------------------------------------------------------------------------- store


def store_findings(path: str, file_system: str, speed: float | None, weights_bytes: int) -> list[Finding]:
    """What the place where models lie means. speed: bytes a second, None: not known."""
    found = []
    if file_system in _NETWORK_FILE_SYSTEMS:
        why = "A load takes as long as the network, and ends when that does; copy models to a local disk first."
        found.append(Finding(Level.WARNING, path, f"it is on a network file system ({file_system})", why))
    if speed is not None and speed < _SLOW_DISK:
        why = f"Loading {size_text(weights_bytes)} takes {weights_bytes / speed:.0f} s at that speed."
        found.append(Finding(Level.WARNING, path, f"its disk reads {size_text(speed)} a second", why))
    return found


# ------------------------------------------------------------------------------------------------------- permissions


def may(mode: int, owner: int, group: int, uid: int, gids: frozenset[int], wanted: int) -> bool:
    """Whether a user may do `wanted` (4 read, 2 write, 1 go into; or several) with a file of that mode and owner."""
    if uid == 0:
        return wanted & 1 == 0 or mode & 0o111 != 0 or mode & 0o170000 == 0o040000
    bits = mode >> 6 if uid == owner else mode >> 3 if group in gids else mode
    return bits & wanted == wanted


def permission_fix(path: str, mode: int, owner: int, group: int, uid: int, gids: frozenset[int], wanted: int) -> str:
    """The narrowest chmod that gives that user the right."""
    who = "u" if uid == owner else "g" if group in gids else "o"
    right = ("r" if wanted & 4 else "") + ("x" if wanted & 1 else "")
    return f"chmod {who}+{right} {shlex.quote(path)}"
