"""Pure: which model versions requests may wait for, and what they are told that may not wait any longer.

A version is known while it is to be served or a worker serves it. One that is known and has no worker is *orphaned*:
its requests wait for a worker, for so long as their lane's policy says. One that was known before the last change and
is not any more was *replaced*: who asks for it hears that it went, which is another thing than that it never was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ringserve.broker import failures
from ringserve.broker.messages import Failure, ModelVersion

#: Of so many replaced versions it is remembered that they were here; then those of the last change alone.
_REPLACED_MAX: Final = 100


class Servables:
    def __init__(self) -> None:
        self._expected: frozenset[ModelVersion] | None = frozenset()
        self._served: set[ModelVersion] = set()
        self._replaced: set[ModelVersion] = set()
        self._orphaned_ns: dict[ModelVersion, int] = {}
        self._was_asked_late = False

    def expect(self, versions: Iterable[tuple[str, int]] | None, served: Iterable[ModelVersion]) -> None:
        """These are to be served (None: not known yet, all may be), and `served` have a worker now."""
        before = frozenset(self._orphaned_ns) if self._expected is None else self._expected
        self._expected = None if versions is None else frozenset(ModelVersion(*version) for version in versions)
        self._served = set(served)
        for servable in [servable for servable in self._orphaned_ns if not self._known(servable)]:
            del self._orphaned_ns[servable]
        went = {servable for servable in before if not self._known(servable)}
        self._replaced = went | (self._replaced if len(self._replaced) < _REPLACED_MAX else set())

    def gained(self, servables: Iterable[ModelVersion]) -> None:
        """A worker serves these; they stay known until the next `expect`."""
        for servable in servables:
            self._served.add(servable)
            self._orphaned_ns.pop(servable, None)

    def orphaned(self, servable: ModelVersion, now_ns: int) -> None:
        """Nobody serves it; said again, it counts from the first time."""
        self._orphaned_ns.setdefault(servable, now_ns)

    def unserved(self, servable: ModelVersion, no_worker_ns_max: int, now_ns: int) -> Failure | None:
        """What a request is told that no worker can run now; None = it may wait for one."""
        if not self._known(servable):
            self._was_asked_late |= servable in self._replaced
            return failures.replaced(servable) if servable in self._replaced else failures.not_found(servable)
        waited_ns = now_ns - self._orphaned_ns.get(servable, now_ns)
        return failures.no_worker(servable, waited_ns) if waited_ns >= no_worker_ns_max else None

    def ends_waiting_ns(self, servable: ModelVersion, no_worker_ns_max: int) -> int:
        """When requests for an orphaned one have waited for long enough."""
        return self._orphaned_ns[servable] + no_worker_ns_max

    def take_asked_late(self) -> bool:
        """Whether anybody asked for a replaced one since the last call: a frontend's catalog is old."""
        was_asked, self._was_asked_late = self._was_asked_late, False
        return was_asked

    def _known(self, servable: ModelVersion) -> bool:
        return self._expected is None or servable in self._expected or servable in self._served
