"""Which cores, and which GPU, each worker of a group gets: from the group's `devices` and what the machine has. Pure.

Grammar, parts between blanks or commas: `cpu` (any usable core), `cpu:0-7`, `cpu:0,2,4-6`, `node:0` (the cores of a
NUMA node), `gpu` or `gpu:all`, `gpu:0`, `gpu:0,1`. With a GPU among them the workers use GPUs, and the cores named
beside it are where their own threads run: `gpu:0 cpu:0-7`.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ringserve.config.topology import Cpu, Topology

FORMS: Final = "cpu, cpu:0-7, cpu:0,2,4-6, node:0, gpu:0, gpu:0,1, gpu:all, or several of these between blanks"

#: Beside its op threads a GPU's worker has TensorFlow's thread that polls for finished kernels.
_GPU_THREADS_MORE: Final = 1

_KINDS: Final = ("cpu", "gpu", "node")
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


class DeviceError(Exception):
    """A `devices` text that is none, or names what is not there. The text says what would be right."""


class Slot(NamedTuple):
    """One worker's place. cpus: cores that it may run on, ascending; empty: all. gpu: CUDA's number, -1 for none.

    node: the NUMA node that all of `cpus` lie on, -1 if there is no such one.
    """

    cpus: tuple[int, ...]
    gpu: int = -1
    node: int = -1


class Request(NamedTuple):
    """What one group asks for. workers: 0 for one a GPU, or one for every `threads` cores. threads: of one op."""

    devices: str
    workers: int = 0
    threads: int = 1


class Named(NamedTuple):
    """A `devices` text, read. cpus, nodes: empty: any. gpus: None for workers of CPUs, empty for all GPUs."""

    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    gpus: tuple[int, ...] | None = None


def slots(devices: str, topology: Topology, *, workers: int, threads: int, pin: bool) -> list[Slot]:
    """The places of one group's workers, as if no other group were there. Raises DeviceError."""
    return place([Request(devices, workers, threads)], topology, pin=pin)[0]


def place(requests: Sequence[Request], topology: Topology, *, pin: bool) -> list[list[Slot]]:
    """The places of several groups' workers, in the order of `requests`. Raises DeviceError.

    pin: give each worker cores of its own, `threads` of them (one more for a GPU's worker, near its GPU): all on one
    node where that can be, different physical cores before their second hardware threads, and none to two workers.
    Where a group's workers need more than is left, or without `pin`, each may use all cores that the group names (of
    its GPU's node, with `pin`). Groups that name cores choose first, those that use any core last.
    """
    groups = [_group(request, topology) for request in requests]
    table = _Cores(topology.cpus)
    places: list[list[Slot]] = [[] for _ in groups]
    for index in sorted(range(len(groups)), key=lambda index: (groups[index].rank, index)):
        places[index] = _deal(groups[index], table, pin)
    return places


# --------------------------------------------------------------------------------------------------------------- words


