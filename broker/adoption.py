"""Pure: the workers that an earlier broker left behind: they serve at once, and one generation of them is taken over.

A broker that follows another finds workers and knows neither what they were forked for nor whether a change was under
way. Whatever they say that they have loaded serves while they come. When all are here that the pool knows of, the
generation with most complete workers goes on; workers of another one drain, once it has what they have.

Clients were told what serves, so that goes on even when all workers are gone before they could be taken over: then the
generation that goes on is one without workers, whose places are filled as after any death.
"""

from __future__ import annotations

from ringserve.broker.members import Generation, Member, Phase
from ringserve.broker.messages import ModelVersion
from ringserve.broker.orders import Aim, Order, Orders
from ringserve.broker.roster import Roster

#: They register again within milliseconds; one that has not by then hangs, or loads something large.
_WAIT_NS = 3_000_000_000


class Adoption:
    """members: the workers that have registered so far, and are there. until_ns: when there was time enough; 0: it has
    not begun."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.until_ns = 0
        self._gone: list[Member] = []
        self._pool_gone = False
        self._awaited: set[int] | None = None  # process ids of the pool's workers

    def pool_joined(self, workers: dict[int, int], now_ns: int) -> None:
        """The pool's living workers: index -> process id."""
        self._awaited = set(workers.values())
        self.until_ns = now_ns + _WAIT_NS

    def pool_left(self) -> None:
        """Those that are here end with it, and no others will come."""
        self._pool_gone, self.until_ns = True, 0  # there is time until the next one is there
        self._awaited = set() if self.loaded() else None  # who knows nothing waits for the next pool

    def left(self, member: Member) -> None:
        """A worker that had registered is gone."""
        self.members.remove(member)
        self._gone.append(member)
        self.exited(member.pid)

    def exited(self, pid: int) -> None:
        """This worker has ended, whether or not it ever registered."""
        if self._awaited is not None:
            self._awaited.discard(pid)

    def loaded(self) -> Orders:
        """What serves, or is to serve again: all that workers have said that they have."""
        return {key: order for member in (*self._gone, *self.members) for key, order in member.loaded.items()}

    def over(self, aim: Aim, now_ns: int) -> bool:
        """All that may come are here, and it is known where that lies which none of them has; or there was time
        enough."""
        if self._awaited is None:
            return False
        complete = {member.pid for member in self.members if member.complete}
        nowhere = any(key not in aim.found for key in self._lost(aim))
        return 0 < self.until_ns <= now_ns or (not nowhere and complete.issuperset(self._awaited))

    def _lost(self, aim: Aim) -> list[ModelVersion]:
        """What is to serve on, and no worker has that stays."""
        here = {key for member in self.members if not self._pool_gone for key in member.loaded}
        return [key for key in self.loaded() if key not in here and aim.wants(key)]

    def hung(self) -> list[int]:
        """Process ids of workers that the pool knows of and that have not registered in all that time."""
        here = {member.pid for member in self.members}
        return [pid for pid in self._awaited or () if pid not in here]

    def choose(
        self, aim: Aim, workers_min: int, workers_max: int, now_ns: int
    ) -> tuple[Generation | None, list[Member], int]:
        """(the generation that goes on, workers that are none of it, the highest number there was)."""
        groups: dict[int, list[Member]] = {member.generation: [] for member in self._gone}
        for member in self.members:
            groups.setdefault(member.generation, []).append(member)
        if not groups:
            return None, [], -1
        number = max(groups, key=lambda number: (sum(member.complete for member in groups[number]), number))
        generation = Generation(number, Phase.SERVE, Roster(workers_max), {})
        old = [member for member in self.members if member.generation != number]
        for member in groups[number]:
            if member.place in generation.members or self._pool_gone:
                old.append(member)  # without its pool it leaves, too
            else:
                generation.members[member.place] = member
        spare = [place for place in generation.places if place not in generation.members]
        missing = max(workers_min - len(generation.members), 0)
        generation.closed = set(spare[missing:])
        generation.roster.pool_joined(generation.members, now_ns)
        for place, member in generation.members.items():
            generation.roster.joined(place, now_ns)
            for key in member.loaded:
                # Where its files lie is known of what is there; what the aim does not want is dropped soon.
                order = aim.found.get(key) or Order(*key, "")
                member.loaded[key] = generation.orders[key] = generation.ready[key] = order
        if len(generation.members) < len(generation.places):
            for key in self._lost(aim):
                if key in aim.found:
                    generation.orders[key] = generation.ready[key] = aim.found[key]
        if not self.members and not generation.orders:
            return None, [], max(groups)
        return generation, old, max(groups)
