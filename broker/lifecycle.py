"""Pure: the life cycle of models: from what is configured, what lies on disk and how loads went to what shall serve.

    configured + listings ─▶ aspired ─▶ settled? failed? ─▶ Aim ─▶ groups.py ─▶ Moves
                                                                       │ published
                                              Versions (the catalog) ◀─┘

For each model, in this order: what is aspired and serves goes on; what is aspired, complete and has not failed is
loaded; what serves and is not aspired any more goes when something aspired serves, and not before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from ringserve.broker.aspired import Listing, Policy
from ringserve.broker.budget import Weight
from ringserve.broker.directories import SILENT_NS_MAX, Base, ModelPlan
from ringserve.broker.groups import Groups
from ringserve.broker.messages import Code, Failure, ModelVersion, VersionState
from ringserve.broker.orders import Aim, LoadFailure, Moves, Order, Orders
from ringserve.broker.parts import Parts, Status
from ringserve.broker.preparation import Preparation
from ringserve.broker.retries import Retries
from ringserve.broker.supply import Supply
from ringserve.broker.versions import Versions

log = logging.getLogger(__name__)

_OK = Failure(Code.OK, "")
#: The first plan waits this long for the first look at every base path, so that one generation brings all models.
_FIRST_LOOK_NS_MAX = 1_000_000_000
#: Publishing one generation changes the aim, which may change what is to be done: at most this often in a row.
_ROUNDS_MAX = 8


class Look(NamedTuple):
    """What of a base path is to be looked at. known: version -> inode, of directories that need no look inside."""

    name: str
    base_path: str
    policy: Policy
    known: dict[int, int]


class Outcome(NamedTuple):
    """What became of a configured model. settled: it has an AVAILABLE version, or `failures` say why not: (version or
    None, failure)."""

    settled: bool
    failures: list[tuple[int | None, Failure]]


class Lifecycle:
    """What is configured and what is known of it. looks: models that are to be looked at at that time, by name."""

    def __init__(
        self,
        groups: Groups,
        versions: Versions,
        retries: Retries,
        preparation: Preparation | None = None,
        *,
        settle_ns: int,
        incomplete_ns: int,
        unload_when_empty: bool,
        prefer_tflite: bool = False,
    ) -> None:
        self.groups = groups
        self.versions = versions
        self._retries = retries
        self.preparation = preparation or Preparation()
        self._parts = Parts(
            retries,
            self.preparation,
            settle_ns=settle_ns,
            incomplete_ns=incomplete_ns,
            unload_when_empty=unload_when_empty,
            prefer_tflite=prefer_tflite,
        )
        crew = groups.crew
        self.supply = Supply(crew, self.preparation, adoption=lambda: crew.adoption, weight_of=self._weight_of)
        self._sought: Aim | None = None
        self._bases: dict[str, Base] = {}
        self._begun_ns: int | None = None
        self._aiming = False
        self._dirty = True
        self._wake_ns = 0
        self.looks = self._parts.looks
        self.singles: set[ModelVersion] = set()
        self._last_published: Orders = {}
        self._serving: set[str] = set()
        self._shown: dict[ModelVersion, tuple[bool, Status | None]] = {}
        #: Of versions that have not ended, why the last load failed: they end with that, also when they are taken back
        #: before it was told.
        self._failures: dict[ModelVersion, Failure] = {}

    # ------------------------------------------------------------------------------------------------- what happens

    def configure(self, plans: Iterable[ModelPlan], now_ns: int) -> None:
        """These are the models from now on."""
        first = self._begun_ns is None
        if first:
            self._begun_ns = now_ns
        log.info("Adding/updating models.")
        before, self._bases = self._bases, {}
        for plan in plans:
            base = before.get(plan.name)
            if base is None or base.plan[:3] != plan[:3]:
                log.info(" (Re-)adding model: %s", plan.name)
            if base is None:
                strangers = self.groups.crew.orders_of(plan.name)
                base = Base(plan, now_ns, late=not first, strangers=strangers)
                self.looks[plan.name] = now_ns
            elif base.plan.base_path != plan.base_path:
                base = Base(plan, now_ns, late=base.late, strangers=base.strangers)
                self.looks[plan.name] = now_ns
            elif base.plan.versions != plan.versions:
                base.outdated, base.since_ns = True, now_ns
                self.looks[plan.name] = now_ns
            base.plan = plan
            self._bases[plan.name] = base
            self._parts.think_of(plan.name)
        for name in before.keys() - self._bases.keys():
            self._retries.keep_only(name, set())
            self.looks.pop(name, None)
            self._parts.think_of(name)
        log.info("Finished adding/updating models")
        self._dirty = True

    def listed(self, listing: Listing, now_ns: int) -> None:
        """The watcher has looked at a base path."""
        base = self._bases.get(listing.name)
        if base is None or base.plan.base_path != listing.base_path:
            return
        before = (base.listing.found if base.listing is not None and not base.outdated else None, base.error)
        changed = base.take(listing, now_ns)
        for order in changed:
            self._forget(order)
        complaint = base.complaint(now_ns)
        if complaint and complaint != base.said:
            prefix = "FileSystemStoragePathSource encountered a filesystem access error: " if listing.error else ""
            log.error("%s%s", prefix, complaint)
        remark = "" if complaint else base.remark()
        if remark and remark != base.said:
            log.warning("%s", remark)
        base.said = complaint or remark
        # Most looks see nothing new, and there may be a thousand models.
        if base.pending or changed or before != (listing.found, listing.error):
            self._think_of(listing.name)

    def load_failed(self, failed: LoadFailure, now_ns: int) -> None:
        """A load failed, or ended its worker too often."""
        order, failure, final = failed
        name = f"{{name: {order.name} version: {order.version}}}"
        log.error("Loading servable: %s failed: %s: %s", name, failure.code.name, failure.text)
        attempts = self._retries.failed(order, failure, now_ns, final=final)
        if order.name in self._bases:
            self._failures[order.key] = failure
            if failure.code is Code.NOT_FOUND:  # perhaps its directory is gone, and nobody looks by himself
                self.looks.setdefault(order.name, now_ns)
        if not attempts.over:
            log.info("Retrying of Loading servable: %s retry: %d", name, attempts.failed_count)
        elif attempts.failed_count > 1 and not final:
            log.error("Retrying of Loading servable: %s exhausted max_num_retries: %d", name, attempts.failed_count - 1)
        self._think_of(order.name)

    def load_succeeded(self, key: ModelVersion) -> None:
        """A worker has it."""
        base = self._bases.get(key.name)
        self._failures.pop(key, None)
        if base is not None and key.version in base.directories:
            self._retries.forget(base.order(key.version))
        self._think_of(key.name)

    def _forget(self, order: Order) -> None:
        """What is there now was not tried yet."""
        self._retries.forget(order)
        self._failures.pop(order.key, None)

    def _think_of(self, name: str) -> None:
        self._parts.think_of(name)
        self._dirty = True

    def touch(self) -> None:
        """Something happened to workers: think again in the next turn."""
        self._dirty = True

    # -------------------------------------------------------------------------------------------------- what to do

    def turn(self, now_ns: int) -> Moves | None:
        """Decide what can be decided now; None when there is nothing new. Ask again at `wake_ns`."""
        if not self._dirty and not 0 < self._wake_ns <= now_ns:
            return None
        self._dirty = False
        self._parts.pass_time(now_ns)
        for failed in self.supply.begin(now_ns):
            self.load_failed(failed, now_ns)
        for name in self.preparation.take_changed():
            self._parts.think_of(name)
        moves = Moves([], [], [], [], [], 0)
        published: Orders = {}
        for _ in range(_ROUNDS_MAX):
            if self.supply.may_open(now_ns, aiming=self._aiming):
                self.supply.open(now_ns)
            before, generations = self._published(), self.groups.crew.generations
            statuses = self._aim(before, now_ns)
            new = self.groups.turn(now_ns)
            moves = moves.then(new)
            published = self._published()
            self._show(statuses, published)
            resting = published == before and generations == self.groups.crew.generations and not any(new[:-1])
            if resting and not self.supply.may_open(now_ns, aiming=self._aiming):
                break  # otherwise what was done last may allow the next
        self._last_published = published
        self._serving = {key.name for key in published}
        for order in self.supply.end(self._sought, statuses, now_ns):
            self._forget(order)
            self._think_of(order.name)
        wakes = (moves.wake_ns, self._retries.wake_ns(now_ns), self._silence_ns(now_ns), self.supply.wake_ns)
        self._wake_ns = now_ns + 1 if self._dirty else min((wake for wake in wakes if wake), default=0)
        return moves

    @property
    def wake_ns(self) -> int:
        """When `turn` has something to do even if nothing happens; 0 = never."""
        return self._wake_ns

    def due_looks(self, now_ns: int) -> list[str]:
        """Models that are to be looked at now, each named once."""
        due = [name for name, at_ns in self.looks.items() if at_ns <= now_ns]
        for name in due:
            del self.looks[name]
        return due

    def look(self, name: str) -> Look | None:
        """How to look at this model's base path; None when it is not configured."""
        base = self._bases.get(name)
        if base is None:
            return None
        published = self._last_published
        known = {}
        for version, directory in base.directories.items():
            # What serves needs no look inside, unless it was made anew or nobody knows what it weighs.
            served = published.get(ModelVersion(name, version)) == base.order(version)
            if served and not directory.vanished and directory.watched.seen:
                known[version] = directory.inode
        return Look(name, base.plan.base_path, base.plan.versions, known)

    def _published(self) -> Orders:
        # Workers may have what has been taken out of the configuration since, whatever has its name now.
        bases = self._bases
        return {
            key: order
            for key, order in self.groups.published().items()
            if (base := bases.get(key.name)) is not None and not (base.late and base.is_strange(order))
        }

    def _weight_of(self, order: Order) -> Weight:
        base = self._bases.get(order.name)
        known = base is not None and order.version in base.directories
        return self._parts.weight_of(base, order.version) if base is not None and known else Weight(0, 0)

    def _silence_ns(self, now_ns: int) -> int:
        """When a base path that never answered is next thought of."""
        silent = [base for base in self._bases.values() if base.listing is None and not base.error]
        times = [base.since_ns + SILENT_NS_MAX for base in silent]
        if not self._aiming and self._begun_ns is not None:
            times.append(self._begun_ns + _FIRST_LOOK_NS_MAX)
        return min((time for time in times if time > now_ns), default=0)

    def _aim(self, published: Orders, now_ns: int) -> dict[ModelVersion, Status]:
        statuses: dict[ModelVersion, Status] = {}
        orders: Orders = {}
        fallbacks: Orders = {}
        gone: set[Order] = set()
        found: Orders = {}
        by_name: dict[str, Orders] = {}
        for key, order in published.items():
            by_name.setdefault(key.name, {})[key] = order
        trying = self.groups.trying()
        for name, base in self._bases.items():
            part = self._parts.of(base, by_name.get(name, {}), trying.get(name, set()), now_ns)
            orders.update(part.orders)
            fallbacks.update(part.fallbacks)
            gone.update(part.gone)
            found.update(part.found)
            statuses.update(part.statuses)
        for failed in self._parts.take_refused():
            self.load_failed(failed, now_ns)
        if not self._aiming:
            listed = all(base.listing is not None or base.error for base in self._bases.values())
            waited = self._begun_ns is not None and now_ns >= self._begun_ns + _FIRST_LOOK_NS_MAX
            self._aiming = self._begun_ns is not None and (listed or waited)
        if self._aiming:
            singles = frozenset(key for key in self.singles if key in orders or key in fallbacks)
            self._sought = Aim(orders, fallbacks, singles, frozenset(gone), found)
            self.groups.aim_at(self._sought)
        return statuses

    # --------------------------------------------------------------------------------------------- what is told of it

    def _show(self, statuses: dict[ModelVersion, Status], published: Orders) -> None:
        """Bring the catalog up to date."""
        served = (VersionState.AVAILABLE, VersionState.UNLOADING)
        for key in dict.fromkeys([*self.versions.known(), *statuses, *published]):
            status = statuses.get(key)
            shown = (key in published, status)
            if self._shown.get(key) == shown:
                continue
            state = self.versions.state(key)
            if key in published:
                waits = "" if status is None else status.waits or status.failure.text
                self._put(key, Status(VersionState.AVAILABLE, waits=waits))
            elif state in served and self.groups.serves(key):
                self._put(key, Status(VersionState.UNLOADING))
                self._shown.pop(key, None)
                continue  # until no worker serves it
            elif status is not None:
                self._put(key, status)
            elif state in (*served, VersionState.START, VersionState.LOADING):
                failure = None if state in served else self._failures.get(key)
                self._put(key, Status(VersionState.END, failure or _OK))
            self._shown[key] = shown
        if len(self._shown) > 2 * len(self.versions.known()):  # ended ones are forgotten in the end
            self._shown = {key: shown for key, shown in self._shown.items() if key in self.versions}

    def _put(self, key: ModelVersion, status: Status) -> None:
        before = self.versions.state(key)
        if status.state is VersionState.END:
            self._failures.pop(key, None)
        if self.versions.put(key, status.state, status.failure, status.waits):
            if status.state is VersionState.END and before is not VersionState.UNLOADING:
                return
            for line in _LINES.get(status.state, ()):
                log.info("%s {name: %s version: %d}", line, key.name, key.version)

    # ------------------------------------------------------------------------------------------------------ questions

    def __contains__(self, name: str) -> bool:
        return name in self._bases

    def names(self) -> list[str]:
        """The configured models."""
        return list(self._bases)

    def is_available(self, name: str, version: int) -> bool:
        return self.versions.state(ModelVersion(name, version)) is VersionState.AVAILABLE

    def may_come(self, name: str, version: int) -> bool:
        """It is not available, and may be soon: nobody knows better yet."""
        base = self._bases.get(name)
        if base is None or self.is_available(name, version):
            return False
        aspired = base.aspired(self.groups.trying().get(name, ()))
        if aspired is None:
            return not base.error
        attempts = self._retries.of(base.order(version)) if version in aspired else None
        return version in aspired and (attempts is None or not attempts.over)

    def is_incomplete(self, name: str) -> bool:
        """All that this model could serve lacks files: somebody copies it, or left it like that."""
        aspired = self._bases[name].aspired(self.groups.trying().get(name, ()))
        return bool(aspired) and all(self._bases[name].directories[version].watched.lacks for version in aspired or ())

    def outcome(self, name: str, now_ns: int, *, moved: bool = False) -> Outcome:
        """What became of a configured model so far. moved: what served before, or lies elsewhere, does not count."""
        base = self._bases[name]
        if name in self._serving and not moved:
            return Outcome(True, [])
        if complaint := base.complaint(now_ns):
            return Outcome(True, [(None, Failure(Code.NOT_FOUND, complaint))])
        if moved and not base.outdated and base.has_arrived(self._last_published):
            return Outcome(True, [])
        aspired = base.aspired(self.groups.trying().get(name, ()))
        if not aspired or base.outdated:
            return Outcome(False, [])
        failures: list[tuple[int | None, Failure]] = []
        for version in aspired:
            attempts = self._retries.of(base.order(version))
            if attempts is None or not attempts.over:
                return Outcome(False, [])
            failures.append((version, attempts.failure))
        return Outcome(True, failures)


#: What TF Serving writes to its log when a version comes into a state.
_LINES: dict[VersionState, tuple[str, ...]] = {
    VersionState.LOADING: (
        "Successfully reserved resources to load servable",
        "Approving load for servable version",
        "Loading servable version",
    ),
    VersionState.AVAILABLE: ("Successfully loaded servable version",),
    VersionState.UNLOADING: ("Quiescing servable version", "Done quiescing servable version"),
    VersionState.END: ("Done unloading servable version",),
}
