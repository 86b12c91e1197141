"""What this process may run on: the cores of its affinity mask with their NUMA nodes, and the GPUs that CUDA shows it.

Read from the kernel's files alone: no CUDA library is loaded and no GPU is touched, because the process that asks is
not the one that computes. What the files do not tell (in a container, under WSL) is -1, and placement does without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ringserve.config.cpus import Cpus, read_text, usable_cpus

#: The order that workers have CUDA number its devices in, unless the environment says another.
PCI_ORDER: Final = "PCI_BUS_ID"

_PCI_ID = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]")
_DISPLAY_CLASSES: Final = ("0x0300", "0x0302")  # VGA and 3D controllers
_NVIDIA: Final = "0x10de"


class Cpu(NamedTuple):
    """One logical CPU. core: the lowest number among the hardware threads of its physical core (itself without SMT)."""

    number: int
    node: int
    core: int


class Gpu(NamedTuple):
    """One GPU that CUDA would show this process. ordinal: CUDA's number for it. node: -1 if unknown."""

    ordinal: int
    node: int = -1


@dataclass(frozen=True)
class Topology:
    """cpus: those of the affinity mask, ascending. count: how many of them the quota pays for, at least 1.

    gpus: by ordinal, without gaps; empty without a GPU or its driver.
    """

    cpus: tuple[Cpu, ...]
    count: int
    gpus: tuple[Gpu, ...] = ()


class _Found(NamedTuple):
    """A GPU of the machine: where it sits on the bus ("" if unknown), and NVIDIA's identifier for it, likewise."""

    pci: str
    uuid: str
    node: int


def read_topology(
    *,
    sys: str = "/sys",
    proc: str = "/proc",
    dev: str = "/dev",
    environ: Mapping[str, str] = os.environ,
    cpus: Cpus | None = None,
) -> Topology:
    """This process's topology. sys, proc, dev, cpus: tests put their own there."""
    found = usable_cpus() if cpus is None else cpus
    nodes = node_of_cpus(sys=sys)
    logical = tuple(Cpu(number, nodes.get(number, 0), _core_of(sys, number)) for number in found.usable)
    return Topology(logical, found.count, _visible(_machines_gpus(sys, proc, dev), environ))


def node_of_cpus(*, sys: str = "/sys") -> dict[int, int]:
    """Each CPU's NUMA node; empty where the kernel knows no nodes."""
    nodes = {}
    for name in _names(os.path.join(sys, "devices/system/node")):
        if re.fullmatch(r"node\d+", name):
            for cpu in numbers_of(read_text(os.path.join(sys, "devices/system/node", name, "cpulist"))):
                nodes[cpu] = int(name.removeprefix("node"))
    return nodes


def numbers_of(text: str) -> list[int]:
    """The kernel's lists: `0-3,8` is [0, 1, 2, 3, 8]. Empty for anything else."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part, re.ASCII)
        if match is None:
            return []
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


# ---------------------------------------------------------------------------------------------------------------- GPUs


def _visible(found: list[_Found], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Those that CUDA would show under this environment, in its order. found: in the order of the bus.

    CUDA reads CUDA_VISIBLE_DEVICES up to the first entry that names no device. Without CUDA_DEVICE_ORDER workers get
    PCI_ORDER; under another order only identifiers say which GPU is meant.
    """
    numbered = found
    if environ.get("CUDA_DEVICE_ORDER", PCI_ORDER) != PCI_ORDER:
        nodes = {gpu.node for gpu in found}
        numbered = found if len(nodes) == 1 else [_Found("", "", -1)] * len(found)
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(Gpu(ordinal, gpu.node) for ordinal, gpu in enumerate(numbered))
    visible: list[Gpu] = []
    for entry in visible_entries(listed):
        gpu = _named(entry, numbered, found)
        if gpu is None:
            break
        visible.append(Gpu(len(visible), gpu.node))
    return tuple(visible)


