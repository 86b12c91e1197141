"""Pure: how much memory models take, and whether one more fits into the limits.

What a version needs is estimated from its files before it is loaded and known better once its weights are. Counted are
weights, once per host or once per worker, graphs once per worker, and a fixed part of every process; working memory
and the rings are not, so that a limit refuses what cannot fit and not what probably does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ringserve.broker.messages import Code, Failure
from ringserve.broker.orders import Order
from ringserve.broker.stability import FileInfo

_MIB = 1024 * 1024
_CHECKPOINT = re.compile(r"variables/variables\.data-\d{5}-of-\d{5}")
_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_TFLITE = "model.tflite"


class Weight(NamedTuple):
    """What the files of one version weigh. checkpoint_bytes: of its variables, which workers may share. graph_bytes: of
    what each of them reads for itself."""

    checkpoint_bytes: int
    graph_bytes: int


class Need(NamedTuple):
    """Memory that a version takes. shared_bytes: once per host. private_bytes: in each worker of its group."""

    shared_bytes: int
    private_bytes: int


class Share(NamedTuple):
    """Where a model runs: the name of its worker group and how many workers that has."""

    group: str
    workers: int


@dataclass(frozen=True)
class Limits:
    """host_bytes: what all may take together; 0 = no limit. source: where that comes from, in words. fixed_bytes: taken
    by processes that are there whatever is loaded. group_bytes: limits of single groups, by name; group_fixed_bytes:
    their workers' fixed part."""

    host_bytes: int = 0
    source: str = ""
    fixed_bytes: int = 0
    group_bytes: Mapping[str, int] | None = None
    group_fixed_bytes: Mapping[str, int] | None = None


def weigh(files: Sequence[FileInfo], *, prefer_tflite: bool) -> Weight:
    """What a version's files weigh."""
    sizes = {file.path: max(file.size_bytes, 0) for file in files}
    if _TFLITE in sizes and (prefer_tflite or not sizes.keys() & set(_GRAPHS)):
        return Weight(0, sizes[_TFLITE])
    checkpoint = sum(size for path, size in sizes.items() if _CHECKPOINT.fullmatch(path))
    return Weight(checkpoint, max((sizes.get(path, 0) for path in _GRAPHS), default=0))


class Budget:
    """What is held, by order, and the limits. share_of: where a model runs. `freed`: there is more room than when it
    was last set to False."""

    def __init__(self, limits: Limits, share_of: Callable[[str], Share]) -> None:
        self.limits = limits
        self.freed = False
        self._share_of = share_of
        self._held: dict[Order, tuple[str, int]] = {}
        self._by_group: dict[str, int] = {}
        self._models_bytes = 0

    @property
    def used_bytes(self) -> int:
        """All that counts, of the whole host."""
        return self.limits.fixed_bytes + self._models_bytes

    def put(self, order: Order, need: Need) -> None:
        """This order takes so much, in place of what it took."""
        before = self._held.get(order)
        self._take_out(order)
        share = self._share_of(order.name)
        taken = need.shared_bytes + need.private_bytes * share.workers
        self._held[order] = (share.group, taken)
        self._by_group[share.group] = self._by_group.get(share.group, 0) + taken
        self._models_bytes += taken
        self.freed = self.freed or (before is not None and taken < before[1])

    def drop(self, order: Order) -> None:
        """It takes nothing any more."""
        self.freed = self._take_out(order) > 0 or self.freed

    def set_limits(self, limits: Limits) -> bool:
        """These count from now on; what is loaded stays. True when they are others than before."""
        changed = limits != self.limits
        self.freed = self.freed or changed
        self.limits = limits
        return changed

    def refusal(self, order: Order, need: Need) -> Failure | None:
        """Why it must not be loaded; None when there is room. What it is counted with already does not count twice."""
        share = self._share_of(order.name)
        needed = need.shared_bytes + need.private_bytes * share.workers
        group, held = self._held.get(order, (share.group, 0))
        limits = self.limits
        if limits.host_bytes and self.used_bytes - held + needed > limits.host_bytes:
            left = max(limits.host_bytes - self.used_bytes + held, 0)
            return _refused(order, need, share, left, limits.host_bytes, limits.source)
        limit = (limits.group_bytes or {}).get(share.group, 0)
        fixed = (limits.group_fixed_bytes or {}).get(share.group, 0)
        used = fixed + self._by_group.get(share.group, 0) - (held if group == share.group else 0)
        if limit and used + needed > limit:
            source = f"memory_bytes_max of the worker group {share.group!r}"
            return _refused(order, need, share, max(limit - used, 0), limit, source)
        return None

    def _take_out(self, order: Order) -> int:
        group, taken = self._held.pop(order, ("", 0))
        if taken:
            self._by_group[group] -= taken
            self._models_bytes -= taken
        return taken


def _refused(order: Order, need: Need, share: Share, left: int, limit: int, source: str) -> Failure:
    parts = []
    if need.shared_bytes:
        parts.append(f"{mib(need.shared_bytes)} that workers share")
    if need.private_bytes:
        parts.append(f"{mib(need.private_bytes)} in each of {share.workers} workers")
    text = (
        f"Loading {{name: {order.name} version: {order.version}}} takes about "
        f"{mib(need.shared_bytes + need.private_bytes * share.workers)} of memory ({' and '.join(parts)}), and "
        f"{mib(left)} of {mib(limit)} are left; the limit is {source}"
    )
    return Failure(Code.RESOURCE_EXHAUSTED, text)


def mib(count_bytes: int) -> str:
    """An amount of memory as operators read it."""
    if 0 < count_bytes < _MIB:
        return f"{count_bytes / 1024:.1f} KiB"
    if count_bytes < 10 * _MIB:
        return f"{count_bytes / _MIB:.1f} MiB"
    return f"{count_bytes / _MIB:.0f} MiB"
