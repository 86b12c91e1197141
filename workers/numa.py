"""A worker's memory on the NUMA node of its cores, through the kernel's memory policy."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Collection
from typing import Final

from ringserve.config.topology import node_of_cpus

log = logging.getLogger(__name__)

#: (set_mempolicy, get_mempolicy): numbers of system calls that the C library has no functions for.
_MEMPOLICY_CALLS: Final = {"x86_64": (238, 239), "aarch64": (237, 236)}
_DEFAULT_POLICY: Final = 0
_PREFER_NODE: Final = 1
_NODES_MAX: Final = 1024


def stay_on_node(cpus: Collection[int], *, sys: str = "/sys") -> int:
    """Take memory from the node that all of these cores are on, while it has some: working memory and the result ring,
    whose pages come with their first write. Returns the node, or -1 where nothing was to be done or could be.

    The kernel's default is the node of the core that runs at the time, which for pinned threads is the same; this also
    holds for those that the system moves or a library pins elsewhere. A policy that somebody else has set stays. sys:
    for tests.
    """
    nodes = node_of_cpus(sys=sys)
    mine = {nodes.get(cpu, -1) for cpu in cpus}
    if len(mine) != 1 or len(set(nodes.values())) < 2:
        return -1
    node = mine.pop()
    if node < 0 or not prefer_node(node):
        log.debug("no memory policy for node %d: the kernel's default stays", node)
        return -1
    return node


def prefer_node(node: int) -> bool:
    """Have the kernel look for this thread's memory on that node first. False where it does not let us, or where a
    policy is set already."""
    calls = _MEMPOLICY_CALLS.get(platform.machine())
    if calls is None or memory_policy() != _DEFAULT_POLICY:
        return False
    mask = _mask()
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask[node // bits] = 1 << node % bits
    return _syscall(calls[0], _PREFER_NODE, mask, _NODES_MAX + 1) == 0


def memory_policy() -> int:
    """This thread's memory policy, as the kernel numbers them (0: its default), -1 if it does not tell."""
    calls = _MEMPOLICY_CALLS.get(platform.machine())
    mode = ctypes.c_int(-1)
    if calls is None or _syscall(calls[1], ctypes.byref(mode), None, 0, None, 0) != 0:
        return -1
    return mode.value


def _mask() -> ctypes.Array[ctypes.c_ulong]:
    return (ctypes.c_ulong * (_NODES_MAX // (8 * ctypes.sizeof(ctypes.c_ulong))))()


def _syscall(number: int, *arguments: object) -> int:
    longs = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *longs))
