"""Pure: what comes before a version may be loaded by workers: room for it, and its weights in memory that they share.

    asked for ▸ is there room? ▸ QUEUED ▸ an author is ordered: AUTHORING ▸ Authored ▸ READY: workers map the weights
                    │ no             └ nothing to share ──────────────────▶ READY: workers load by themselves
                    └▶ refused, until there is more room

An author that dies is followed by another, once; one that finds the version broken is a failed load like any other. A
pool that is lost takes the weights along: what serves gets new authors first, and the others queue again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ringserve.broker.budget import Budget, Limits, Need, Share, Weight, mib
from ringserve.broker.messages import Author, Authored, Code, Failure, LoadOrder, ModelVersion
from ringserve.broker.orders import LoadFailure, Order

log = logging.getLogger(__name__)

#: A load that takes longer has hung, as in `generations.py`.
_LOAD_NS_MAX = 1_800_000_000_000
#: One version that ended this many authors is not tried again.
_DEATHS_MAX = 2
#: Weights that an earlier broker ordered are kept this long for somebody to ask for them: all base paths that answer
#: have been looked at by then, and the earlier broker's workers are known.
_UNCLAIMED_NS_MAX = 10_000_000_000


class Stage(Enum):
    """How far the preparation of one order is."""

    QUEUED = "queued"
    AUTHORING = "authoring"
    READY = "ready"


@dataclass
class Entry:
    """One order that is prepared. weights_id: of its author or of its weights; 0 = none. anew: it served when its
    weights were lost. deaths: of its authors, in a row."""

    order: Order
    key: ModelVersion
    weight: Weight
    stage: Stage = Stage.QUEUED
    weights_id: int = 0
    bytes_shared: int = 0
    bytes_private: int = 0
    notes: tuple[str, ...] = ()
    begun_ns: int = 0
    slot: int = 0
    deaths: int = 0
    anew: bool = False


class Verdict(NamedTuple):
    """ready: workers may load it. failure: why it is refused."""

    ready: bool
    failure: Failure | None = None


_READY, _WAITS = Verdict(True), Verdict(False)


@dataclass(frozen=True)
class Authors:
    """How authors are made. bytes_min: smallest checkpoint that is worth one. cpus: cores that they are spread over;
    empty: no pinning. threads: of each. at_once_max: so many at a time; half of that beside what serves, so that the
    other half of the cores is left to it. load_ns_max: one that takes longer is given up."""

    bytes_min: int
    cpus: tuple[int, ...] = ()
    threads: int = 1
    at_once_max: int = 1
    load_ns_max: int = _LOAD_NS_MAX


class Preparation:
    """Orders and how far each is. authors: None when nothing is shared, so that every worker loads by itself."""

    def __init__(self, authors: Authors | None = None, budget: Budget | None = None) -> None:
        self.budget = budget or Budget(Limits(), lambda _: Share("", 1))
        self._authors = authors
        self._load_ns_max = authors.load_ns_max if authors is not None else _LOAD_NS_MAX
        self._entries: dict[Order, Entry] = {}
        self._pool = False
        self._held: dict[tuple[str, int, str], Authored] = {}  # by an earlier broker's order, and asked for by nobody
        self._unclaimed_ns = 0
        self._last_id = 0
        self._changed: set[str] = set()
        self._failures: list[LoadFailure] = []
        self._refused: dict[ModelVersion, tuple[Order, Need]] = {}
        self._forgets: list[int] = []

    # -------------------------------------------------------------------------------------------------- what happens

    def pool_joined(self, held: Iterable[Authored], now_ns: int) -> None:
        """There is a pool, which holds these weights; more than one of the same version: the last one counts."""
        self._pool = True
        self._unclaimed_ns = now_ns + _UNCLAIMED_NS_MAX
        for authored in sorted(held):
            self._last_id = max(self._last_id, authored.weights_id)
            if any(entry.weights_id == authored.weights_id for entry in self._entries.values()):
                continue  # the same pool has said so before
            key = (authored.name, authored.version, authored.path)
            if key in self._held:
                self._forgets.append(self._held[key].weights_id)
            self._held[key] = authored
        for entry in list(self._entries.values()):
            if entry.stage is Stage.QUEUED:
                self._claim(entry)

    def pool_left(self, anew: Callable[[Order], bool], gone: Callable[[Order], bool]) -> None:
        """The pool is gone, and all weights with it. anew: this order serves, or would. gone: its files are not there
        any more."""
        self._pool = False
        self._forgets.clear()
        self._held.clear()
        for entry in list(self._entries.values()):
            if not entry.weights_id:
                continue
            entry.stage, entry.weights_id, entry.bytes_shared = Stage.QUEUED, 0, 0
            entry.anew = anew(entry.order)
            self._changed.add(entry.order.name)
            if gone(entry.order):
                self._drop(entry)

    def authored(self, message: Authored) -> str:
        """An author has ended. Returns how: `ok`, `failed` or `died`."""
        entry = next((entry for entry in self._entries.values() if entry.weights_id == message.weights_id), None)
        if entry is None or entry.stage is not Stage.AUTHORING:
            return "ok"  # it was given up a moment ago
        self._changed.add(entry.order.name)
        if message.status != 0:
            self._died(entry, message.status)
            return "died"
        if message.error_code:
            failure = Failure(Code(message.error_code), message.error_text)
            self._failures.append(LoadFailure(entry.order, failure, False))
            self._drop(entry)
            return "failed"
        self._take(entry, message)
        return "ok"

    def _take(self, entry: Entry, message: Authored) -> None:
        """Its weights are there, or it is known that it has none to share."""
        order, weight = entry.order, entry.weight
        entry.stage, entry.notes, entry.deaths = Stage.READY, tuple(message.notes), 0
        entry.bytes_shared, entry.bytes_private = message.bytes_shared, message.bytes_private
        private = message.bytes_private if message.bytes_shared else max(message.bytes_private, weight.checkpoint_bytes)
        need = Need(message.bytes_shared, private + weight.graph_bytes)
        name = f"{{name: {order.name} version: {order.version}}}"
        if message.bytes_shared:
            seconds = message.load_ns / 1e9
            log.info("Weights of %s are in shared memory: %s, after %.1f s", name, mib(message.bytes_shared), seconds)
        else:
            entry.weights_id = 0
            log.info("Weights of %s are not shared: %s", name, " ".join(message.notes) or "it has none")
        failure = None if entry.anew else self.budget.refusal(order, need)
        entry.anew = False
        if failure is None:
            self.budget.put(order, need)
            return
        self._drop(entry)
        self._refused[order.key] = (order, need)
        self._failures.append(LoadFailure(order, failure, True))

    def _died(self, entry: Entry, status: int) -> None:
        entry.deaths += 1
        entry.stage, entry.weights_id = Stage.QUEUED, 0
        order = entry.order
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        log.warning("The author of {name: %s version: %d} ended by %s", order.name, order.version, how)
        if entry.deaths >= _DEATHS_MAX:
            text = f"Loading it ended {entry.deaths} worker processes, the last by {how}"
            self._failures.append(LoadFailure(order, Failure(Code.INTERNAL, text), True))
            self._drop(entry)

    # ----------------------------------------------------------------------------------------------------- asking

    def ask(self, order: Order, weight: Weight) -> Verdict:
        """This order is to be loaded: may it be, now? If not, its preparation goes on."""
        entry = self._entries.get(order)
        if entry is not None:
            return _READY if entry.stage is Stage.READY else _WAITS
        entry = Entry(order, order.key, weight)
        if self._claim(entry):
            self._entries[order] = entry
            return _READY
        shared = self._is_shared(weight)
        private_bytes = weight.graph_bytes + (0 if shared else weight.checkpoint_bytes)
        need = Need(weight.checkpoint_bytes if shared else 0, private_bytes)
        failure = self.budget.refusal(order, need)
        if failure is not None:
            self._refused[order.key] = (order, need)
            return Verdict(False, failure)
        self._refused.pop(order.key, None)
        self._entries[order] = entry
        self.budget.put(order, need)
        if shared:
            return _WAITS
        entry.stage = Stage.READY
        return _READY

    def adopt(self, order: Order, weight: Weight, *, lost: bool = False) -> None:
        """Workers of an earlier broker serve this order: whatever the pool holds of it is its weights, or they loaded
        them by themselves. lost: that pool is gone with them."""
        entry = self._entries.get(order)
        if entry is None:
            entry = self._entries[order] = Entry(order, order.key, weight)
        elif entry.stage is not Stage.QUEUED or entry.anew:
            return
        if self._claim(entry):
            return
        if lost and self._is_shared(weight):
            entry.anew = True
        else:
            entry.stage = Stage.READY
            self.budget.put(order, Need(0, weight.checkpoint_bytes + weight.graph_bytes))

    def is_ready(self, order: Order) -> bool:
        """Workers that are forked now may load it."""
        entry = self._entries.get(order)
        return entry is not None and entry.stage is Stage.READY

    def weights_id(self, order: Order) -> int:
        """For a worker that is forked now; 0: it loads by itself."""
        entry = self._entries.get(order)
        return entry.weights_id if entry is not None and entry.stage is Stage.READY else 0

    def notes(self, order: Order) -> tuple[str, ...]:
        """What its author found."""
        entry = self._entries.get(order)
        return entry.notes if entry is not None else ()

    def entries(self) -> Sequence[Entry]:
        """All that is being or has been prepared."""
        return list(self._entries.values())

    def refused(self) -> Sequence[tuple[Order, Need]]:
        """What waits for more room, and how much it needs."""
        return list(self._refused.values())

    def unready(self) -> Iterator[Order]:
        """What is being prepared."""
        return (entry.order for entry in self._entries.values() if entry.stage is not Stage.READY)

    # --------------------------------------------------------------------------------------------------- deciding

    def turn(self, now_ns: int) -> list[LoadFailure]:
        """Loads that have failed since the last call. Authors that take too long are given up."""
        for entry in list(self._entries.values()):
            if entry.stage is Stage.AUTHORING and now_ns >= entry.begun_ns + self._load_ns_max:
                self._forgets.append(entry.weights_id)
                self._changed.add(entry.order.name)
                self._died(entry, -signal.SIGKILL)
        failures, self._failures = self._failures, []
        return failures

    def take_changed(self) -> set[str]:
        """Models whose versions' verdicts may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def take_fitting(self) -> list[Order]:
        """Refused orders for which there is room now, once for each time that there is more."""
        if not self.budget.freed:
            return []
        self.budget.freed = False
        fitting = [order for order, need in self._refused.values() if self.budget.refusal(order, need) is None]
        for order in fitting:
            del self._refused[order.key]
        return fitting

    def keep_only(self, wanted: Mapping[ModelVersion, Order], needed: Callable[[Order], bool], now_ns: int) -> None:
        """Give up what is neither wanted nor needed. Call it only when it is known what serves."""
        # Nearly all are wanted, and there may be a thousand.
        others = [entry for order, entry in self._entries.items() if wanted.get(entry.key) != order]
        for entry in others:
            if not needed(entry.order):
                self._drop(entry)
        if self._held and now_ns >= self._unclaimed_ns:
            self._forgets += [held.weights_id for held in self._held.values()]
            self._held.clear()

    def order_authors(self, now_ns: int, *, gentle: bool) -> list[Author]:
        """Authors to be made now. gentle: others serve meanwhile."""
        authors = self._authors
        if authors is None or not self._pool:
            return []
        busy = {entry.slot for entry in self._entries.values() if entry.stage is Stage.AUTHORING}
        count = max(authors.at_once_max // 2, 1) if gentle else authors.at_once_max
        free = [slot for slot in range(authors.at_once_max) if slot not in busy][: max(count - len(busy), 0)]
        queued = [entry for entry in self._entries.values() if entry.stage is Stage.QUEUED] if free else []
        queued.sort(key=lambda entry: not entry.anew)
        ordered = []
        for slot, entry in zip(free, queued, strict=False):
            self._last_id = max(self._last_id + 1, now_ns // 1_000_000)  # never one of an earlier broker's
            entry.stage, entry.weights_id = Stage.AUTHORING, self._last_id
            entry.begun_ns, entry.slot = now_ns, slot
            # A gentle one runs wherever a core has time for it.
            cpus = [authors.cpus[slot % len(authors.cpus)]] if authors.cpus and not gentle else list(authors.cpus)
            order = entry.order
            load = LoadOrder(order.name, order.version, order.path, False, [], self._last_id)
            ordered.append(Author(self._last_id, gentle, cpus, authors.threads, load))
        return ordered

    def take_forgets(self) -> list[int]:
        """Weights that the pool is to give up."""
        forgets, self._forgets = self._forgets, []
        return forgets

    def wake_ns(self) -> int:
        """When `turn` and `keep_only` have something to do even if nothing happens; 0 = never."""
        begun = [entry.begun_ns for entry in self._entries.values() if entry.stage is Stage.AUTHORING]
        times = [begun_ns + self._load_ns_max for begun_ns in begun]
        if self._held:
            times.append(self._unclaimed_ns)
        return min(times, default=0)

    # ------------------------------------------------------------------------------------------------------ inside

    def _is_shared(self, weight: Weight) -> bool:
        authors = self._authors
        return authors is not None and weight.checkpoint_bytes >= max(authors.bytes_min, 1)

    def _claim(self, entry: Entry) -> bool:
        """The pool may hold its weights from before."""
        held = self._held.pop((entry.order.name, entry.order.version, entry.order.path), None)
        if held is None:
            return False
        entry.stage, entry.weights_id, entry.notes = Stage.READY, held.weights_id, tuple(held.notes)
        entry.bytes_shared, entry.bytes_private, entry.anew = held.bytes_shared, held.bytes_private, False
        self._changed.add(entry.order.name)
        self.budget.put(entry.order, Need(held.bytes_shared, held.bytes_private + entry.weight.graph_bytes))
        return True

    def _drop(self, entry: Entry) -> None:
        order = entry.order
        del self._entries[order]
        self.budget.drop(order)
        if entry.weights_id:
            self._forgets.append(entry.weights_id)
        if entry.stage is Stage.READY and entry.weights_id:
            log.info("Weights of {name: %s version: %d} are given up", order.name, order.version)
