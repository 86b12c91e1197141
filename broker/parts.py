"""Pure: each model's part of the aim: what of it shall serve, from what is aspired, what serves, what lies on disk.

What is aspired and serves goes on; what is aspired, complete and has not failed is loaded; what serves and is not
aspired any more goes when something aspired serves, and not before.
"""

from __future__ import annotations

from typing import NamedTuple

from ringserve.broker.budget import Weight, weigh
from ringserve.broker.directories import Base
from ringserve.broker.messages import Code, Failure, ModelVersion, VersionState
from ringserve.broker.orders import LoadFailure, Order, Orders
from ringserve.broker.preparation import Preparation
from ringserve.broker.retries import Retries

_OK = Failure(Code.OK, "")
_LOOK_SOON_NS = 100_000_000
_PREPARED = "its weights are being loaded"


class Status(NamedTuple):
    """Of an aspired version that does not serve (yet). may_load: it is to be loaded now. asked: an order that is to be
    loaded, now or when it is prepared."""

    state: VersionState
    failure: Failure = _OK
    waits: str = ""
    may_load: bool = False
    asked: Order | None = None


class Part(NamedTuple):
    """One model's part, and what it follows from: its published versions, and those that are being tried.

    orders, fallbacks, gone, found: as in Aim. until_ns: it may be another then, even if nothing happens; 0 = never.
    """

    serving: Orders
    trying: set[int]
    orders: Orders
    fallbacks: Orders
    gone: frozenset[Order]
    statuses: dict[ModelVersion, Status]
    found: Orders
    until_ns: int


