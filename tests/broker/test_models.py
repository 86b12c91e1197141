"""The models' side of the broker with real files and the real watcher; workers by hand, no sockets."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringserve.broker.core import Core
from ringserve.broker.messages import Catalog, Code, Loaded, ModelOptions, ModelVersion, VersionState
from ringserve.broker.models import Models
from ringserve.broker.orders import ForkPlan
from ringserve.broker.setup import Policies, make_lifecycle
from ringserve.broker.state_file import State
from ringserve.broker.watcher import Watcher
from ringserve.config.schema import Lifecycle, Model, Settings, Workers
from tests.broker.kit import FRONTEND, spec_of, told

S = 1_000_000_000


class Site:
    """Models of base paths under `folder`; one worker place. Loads succeed at once."""

    def __init__(self, folder: Path, *models: Model, first: bool = True, **lifecycle: object) -> None:
        self.folder = folder
        self.now_ns = 1_000 * S
        settings = Settings(
            workers=Workers(workers=1),
            lifecycle=Lifecycle(settle_ms=0, incomplete_ms_max=0, **lifecycle),  # type: ignore[arg-type]
            models=models,
        )
        self._core = core = Core(lambda key: spec_of(key.decode()))
        core.frontend_joined(FRONTEND)
        policies = Policies(core, settings)
        self.watcher = Watcher(time.monotonic_ns)
        self.options: list[ModelOptions] = []
        self.policies = policies
        self.models = Models(
            settings,
            core,
            make_lifecycle(settings),
            policies,
            self.watcher,
            tell_workers=self.options.extend,
            save=lambda state: None,
            wall_clock=time.time_ns,
            first=first,
        )
        self.crew = self.models.lifecycle.groups.crew
        self.models.start(State(settings.models, ""), self.now_ns)
        self._id = 10
        self.loads = True
        self.waiting: list[tuple[int, ForkPlan]] = []  # workers that have registered, unless they load at once

    def turn(self, after_ns: int = 0) -> None:
        """Let time pass; every fork becomes a worker that loads what it is told to."""
        self.now_ns += after_ns
        for _ in range(20):
            moves = self.models.turn(self.now_ns)
            if moves is None:
                return
            for plan in moves.forks:
                self._load(plan)
            for worker_id, kept in moves.drain:
                if not kept:
                    self.crew.worker_drained(worker_id, self.now_ns)
            for worker_id in (*moves.stops, *moves.kills):
                self.crew.worker_left(worker_id, self.now_ns)
            self.models.lifecycle.touch()

    def _load(self, plan: ForkPlan) -> None:
        self._id += 1
        worker_id = self._id
        self.crew.worker_joined(worker_id, plan.generation, plan.worker_index, worker_id, self.now_ns)
        if not self.loads:
            self.waiting.append((worker_id, plan))
            return
        for order, _ in plan.orders:
            self.models.loaded(worker_id, Loaded(order.name, order.version, 0, "", b"defs"), self.now_ns)
        keys = frozenset(order.key for order, _ in plan.orders)
        self.crew.worker_ready(worker_id, keys, complete=True)

    def load(self, worker_id: int, key: ModelVersion) -> None:
        """One of those that wait loads this."""
        self.crew.worker_loading(worker_id, key, self.now_ns)
        self.models.loaded(worker_id, Loaded(*key, 0, "", b"defs"), self.now_ns)
        self.crew.worker_ready(worker_id, frozenset({key}), complete=False)

    def answer(self, name: str) -> list[tuple[int, int]]:
        """What a request for version 1 of that model is told at once: [(1, code)]; nothing when it waits."""
        lane = name.encode()
        self._core.submit(FRONTEND, [[lane, [[1, 1, 0, 0]]]], self.now_ns)
        answer = told(self._core.turn(self.now_ns))
        self._core.cancel(FRONTEND, [[lane, 1]], self.now_ns)
        self._core.turn(self.now_ns)
        return answer

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Take looks as they come until that holds."""
        poller = select.poll()
        poller.register(self.watcher.fd, select.POLLIN)
        for _ in range(200):
            self.turn()
            if condition():
                return
            poller.poll(50)
            self.models.take_looks(self.now_ns)
        raise AssertionError(f"waited in vain for {what}: {self.catalog()}")

    def begin(self) -> None:
        self.crew.pool_joined({}, self.now_ns)

    def catalog(self) -> Catalog:
        return self.models.catalog()

    def serving(self) -> list[ModelVersion]:
        infos = self.catalog().versions
        return [ModelVersion(info.name, info.version) for info in infos if info.state == VersionState.AVAILABLE]

    def put(self, name: str, version: int, **files: str) -> str:
        directory = self.folder / name / str(version)
        directory.mkdir(parents=True)
        (directory / "saved_model.pb").write_bytes(b"graph")
        for file, text in files.items():
            (directory / file.replace("_pbtxt", ".pbtxt")).write_text(text)
        return str(self.folder / name)


