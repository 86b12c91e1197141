"""Pure: worker groups: each has generations of its own, for the models that are its, and a change of one model makes
new workers in its group only.

        Aim ─▶ split by group ─┬▶ Generations + Crew of `default` ─┐
                               ├▶ Generations + Crew of `large`   ─┼▶ Moves
                               └▶ ...                             ─┘

Seats in the fleet and worker indexes are numbered through: a group's come after those of the groups before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ringserve.broker.crews import Crews
from ringserve.broker.generations import Generations
from ringserve.broker.messages import ModelVersion
from ringserve.broker.orders import Aim, Moves, Order, Orders


class Group(NamedTuple):
    """One group by its name."""

    name: str
    generations: Generations


class Groups:
    """All groups, the default one first. group_of: the name of the group that a model belongs to."""

    def __init__(self, groups: Sequence[Group], group_of: Callable[[str], str]) -> None:
        self.groups = groups
        self.crew = Crews([group.generations.crew for group in groups])
        self._group_of = group_of
        self._homes: dict[str, int] = {}  # positions of groups, by model

    # ------------------------------------------------------------------------------------------------------ looking

    @property
    def number(self) -> int:
        """The highest number of a generation that serves; -1 before the first."""
        return max(group.generations.number for group in self.groups)

    def published(self) -> Orders:
        """As `Generations.published`, of all groups. What two groups have, a model's own group says."""
        if len(self.groups) == 1:
            return self.groups[0].generations.published()
        found: Orders = {}
        for position, group in enumerate(self.groups):
            for key, order in group.generations.published().items():
                if key not in found or self._home(key.name) == position:
                    found[key] = order
        return found

    def serves(self, key: ModelVersion) -> bool:
        """A worker may still be running requests of `key`."""
        return any(group.generations.serves(key) for group in self.groups)

    def trying(self) -> dict[str, set[int]]:
        """Versions, by model, that new generations are trying to bring."""
        found: dict[str, set[int]] = {}
        for group in self.groups:
            for name, versions in group.generations.trying().items():
                found.setdefault(name, set()).update(versions)
        return found

    def home(self, model: str) -> str:
        """The name of the group whose workers serve this model."""
        return self.groups[self._home(model)].name

    def take_begun(self) -> list[tuple[str, str]]:
        """Generations begun since the last call: (group, reason)."""
        found = [(group.name, reason) for group in self.groups for reason in group.generations.begun]
        for group in self.groups:
            group.generations.begun.clear()
        return found

    def _home(self, model: str) -> int:
        home = self._homes.get(model)
        if home is None:
            name = self._group_of(model)
            names = [group.name for group in self.groups]
            home = self._homes[model] = names.index(name)
        return home

    # ---------------------------------------------------------------------------------------------------- decisions

    def regroup(self, group_of: Callable[[str], str]) -> None:
        """Models belong to these groups from now on."""
        self._group_of = group_of
        self._homes.clear()

    def aim_at(self, aim: Aim) -> None:
        """From now on this shall serve."""
        if len(self.groups) == 1:
            self.groups[0].generations.aim_at(aim)
            return
        orders: list[Orders] = [{} for _ in self.groups]
        fallbacks: list[Orders] = [{} for _ in self.groups]
        for parts, whole in ((orders, aim.orders), (fallbacks, aim.fallbacks)):
            for key, order in whole.items():
                parts[self._home(key.name)][key] = order
        for position, away in self._away(aim):
            # What serves in another group than its model's goes on there until it serves where it belongs.
            orders[position][away.key] = away
        for group, mine, back in zip(self.groups, orders, fallbacks, strict=True):
            singles = frozenset(key for key in aim.singles if key in mine or key in back)
            group.generations.aim_at(Aim(mine, back, singles, aim.gone, aim.found))

    def _away(self, aim: Aim) -> list[tuple[int, Order]]:
        published = [group.generations.published() for group in self.groups]
        found = []
        for position, orders in enumerate(published):
            for key, order in orders.items():
                home = self._home(key.name)
                if home != position and aim.wants(key) and key not in published[home]:
                    found.append((position, order))
        return found

    def turn(self, now_ns: int) -> Moves:
        """Decide all that can be decided now."""
        moves = [group.generations.turn(now_ns) for group in self.groups]
        joined = moves[0]
        for more in moves[1:]:
            joined = joined.then(more)
        wakes = [each.wake_ns for each in moves if each.wake_ns]
        return joined._replace(wake_ns=min(wakes, default=0))
