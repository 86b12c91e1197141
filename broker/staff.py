"""Pure: what a group's workers are told now: who may be sent what, who drains, where one is forked, who is ended.

Where new workers *start first*, all old ones drain when the new generation serves. Where old ones *stop first*, a place
is never taken twice: the worker at the scout's place goes before the scout is forked, and when that serves, the others
go one by one, each when the one before has been replaced. Meanwhile those that are left serve; with one place only,
requests wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ringserve.broker.crew import Crew
from ringserve.broker.fleet import preference
from ringserve.broker.members import Generation, Member, Phase, living
from ringserve.broker.messages import ModelVersion
from ringserve.broker.orders import Aim, ForkPlan, Orders, Seat

_SECOND_NS = 1_000_000_000
#: A load that takes longer has hung (a file server that never answers), and its worker is ended.
_LOAD_NS_MAX = 1_800 * _SECOND_NS
#: A worker that was told to leave and has not within this time is killed.
_STOP_NS_MAX = 10 * _SECOND_NS


class Staff:
    """The workers in `crew`, as what shall serve concerns them. aim: that; None as long as it is not known.

    seats: where each place's worker runs; empty = anywhere. threads: of each worker.
    """

    def __init__(self, crew: Crew, seats: Sequence[Seat], threads: int, *, stop_first: bool) -> None:
        self.crew = crew
        self.aim: Aim | None = None
        self.stop_first = stop_first
        self._seats = seats
        self._threads = threads

    # ------------------------------------------------------------------------------------------------------ looking

    def published(self) -> Orders:
        """The versions that serve, or will again when workers that died are replaced; of an aim's only the wanted."""
        crew = self.crew
        found: Orders = {}
        for member in living(crew.old):
            found.update({key: member.loaded[key] for key in member.kept or ()})
        if crew.adoption is not None:
            found.update(crew.adoption.loaded())
        for generation in reversed(crew.generations):
            found.update(generation.ready)
        if self.aim is None or crew.adoption is not None:
            return found
        return {key: order for key, order in found.items() if self.aim.wants(key)}

    def spared(self, current: Generation) -> list[int]:
        """Places of the current generation that can do without their worker: others serve what it serves, and nothing
        of it holds state that would be lost."""
        members = current.members
        singles = self.aim.singles if self.aim is not None else frozenset()
        found = []
        for place in current.places:
            keys = members[place].serves if place in members else frozenset()
            others = [member for member in members.values() if member.place != place]
            alone = any(not any(key in other.serves for other in others) for key in keys)
            if not alone and not any(members[place] is _preferred(key, members.values()) for key in keys & singles):
                found.append(place)
        return found

    # --------------------------------------------------------------------------------------------------- serving

    def serve(self) -> list[tuple[int, int, frozenset[ModelVersion]]]:
        """Workers that may be sent more than before."""
        crew = self.crew
        if crew.adoption is not None:
            allowed = [(member, frozenset(member.loaded)) for member in crew.adoption.members]
        else:
            allowed = [
                (member, self._may_serve(generation, member))
                for generation in crew.generations
                for member in generation.members.values()
            ]
        grown = []
        for member, keys in allowed:
            if keys - member.serves and not (member.killed or member.stopped_ns):
                member.serves |= keys
                grown.append((member.worker_id, member.seat, member.serves))
        for generation in crew.generations:
            for member in generation.members.values():
                generation.ready.update({key: member.loaded[key] for key in member.serves})
        return grown

    def _may_serve(self, generation: Generation, member: Member) -> frozenset[ModelVersion]:
        """All, when all is loaded. Before that, only what nobody else can serve: it is slow, and may die of a load."""
        if generation is self.crew.current:
            if member.complete:
                return frozenset(member.loaded)
            others = [other for other in generation.members.values() if other.complete]
            return frozenset(key for key in member.loaded if not any(key in other.loaded for other in others))
        served = {key.name for key in self.published() if key not in generation.ready}
        return frozenset(key for key in member.loaded if key.name not in served)

    # --------------------------------------------------------------------------------------------------- draining

    def drain(self, now_ns: int) -> list[tuple[int, frozenset[ModelVersion] | None]]:
        """Old workers that are to drain, or are kept for less than before; as in Moves."""
        drain: list[tuple[int, frozenset[ModelVersion] | None]] = []
        for member in self.crew.old:
            if member.stopped_ns:
                continue
            if not member.serves:
                self.crew.worker_drained(member.worker_id, now_ns)
                continue
            kept = member.kept = frozenset(key for key in member.serves if self._shall_keep(member, key))
            if kept != member.told and self._may_go(member, now_ns):
                member.told = kept
                # With one place it is the only one that serves, and would never come to an end under traffic.
                drain.append((member.worker_id, None if self._makes_room(member) and not kept else kept))
        return drain

    def _may_go(self, member: Member, now_ns: int) -> bool:
        current = self.crew.current
        if not self.stop_first or current is None or member.told is not None or self._makes_room(member):
            return True
        others = [other for other in self.crew.old if other is not member and not other.kept]
        if any(other.told is not None or other.stopped_ns or other.killed for other in others):
            return False  # one at a time
        if others and self._is_last(member, others):
            return False
        due = current.plan() and current.roster.due(self.open_places(current), now_ns, only_look=True)
        return not due and not current.loading()

    def _is_last(self, member: Member, others: list[Member]) -> bool:
        """Ready workers come before draining ones: while there are others, it could not go on with its state."""
        singles = self.aim.singles if self.aim is not None else ()
        return any(key in member.serves and member is _preferred(key, [member, *others]) for key in singles)

    def _shall_keep(self, member: Member, key: ModelVersion) -> bool:
        aim, current = self.aim, self.crew.current
        if aim is None or not aim.wants(key) or (current is not None and current.holders(key)):
            return False
        if key in aim.singles:
            # Its state is in the worker that served it: the one that the fleet prefers.
            return member is _preferred(key, living(self.crew.old))
        if self.stop_first and key not in aim.orders and self._succeeded(key):
            return False  # the aim, which is about to change, has it as a fallback yet
        # One that makes room for its successor is kept for nothing that another can load.
        return not self._makes_room(member) or not member.loaded[key].path or member.loaded[key] in aim.gone

    def _succeeded(self, key: ModelVersion) -> bool:
        """Another version of its model has come."""
        current, orders = self.crew.current, self.aim.orders if self.aim is not None else {}
        return current is not None and any(other.name == key.name and other in orders for other in current.ready)

    def _makes_room(self, member: Member) -> bool:
        current = self.crew.current
        return self.stop_first and current is not None and member.generation == current.number

    # --------------------------------------------------------------------------------------------------- forking

    def make_room(self) -> None:
        """Where old workers stop first: the one whose place the scout is to have."""
        crew = self.crew
        following, current = crew.following, crew.current
        if self.stop_first and current is not None and following is not None and following.phase is Phase.SCOUT:
            crew.retire(current, following.scout_place)

    def forks(self, now_ns: int) -> list[ForkPlan]:
        """Workers that are to be forked."""
        crew = self.crew
        forks = []
        for generation in crew.generations if crew.pool else ():
            for place in generation.roster.due(self.open_places(generation), now_ns) if generation.plan() else ():
                plan = generation.plan(place)
                generation.given[place] = plan
                generation.asked.add(place)
                seat = self._seats[place] if self._seats else Seat(())
                index = crew.first_index + generation.index_of(place)
                first = place == generation.scout_place
                fork = ForkPlan(index, generation.number, seat.cpus, self._threads, plan, seat.gpu, first=first)
                forks.append(fork)
        return forks

    def open_places(self, generation: Generation) -> list[int]:
        """Places in which a worker may be forked now."""
        crew = self.crew
        places = generation.places
        if generation.phase is Phase.SCOUT:
            places = [generation.scout_place]
        elif generation.phase is Phase.FILL:  # one that died in this phase is not waited for
            places = [place for place in generation.places if place not in generation.asked]
        if not self.stop_first:
            return places
        taken = {member.place for member in crew.old if not member.kept}
        if generation is crew.current and crew.following is not None:
            taken.add(crew.following.scout_place)
        return [place for place in places if place not in taken]

    # --------------------------------------------------------------------------------------------------- ending

    def overdue(self, now_ns: int) -> list[int]:
        """Process ids of workers that hang: while they load, or when they were told to leave."""
        kills = []
        for member in self.crew.members():
            stop_overdue = member.stopped_ns and now_ns >= member.stopped_ns + _STOP_NS_MAX
            if stop_overdue or (member.loading is not None and now_ns >= member.loading_ns + _LOAD_NS_MAX):
                kills.append(member.pid)
                member.stopped_ns = now_ns if member.stopped_ns else 0
                member.loading_ns = now_ns
        return kills

    def wake_times(self) -> list[int]:
        """When there may be something to do, some of them past, or 0."""
        crew = self.crew
        times = []
        if crew.adoption is not None:
            times.append(crew.adoption.until_ns)
        if crew.pool:
            times += [each.roster.wake_ns(self.open_places(each)) for each in crew.generations]
        for member in crew.members():
            times.append(member.stopped_ns and member.stopped_ns + _STOP_NS_MAX)
            times.append(member.loading_ns + _LOAD_NS_MAX if member.loading is not None else 0)
        return times


def _preferred(key: ModelVersion, members: Iterable[Member]) -> Member | None:
    """The one of them that the fleet sends what only one worker may run."""
    holders = [member for member in members if key in member.serves]
    return min(holders, key=lambda holder: (preference(key.name, holder.seat), holder.worker_id), default=None)
