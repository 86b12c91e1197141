"""Placement of workers on made-up machines: by example, and what holds on any machine."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.config.devices import DeviceError, Named, Request, Slot, parse_devices, place, slots
from ringserve.config.topology import Cpu, Gpu, Topology
from tests.config.machines import topology

ONE = topology()  # one socket of four cores
TWO = topology(2, 4, smt=True)  # 0-3 and 8-11 on node 0, 4-7 and 12-15 on node 1; 8 is the second thread of 0
FOUR_GPUS = topology(2, 4, smt=True, gpus=(0, 0, 1, 1))


def dealt(devices: str, on: Topology, workers: int = 0, threads: int = 1, *, pin: bool = True) -> list[Slot]:
    return slots(devices, on, workers=workers, threads=threads, pin=pin)


def cpus(devices: str, on: Topology, workers: int = 0, threads: int = 1, *, pin: bool = True) -> list[tuple[int, ...]]:
    return [slot.cpus for slot in dealt(devices, on, workers, threads, pin=pin)]


# --------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cpu", Named()),
        (" cpu ", Named()),
        ("cpu:all", Named()),
        ("cpu:0-3", Named((0, 1, 2, 3))),
        ("cpu:0,2,4-6", Named((0, 2, 4, 5, 6))),
        ("cpu:3, 1 cpu:1", Named((1, 3))),
        ("node:1", Named((), (1,))),
        ("node:0-1,3", Named((), (0, 1, 3))),
        ("gpu", Named((), (), ())),
        ("gpu:all", Named((), (), ())),
        ("gpu:0,1", Named((), (), (0, 1))),
        ("gpu:0 cpu:4-5", Named((4, 5), (), (0,))),
        ("gpu:2,node:1,cpu:0", Named((0,), (1,), (2,))),
        ("gpu:all cpu", Named((), (), ())),
    ],
)
def test_the_grammar(text: str, named: Named) -> None:
    assert parse_devices(text) == named


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("3", "'3'"),
        ("cpus", "'cpus' (did you mean 'cpu'?)"),
        ("GPU:0", "'GPU:0'"),
        ("cpu:", "'cpu:'"),
        ("cpu:x", "'x' is no number"),
        ("cpu:3-1", "'3-1' is no number"),
        ("cpu:-1", "'-1' is no number"),
        ("cpu:0,999999", "'999999'"),
        ("cpu:0-999999", "'0-999999' is no number"),
        ("node", "'node'"),
        ("node:all", "'node:all'"),
        ("gpu:all,1", "'1' does not fit"),
        ("gpu:1 gpu", "'gpu' does not fit"),
        ("cpu cpu:1", "'cpu:1' does not fit"),
        ("tpu:0", "'tpu:0'"),
    ],
)
def test_what_is_no_devices_text(text: str, says: str) -> None:
    with pytest.raises(DeviceError) as error:
        parse_devices(text)
    assert says in str(error.value)
    assert "gpu:all" in str(error.value)  # what would be right


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ("cpu:2-5", "no usable CPU 4-5; there are 0-3"),
        ("node:1,2", "no usable CPU on node 1-2; there are some on 0"),
        ("gpu:0", "sees no GPU"),
        ("gpu:all", "sees no GPU"),
    ],
)
def test_what_is_not_there(devices: str, says: str) -> None:
    with pytest.raises(DeviceError) as error:
        dealt(devices, ONE)
    assert says in str(error.value)
    assert repr(devices) in str(error.value)


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="no GPU 4, 6; there are 0-3"):
        dealt("gpu:1,4,6", FOUR_GPUS)


# ---------------------------------------------------------------------------------------------------------------- CPUs


def test_one_socket_in_order() -> None:
    assert dealt("cpu", ONE) == [Slot((0,), -1, 0), Slot((1,), -1, 0), Slot((2,), -1, 0), Slot((3,), -1, 0)]


def test_holes_of_a_cpuset() -> None:
    assert cpus("cpu", topology(1, 8, holes="0,3,4")) == [(1,), (2,), (5,), (6,), (7,)]


def test_a_quota_below_the_cores() -> None:
    assert cpus("cpu", topology(1, 8, count=2)) == [(0,), (1,)]
    assert cpus("cpu", topology(1, 8, count=3), threads=2) == [(0, 1)]
    assert cpus("cpu:4-7", topology(1, 8, count=2)) == [(4,), (5,)]


def test_more_workers_than_cores_are_not_bound() -> None:
    assert dealt("cpu", ONE, 5) == [Slot(())] * 5
    assert dealt("cpu", ONE, 2, 3) == [Slot(())] * 2


def test_more_workers_than_named_cores_stay_on_those() -> None:
    assert dealt("cpu:2-3", ONE, 3) == [Slot((2, 3), -1, 0)] * 3
    assert dealt("node:1", TWO, 9) == [Slot((4, 5, 6, 7, 12, 13, 14, 15), -1, 1)] * 9


def test_without_pin_only_what_is_named_binds() -> None:
    assert dealt("cpu", ONE, 2, pin=False) == [Slot(())] * 2
    assert dealt("cpu:1-2", ONE, 2, pin=False) == [Slot((1, 2), -1, 0)] * 2


def test_workers_spread_over_nodes_and_physical_cores_first() -> None:
    assert cpus("cpu", TWO, 4) == [(0,), (4,), (1,), (5,)]
    assert cpus("cpu", TWO)[:8] == [(0,), (4,), (1,), (5,), (2,), (6,), (3,), (7,)]
    assert cpus("cpu", TWO)[8:] == [(8,), (12,), (9,), (13,), (10,), (14,), (11,), (15,)]


def test_threads_of_a_worker_are_on_one_node_and_on_different_physical_cores() -> None:
    assert cpus("cpu", TWO, 4, 2) == [(0, 1), (4, 5), (2, 3), (6, 7)]
    assert cpus("cpu", TWO, 2, 6) == [(0, 1, 2, 3, 8, 9), (4, 5, 6, 7, 12, 13)]
    assert dealt("cpu", TWO, 1, 16) == [Slot(tuple(range(16)), -1, -1)]


def test_adjacent_hardware_threads() -> None:
    cores = tuple(Cpu(number, 0, number // 2 * 2) for number in range(4))
    assert cpus("cpu", Topology(cores, 4), 2) == [(0,), (2,)]


def test_a_worker_across_nodes_only_when_no_node_has_enough() -> None:
    assert dealt("cpu", topology(2, 3), 3, 2) == [Slot((0, 1), -1, 0), Slot((3, 4), -1, 1), Slot((2, 5), -1, -1)]


# ---------------------------------------------------------------------------------------------------------------- GPUs


def test_one_worker_a_gpu_with_cores_of_its_node() -> None:
    assert dealt("gpu:all", FOUR_GPUS) == [
        Slot((0, 1), 0, 0),
        Slot((2, 3), 1, 0),
        Slot((4, 5), 2, 1),
        Slot((6, 7), 3, 1),
    ]


def test_several_workers_a_gpu_in_turn() -> None:
    assert [slot.gpu for slot in dealt("gpu:1,3", FOUR_GPUS, 5)] == [1, 3, 1, 3, 1]
    assert [slot.node for slot in dealt("gpu:1,3", FOUR_GPUS, 5)] == [0, 1, 0, 1, 0]


def test_fewer_workers_than_gpus() -> None:
    assert [slot.gpu for slot in dealt("gpu:all", FOUR_GPUS, 3)] == [0, 1, 2]


def test_too_many_for_a_node_share_it() -> None:
    found = dealt("gpu:0,2", FOUR_GPUS, 9)  # five on node 0, four on node 1, two cores each
    node0, node1 = (0, 1, 2, 3, 8, 9, 10, 11), {4, 5, 6, 7, 12, 13, 14, 15}
    assert [slot.cpus for slot in found if slot.gpu == 0] == [node0] * 5
    assert {cpu for slot in found if slot.gpu == 2 for cpu in slot.cpus} == node1
    assert {len(slot.cpus) for slot in found if slot.gpu == 2} == {2}


def test_cores_that_are_named_beside_a_gpu() -> None:
    assert dealt("gpu:2 cpu:0-1,6-7", FOUR_GPUS) == [Slot((6, 7), 2, 1)]
    assert dealt("gpu:2 cpu:0-1", FOUR_GPUS) == [Slot((0, 1), 2, 0)]  # none near it: then those
    assert dealt("gpu:0 node:1", FOUR_GPUS) == [Slot((4, 5), 0, 1)]


def test_a_gpu_whose_node_is_unknown_or_has_no_usable_core() -> None:
    assert dealt("gpu", topology(2, 4, gpus=(-1,))) == [Slot((0, 1), 0, 0)]
    assert dealt("gpu", topology(1, 4, gpus=(1,))) == [Slot((0, 1), 0, 0)]


def test_one_core_for_a_gpus_worker_is_no_binding() -> None:
    assert dealt("gpu", topology(1, 1, gpus=(0,))) == [Slot((), 0, -1)]


def test_gpus_without_pin() -> None:
    assert dealt("gpu:0,3", FOUR_GPUS, pin=False) == [Slot((), 0), Slot((), 3)]
    assert dealt("gpu:3 cpu:1", FOUR_GPUS, pin=False) == [Slot((1,), 3, 0)]


def test_nodes_known_of_some_gpus_only() -> None:
    """The one that may be anywhere takes what the other leaves."""
    on = Topology(topology(2, 2).cpus, 4, (Gpu(0, -1), Gpu(1, 0)))
    assert dealt("gpu", on) == [Slot((2, 3), 0, 1), Slot((0, 1), 1, 0)]
    assert [slot.cpus for slot in dealt("gpu", on, 3)] == [(), (0, 1), ()]  # two need more than the two that are left


def test_workers_of_cpus_see_no_gpu() -> None:
    assert {slot.gpu for slot in dealt("cpu", FOUR_GPUS)} == {-1}


# -------------------------------------------------------------------------------------------------------------- groups


def test_groups_share_a_machine() -> None:
    requests = [Request("cpu", 2), Request("gpu:2"), Request("cpu:0-1")]
    anywhere, gpu, named = place(requests, FOUR_GPUS, pin=True)
    assert [slot.cpus for slot in named] == [(0,), (1,)]
    assert [slot.cpus for slot in gpu] == [(4, 5)]
    assert [slot.cpus for slot in anywhere] == [(2,), (6,)]


def test_a_group_for_which_too_little_is_left_is_not_bound() -> None:
    assert place([Request("cpu"), Request("cpu", 1)], ONE, pin=True)[1] == [Slot(())]
    assert place([Request("cpu:0-1"), Request("cpu:1-2")], ONE, pin=True)[1] == [Slot((1, 2), -1, 0)] * 2


def test_no_groups() -> None:
    assert place([], ONE, pin=True) == []


# ---------------------------------------------------------------------------------------------------------- any machine


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    on = topology(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 6)),
        smt=draw(st.booleans()),
        gpus=draw(st.lists(st.integers(-1, 3), max_size=5)),
    )
    usable = draw(st.sets(st.sampled_from(on.cpus), min_size=1))
    return Topology(tuple(sorted(usable)), draw(st.integers(1, len(usable))), on.gpus)


@st.composite
def texts(draw: st.DrawFn, on: Topology) -> str:
    """A `devices` text that fits the machine."""
    words = ["cpu"]
    if draw(st.booleans()):
        words = [f"cpu:{cpu.number}" for cpu in draw(st.sets(st.sampled_from(on.cpus), min_size=1))]
    if draw(st.booleans()):
        words = [f"node:{draw(st.sampled_from(on.cpus)).node}"]
    on_gpus = draw(st.booleans())
    if on.gpus and on_gpus:
        words += [f"gpu:{gpu}" for gpu in draw(st.sets(st.integers(0, len(on.gpus) - 1), min_size=1))]
    return " ".join(words)


@given(st.data())
def test_what_holds_of_workers_of_cpus(data: st.DataObject) -> None:
    on = data.draw(machines())
    on = Topology(on.cpus, on.count)
    devices = data.draw(texts(on))
    workers, threads = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 4))
    found = dealt(devices, on, workers, threads)
    named = parse_devices(devices)
    usable = {
        cpu.number
        for cpu in on.cpus
        if cpu.number in named.cpus or cpu.node in named.nodes or not named.cpus + named.nodes
    }
    assert len(found) == (workers or max(1, min(len(usable), on.count) // threads))
    used = Counter(cpu for slot in found for cpu in slot.cpus)
    if len(found) * threads <= len(usable):  # there is enough: each has its own
        assert all(len(slot.cpus) == threads for slot in found)
        assert set(used.values()) == {1}
        by_node = Counter(cpu.node for cpu in on.cpus if cpu.number in usable)
        if len(found) <= sum(free // threads for free in by_node.values()):
            assert all(slot.node >= 0 for slot in found)
    else:
        whole = () if len(usable) == len(on.cpus) else tuple(sorted(usable))
        assert {slot.cpus for slot in found} == {whole}
    assert set(used) <= usable


@given(st.data())
def test_what_holds_of_any_workers(data: st.DataObject) -> None:
    on = data.draw(machines())
    requests = [
        Request(data.draw(texts(on)), data.draw(st.integers(0, 6)), data.draw(st.integers(1, 3)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    pin = data.draw(st.booleans())
    nodes = {cpu.number: cpu.node for cpu in on.cpus}
    for request, found in zip(requests, place(requests, on, pin=pin), strict=True):
        named = parse_devices(request.devices)
        assert len(found) == request.workers or not request.workers
        for slot in found:
            assert set(slot.cpus) <= set(nodes)
            assert list(slot.cpus) == sorted(set(slot.cpus))
            assert {slot.node} == {nodes[cpu] for cpu in slot.cpus} or slot.node == -1
        if named.gpus is None:
            assert {slot.gpu for slot in found} == {-1}
            continue
        shares = Counter(slot.gpu for slot in found)
        assert set(shares) <= set(named.gpus)
        assert max(shares.values()) - min(shares[gpu] for gpu in named.gpus) <= 1
        for slot in found:
            node = on.gpus[slot.gpu].node
            possible = {cpu.node for cpu in on.cpus if cpu.number in named.cpus or cpu.node in named.nodes} or set(
                nodes.values()
            )
            if slot.cpus and pin and node in possible:
                assert slot.node == node


@given(st.data())
def test_cores_belong_to_one_worker_of_all_groups_or_to_a_whole_group(data: st.DataObject) -> None:
    on = data.draw(machines())
    requests = [Request("cpu", data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))) for _ in range(3)]
    bound = [slot.cpus for group in place(requests, on, pin=True) for slot in group if slot.cpus]
    used = Counter(cpu for cpus in bound for cpu in cpus)
    assert set(used.values()) <= {1}


# ------------------------------------------------------------------------------------------------------------- packages


def test_the_extra_gpu_takes_the_same_tensorflow() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    plain = next(text for text in project["dependencies"] if text.startswith("tensorflow>"))
    assert project["optional-dependencies"]["gpu"] == [plain.replace("tensorflow", "tensorflow[and-cuda]", 1)]
