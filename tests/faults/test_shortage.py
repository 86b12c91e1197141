"""When memory runs out, the kernel ends a worker: what is missed least.

Held here: by how much each process offers itself; and in a real shortage, with a server and hogs in one control group,
that a worker ends and no other process does, that no call fails, and that the server is whole once there is memory.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ringserve.config.process import WORKER_POINTS
from tests.e2e.server import wait_until
from tests.faults import oom
from tests.faults.load import Load
from tests.faults.stage import Stage


def points_of(process: psutil.Process) -> int:
    return int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())


def test_workers_offer_themselves(models: Path, tmp_path: Path) -> None:
    with Stage(tmp_path / "stage", models) as stage:
        stage.wait_ready()
        (supervisor,) = stage.members("supervisor")
        own = points_of(supervisor)
        others = [process for role in ("broker", "pool", "frontend") for process in stage.members(role)]
        assert {points_of(process) for process in others} == {own}
        assert {points_of(process) for process in stage.members("worker")} == {min(own + WORKER_POINTS, 1000)}


@pytest.mark.skipif(bool(oom.why_not()), reason=oom.why_not())
def test_a_shortage_of_memory_ends_a_worker_and_no_call(models: Path, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", models)
    with oom.Shortage(stage.process.pid) as shortage, stage:
        stage.wait_ready()
        family = {process.pid: process.name() for process in stage.family()}
        assert set(family) <= shortage.pids(), "some process did not follow its supervisor into the group"
        workers = {process.pid for process in stage.members("worker")}
        with Load(stage.grpc_target) as load:
            shortage.begin()
            wait_until(lambda: workers - {process.pid for process in stage.members("worker")}, "a worker to end")
            assert shortage.hogs_alive() == 4
            assert shortage.end() >= 1
            stage.wait_whole()
            load.wait_for_more(3)
        assert not load.failures()
        left = {process.pid for process in stage.family()}
        assert {name for pid, name in family.items() if pid not in left} <= {family[pid] for pid in workers}