def put_whole(file: Path, text: str) -> None:
    """In one step: the watcher may be reading the file just now."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)


def config_text(*bases: str) -> str:
    models = (f'name: "{Path(base).name}" base_path: "{base}" model_platform: "tensorflow"' for base in bases)
    return f"model_config_list {{ {' '.join(f'config {{ {model} }}' for model in models)} }}"


def test_what_lies_on_disk_is_served_and_told(tmp_path: Path) -> None:
    site = Site(tmp_path)
    base = site.put("m", 3)
    site = Site(tmp_path, Model("m", base), Model("n", str(tmp_path / "n")))
    assert site.catalog().starting
    site.begin()
    site.until(lambda: site.serving() == [("m", 3)], "m")
    catalog = site.catalog()
    assert catalog.models == ["m", "n"]
    assert not catalog.starting
    assert catalog.versions[0].signature_defs == b"defs"


@pytest.mark.parametrize("poll_s", [0, -1])
def test_5_2_polling_can_be_off_and_a_rescan_looks_all_the_same(tmp_path: Path, poll_s: int) -> None:
    base = Site(tmp_path).put("m", 3)
    site = Site(tmp_path, Model("m", base), file_system_poll_wait_seconds=poll_s)
    site.begin()
    if poll_s == 0:
        site.until(lambda: site.serving() == [("m", 3)], "the one look")
    site.put("m", 4)
    site.turn(3600 * S)
    site.turn(3600 * S)
    assert ("m", 4) not in site.serving()
    over: list[bool] = []
    site.models.rescan(site.now_ns, lambda: over.append(True))
    site.until(lambda: site.serving() == [("m", 4)], "the rescan")
    assert over == [True]


def test_5_8_the_config_file_is_read_again_when_it_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path)
    m, n = site.put("m", 1), site.put("n", 2)
    file = tmp_path / "models.config"
    file.write_text(config_text(m))
    site = Site(tmp_path, Model("m", m), model_config_file=str(file), model_config_file_poll_wait_seconds=5)
    site.begin()
    site.until(lambda: site.serving() == [("m", 1)], "m")
    # A look that is under way would be the answer to the next poll, too.
    site.until(lambda: bool(site.models.admin.file_digest(site.now_ns)), "the first look at the file")
    put_whole(file, config_text(m, n))
    site.turn(6 * S)
    site.until(lambda: site.serving() == [("m", 1), ("n", 2)], "n")
    put_whole(file, "nonsense")
    site.turn(6 * S)
    site.until(lambda: "Failed to read ModelServerConfig file" in caplog.text, "the file to be read")
    assert site.catalog().models == ["m", "n"]
    put_whole(file, config_text(n))
    site.turn(6 * S)
    site.until(lambda: site.serving() == [("n", 2)], "m to go")


def test_1_3_require_all_models_says_what_did_not_come(tmp_path: Path) -> None:
    site = Site(tmp_path, Model("m", str(tmp_path / "nowhere")), require_all_models=True)
    site.begin()
    site.until(lambda: bool(site.models.fatal), "the verdict")
    text = "UNKNOWN: 1 servable(s) did not become available: {{{name: m} due to error: NOT_FOUND: Could not find base "
    assert site.models.fatal.startswith(text)


def test_1_3_a_broker_that_follows_another_ends_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, Model("m", str(tmp_path / "nowhere")), require_all_models=True, first=False)
    site.begin()
    site.until(lambda: not site.catalog().starting, "the start to be over")
    assert site.models.fatal == ""


def test_a_broker_that_follows_another_is_silent_until_it_knows_what_serves(tmp_path: Path) -> None:
    base = Site(tmp_path).put("m", 3)
    site = Site(tmp_path, Model("m", base), first=False)
    assert not site.models.may_tell(site.now_ns)
    site.crew.worker_joined(99, 0, 0, 99, site.now_ns)
    site.crew.worker_ready(99, frozenset({ModelVersion("m", 3)}), complete=True)
    site.crew.pool_joined({0: 99}, site.now_ns)
    site.until(lambda: site.models.may_tell(site.now_ns), "the adoption")
    assert site.serving() == [("m", 3)]


def test_a_broker_that_finds_nobody_is_silent_until_all_is_loaded_again(tmp_path: Path) -> None:
    """It and the pool died together. Frontends know what served, and let it wait."""
    folder = Site(tmp_path)
    m, n = folder.put("m", 1), folder.put("n", 1)
    site = Site(tmp_path, Model("m", m), Model("n", n), first=False)
    site.loads = False
    site.begin()
    site.until(lambda: bool(site.waiting), "the fork")
    assert site.crew.adoption is None
    assert not site.models.may_tell(site.now_ns)
    assert site.models.may_answer
    assert site.answer("m") == site.answer("n") == site.answer("another") == []
    worker_id, plan = site.waiting.pop()
    for order, _ in plan.orders[:1]:
        site.load(worker_id, order.key)
    site.turn()
    assert len(site.serving()) == 1
    assert not site.models.may_tell(site.now_ns)
    for order, _ in plan.orders[1:]:
        site.load(worker_id, order.key)
    site.turn()
    assert site.models.may_tell(site.now_ns)
    assert sorted(site.serving()) == [("m", 1), ("n", 1)]
    assert site.answer("m") == site.answer("n") == []
    assert site.answer("stranger") == [(1, Code.NOT_FOUND)]


def test_a_broker_that_finds_nobody_tells_so_in_the_end(tmp_path: Path) -> None:
    site = Site(tmp_path, Model("m", Site(tmp_path).put("m", 1)), first=False)
    site.loads = False
    site.begin()
    site.until(lambda: bool(site.waiting), "the fork")
    wake_ns = site.models.wake_ns
    assert 0 < wake_ns <= site.now_ns + 30 * S
    site.turn(30 * S)
    assert site.models.may_tell(site.now_ns)
    assert site.answer("m") == [(1, Code.NOT_FOUND)]


def test_6_6_the_batching_of_the_version_that_serves_counts(tmp_path: Path) -> None:
    site = Site(tmp_path)
    base = site.put("m", 1, batching_params_pbtxt="max_batch_size { value: 6 }")
    site = Site(tmp_path, Model("m", base), enable_per_model_batching_parameters=True)
    site.begin()
    site.until(lambda: site.policies.batching("m").batch_rows_max == 6, "its parameters")
    assert site.options[-1].batch_rows_max == 6
    site.put("m", 2)  # says nothing: not batched
    site.turn(2 * S)
    site.until(lambda: site.policies.batching("m").policy == "none", "no batching")


def test_6_6_parameters_that_do_not_parse_fail_the_load(tmp_path: Path) -> None:
    base = Site(tmp_path).put("m", 1, batching_params_pbtxt="max_batch_size: nonsense")
    site = Site(tmp_path, Model("m", base), enable_per_model_batching_parameters=True)
    site.begin()
    site.until(lambda: bool(site.catalog().versions) and site.catalog().versions[0].state == VersionState.END, "END")
    assert "batching_params.pbtxt" in site.catalog().versions[0].error_text


def test_a_model_that_changes_its_variables_is_told_to_run_on_one_worker(tmp_path: Path) -> None:
    base = Site(tmp_path).put("m", 1)
    site = Site(tmp_path, Model("m", base))
    site.begin()
    site.until(lambda: site.serving() == [("m", 1)], "m")
    (worker,) = site.crew.members()
    site.models.loaded(worker.worker_id, Loaded("m", 1, 0, "", b"defs", True, ["warm"]), site.now_ns)
    site.turn()
    assert site.policies.is_single("m")
    (info,) = site.catalog().versions
    assert info.notes == ["warm", "one worker serves it, because it changes its variables while serving"]
