"""Cores, nodes and GPUs from made-up /sys, /proc and /dev; and that this machine can be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringserve.config.topology import Cpu, Gpu, numbers_of, read_topology
from tests.config.machines import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def four(machine: Machine) -> Machine:
    """Four GPUs on two nodes; the driver's numbers of them follow another order than the bus."""
    machine.node(0, "0-1")
    machine.node(1, "2-3")
    machine.gpu("0000:1b:00.0", 0, 2, "GPU-1bbbbbbb-0000-0000-0000-000000000000")
    machine.gpu("0000:9e:00.0", 1, 0, "GPU-9eeeeeee-0000-0000-0000-000000000000")
    machine.gpu("0000:40:00.0", 0, 1, "GPU-40000000-0000-0000-0000-000000000000")
    machine.gpu("0001:01:00.0", 1, 3, "GPU-01111111-0000-0000-0000-000000000000")
    return machine


def nodes(machine: Machine, **environ: str) -> list[int]:
    """The nodes of the visible GPUs, which are numbered from 0 without gaps."""
    gpus = machine.read((0, 1, 2, 3), environ=environ).gpus
    assert [gpu.ordinal for gpu in gpus] == list(range(len(gpus)))
    return [gpu.node for gpu in gpus]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8\n", [0, 1, 2, 3, 8]), ("0", [0]), ("", []), ("\n", []), ("x", []), ("1-", []), ("0-1,", [])],
)
def test_the_kernels_lists(text: str, numbers: list[int]) -> None:
    assert numbers_of(text) == numbers


def test_a_kernel_that_tells_nothing(machine: Machine) -> None:
    assert machine.read((0, 3)).cpus == (Cpu(0, 0, 0), Cpu(3, 0, 3))


def test_two_sockets_with_second_threads(machine: Machine) -> None:
    machine.node(0, "0-1,4-5")
    machine.node(1, "2-3,6-7")
    for core in range(4):
        machine.core(core, core + 4)
    cpus = machine.read(range(8)).cpus
    assert [cpu.node for cpu in cpus] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [cpu.core for cpu in cpus] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_siblings_of_an_old_kernel_and_outside_the_mask(machine: Machine) -> None:
    machine.core(0, 1, name="thread_siblings_list")
    machine.core(2, 3, name="thread_siblings_list")
    assert machine.read((1, 2, 3)).cpus == (Cpu(1, 0, 0), Cpu(2, 0, 2), Cpu(3, 0, 2))


def test_a_node_without_cpus_and_other_files(machine: Machine) -> None:
    machine.node(0, "0-1")
    machine.node(1, "")  # memory only
    machine.write("sys/devices/system/node/online", "0-1")
    assert [cpu.node for cpu in machine.read((0, 1)).cpus] == [0, 0]


def test_the_quota_is_kept(machine: Machine) -> None:
    assert machine.read((0, 1, 2), count=2).count == 2


def test_gpus_are_numbered_along_the_bus(four: Machine) -> None:
    assert nodes(four) == [0, 0, 1, 1]  # 1b, 40, 9e, domain 1


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("2,3", [1, 1]),
        ("3,0", [1, 0]),
        ("0", [0]),
        (" 1 , 2 ", [0, 1]),
        ("", []),
        ("-1", []),
        ("0,-1,1", [0]),  # CUDA stops there
        ("0,9,1", [0]),
        ("nonsense", []),
        ("GPU-9eeeeeee-0000-0000-0000-000000000000,GPU-1bbbbbbb-0000-0000-0000-000000000000", [1, 0]),
        ("GPU-01", [1]),
        ("GPU-7", []),
        ("GPU-", []),  # of which one?
        ("MIG-3f2a,0", [-1, 0]),
    ],
)
def test_what_the_environment_shows(four: Machine, listed: str, expected: list[int]) -> None:
    assert nodes(four, CUDA_VISIBLE_DEVICES=listed) == expected


def test_under_another_order_a_number_says_nothing_about_the_node(four: Machine) -> None:
    assert nodes(four, CUDA_DEVICE_ORDER="FASTEST_FIRST") == [-1, -1, -1, -1]
    assert nodes(four, CUDA_DEVICE_ORDER="FASTEST_FIRST", CUDA_VISIBLE_DEVICES="1,GPU-9e") == [-1, 1]
    assert nodes(four, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0, 0, 1, 1]


def test_another_order_on_one_node(machine: Machine) -> None:
    machine.gpu("0000:01:00.0", 1, 0, "GPU-0")
    machine.gpu("0000:02:00.0", 1, 1, "GPU-1")
    assert nodes(machine, CUDA_DEVICE_ORDER="FASTEST_FIRST") == [1, 1]


def test_a_container_with_one_of_the_hosts_gpus(machine: Machine) -> None:
    """It sees all of /proc and /sys, and one device file."""
    for number, node in enumerate((0, 0, 1, 1)):
        machine.gpu(f"0000:0{number}:00.0", node, number, f"GPU-{number}", device_file=number == 2)
    machine.write("dev/nvidiactl", "")
    assert machine.read((0,)).gpus == (Gpu(0, 1),)


def test_before_the_first_use_of_cuda_there_is_no_device_file(machine: Machine) -> None:
    machine.gpu("0000:01:00.0", 0, 0, "GPU-0", device_file=False)
    assert nodes(machine) == [0]


def test_identifiers_that_the_driver_does_not_tell(machine: Machine) -> None:
    machine.gpu("0000:01:00.0", 0, 0, "GPU-??-??")
    machine.write("proc/driver/nvidia/gpus/0000:02:00.0/information", "Model: unknown")
    assert nodes(machine, CUDA_VISIBLE_DEVICES="GPU-123") == [-1]


def test_a_driver_without_proc(machine: Machine) -> None:
    machine.on_bus("0000:02:00.0", 1)
    machine.on_bus("0000:01:00.0", 0, kind="0x030000")
    machine.on_bus("0000:01:00.1", 0, kind="0x040300")  # its sound
    machine.on_bus("0000:00:02.0", 0, vendor="0x8086", kind="0x030000")
    assert nodes(machine) == []  # no driver at all
    machine.write("dev/nvidia0", "")
    assert nodes(machine) == [-1]  # which of the two?
    machine.write("dev/nvidia1", "")
    assert nodes(machine) == [0, 1]


def test_a_bus_that_tells_no_node(machine: Machine) -> None:
    machine.gpu("00000000:01:00.0", -1, 0, "GPU-0")
    assert nodes(machine) == [-1]


def test_a_long_domain_in_proc_is_found_on_the_bus(machine: Machine) -> None:
    machine.write("proc/driver/nvidia/gpus/00000000:C1:00.0/information", "Device Minor: 0")
    machine.on_bus("0000:c1:00.0", 1)
    assert nodes(machine) == [1]


def test_this_machine() -> None:
    topology = read_topology()
    assert {cpu.number for cpu in topology.cpus} == os.sched_getaffinity(0)
    assert 1 <= topology.count <= len(topology.cpus)
