"""Where workers run: from `devices` of a group to the cores and the GPU of each of its worker places."""

from __future__ import annotations

from typing import NamedTuple

from ringserve.config.cpus import Cpus


class DeviceError(ValueError):
    """`devices` names something that is not there, or is not understood. Its text says what."""


class Slot(NamedTuple):
    """One worker's place. cpus: cores to pin to, empty for none. gpu: CUDA's number, -1 for none. node: NUMA."""

    cpus: tuple[int, ...]
    gpu: int = -1
    node: int = -1


def slots(devices: str, topology: Cpus, *, workers: int, threads: int, pin: bool) -> list[Slot]:
    """One slot for each worker. Raises DeviceError."""
    if devices != "cpu":
        raise DeviceError(f"devices: {devices!r} is not 'cpu'")
    usable = topology.usable
    if not pin or threads != 1 or workers > len(usable):
        return [Slot(())] * workers
    return [Slot((usable[place],)) for place in range(workers)]
