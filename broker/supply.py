"""Pure: joins the preparation of versions with the workers: which weights are needed, and when the pool may fork.

A new pool has no weights, and workers forked from it now could never map any. So it is kept from the generations until
the weights are there of all that is known to serve, or for a while: what is not ready by then comes with a later
generation, rather than hold back the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from ringserve.broker.adoption import Adoption
from ringserve.broker.budget import Weight
from ringserve.broker.members import Generation, Member, Phase
from ringserve.broker.messages import Author, Authored, ModelVersion
from ringserve.broker.orders import Aim, LoadFailure, Order
from ringserve.broker.parts import Status
from ringserve.broker.preparation import Preparation
from ringserve.broker.roster import Place

#: A pool without workers is kept back for this long at most: a few models of usual size are ready by then, and so much
#: later what is ready serves whatever becomes of the rest.
_KEEP_BACK_NS_MAX = 5_000_000_000


class Workers(Protocol):
    """What is to be known of worker processes, and done: a `Crew`."""

    @property
    def generations(self) -> list[Generation]: ...
    def members(self) -> Iterator[Member]: ...
    def pool_joined(self, workers: dict[int, int], now_ns: int) -> None: ...
    def pool_left(self, now_ns: int) -> None: ...


class Supply:
    """crew: whose workers map the weights. adoption: that of an earlier broker's workers, while it goes on. weight_of:
    what an order's files weigh, as far as is known."""

    def __init__(
        self,
        crew: Workers,
        preparation: Preparation,
        *,
        adoption: Callable[[], Adoption | None],
        weight_of: Callable[[Order], Weight],
    ) -> None:
        self.preparation = preparation
        self._crew = crew
        self._adoption = adoption
        self._weight_of = weight_of
        self._adopting = True
        self._lost = False  # the pool of what is to be taken over
        self._kept_back_until_ns = 0  # 0: no pool is kept back
        self._authors: list[Author] = []
        self._forgets: list[int] = []

    # -------------------------------------------------------------------------------------------------- what happens

    def pool_joined(self, workers: dict[int, int], held: Iterable[Authored], now_ns: int) -> None:
        """A pool can fork; `workers` of it live: index -> process id. It holds these weights."""
        self.preparation.pool_joined(held, now_ns)
        if workers:
            self._crew.pool_joined(workers, now_ns)
        else:
            self._kept_back_until_ns = now_ns + _KEEP_BACK_NS_MAX

    def pool_left(self, now_ns: int) -> None:
        """It is gone, or going, with its workers."""
        self._kept_back_until_ns = 0
        self._authors.clear()
        self._forgets.clear()
        self._lost = self._lost or self._adopting
        self._crew.pool_left(now_ns)
        serving = self._serving()
        self.preparation.pool_left(
            anew=lambda order: any(each.orders.get(order.key) == order for each in serving),
            gone=lambda order: any(order in each.gone for each in serving),
        )

    # ------------------------------------------------------------------------------------------------------ turns

    def begin(self, now_ns: int) -> list[LoadFailure]:
        """Before anything is decided in a turn: loads that have failed."""
        return self.preparation.turn(now_ns)

    def may_open(self, now_ns: int, *, aiming: bool) -> bool:
        """A pool is kept back, and need not be any longer. aiming: first looks are over."""
        until_ns = self._kept_back_until_ns
        return until_ns > 0 and (now_ns >= until_ns or (aiming and not self._awaited()))

    def open(self, now_ns: int) -> None:
        """Let the generations have the pool, to load what is ready. What is not, serves no longer, until it is."""
        self._kept_back_until_ns = 0
        for generation in self._serving():
            for key, order in list(generation.orders.items()):
                if order.path and not self.preparation.is_ready(order):
                    del generation.orders[key]
                    generation.ready.pop(key, None)
        self._crew.pool_joined({}, now_ns)

    def end(self, aim: Aim | None, statuses: Mapping[ModelVersion, Status], now_ns: int) -> list[Order]:
        """After all is decided in a turn. statuses: of versions that do not serve; what they ask for is needed. Returns
        orders that were refused, and for which there is room now."""
        preparation = self.preparation
        if self._adopting:
            self._adopting = self._adoption() is not None
            for order in {order for each in self._crew.generations for order in each.orders.values()}:
                if order.path:
                    preparation.adopt(order, self._weight_of(order), lost=self._lost)
        # From a pool without workers there is nothing to take over.
        known = self._adoption() is None or self._kept_back_until_ns > 0
        if known and aim is not None:
            preparation.keep_only(aim.orders, lambda order: self._is_needed(order, aim, statuses), now_ns)
            gentle = any(member.serves for member in self._crew.members())
            self._authors += preparation.order_authors(now_ns, gentle=gentle)
        self._forgets += preparation.take_forgets()
        return preparation.take_fitting()

    def take_authors(self) -> list[Author]:
        """To be sent to the pool now."""
        authors, self._authors = self._authors, []
        return authors

    def take_forgets(self) -> list[int]:
        """To be sent to the pool now, after the forks that were decided in the same turn: those inherit them yet."""
        forgets, self._forgets = self._forgets, []
        return forgets

    @property
    def wake_ns(self) -> int:
        """When there is something to do even if nothing happens; 0 = never."""
        times = (self._kept_back_until_ns, self.preparation.wake_ns())
        return min((time for time in times if time), default=0)

    # ------------------------------------------------------------------------------------------------------ inside

    def _serving(self) -> list[Generation]:
        return [each for each in self._crew.generations if each.phase is Phase.SERVE]

    def _awaited(self) -> bool:
        """Weights are on their way that the first workers are to have."""
        wanted = [order for each in self._serving() for order in each.orders.values()]
        if wanted:
            return any(order in wanted for order in self.preparation.unready())
        return any(True for _ in self.preparation.unready())

    def _is_needed(self, order: Order, aim: Aim, statuses: Mapping[ModelVersion, Status]) -> bool:
        key = order.key
        status = statuses.get(key)
        if aim.fallbacks.get(key) == order or (status is not None and status.asked == order):
            return True
        if any(order in (each.orders.get(key), each.fallbacks.get(key)) for each in self._crew.generations):
            return True
        for generation in self._crew.generations:
            for place, plan in generation.given.items():
                if generation.roster[place] is Place.FORKING and any(order == given for given, _ in plan):
                    return True  # whoever has it then, may be what the others are to have
        return any(_has(member, key, order) for member in self._crew.members())


def _has(member: Member, key: ModelVersion, order: Order) -> bool:
    """It has loaded that, or may yet. What an earlier broker's worker has, nobody knows by its path."""
    loaded = member.loaded.get(key)
    if loaded is not None and (loaded == order or not loaded.path):
        return True
    return not member.complete and order in member.untried