def visible_entries(listed: str) -> list[str]:
    """The entries of a CUDA_VISIBLE_DEVICES, in order: numbers or identifiers, unchecked."""
    return [entry.strip() for entry in listed.split(",")] if listed.strip() else []


def _named(entry: str, numbered: list[_Found], found: list[_Found]) -> _Found | None:
    if re.fullmatch(r"\d{1,6}", entry, re.ASCII):
        return numbered[int(entry)] if int(entry) < len(numbered) else None
    if entry.startswith("MIG-"):  # a part of a GPU: /proc does not say of which
        return _Found("", entry, -1) if found else None
    if not entry.startswith("GPU-"):
        return None
    matching = [gpu for gpu in found if gpu.uuid.startswith(entry)]  # CUDA takes the beginning of an identifier, too
    if len(matching) == 1:
        return matching[0]
    unknown = [gpu for gpu in found if not gpu.uuid]
    return _Found("", entry, -1) if unknown and not matching else None


def _machines_gpus(sys: str, proc: str, dev: str) -> list[_Found]:
    """NVIDIA's GPUs whose driver is loaded, in the order of the bus.

    A container sees the host's /proc and /sys and only its own GPUs under /dev. On a machine that has not used CUDA
    since it was started nothing is under /dev yet: the first use puts it there.
    """
    folder = os.path.join(proc, "driver/nvidia/gpus")
    here = {name.removeprefix("nvidia") for name in _names(dev) if re.fullmatch(r"nvidia\d+", name)}
    listed = sorted(filter(_PCI_ID.fullmatch, _names(folder)), key=_bus_order)
    if not listed:
        return _by_device_files(sys, here)
    found = []
    for pci in listed:
        about = _fields(read_text(os.path.join(folder, pci, "information")))
        minor = about.get("Device Minor", "")
        if not here or not minor or minor in here:
            uuid = about.get("GPU UUID", "")
            found.append(_Found(pci, uuid if uuid.startswith("GPU-") else "", _node_of_pci(sys, pci)))
    return found


def _by_device_files(sys: str, here: set[str]) -> list[_Found]:
    """Where the driver shows no /proc: as many as there are device files. Which is which is certain only if the bus has
    as many."""
    folder = os.path.join(sys, "bus/pci/devices")
    on_bus = [
        pci
        for pci in sorted(filter(_PCI_ID.fullmatch, _names(folder)), key=_bus_order)
        if read_text(os.path.join(folder, pci, "vendor")).strip() == _NVIDIA
        and read_text(os.path.join(folder, pci, "class")).strip().startswith(_DISPLAY_CLASSES)
    ]
    if len(on_bus) == len(here):
        return [_Found(pci, "", _node_of_pci(sys, pci)) for pci in on_bus]
    return [_Found("", "", -1)] * len(here)


def _bus_order(pci: str) -> list[int]:
    return [int(part, 16) for part in re.split("[:.]", pci)]


def _node_of_pci(sys: str, pci: str) -> int:
    """-1 is also what the kernel says where the machine has one node, or the firmware does not tell."""
    domain, rest = pci.split(":", 1)
    for name in (pci, f"{int(domain, 16):04x}:{rest}".lower()):
        text = read_text(os.path.join(sys, "bus/pci/devices", name, "numa_node")).strip()
        if re.fullmatch(r"\d+", text, re.ASCII):
            return int(text)
    return -1


# --------------------------------------------------------------------------------------------------------------- files


def _core_of(sys: str, number: int) -> int:
    folder = os.path.join(sys, f"devices/system/cpu/cpu{number}/topology")
    for name in ("core_cpus_list", "thread_siblings_list"):  # since Linux 5.3, and before
        if siblings := numbers_of(read_text(os.path.join(folder, name))):
            return min(siblings)
    return number


def _fields(text: str) -> dict[str, str]:
    """`Name: value` lines."""
    pairs = [line.partition(":") for line in text.splitlines()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
