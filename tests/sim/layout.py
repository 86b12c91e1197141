"""Which worker groups a simulated server has, and what their models are like."""

from __future__ import annotations

import random

from ringserve.broker.crew import Crew
from ringserve.broker.generations import Generations
from ringserve.broker.groups import Group, Groups


class Layout:
    """sizes: of each group, smallest and largest. stop_first: likewise. stateful: models whose versions hold state.

    many: groups of different sizes, which change; otherwise one.
    """

    def __init__(self, rng: random.Random, *, many: bool) -> None:
        self.many = many
        self.stop_first = [False]
        self.stateful: set[str] = set()
        self._in_group: dict[str, int] = {}
        if not many:
            self.sizes = [(rng.randint(1, 4), 0)]
            return
        self.sizes = [(rng.randint(1, 3), rng.choice((0, 4))) for _ in range(rng.randint(1, 3))]
        self.stop_first = [rng.random() < 0.4 for _ in self.sizes]
        self._in_group = {f"m{number}": rng.randrange(len(self.sizes)) for number in range(4)}
        self.stateful = {name for name in self._in_group if rng.random() < 0.2}

    @property
    def places_count(self) -> int:
        return sum(max(size) for size in self.sizes)

    def home(self, name: str) -> int:
        """The position of a model's group."""
        return self._in_group.get(name, 0)

    def move(self, rng: random.Random) -> None:
        """A model belongs to another group from now on."""
        self._in_group[rng.choice(list(self._in_group))] = rng.randrange(len(self.sizes))

    def group_of(self, name: str) -> str:
        """The name of a model's group."""
        return str(self.home(name))

    def groups(self) -> Groups:
        """These, without workers."""
        found = []
        first_seat = 0
        for number, (size, stop_first) in enumerate(zip(self.sizes, self.stop_first, strict=True)):
            crew = Crew(*size, first_seat)
            first_seat += crew.workers_max
            found.append(Group(str(number), Generations(crew, (), 1, stop_first=stop_first)))
        return Groups(found, self.group_of)
