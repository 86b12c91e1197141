"""Made-up machines: /sys, /proc and /dev in a folder, as the kernel and NVIDIA's driver lay them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ringserve.config.cpus import Cpus
from ringserve.config.topology import Cpu, Gpu, Topology, read_topology


class Machine:
    """Files of a machine that is added to piece by piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sys/devices/system/cpu", "proc", "dev"):
            (folder / name).mkdir(parents=True)

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def node(self, node: int, cpulist: str) -> None:
        self.write(f"sys/devices/system/node/node{node}/cpulist", cpulist)

    def core(self, *siblings: int, name: str = "core_cpus_list") -> None:
        for cpu in siblings:
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/{name}", ",".join(map(str, siblings)))

    def on_bus(self, pci: str, node: int, *, vendor: str = "0x10de", kind: str = "0x030200") -> None:
        for name, text in (("vendor", vendor), ("class", kind), ("numa_node", str(node))):
            self.write(f"sys/bus/pci/devices/{pci}/{name}", text)

    def gpu(self, pci: str, node: int, minor: int, uuid: str, *, device_file: bool = True) -> None:
        """One that its driver runs."""
        self.on_bus(pci, node)
        about = {"Model": "NVIDIA H100", "IRQ": 42, "GPU UUID": uuid, "Bus Location": pci, "Device Minor": minor}
        lines = [f"{key}: \t {value}" for key, value in about.items()]
        self.write(f"proc/driver/nvidia/gpus/{pci}/information", "\n".join(lines))
        if device_file:
            self.write(f"dev/nvidia{minor}", "")

    def read(self, usable: Sequence[int], count: int = 0, environ: Mapping[str, str] | None = None) -> Topology:
        return read_topology(
            sys=str(self.folder / "sys"),
            proc=str(self.folder / "proc"),
            dev=str(self.folder / "dev"),
            environ=environ or {},
            cpus=Cpus(tuple(usable), count or len(usable)),
        )


def topology(
    nodes: int = 1, cores: int = 4, *, smt: bool = False, gpus: Sequence[int] = (), count: int = 0, holes: str = ""
) -> Topology:
    """`cores` physical ones on each of `nodes`, numbered as Linux does: second hardware threads come after all first.

    gpus: the node of each. holes: CPUs, between commas, that the mask leaves out.
    """
    first = [Cpu(node * cores + core, node, node * cores + core) for node in range(nodes) for core in range(cores)]
    second = [Cpu(cpu.number + nodes * cores, cpu.node, cpu.core) for cpu in first] if smt else []
    without = {int(number) for number in holes.split(",") if number}
    usable = tuple(cpu for cpu in first + second if cpu.number not in without)
    return Topology(usable, count or len(usable), tuple(Gpu(ordinal, node) for ordinal, node in enumerate(gpus)))
