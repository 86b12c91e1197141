"""Pure: one worker process as the life cycle sees it, and a generation: the workers made for one set of versions.

Whether a worker runs batches, and how many, is `fleet.py`'s; here is what it has loaded and what it is there for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from ringserve.broker.messages import ModelVersion
from ringserve.broker.orders import Order, Orders
from ringserve.broker.roster import Place, Roster

#: A worker's index is its place plus (generation % BANKS) * places, so that no two living workers share one: the pool
#: tells of a process that died before it registered by its index only.
BANKS = 8


@dataclass(eq=False)
class Member:
    """One registered worker process.

    place: in its generation; seat: in the fleet. untried: orders that it has not begun. loading: what it loads now,
    since loading_ns. complete: all loads are over. serves: what it may be sent. kept: None while it belongs to a
    generation that is not replaced; afterwards the versions that only it has and that shall go on. told: what of that
    the fleet knows; None: nothing, it takes batches as before. stopped_ns: when it was told to leave; 0 = not. killed:
    it was ordered to end, so its end says nothing about what it loaded. born_ns: when it registered.
    """

    worker_id: int
    pid: int
    generation: int
    place: int
    seat: int
    born_ns: int = 0
    untried: list[Order] = field(default_factory=list)
    loading: Order | None = None
    loading_ns: int = 0
    loaded: Orders = field(default_factory=dict)
    complete: bool = False
    serves: frozenset[ModelVersion] = frozenset()
    kept: frozenset[ModelVersion] | None = None
    told: frozenset[ModelVersion] | None = None
    stopped_ns: int = 0
    killed: bool = False

    def begin(self, key: ModelVersion, now_ns: int) -> None:
        """It begins to load `key`."""
        self.loading, self.loading_ns = self.order_of(key), now_ns

    def end(self, key: ModelVersion, *, succeeded: bool) -> Order:
        """That load is over. Returns its order."""
        order = self.loading if self.loading is not None and self.loading.key == key else self.order_of(key)
        self.loading = None
        if order in self.untried:
            self.untried.remove(order)
        if succeeded:
            self.loaded[key] = order
        return order

    def may_bring(self, key: ModelVersion) -> bool:
        """Whether it has `key`, or may load it yet."""
        return key in self.loaded or (not self.complete and any(order.key == key for order in self.untried))

    def order_of(self, key: ModelVersion) -> Order:
        """Which of its orders a report about `key` is about."""
        # A worker of an earlier broker brings what that one ordered.
        return next((order for order in self.untried if order.key == key), Order(*key, ""))


class Phase(Enum):
    """SCOUT: one worker tries the orders. FILL: the other places load what it has loaded. SERVE: it is the generation
    in use, whose places are filled again when a worker dies. The first generation begins there."""

    SCOUT = "scout"
    FILL = "fill"
    SERVE = "serve"


@dataclass(eq=False)
class Generation:
    """Workers made for one set of versions. They are replaced together, by another generation, and never altered.

    orders: what its workers load, in this order; what cannot be loaded is taken out. fresh: those that did not serve
    when it was planned; sought: those and the kept ones, which its predecessor's workers lack. ready: what it has
    served, and is to serve again when a worker was replaced. given: what each place's process was told to load. asked:
    places forked before it serves. counted: orders whose failure counted. hopeless: nothing will come of it. gone: as
    an Aim has it. singles: likewise. closed: places that stay empty, as the load is too small for them; grown: those
    that were filled later, for a load. scout_place: where its scout is forked. reason: why it was made, in a word.
    """

    number: int
    phase: Phase
    roster: Roster
    orders: Orders
    fallbacks: Orders = field(default_factory=dict)
    fresh: frozenset[Order] = frozenset()
    sought: frozenset[Order] = frozenset()
    refresh: bool = False
    hopeless: bool = False
    ready: Orders = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    given: dict[int, tuple[tuple[Order, bool], ...]] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    grown: set[int] = field(default_factory=set)
    scout_place: int = 0
    reason: str = ""
    counted: set[Order] = field(default_factory=set)
    gone: frozenset[Order] = frozenset()
    singles: frozenset[ModelVersion] = frozenset()

    @property
    def places(self) -> list[int]:
        """Those that are to have a worker."""
        return [place for place in range(len(self.roster)) if place not in self.closed]

    def index_of(self, place: int) -> int:
        return self.number % BANKS * len(self.roster) + place

    def place_of(self, index: int) -> int:
        """The place of that index, or -1 when it is another generation's."""
        place = index - self.index_of(0)
        return place if 0 <= place < len(self.roster) else -1

    def plan(self, place: int = -1) -> tuple[tuple[Order, bool], ...]:
        """What its next worker is to load, each with whether it is a fallback. place: where that is; -1: anywhere.

        An order without a path is of an earlier broker's workers, and nobody knows where it lies. A worker that comes
        later, for the load, does not load what has its state in another.
        """
        apart = {key for key in self.singles if place in self.grown and self.holders(key)}
        orders = [(order, False) for order in self.orders.values()]
        orders += [(order, True) for order in self.fallbacks.values()]
        return tuple((order, back) for order, back in orders if self._loadable(order) and order.key not in apart)

    def holders(self, key: ModelVersion) -> list[Member]:
        return [member for member in self.members.values() if key in member.loaded]

    def loading(self) -> bool:
        """A worker of it loads, or is about to register."""
        forking = any(self.roster[place] is Place.FORKING for place in self.places)
        return forking or any(not member.complete for member in self.members.values())

    def may_bring(self, key: ModelVersion) -> bool:
        """A worker of it has `key` or may load it yet, or one that is to be forked will."""
        if any(member.may_bring(key) for member in self.members.values()):
            return True
        order = self.orders.get(key)
        vacant = any(place not in self.members for place in self.places)
        return vacant and order is not None and self._loadable(order)

    def lacks(self) -> bool:
        """A worker of it has all its loads behind it, and has not what it could have and others have."""
        wanted = {key for key, order in self.orders.items() if self._loadable(order)} - self.singles
        return any(member.complete and wanted - member.loaded.keys() for member in self.members.values())

    def _loadable(self, order: Order) -> bool:
        return bool(order.path) and order not in self.gone


def living(members: Iterable[Member]) -> list[Member]:
    """Those that have not been told to leave."""
    return [member for member in members if not member.stopped_ns and not member.killed]
