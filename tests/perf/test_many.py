"""perf/many.py measures in turns: what is judged as a share of the single model's rate is measured beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest

from perf import echo, many, models
from perf.loadgen import Exchange, Figures, Load, Spread
from perf.models import PerfModel
from perf.report import Report
from perf.series import Series


class Server:
    """In place of one that runs."""

    def __init__(self, *_: object) -> None:
        self.port = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_ready(self, *_: object, **__: object) -> None:
        pass

    wait_until = settle = wait_ready
    all_available = None


def test_idle_connections_are_opened_in_each_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order: list[str] = []
    opened: list[bool] = []
    exchange = Exchange(b"", b"")

    class Idle:
        def __init__(self, port: int, count: int) -> None:
            opened.append(True)

        def lost(self) -> int:
            return 1

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            opened.pop()

    def measure(server: Any, load: Load, series: Series) -> None:
        order.append(f"{load.connections}{' idle' * len(opened)}")
        figures = Figures(10, 1.0, 10.0, Spread(10, 1, 2, 3, 4, 5, 6, 7), Spread(), 1.0, 10, 1, 0)
        series.runs.append(figures)
        series.others_cpus.append(0.0)

    sizes_mib = iter([10.0, 15.0, 30.0, 31.0])
    monkeypatch.setattr(many, "Ringserve", Server)
    monkeypatch.setattr(many, "IdleConnections", Idle)
    monkeypatch.setattr(many, "measure", measure)
    monkeypatch.setattr(many, "frontend_mib", lambda _: next(sizes_mib))
    monkeypatch.setattr(many, "raise_file_limit", lambda _: None)
    monkeypatch.setattr(many, "renamed", lambda *_: exchange)
    monkeypatch.setattr(many, "together", lambda _: exchange)
    monkeypatch.setattr(echo, "available", lambda: False)
    model = PerfModel("mlp", tmp_path, tmp_path, (exchange,), (exchange,))
    monkeypatch.setattr(models, "prepared", lambda *_: {"mlp": model})
    report = Report()
    assert many.run(2, 1.0, 1024, (), report) == 2
    assert order == 2 * ["4", "4", "4", "500", "500 idle", "4"]
    assert report.figures["memory of an idle connection"] == (5.0, "KiB")
