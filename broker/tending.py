"""Pure: looks after the groups' workers as time passes: their number by the load, their age and their memory.

Nothing here is done for a server whose groups have one size and no limits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ringserve.broker.elastic import Elastic
from ringserve.broker.groups import Group, Groups
from ringserve.broker.renewal import Renewal
from ringserve.broker.statistics import Usage

log = logging.getLogger(__name__)

#: How often workers are looked at, each time the memory of one: every few seconds each, and no pause that is felt.
_LOOK_NS = 1_000_000_000


class Tended(NamedTuple):
    """How one group is looked after. elastic: None when it has one size; renewal: None when it has no limits."""

    group: Group
    elastic: Elastic | None
    renewal: Renewal | None


class Tending:
    """usage: `Core.usage`. private_bytes: of a process id. wake_ns: call `turn` then; 0 = never."""

    def __init__(
        self,
        groups: Groups,
        tended: Sequence[Tended],
        *,
        usage: Callable[[int], Usage],
        private_bytes: Callable[[int], int] | None,
    ) -> None:
        self._groups = groups
        self._elastic = [(each.group, each.elastic) for each in tended if each.elastic is not None]
        self._renewal = [(each.group, each.renewal) for each in tended if each.renewal is not None]
        self._usage = usage
        self._private_bytes = private_bytes
        self._bytes: dict[int, int] = {}  # by process id
        self._look_ns = 0
        self.wake_ns = 1 if self._elastic or self._renewal else 0

    def turn(self, now_ns: int) -> bool:
        """Whether something was decided, which the groups' next turn carries out."""
        if not 0 < self.wake_ns <= now_ns:
            return False
        decided = self._resize(now_ns) if self._elastic else False
        if self._renewal and now_ns >= self._look_ns:
            self._look_ns = now_ns + _LOOK_NS
            decided = self._renew(now_ns) or decided
        wakes = [self._look_ns] if self._renewal else []
        self.wake_ns = min([*wakes, *(elastic.wake_ns for _, elastic in self._elastic)])
        return decided

    def _resize(self, now_ns: int) -> bool:
        usage = self._usage(now_ns)
        waiting = {self._groups.home(name) for name in usage.waiting}
        decided = False
        for group, elastic in self._elastic:
            generations = group.generations
            current = generations.crew.current
            members = current.members.values() if current is not None else ()
            ids = [member.worker_id for member in members if member.worker_id in usage.busy_ns]
            busy_ns = {worker_id: usage.busy_ns[worker_id] for worker_id in ids}
            change = elastic.look(busy_ns, now_ns, waits=group.name in waiting, settled=generations.settled)
            if change and generations.resize(change):
                word = "more" if change > 0 else "less"
                log.info("group %s: one worker %s for this load: %d", group.name, word, generations.wanted)
                decided = True
        return decided

    def _renew(self, now_ns: int) -> bool:
        if self._private_bytes is not None:
            self._read_one(self._private_bytes)
        decided = False
        for group, renewal in self._renewal:
            current = group.generations.crew.current
            if current is None or not group.generations.settled:
                continue
            reason = renewal.look(current.members.values(), self._bytes, now_ns)
            if reason:
                log.info("group %s: its workers are replaced for their %s", group.name, reason)
                group.generations.renew(reason)
                decided = True
        return decided

    def _read_one(self, private_bytes: Callable[[int], int]) -> None:
        """Of the worker whose memory was read longest ago."""
        pids = {member.pid for member in self._groups.crew.members()}
        self._bytes = {pid: count for pid, count in self._bytes.items() if pid in pids}
        pid = next((pid for pid in sorted(pids) if pid not in self._bytes), next(iter(self._bytes), -1))
        if pid >= 0:
            self._bytes.pop(pid, None)
            self._bytes[pid] = private_bytes(pid)  # at the end, as the last one
