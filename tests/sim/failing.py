"""What simulated workers answer of a batch and what they leave: some requests fail, and whoever runs with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringserve.broker.messages import Execute
from ringserve.workers.suspects import Suspicions

if TYPE_CHECKING:
    from tests.sim.world import World


class Failing:
    """One request in `one_in` fails, 0: none does. Workers take batches apart as real ones do."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._one_in = world.rng.choice((0, 0, 30, 5, 1))
        self._suspicions: dict[int, Suspicions] = {}

    def run(self, worker_id: int, execute: Execute) -> tuple[int, int, int]:
        """A batch has run: how many of its parts are answered, how many are left, and what Done says of parts_max."""
        world, parts, key = self._world, execute.parts, execute.lane_key
        if world.faulty(world.options.leave_chance):  # as one that is on trial
            kept = world.rng.randrange(1, 5)
            left = max(len(parts) - kept, 0)
            return kept, left, kept if left else 0
        suspicions = self._suspicions.setdefault(worker_id, Suspicions())
        kept = suspicions.first(key, parts) or len(parts)
        if self._one_in and not all(part[1] % self._one_in for part in parts[:kept]):
            suspicions.failed(key, parts[:kept])
            kept = kept if kept == 1 else 0
        else:
            suspicions.passed(key, parts[:kept])
        return kept, len(parts) - kept, suspicions.parts_max(key)
