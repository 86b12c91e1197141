"""With 500 calls in flight processes are killed again and again: no call fails, no answer is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
