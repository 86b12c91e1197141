"""Pure: the workers of all groups as one: what happens to a worker is told to the crew of its group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ringserve.broker.adoption import Adoption
from ringserve.broker.crew import Crew
from ringserve.broker.members import BANKS, Generation, Member
from ringserve.broker.messages import Failure, ModelVersion
from ringserve.broker.orders import LoadFailure, Order


class Crews:
    """One crew per group, each with indexes and places in the fleet of its own. Methods as those of `Crew`."""

    def __init__(self, crews: Sequence[Crew]) -> None:
        self.crews = crews
        self._of: dict[int, Crew] = {}  # by worker id

    # ------------------------------------------------------------------------------------------------------ looking

    @property
    def pool(self) -> bool:
        """There is one that can fork."""
        return self.crews[0].pool

    @property
    def adoption(self) -> Adoption | None:
        """One that goes on, in whichever group."""
        return next((crew.adoption for crew in self.crews if crew.adoption is not None), None)

    @property
    def generations(self) -> list[Generation]:
        return [generation for crew in self.crews for generation in crew.generations]

    def members(self) -> Iterator[Member]:
        for crew in self.crews:
            yield from crew.members()

    def find(self, worker_id: int) -> Member | None:
        crew = self._of.get(worker_id)
        return crew.find(worker_id) if crew is not None else None

    def orders_of(self, name: str) -> frozenset[Order]:
        """All of this model that workers have loaded, or those of a generation are to load."""
        found = {order for member in self.members() for order in (*member.loaded.values(), *member.untried)}
        for each in self.generations:
            found.update((*each.orders.values(), *each.ready.values(), *each.fallbacks.values()))
        return frozenset(order for order in found if order.name == name)

    def phase_of(self, member: Member) -> str:
        return self._of[member.worker_id].phase_of(member)

    def group_of(self, member: Member) -> int:
        """The position of its group."""
        return self.crews.index(self._of[member.worker_id])

    # ----------------------------------------------------------------------------------------------- what happens

    def pool_joined(self, workers: dict[int, int], now_ns: int) -> None:
        for crew in self.crews:
            theirs = {index: pid for index, pid in workers.items() if self._at(index) is crew}
            crew.pool_joined(theirs, now_ns)

    def pool_left(self, now_ns: int) -> None:
        for crew in self.crews:
            crew.pool_left(now_ns)

    def worker_joined(self, worker_id: int, generation: int, index: int, pid: int, now_ns: int) -> None:
        crew = self._of[worker_id] = self._at(index)
        crew.worker_joined(worker_id, generation, index, pid, now_ns)

    def worker_loading(self, worker_id: int, key: ModelVersion, now_ns: int) -> None:
        if worker_id in self._of:
            self._of[worker_id].worker_loading(worker_id, key, now_ns)

    def worker_loaded(self, worker_id: int, key: ModelVersion, failure: Failure | None) -> LoadFailure | None:
        crew = self._of.get(worker_id)
        return crew.worker_loaded(worker_id, key, failure) if crew is not None else None

    def worker_ready(self, worker_id: int, keys: frozenset[ModelVersion], *, complete: bool) -> None:
        if worker_id in self._of:
            self._of[worker_id].worker_ready(worker_id, keys, complete=complete)

    def worker_killed(self, worker_id: int) -> None:
        if worker_id in self._of:
            self._of[worker_id].worker_killed(worker_id)

    def worker_drained(self, worker_id: int, now_ns: int) -> None:
        if worker_id in self._of:
            self._of[worker_id].worker_drained(worker_id, now_ns)

    def worker_left(self, worker_id: int, now_ns: int) -> None:
        crew = self._of.pop(worker_id, None)
        if crew is not None:
            crew.worker_left(worker_id, now_ns)

    def worker_exited(self, index: int, pid: int, status: int, now_ns: int) -> list[LoadFailure]:
        return self._at(index).worker_exited(index, pid, status, now_ns)

    def _at(self, index: int) -> Crew:
        """The crew that this worker index belongs to."""
        for crew in self.crews:
            if crew.first_index <= index < crew.first_index + BANKS * crew.workers_max:
                return crew
        return self.crews[0]
