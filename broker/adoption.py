"""Pure: the workers that an earlier broker left behind: they serve at once, and one generation of them is taken over.

A broker that follows another finds workers and knows neither what they were forked for nor whether a change was under
way. Whatever they say that they have loaded serves while they come. When all are here that the pool knows of, the
generation with most complete workers goes on; workers of another one drain, once it has what they have.
"""

from __future__ import annotations

from ringserve.broker.members import Generation, Member, Phase
from ringserve.broker.orders import Aim, Order
from ringserve.broker.roster import Roster

#: They register again within milliseconds; one that has not by then hangs, or loads something large.
_WAIT_NS = 3_000_000_000


class Adoption:
    """members: the workers that have registered so far."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.until_ns = 0
        self._workers: dict[int, int] | None = None

    def pool_joined(self, workers: dict[int, int], now_ns: int) -> None:
        """The pool's living workers: index -> process id."""
        self._workers = dict(workers)
        self.until_ns = now_ns + _WAIT_NS

    def exited(self, index: int) -> None:
        """A worker ended that never registered."""
        if self._workers is not None:
            self._workers.pop(index, None)

    def over(self, now_ns: int) -> bool:
        """All that may come are here, or have had time enough."""
        if self._workers is None:
            return False
        complete = {member.pid for member in self.members if member.complete}
        return now_ns >= self.until_ns or complete.issuperset(self._workers.values())

    def hung(self) -> list[int]:
        """Process ids of workers that the pool knows of and that have not registered in all that time."""
        here = {member.pid for member in self.members}
        return [pid for pid in (self._workers or {}).values() if pid not in here]

    def choose(
        self, aim: Aim, workers_min: int, workers_max: int, now_ns: int
    ) -> tuple[Generation | None, list[Member], int]:
        """(the generation that goes on, workers that are none of it, the highest number there was)."""
        groups: dict[int, list[Member]] = {}
        for member in self.members:
            groups.setdefault(member.generation, []).append(member)
        if not groups:
            return None, [], -1
        number = max(groups, key=lambda number: (sum(member.complete for member in groups[number]), number))
        generation = Generation(number, Phase.SERVE, Roster(workers_max), {})
        old = [member for member in self.members if member.generation != number]
        for member in groups[number]:
            if member.place in generation.members:
                old.append(member)
            else:
                generation.members[member.place] = member
        spare = [place for place in generation.places if place not in generation.members]
        missing = max(workers_min - len(generation.members), 0)
        generation.closed = set(spare[missing:])
        generation.roster.pool_joined(generation.members, now_ns)
        for place, member in generation.members.items():
            generation.roster.joined(place, now_ns)
            for key in member.loaded:
                # Where its files lie is known from the aim only; what the aim does not want is dropped soon.
                order = aim.orders.get(key) or aim.fallbacks.get(key) or Order(*key, "")
                member.loaded[key] = generation.orders[key] = generation.ready[key] = order
        return generation, old, max(groups)
