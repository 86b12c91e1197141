"""Processes are killed again and again, with 500 calls in flight and with so few that their batches go past the broker:
no call fails, no answer is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.operator import state
from tests.faults.stage import Stage
from tests.faults.storm import storm


@pytest.fixture(scope="module")
def stage(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage"), models) as stage:
        stage.wait_ready()
        yield stage


# The pool's successor imports TensorFlow. `python -m tests.faults` kills each 20 times.
@pytest.mark.parametrize(("role", "kills"), [("worker", 5), ("broker", 5), ("pool", 1), ("broker and pool", 2)])
def test_no_call_fails_while_processes_are_killed(stage: Stage, role: str, kills: int) -> None:
    result = storm(stage, role, kills)
    print(f"{role}: {result.answered} answers, recoveries {[f'{each:.2f}' for each in result.recoveries_s]} s")
    assert result.failures == {}
    assert result.answered > 1000


@pytest.mark.parametrize(("role", "kills"), [("worker", 6), ("broker", 3)])
def test_nor_where_batches_go_past_the_broker(models: Path, tmp_path: Path, role: str, kills: int) -> None:
    with Stage(tmp_path, models, frontends="1") as stage:
        stage.wait_ready()
        result = storm(stage, role, kills, calls=20)
        counted = state(stage)["requests"]
        print(f"{role}: {result.answered} answers; {counted}")
        assert result.failures == {}
        assert result.answered > 100
        if role == "worker":
            assert counted["handed"]  # of several each: with 20 in flight none is ever alone
        assert "Traceback" not in stage.log
