"""The models' side of the broker: joins the life cycle with the watcher, the configuration, and what is told of both.

The loop (`service.py`) hands in what workers and the watcher say; `turn` hands back what is to be done about workers.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ringserve.broker.admin import Admin, FileRead
from ringserve.broker.aspired import Listing
from ringserve.broker.changes import unavailable
from ringserve.broker.core import Core
from ringserve.broker.labels import Labels
from ringserve.broker.lifecycle import Lifecycle
from ringserve.broker.messages import Catalog, Code, Failure, Loaded, ModelOptions, ModelVersion, VersionState
from ringserve.broker.orders import Moves
from ringserve.broker.repository import ReadBatching, scan
from ringserve.broker.setup import Policies, memory_limits
from ringserve.broker.state_file import State
from ringserve.broker.watcher import Watcher
from ringserve.config.model_config import ModelConfigError, read_model_config, read_version_batching
from ringserve.config.regular_file import regular_only
from ringserve.config.schema import Batching, Settings

log = logging.getLogger(__name__)

_SECOND_NS = 1_000_000_000
_FILE = ":config file"  # no model's name: the watcher's key for it
_ONE_WORKER = "one worker serves it, because it changes its variables while serving"
#: A broker that follows another tells frontends nothing until it knows what serves; they know it from before. As long
#: requests wait for a worker (`LanePolicy.no_worker_ns_max`).
_SILENT_NS_MAX = 30 * _SECOND_NS
#: How often it is looked up how much memory there is: a control group's limit may change.
_MEMORY_NS = 10 * _SECOND_NS
#: An operator who asks for a look does not wait for a file system that hangs.
_RESCAN_NS_MAX = 5 * _SECOND_NS


class Models:
    """One server's models. `fatal` is not empty when the server must end: why.

    first: this is the server's first broker. wall_clock: ns, of the clock that dates files.
    """

    def __init__(
        self,
        settings: Settings,
        core: Core,
        lifecycle: Lifecycle,
        policies: Policies,
        watcher: Watcher,
        *,
        tell_workers: Callable[[list[ModelOptions]], None],
        save: Callable[[State], None],
        wall_clock: Callable[[], int],
        first: bool,
    ) -> None:
        self._settings = settings.lifecycle
        self._defaults = settings.batching
        self._core = core
        self._policies = policies
        self._memory_limits = functools.partial(memory_limits, settings)
        self._memory_ns = 0
        self._watcher = watcher
        self._tell_workers = tell_workers
        self._wall_clock = wall_clock
        self._first = first
        self.lifecycle = lifecycle
        self.labels = Labels(allow_unavailable=self._settings.allow_version_labels_for_unavailable_models)
        self.admin = Admin(
            lifecycle,
            self.labels,
            policies,
            settings.batching,
            look=self._look_for,
            tell_workers=tell_workers,
            save=save,
        )
        self._starting = True
        self._adopting = True
        self._heir_of_nothing = False  # it follows another, and nobody was left who could say what that served
        self._awaited: list[str] | None = None
        self._begun_ns = 0
        self._poll_ns = 0
        self._poll_file_ns = 0
        self._batching: dict[ModelVersion, Batching] = {}
        self._epochs = (-1, -1, True)
        self._catalog_epoch = 0
        self._wake_ns = 0
        self._rescans: list[tuple[dict[str, int], int, Callable[[], None]]] = []
        self.fatal = ""

    def start(self, state: State, now_ns: int) -> None:
        """Begin with this configuration."""
        self._begun_ns = now_ns
        self._core.set_versions(None)
        self.admin.start(state, now_ns)
        poll_s = self._settings.file_system_poll_wait_seconds
        if poll_s < 0:
            self.lifecycle.looks.clear()
        self._poll_ns = now_ns + poll_s * _SECOND_NS if poll_s > 0 else 0
        file_s = self._settings.model_config_file_poll_wait_seconds
        self._poll_file_ns = now_ns if self._settings.model_config_file and file_s > 0 else 0

    # ------------------------------------------------------------------------------------------------------ looking

    def take_looks(self, now_ns: int) -> None:
        """Looks that have come back from the watcher."""
        for key, asked, value in self._watcher.take():
            if isinstance(value, Listing):
                for version, (batching, _) in value.batching.items():
                    if isinstance(batching, Batching):
                        self._batching[ModelVersion(value.name, version)] = batching
                self.lifecycle.listed(value, now_ns)
            elif isinstance(value, FileRead):
                self.admin.file_read(value)
            for awaited, _, _ in self._rescans:
                if awaited.get(key, asked + 1) <= asked:
                    del awaited[key]

    def rescan(self, now_ns: int, over: Callable[[], None]) -> None:
        """Look at every base path and at the config file now; `over` is called when that is done, or hangs."""
        awaited = {name: self._look(name, anew=True) for name in self.lifecycle.names()}
        if self._settings.model_config_file:
            awaited[_FILE] = self._look_at_file(self.admin.file_digest(now_ns, now=True), anew=True)
        self._rescans.append((awaited, now_ns + _RESCAN_NS_MAX, over))

    def _look_for(self, names: list[str], now_ns: int, over: Callable[[], None]) -> None:
        awaited = {name: self._look(name, anew=True) for name in names}
        self._rescans.append((awaited, now_ns + _RESCAN_NS_MAX, over))

    def _look_around(self, now_ns: int) -> None:
        for name in self.lifecycle.due_looks(now_ns):
            self._look(name, anew=True)
        if self._poll_ns and now_ns >= self._poll_ns:
            self._poll_ns = now_ns + self._settings.file_system_poll_wait_seconds * _SECOND_NS
            for name in self.lifecycle.names():
                self._look(name, anew=False)
        if self._poll_file_ns and now_ns >= self._poll_file_ns:
            self._poll_file_ns = now_ns + self._settings.model_config_file_poll_wait_seconds * _SECOND_NS
            self._look_at_file(self.admin.file_digest(now_ns), anew=False)
        if now_ns >= self._memory_ns:
            self._memory_ns = now_ns + _MEMORY_NS
            if self.lifecycle.preparation.budget.set_limits(self._memory_limits()):
                self.lifecycle.touch()
        over = [rescan for rescan in self._rescans if not rescan[0] or now_ns >= rescan[1]]
        self._rescans = [rescan for rescan in self._rescans if rescan not in over]
        for _, _, told in over:
            told()

    def _look(self, name: str, *, anew: bool) -> int:
        look = self.lifecycle.look(name)
        assert look is not None, "only configured models are looked at"
        read = self._read_batching() if self._settings.enable_per_model_batching_parameters else None
        run = functools.partial(scan, *look, wall_clock=self._wall_clock, read_batching=read)
        return self._watcher.look(name, run, anew=anew)

    def _look_at_file(self, digest: str, *, anew: bool) -> int:
        run = functools.partial(_read_file, self._settings.model_config_file, digest)
        return self._watcher.look(_FILE, run, anew=anew)

    def _read_batching(self) -> ReadBatching:
        defaults = self._defaults

        def read(path: str) -> Batching:
            try:
                batching = read_version_batching(path, defaults)
            except ModelConfigError as error:
                raise ValueError(error.text) from error
            # As in TF Serving: a version that says nothing is not batched.
            return batching if batching is not None else replace(defaults, policy="none")

        return read

    # ------------------------------------------------------------------------------------------------------- workers

    def loaded(self, worker_id: int, report: Loaded, now_ns: int) -> str:
        """How a load went in a worker. Returns the path that it was loaded from, empty when that is not known."""
        key = ModelVersion(report.name, report.version)
        crew = self.lifecycle.groups.crew
        member = crew.find(worker_id)
        order = member.order_of(key) if member is not None else None
        failure = Failure(Code(report.error_code), report.error_text) if report.error_code else None
        failed = crew.worker_loaded(worker_id, key, failure)
        if failed is not None:
            self.lifecycle.load_failed(failed, now_ns)
        elif failure is None:
            self.lifecycle.load_succeeded(key)
            (self.lifecycle.singles.add if report.changes_state else self.lifecycle.singles.discard)(key)
            authored = self.lifecycle.preparation.notes(order) if order is not None else ()
            notes = list(dict.fromkeys([*authored, *report.notes, *([_ONE_WORKER] if report.changes_state else [])]))
            self.lifecycle.versions.describe(key, report.signature_defs, notes)
        self.lifecycle.touch()
        return order.path if order is not None else ""

    # ---------------------------------------------------------------------------------------------------- deciding

    def turn(self, now_ns: int) -> Moves | None:
        """Decide what can be decided now; None when there is nothing to do about workers."""
        if self.admin.changing:
            self.admin.turn(now_ns)
        self._look_around(now_ns)
        moves = self.lifecycle.turn(now_ns)
        if self.admin.changing:
            self.admin.turn(now_ns)  # what it waits for may have come just now
            moves = _both(moves, self.lifecycle.turn(now_ns))
        if self._adopting and self.may_answer:
            self._adopting = False
            self._heir_of_nothing = not self.lifecycle.groups.published()
        if self._starting:
            self._settle_start(now_ns)
        self._tell_core(now_ns)
        watcher_ns = self._watcher.tend(now_ns)
        wakes = [self.lifecycle.wake_ns, self._poll_ns, self._poll_file_ns, self._memory_ns, watcher_ns]
        wakes += self.lifecycle.looks.values()
        wakes += [until_ns for _, until_ns, _ in self._rescans]
        if not self._is_sure(now_ns):
            wakes.append(self._begun_ns + _SILENT_NS_MAX)
        if self.admin.changing:
            wakes.append(now_ns + _SECOND_NS)
        self._wake_ns = min((wake for wake in wakes if wake), default=0)
        return moves

    @property
    def wake_ns(self) -> int:
        """When `turn` has something to do even if nothing happens; 0 = never."""
        return self._wake_ns

    def _settle_start(self, now_ns: int) -> None:
        lifecycle = self.lifecycle
        if self._awaited is None:
            self._awaited = lifecycle.names()
        while self._awaited:
            name = self._awaited[-1]
            if name in lifecycle and not (lifecycle.outcome(name, now_ns).settled or lifecycle.is_incomplete(name)):
                return  # the others are thought of when this one is settled
            self._awaited.pop()
        self._starting = False
        self._catalog_epoch += 1
        outcomes = {name: lifecycle.outcome(name, now_ns) for name in lifecycle.names()}
        failed = {name: outcome.failures for name, outcome in outcomes.items() if outcome.failures}
        if failed and self._first and self._settings.require_all_models:
            self.fatal = f"UNKNOWN: {unavailable('servable(s)', failed)}"

    def _is_sure(self, now_ns: int) -> bool:
        """It is known what serves. A broker that follows another does not know that at first: not before workers were
        taken over, and what they did not have may have served before, until it is loaded or cannot be."""
        if self._first or now_ns >= self._begun_ns + _SILENT_NS_MAX:
            return True
        return not self._starting and self.lifecycle.groups.crew.adoption is None

    def _tell_core(self, now_ns: int) -> None:
        """After every change of the catalog: let labels take effect, and the core know what requests may come for."""
        versions = self.lifecycle.versions
        sure = self._is_sure(now_ns)
        if self._epochs == (versions.epoch, self.admin.epoch, sure):
            return
        self._epochs = (versions.epoch, self.admin.epoch, sure)
        self._catalog_epoch += 1
        self.labels.settle(self.lifecycle.is_available)
        if sure:
            self._core.set_versions(versions.expected())
        live = (VersionState.LOADING, VersionState.AVAILABLE, VersionState.UNLOADING)
        singles = {key.name for key in self.lifecycle.singles if versions.state(key) in live}
        self._policies.keep_on_one_worker(frozenset(singles))
        if self._settings.enable_per_model_batching_parameters:
            self._put_version_batching()

    def _put_version_batching(self) -> None:
        """A model has one batching at a time: that of its highest version that serves."""
        found: dict[str, tuple[int, Batching]] = {}
        self._batching = {key: said for key, said in self._batching.items() if key in self.lifecycle.versions}
        for key, batching in self._batching.items():
            if self.lifecycle.is_available(*key) and found.get(key.name, (-1, batching))[0] < key.version:
                found[key.name] = (key.version, batching)
        self._tell_workers(self._policies.put_versions({name: batching for name, (_, batching) in found.items()}))

    # ---------------------------------------------------------------------------------------------------- telling

    @property
    def epoch(self) -> int:
        """Grows with every change of `catalog`."""
        return self._catalog_epoch

    def may_tell(self, now_ns: int) -> bool:
        """The catalog says what serves. Where it does not yet, the one that frontends have is nearer to the truth: who
        asks for what is in there waits until it is loaded again."""
        return self._is_sure(now_ns) or (self.may_answer and not self._heir_of_nothing)

    @property
    def may_answer(self) -> bool:
        """What there is has been taken over, so that operators can be told of it."""
        return self._first or self.lifecycle.groups.crew.adoption is None

    def catalog(self) -> Catalog:
        """What frontends are to know."""
        names = sorted(self.lifecycle.names())
        versions = self.lifecycle.versions.infos()
        return Catalog(versions, names, self.labels.assigned(), self._policies.pads(), self._starting)


def _read_file(path: str, digest: str) -> FileRead:
    """In the watcher's thread. digest: of the content that is known."""
    try:
        with open(path, "rb", opener=regular_only) as file:
            found = hashlib.sha256(file.read()).hexdigest()
        if found == digest:
            return FileRead(found, None, "")
        config: Any = read_model_config(path)
    except OSError as error:
        return FileRead("", None, f"{path}; {error.strerror}")
    except ModelConfigError as error:
        return FileRead("", None, ": ".join(filter(None, (error.text, error.detail))))
    return FileRead(found, config, "")


def _both(first: Moves | None, second: Moves | None) -> Moves | None:
    if first is None or second is None:
        return first or second
    return first.then(second)
