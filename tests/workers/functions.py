"""Models that are plain functions of float x, on an executor's desk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ringserve.broker.messages import InputSpec, LaneSpec
from ringserve.workers.interface import Independence
from tests.workers.desk import Desk

Function = Callable[[Any], Any]


class Plan:
    """Runs a function on float x; notes how many rows each run had."""

    per_row, changes_state, output_dtypes = True, False, (1,)

    def __init__(self, function: Function, runs: list[int], independence: Independence) -> None:
        self.independence = independence
        self._function = function
        self._runs = runs

    def run(self, feeds: Sequence[Any]) -> list[Any]:
        self._runs.append(len(feeds[0]))
        return [self._function(feeds[0]).astype(np.float32)]


class FunctionModel:
    """A loaded model that is a function."""

    name, version, changes_state, signature_defs = "m", 1, False, b""

    def __init__(self, function: Function, independence: Independence) -> None:
        self.runs: list[int] = []
        self._independence = independence
        self._function = function

    def plan(self, spec: LaneSpec) -> Plan:
        return Plan(self._function, self.runs, self._independence)


SPEC = LaneSpec("m", 1, "s", (InputSpec("x", 1, ()),), ("y",), True)


def bench(
    function: Function, independence: Independence = Independence.UNKNOWN, **settings: Any
) -> tuple[FunctionModel, Desk]:
    model = FunctionModel(function, independence)
    return model, Desk(model, **settings)  # type: ignore[arg-type]


def ask(desk: Desk, *requests: dict[str, Any], spec: LaneSpec = SPEC) -> list[Any]:
    """The answers of requests that come together."""
    parts = [desk.part(request, frontend_id=1 + i % len(desk.rings)) for i, request in enumerate(requests)]
    answers, _ = desk.run(spec, parts)
    return [answers[part[1]][0].tolist() if len(answers[part[1]]) == 1 else answers[part[1]] for part in parts]