def parse_devices(devices: str) -> Named:
    """The text as numbers, not yet compared with a machine. Raises DeviceError."""
    kinds: dict[str, list[int]] = {}
    whole: set[str] = set()  # kinds of which all are named
    kind = ""
    for word in re.split(r"[\s,]+", devices.strip().strip(",")):
        head, colon, rest = word.partition(":")
        if _RANGE.fullmatch(word):
            rest = word
        else:
            kind = head
            if kind not in _KINDS or (colon and not rest):
                close = difflib.get_close_matches(head, _KINDS, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close and close[0] != head else ""
                raise DeviceError(f"devices {devices!r}: {word!r}{hint} is no device; right would be {FORMS}")
        every = rest in ("", "all")
        if kind not in _KINDS or kind in whole or (every and (kind == "node" or kind in kinds)):
            raise DeviceError(f"devices {devices!r}: {word!r} does not fit its place; right would be {FORMS}")
        numbers = kinds.setdefault(kind, [])
        if every:
            whole.add(kind)
        else:
            numbers += _range(rest, devices)
    gpus = _sorted(kinds["gpu"]) if "gpu" in kinds else None
    return Named(_sorted(kinds.get("cpu", [])), _sorted(kinds.get("node", [])), gpus)


def _range(text: str, devices: str) -> range:
    match = _RANGE.fullmatch(text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise DeviceError(f"devices {devices!r}: {text!r} is no number and no range; right would be {FORMS}")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _sorted(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))


def _listed(numbers: Iterable[int]) -> str:
    """`0-3, 8`."""
    parts: list[list[int]] = []
    for number in _sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


# -------------------------------------------------------------------------------------------------------------- groups


class _Group(NamedTuple):
    """A request against the machine. gpus: each worker's, -1 for none. cores: by GPU, what such a worker may use.

    each: cores of one worker. anywhere: the text names no cores. rank: in which order groups choose.
    """

    gpus: list[int]
    cores: dict[int, tuple[Cpu, ...]]
    each: int
    anywhere: bool
    rank: int


def _group(request: Request, topology: Topology) -> _Group:
    named = parse_devices(request.devices)
    cores = _cores_named(request.devices, named, topology)
    anywhere = not named.cpus and not named.nodes
    if named.gpus is None:
        workers = request.workers or max(1, min(len(cores), topology.count) // request.threads)
        return _Group([-1] * workers, {-1: cores}, request.threads, anywhere, 2 if anywhere else 0)
    gpus = _gpus_named(request.devices, named.gpus, topology)
    near = {}
    for gpu in gpus:
        node = topology.gpus[gpu].node
        near[gpu] = tuple(cpu for cpu in cores if cpu.node == node) or cores
    workers = request.workers or len(gpus)
    dealt = [gpus[number % len(gpus)] for number in range(workers)]
    return _Group(dealt, near, request.threads + _GPU_THREADS_MORE, anywhere, 1 if anywhere else 0)


def _cores_named(devices: str, named: Named, topology: Topology) -> tuple[Cpu, ...]:
    usable = {cpu.number for cpu in topology.cpus}
    nodes = {cpu.node for cpu in topology.cpus}
    if missing := [number for number in named.cpus if number not in usable]:
        raise DeviceError(f"devices {devices!r}: no usable CPU {_listed(missing)}; there are {_listed(usable)}")
    if missing := [number for number in named.nodes if number not in nodes]:
        raise DeviceError(
            f"devices {devices!r}: no usable CPU on node {_listed(missing)}; there are some on {_listed(nodes)}"
        )
    if not named.cpus and not named.nodes:
        return topology.cpus
    return tuple(cpu for cpu in topology.cpus if cpu.number in named.cpus or cpu.node in named.nodes)


def _gpus_named(devices: str, wanted: tuple[int, ...], topology: Topology) -> tuple[int, ...]:
    present = [gpu.ordinal for gpu in topology.gpus]
    if not present:
        raise DeviceError(
            f"devices {devices!r}: this process sees no GPU (no NVIDIA driver, or CUDA_VISIBLE_DEVICES hides all)"
        )
    if missing := [number for number in wanted if number not in present]:
        raise DeviceError(f"devices {devices!r}: no GPU {_listed(missing)}; there are {_listed(present)}")
    return wanted or tuple(present)


# ------------------------------------------------------------------------------------------------------------- dealing


def _deal(group: _Group, table: _Cores, pin: bool) -> list[Slot]:
    choices = {gpu: tuple(cpu.number for cpu in group.cores[gpu]) for gpu in group.cores}
    own: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # by choice: what its workers get, if there is enough
    needs = Counter(choices[gpu] for gpu in group.gpus)
    for cores in sorted(needs, key=len):  # who has the smallest choice chooses first
        if pin and needs[cores] * group.each <= table.count_free(cores):
            own[cores] = [table.take(cores, group.each) for _ in range(needs[cores])]
    found = []
    for gpu in group.gpus:
        cores = choices[gpu]
        if cores in own:
            cpus = own[cores].pop(0)
        else:
            everything = len(cores) == len(table.node_of) or (group.anywhere and not pin)
            cpus = () if everything else cores
        found.append(Slot(cpus, gpu, table.common_node(cpus)))
    return found


class _Cores:
    """Which cores are free, and how busy each physical one is."""

    def __init__(self, cpus: Iterable[Cpu]) -> None:
        self.node_of = {cpu.number: cpu.node for cpu in cpus}
        self._core_of = {cpu.number: cpu.core for cpu in cpus}
        self._taken: set[int] = set()
        self._busy: Counter[int] = Counter()  # by physical core: how many of its hardware threads are taken

    def count_free(self, cores: Iterable[int]) -> int:
        return sum(number not in self._taken for number in cores)

    def take(self, cores: Iterable[int], count: int) -> tuple[int, ...]:
        """`count` free ones of `cores`, which has as many: of the node with the most idle physical cores, if one node
        has enough, else of as few nodes as can be."""
        nodes: dict[int, list[int]] = {}
        for number in cores:
            if number not in self._taken:
                nodes.setdefault(self.node_of[number], []).append(number)
        enough = [node for node, free in nodes.items() if len(free) >= count]
        if enough:
            best = max(enough, key=lambda node: (self._idle(nodes[node]), len(nodes[node]), -node))
            return self._pick([nodes[best]], count)
        return self._pick(sorted(nodes.values(), key=len, reverse=True), count)

    def common_node(self, cpus: tuple[int, ...]) -> int:
        nodes = {self.node_of[number] for number in cpus}
        return nodes.pop() if len(nodes) == 1 else -1

    def _idle(self, numbers: list[int]) -> int:
        return len({self._core_of[number] for number in numbers if not self._busy[self._core_of[number]]})

    def _pick(self, choices: list[list[int]], count: int) -> tuple[int, ...]:
        picked: list[int] = []
        for free in choices:
            left = set(free)
            while left and len(picked) < count:
                number = min(left, key=lambda number: (self._busy[self._core_of[number]], number))
                left.remove(number)
                self._taken.add(number)
                self._busy[self._core_of[number]] += 1
                picked.append(number)
        return tuple(sorted(picked))
