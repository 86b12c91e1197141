"""The simulated pool's side of weights: authors that succeed, fail, die and hang, and what the pool holds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringserve.broker.budget import Budget, Limits, Share
from ringserve.broker.messages import Author, Authored, Code, Failure
from ringserve.broker.orders import ForkPlan, Order
from ringserve.broker.preparation import Authors, Preparation

if TYPE_CHECKING:
    from tests.sim.life import LifeWorld

AUTHOR_NS_MAX = 30_000_000_000


class SimAuthors:
    """held: weights of the living pool, by id. What the broker sends to the pool arrives in its order."""

    def __init__(self, world: LifeWorld, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.held: dict[int, Authored] = {}
        self.running: dict[int, Author] = {}
        self.incarnation = 0
        #: In half of the worlds there is room for a few versions only.
        self.limit_bytes = self.rng.choice((0, 2_500))
        self._arrives_ns = 0
        self.ordered_count = 0

    def preparation(self) -> Preparation:
        """Of a new broker: weights are shared, and there may be a limit; without sharing there is neither."""
        if not self.world.sharing:
            return Preparation()
        workers_count = self.world.layout.places_count
        budget = Budget(Limits(self.limit_bytes, "the test"), lambda _: Share("", workers_count))
        return Preparation(Authors(5, (), 1, workers_count, AUTHOR_NS_MAX), budget)

    # ------------------------------------------------------------------------------------------------- the channel

    def to_pool(self, action: Callable[[], None]) -> None:
        """A message of the broker: after those before it, and never to another pool."""
        world, incarnation = self.world, self.incarnation
        self._arrives_ns = max(self._arrives_ns, world.now_ns + self.rng.randint(10_000, 3_000_000))

        def arrive() -> None:
            if incarnation == self.incarnation and world.pool_lives:
                action()

        world.at(self._arrives_ns - world.now_ns, arrive)

    def send(self) -> None:
        """What the broker has decided about weights."""
        supply = self.world.lifecycle.supply
        forgets, authors = supply.take_forgets(), supply.take_authors()
        if forgets:
            self.to_pool(lambda: self.forget(forgets))
        for author in authors:
            self.to_pool(lambda author=author: self.begin(author))  # type: ignore[misc]

    def fork(self, plan: ForkPlan) -> None:
        """Of what it is to load, the new worker has the weights that the broker means."""
        preparation = self.world.lifecycle.preparation
        ids = {order: preparation.weights_id(order) for order, _ in plan.orders}
        for order in ids:
            assert preparation.is_ready(order), f"{order} is loaded by a worker, and its weights are not there"
        self.to_pool(lambda: self._forked(plan, ids))

    def _forked(self, plan: ForkPlan, ids: dict[Order, int]) -> None:
        for order, weights_id in ids.items():
            held = self.held.get(weights_id)
            assert not weights_id or held is not None, f"weights of {order} are gone, and a worker needs them"
            assert held is None or (held.name, held.version, held.path) == order[:3]
        self.world.fork(plan)

    # ----------------------------------------------------------------------------------------------- what happens

    def begin(self, author: Author) -> None:
        world = self.world
        assert author.weights_id not in self.held
        assert author.weights_id not in self.running
        assert len(self.running) < world.layout.places_count
        self.running[author.weights_id] = author
        self.ordered_count += 1
        if not world.faulty(0.03):  # else it hangs
            world.at(self.rng.randint(10_000_000, world.load_ns_max), lambda: self._over(author))

    def _over(self, author: Author) -> None:
        if self.running.get(author.weights_id) is not author:
            return
        world, order = self.world, author.order
        on_disk = world.disk.of(Order(order.name, order.version, order.path))
        kind = "broken" if on_disk is None or not on_disk.complete else on_disk.kind
        if on_disk is None:
            world.unseen.add((order.name, order.version))
        if kind == "deadly" or world.faulty(0.05):
            world.lost_ns = world.now_ns
            self._tell(author, status=-11)
        elif kind == "broken":
            self._tell(author, failure=Failure(Code.INVALID_ARGUMENT, "broken"))
        elif kind == "unlucky" and self.rng.random() < 0.5:
            self._tell(author, failure=Failure(Code.UNAVAILABLE, "bad luck"))
        else:
            self._tell(author, bytes_shared=9 if self.rng.random() < 0.8 else 0)

    def _tell(
        self, author: Author, *, status: int = 0, failure: Failure | None = None, bytes_shared: int = 0
    ) -> None:
        del self.running[author.weights_id]
        code, text = (int(failure.code), failure.text) if failure is not None else (0, "")
        _, name, version, path = (author.weights_id, *author.order[:3])
        told = Authored(author.weights_id, name, version, path, status, code, text, bytes_shared, 0, [], 1)
        if bytes_shared:
            self.held[author.weights_id] = told
        world, incarnation = self.world, self.incarnation

        def arrive() -> None:
            if incarnation == self.incarnation:
                world.lifecycle.preparation.authored(told)
                world.lifecycle.touch()

        world.soon(arrive)

    def forget(self, weights_ids: list[int]) -> None:
        for weights_id in weights_ids:
            self.held.pop(weights_id, None)
            self.running.pop(weights_id, None)

    def broker_lost(self) -> None:
        """The pool ends authors that are not ready; what is on its way to it never arrives."""
        self.running.clear()
        self.incarnation += 1

    def pool_lost(self) -> None:
        self.held.clear()
        self.broker_lost()
