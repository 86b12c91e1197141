"""Pure: the book of worker processes: who is there, what each has loaded, who ended and what of.

What happens to workers is told to this file; what is to be done about it, `generations.py` decides.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

from ringserve.broker.adoption import Adoption
from ringserve.broker.members import BANKS, Generation, Member, living
from ringserve.broker.messages import Code, Failure, ModelVersion
from ringserve.broker.orders import LoadFailure, Order
from ringserve.broker.roster import Place

#: One version that ended this many workers while they loaded it is not tried again.
_DEATHS_MAX = 2
_ENDED_MAX = 256


class Crew:
    """The workers of one group.

    current: the generation that serves. following: the one that is to take its place. old: workers of those before.
    adoption: of an earlier broker's workers, while it goes on. pool: there is one that can fork. stops: ids of workers
    that are to leave. workers_min, workers_max: how many, and there are as many places. first_seat: of these places in
    the fleet.
    """

    def __init__(self, workers_min: int, workers_max: int = 0, first_seat: int = 0) -> None:
        self.workers_min = workers_min
        self.workers_max = max(workers_min, workers_max)
        self.first_seat = first_seat
        self.first_index = BANKS * first_seat
        self.current: Generation | None = None
        self.following: Generation | None = None
        self.old: list[Member] = []
        self.adoption: Adoption | None = Adoption()
        self.pool = False
        self.stops: list[int] = []
        self._deaths: dict[Order, int] = {}
        self._ended: dict[int, Member] = {}  # by process id: gone, and the pool has not said yet how

    # ------------------------------------------------------------------------------------------------------ looking

    @property
    def generations(self) -> list[Generation]:
        """The current one and the following one, as far as there are any."""
        return [generation for generation in (self.current, self.following) if generation is not None]

    def members(self) -> Iterator[Member]:
        """Every registered worker."""
        if self.adoption is not None:
            yield from self.adoption.members
        for generation in self.generations:
            yield from generation.members.values()
        yield from self.old

    def find(self, worker_id: int) -> Member | None:
        return next((member for member in self.members() if member.worker_id == worker_id), None)

    def generation_of(self, member: Member) -> Generation | None:
        """The generation that it fills a place of; None for an old worker."""
        return next((found for found in self.generations if found.members.get(member.place) is member), None)

    def kept(self, key: ModelVersion) -> Order | None:
        """What old workers are kept for, of this version."""
        return next((member.loaded[key] for member in living(self.old) if key in (member.kept or ())), None)

    def phase_of(self, member: Member) -> str:
        """What it does, in a word, for operators."""
        if member.stopped_ns or member.killed:
            return "stopping"
        if member.told is not None:
            return "kept" if member.told else "draining"
        if not member.complete:
            return "loading"
        return "waiting" if self.following is not None and member in self.following.members.values() else "ready"

    # ----------------------------------------------------------------------------------------------- what happens

    def pool_joined(self, workers: dict[int, int], now_ns: int) -> None:
        """A pool can fork; `workers` of it live: index -> process id."""
        self.pool = True
        if self.adoption is not None:
            self.adoption.pool_joined(workers, now_ns)
            return
        for generation in self.generations:
            for place in [place for place, member in generation.members.items() if member.pid not in workers.values()]:
                member = generation.members[place]  # of a pool that is gone: it leaves, or hangs
                member.stopped_ns = member.stopped_ns or now_ns
                self.retire(generation, place)
        if self.following is not None and not self.following.members:
            self.following = None  # first of all what serves is to be there again
        for generation in self.generations:
            theirs = {generation.place_of(index - self.first_index) for index in workers}
            generation.roster.pool_joined({*generation.members, *theirs}, now_ns)

    def pool_left(self, now_ns: int) -> None:
        """Its workers end with it, and tell so themselves; for one that hangs it is as if it had been told to leave."""
        self.pool = False
        for member in self.members():
            member.stopped_ns = member.stopped_ns or now_ns
        if self.adoption is not None:
            self.adoption.pool_left()

    def worker_joined(self, worker_id: int, generation: int, index: int, pid: int, now_ns: int) -> None:
        """A worker has registered."""
        place = (index - self.first_index) % self.workers_max
        member = Member(worker_id, pid, generation, place, self.first_seat + place, now_ns)
        for known in self.generations:
            if known.number == generation and known.roster[place] is Place.FORKING:
                member.untried = [order for order, _ in known.given.get(place, ())]
                known.members[place] = member
                known.roster.joined(place, now_ns)
                return
        if self.adoption is not None:
            self.adoption.members.append(member)
        else:
            # Its generation was given up before it came, or nobody knows it.
            self.stops.append(worker_id)
            self._remember(member)
            member.killed = True

    def worker_loading(self, worker_id: int, key: ModelVersion, now_ns: int) -> None:
        """It begins to load a version."""
        member = self.find(worker_id)
        if member is not None:
            member.begin(key, now_ns)

    def worker_loaded(self, worker_id: int, key: ModelVersion, failure: Failure | None) -> LoadFailure | None:
        """A load is over. Returns its failure when that says something about the version: it does not serve already, no
        other worker of the generation has it, and none of it has said so before."""
        member = self.find(worker_id)
        if member is None:
            return None
        order = member.end(key, succeeded=failure is None)
        generation = self.generation_of(member)
        if generation is None:
            return None
        if failure is None:
            self._deaths.pop(order, None)
            if generation is self.current and order.path:
                generation.orders.setdefault(key, order)
            return None
        if generation.holders(key):
            return None
        if generation is self.current:
            if generation.orders.get(key) == order:
                del generation.orders[key]
        elif order not in generation.fresh:
            return None  # its old workers go on with it
        if order in generation.counted:
            return None
        generation.counted.add(order)
        return LoadFailure(order, failure, False)

    def worker_ready(self, worker_id: int, keys: frozenset[ModelVersion], *, complete: bool) -> None:
        """It takes batches of these. complete: it loads nothing more."""
        member = self.find(worker_id)
        if member is not None:
            for key in keys:
                member.loaded.setdefault(key, Order(*key, ""))
            member.complete = complete

    def worker_killed(self, worker_id: int) -> None:
        """It was ordered to end for what it ran, not for what it loaded."""
        member = self.find(worker_id)
        if member is not None:
            member.killed = True

    def worker_drained(self, worker_id: int, now_ns: int) -> None:
        """It holds nothing any more and is sent nothing: it may go."""
        member = self.find(worker_id)
        if member is not None and not member.stopped_ns:
            self.stops.append(worker_id)
            member.stopped_ns = now_ns

    def worker_left(self, worker_id: int, now_ns: int) -> None:
        """Its process is gone."""
        member = self.find(worker_id)
        if member is None:
            return
        generation = self.generation_of(member)
        if generation is not None:
            del generation.members[member.place]
            generation.roster.gone(member.place, now_ns)
        elif member in self.old:
            self.old.remove(member)
        elif self.adoption is not None:
            self.adoption.left(member)
        self._remember(member)

    def worker_exited(self, index: int, pid: int, status: int, now_ns: int) -> list[LoadFailure]:
        """The pool says how a process ended: exit status, negative for a signal. Returns the versions that are given
        up because of it."""
        member = next((member for member in self.members() if member.pid == pid), None)
        if member is not None:
            self.worker_left(member.worker_id, now_ns)
        if self.adoption is not None:
            self.adoption.exited(pid)
        member = self._ended.pop(pid, None)
        if member is None:  # it never registered
            for generation in self.generations:
                place = generation.place_of(index - self.first_index)
                if place >= 0 and generation.roster[place] is Place.FORKING:
                    generation.roster.gone(place, now_ns)
            return []
        if status == 0 or member.killed or member.stopped_ns or member.loading is None:
            return []
        return self._blame(member, member.loading, status)

    def retire(self, generation: Generation, place: int) -> None:
        """The worker of this place, if there is one, is an old one from now on."""
        member = generation.members.pop(place, None)
        if member is not None:
            generation.roster.vacate(place)
            self.old.append(member)

    def dismiss(self, generation: Generation) -> list[int]:
        """This following generation is given up. Returns the process ids of its workers, which are to end."""
        assert generation is self.following
        self.following = None
        for member in generation.members.values():
            member.killed = True
            self._remember(member)
        return [member.pid for member in generation.members.values()]

    def _blame(self, member: Member, order: Order, status: int) -> list[LoadFailure]:
        """A worker ended while it loaded this. Twice, and it is not tried again."""
        deaths = self._deaths[order] = self._deaths.get(order, 0) + 1
        generation = next((found for found in self.generations if found.number == member.generation), None)
        if deaths < _DEATHS_MAX or generation is None:
            return []
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        if generation is self.following and order not in generation.fresh:
            # It serves, so there is nothing wrong with it; loading all this beside what serves is too much.
            del self._deaths[order]
            generation.hopeless = True
            text = (
                f"Loading what serves once more, beside the workers that serve it, ended {deaths} workers at "
                f"{{name: {order.name} version: {order.version}}}, the last by {how}: is there memory for both?"
            )
            return [LoadFailure(fresh, Failure(Code.RESOURCE_EXHAUSTED, text), False) for fresh in generation.fresh]
        if generation.holders(order.key):
            return []
        del self._deaths[order]
        if generation.orders.get(order.key) == order:
            del generation.orders[order.key]
        text = f"Loading it ended {deaths} worker processes, the last by {how}"
        return [LoadFailure(order, Failure(Code.INTERNAL, text), True)]

    def _remember(self, member: Member) -> None:
        self._ended[member.pid] = member
        while len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]
