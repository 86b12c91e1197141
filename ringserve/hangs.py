"""Which children hang. Each says from its own loop that it lives; one that has been silent for too long is stuck,
unless it waits for a CPU. Pure but for that, which `cpu_waits.py` asks the system.

Time counts only as far as this process saw it pass: one that was itself stopped (a suspended machine, a frozen control
group, a debugger) cannot tell a child that hung from one that was stopped with it, and gives all of them their whole
time again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from ringserve.cpu_waits import CpuWaits

_MS_NS = 1_000_000
#: A child speaks twice in its time, and so often in it is looked. A look may be late by half of the pause before it:
#: one that was stopped along with us, unseen, has at least a fifth of its time left then to speak.
_LOOKS = 5
#: Where no child is waited for but one that starts.
_LOOK_START_NS = 10_000 * _MS_NS


class Watched(Protocol):
    """What is to be known of a child.

    alive: it has a process. patience: how many times the usual silence it may keep. heard_ns: when the process was
    started, became ready, or spoke last. condemned: it was killed for hanging and has not ended yet.
    """

    @property
    def alive(self) -> bool: ...
    @property
    def pid(self) -> int: ...
    @property
    def patience(self) -> int: ...
    ready: bool
    heard_ns: int
    condemned: bool


_Child = TypeVar("_Child", bound=Watched)


class Watchdog:
    """Looks after children. hang_ms_max: silence of one that is ready; start_ms_max: until it is; 0 = for ever. waits:
    who is starved of CPU.

    look_ns: when to call `overdue` next at the latest; 0 = no need to.
    """

    def __init__(self, hang_ms_max: int, start_ms_max: int, waits: CpuWaits | None = None) -> None:
        self._waits = waits or CpuWaits()
        self._hang_ns_max = hang_ms_max * _MS_NS
        self._start_ns_max = start_ms_max * _MS_NS
        looks = (self._hang_ns_max // _LOOKS, min(self._start_ns_max // _LOOKS, _LOOK_START_NS))
        self._period_ns = min((look for look in looks if look), default=0)
        self.look_ns = 0

    def overdue(self, children: Iterable[_Child], now_ns: int) -> list[_Child]:
        """Those that hang. What they said before `now_ns` must have been taken in."""
        if not self._period_ns:
            return []
        late_ns = now_ns - self.look_ns if self.look_ns else 0
        self.look_ns = now_ns + self._period_ns
        watched = [child for child in children if child.alive and not child.condemned]
        if late_ns > self._period_ns // 2:
            for child in watched:
                child.heard_ns = now_ns
        self._waits.look(((child.pid, child.heard_ns) for child in watched), now_ns)
        return [child for child in watched if self._hangs(child, now_ns)]

    def _hangs(self, child: Watched, now_ns: int) -> bool:
        ns_max, silence_ns = self._ns_max(child), now_ns - child.heard_ns
        return 0 < ns_max <= silence_ns and not self._waits.excuse(child.pid, silence_ns, ns_max)

    def _ns_max(self, child: Watched) -> int:
        return self._hang_ns_max * child.patience if child.ready else self._start_ns_max
