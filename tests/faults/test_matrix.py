"""Every cell of the fault matrix (cases.py) that every test run has time for, on real processes with real clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import wait_until
from tests.faults.cases import CASES, HAVE, Case
from tests.faults.endings import run_alone, why_impossible
from tests.faults.load import Load
from tests.faults.process_limit import group_without_room
from tests.faults.runner import run
from tests.faults.stage import Stage

_RUN = [case for case in CASES if case.ci and (not case.waits_for or case.waits_for in HAVE)]


@pytest.fixture(scope="module")
def stage(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One server for all cases that leave it whole. At the end it has what it had at the start, and no more."""
    with Stage(tmp_path_factory.mktemp("stage"), models) as stage:
        stage.wait_ready()
        yield stage


@pytest.fixture(scope="module")
def load(stage: Stage) -> Iterator[Load]:
    with Load(stage.grpc_target) as load:
        memory, descriptors = stage.memory(), stage.descriptors()
        yield load
        # Rings of the dead stay mapped for five seconds. The last version may have no weights that are shared.
        wait_until(lambda: stage.memory() <= memory, f"memory to be given back: {stage.memory()}, was {memory}", 20)
        wait_until(
            lambda: all(count <= descriptors[name] for name, count in stage.descriptors().items()),
            f"descriptors to be closed: {stage.descriptors()}, were {descriptors}",
            20,
        )


def skip_where_impossible(case: Case) -> None:
    if why_impossible(case):
        pytest.skip(why_impossible(case))


# First, as the server of all the others, once started, has clients that go on asking.
@pytest.mark.parametrize("case", [case for case in _RUN if case.own_server], ids=lambda case: case.name)
def test_a_server_that_ends_costs_what_the_table_says_and_leaves_nothing(
    case: Case, models: Path, tmp_path: Path
) -> None:
    skip_where_impossible(case)
    assert run_alone(case, tmp_path / "stage", models).sees == case.sees


@pytest.mark.parametrize("case", [case for case in _RUN if not case.own_server], ids=lambda case: case.name)
def test_a_fault_costs_clients_what_the_table_says(case: Case, stage: Stage, load: Load) -> None:
    skip_where_impossible(case)
    outcome = run(case, stage, load)
    print(f"{case.name}: {outcome.gap_s:.2f} s without an answer")
    assert outcome.sees == case.sees


def test_a_pool_that_may_fork_no_more_keeps_its_workers_and_forks_when_it_may(stage: Stage, load: Load) -> None:
    """As `pool-fork3-idle`, by a real limit."""
    load.forget()
    (pool,) = stage.members("pool")
    with group_without_room(pool.pid) as group:
        refused = stage.log.count("cannot fork worker")
        stage.members("worker")[0].kill()
        wait_until(lambda: stage.log.count("cannot fork worker") >= refused + 3, "the pool to try again and again")
        load.wait_for_more(5)
        (group / "pids.max").write_text("max")
        stage.wait_whole()
    load.wait_for_more(5)
    assert not load.failures()
    assert [process.pid for process in stage.members("pool")] == [pool.pid]