class Parts:
    """The parts of all models. One is thought of again only when something has happened to its model: most turns
    concern one of perhaps a thousand. looks: when which base path is to be looked at, by name."""

    def __init__(
        self,
        retries: Retries,
        preparation: Preparation,
        *,
        settle_ns: int,
        incomplete_ns: int,
        unload_when_empty: bool,
        prefer_tflite: bool,
    ) -> None:
        self._retries = retries
        self._preparation = preparation
        self._prefer_tflite = prefer_tflite
        self._settle_ns = settle_ns
        self._incomplete_ns = incomplete_ns
        self._unload_when_empty = unload_when_empty
        self._parts: dict[str, Part] = {}
        self._until_ns = 0
        self._refused: list[LoadFailure] = []
        self.looks: dict[str, int] = {}

    def think_of(self, name: str) -> None:
        """Something has happened to this model."""
        self._parts.pop(name, None)

    def pass_time(self, now_ns: int) -> None:
        """It is so late now."""
        if 0 < self._until_ns <= now_ns:
            self._parts = {name: part for name, part in self._parts.items() if not 0 < part.until_ns <= now_ns}
            self._until_ns = min((part.until_ns for part in self._parts.values() if part.until_ns), default=0)

    def take_refused(self) -> list[LoadFailure]:
        """Versions that must not be loaded, since the last call."""
        refused, self._refused = self._refused, []
        return refused

    def of(self, base: Base, serving: Orders, trying: set[int], now_ns: int) -> Part:
        """The part of one model. serving: its published versions."""
        name = base.plan.name
        part = self._parts.get(name)
        if part is None or part.serving != serving or part.trying != trying:
            part = self._parts[name] = self._part_of(base, serving, trying, now_ns)
            if part.until_ns and (part.until_ns < self._until_ns or not self._until_ns):
                self._until_ns = part.until_ns
        return part

    def _part_of(self, base: Base, serving: Orders, trying: set[int], now_ns: int) -> Part:
        name = base.plan.name
        aspired = base.aspired(trying)
        statuses: dict[ModelVersion, Status] = {}
        if aspired is None:
            return Part(serving, trying, serving, {}, frozenset(), statuses, {}, 0)
        wanted: Orders = {}
        base.pending = False
        retries = []
        for version in aspired:
            key = ModelVersion(name, version)
            order = base.order(version)
            if serving.get(key) == order:
                wanted[key] = order
                continue
            status = self._status(base, version, now_ns)
            if status.may_load:
                status = self._prepared(order, status, self.weight_of(base, version))
            elif status.state is VersionState.LOADING:
                status = status._replace(asked=order)  # what is there of its weights is for its next load
            statuses[key] = status
            if status.may_load:
                wanted[key] = order
            base.pending = base.pending or status.state is VersionState.START
            attempts = self._retries.of(order)
            if attempts is not None and attempts.retry_ns > now_ns:
                retries.append(attempts.retry_ns)
        self._retries.keep_only(name, {base.order(version) for version in aspired})
        base.forget_vanished({key.version for key in serving} | trying)
        orders, fallbacks = self._merge(base, aspired, wanted, serving)
        gone = frozenset(order for order in serving.values() if base.is_gone(order))
        unknown = [key for key, order in serving.items() if not order.path]
        found = {key: base.order(key.version) for key in unknown if base.has(key.version)}
        return Part(serving, trying, orders, fallbacks, gone, statuses, found, min(retries, default=0))

    def _merge(self, base: Base, aspired: list[int], wanted: Orders, serving: Orders) -> tuple[Orders, Orders]:
        """What is wanted, and what becomes of that which serves and is not."""
        others = {key: order for key, order in serving.items() if wanted.get(key) != order}
        arrived = any(serving.get(key) == order for key, order in wanted.items())
        # What an earlier look found may be loaded, and is no reason to give something up.
        unsure = base.outdated and (arrived or not wanted)
        if base.plan.hold or base.pending or unsure:
            return {**others, **wanted}, {key: order for key, order in others.items() if key in wanted}
        if not aspired:
            gone = base.plan.versions == () or (self._unload_when_empty and not base.plan.move)
            return ({} if gone else others), {}
        if arrived:
            return wanted, {key: order for key, order in others.items() if key in wanted}
        return (wanted, others) if wanted else (others, {})

    def _status(self, base: Base, version: int, now_ns: int) -> Status:
        """How far an aspired version is that does not serve."""
        directory = base.directories[version]
        watched = directory.watched
        name = base.plan.name
        attempts = self._retries.of(base.order(version))
        if attempts is not None:
            if attempts.over:
                return Status(VersionState.END, attempts.failure)
            if attempts.retry_ns > now_ns:
                return Status(VersionState.LOADING, attempts.failure, f"load {attempts.failed_count + 1} comes soon")
            return Status(VersionState.LOADING, attempts.failure, may_load=True)
        if not watched.seen:
            self._look_at(name, now_ns + _LOOK_SOON_NS)
            return Status(VersionState.START)
        verdict = watched.judge(settle_ns=self._settle_ns, incomplete_ns=self._incomplete_ns)
        if verdict.load and directory.refusal:
            failure = Failure(Code.INVALID_ARGUMENT, directory.refusal)
            self._refused.append(LoadFailure(base.order(version), failure, True))
            return Status(VersionState.END, failure)
        if verdict.load:
            return Status(VersionState.LOADING, may_load=True)
        self._look_at(name, max(verdict.again_ns, now_ns + 1))
        return Status(VersionState.START, waits=verdict.reason)

    def weight_of(self, base: Base, version: int) -> Weight:
        """What its files weigh, as far as is known."""
        return weigh(base.directories[version].watched.files, prefer_tflite=self._prefer_tflite)

    def _prepared(self, order: Order, status: Status, weight: Weight) -> Status:
        """What is to be loaded is prepared first."""
        verdict = self._preparation.ask(order, weight)
        if verdict.failure is not None:
            self._refused.append(LoadFailure(order, verdict.failure, True))
            return Status(VersionState.END, verdict.failure)
        if not verdict.ready:
            return Status(status.state, status.failure, _PREPARED, asked=order)
        return status._replace(asked=order)

    def _look_at(self, name: str, at_ns: int) -> None:
        self.looks[name] = min(at_ns, self.looks.get(name, at_ns))
