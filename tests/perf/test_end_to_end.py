"""The measurement's own parts, with a stand-in in the server's place: the real one is measured by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perf import end_to_end
from perf.end_to_end import Plan
from perf.loadgen import Exchange
from perf.report import Report
from perf.series import Series, measure
from perf.servers import Child

ROOT = Path(__file__).resolve().parents[2]
EXCHANGES = [Exchange(bytes([index]) * 300, bytes([index]) * 300) for index in range(5)]


def test_one_repetition_gives_rate_latency_cpu_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    series = Series()
    with Child(["perf.stand_in", "--echo"], piped=True) as server:
        assert server.process.stdout is not None
        port = int(server.process.stdout.readline())
        plan = Plan(runs=1, duration_s=0.4, warmup_s=0.1, connections=4, check_every=1)
        load = plan.load(port, EXCHANGES, 8)
        load = type(load)(**{**load.__dict__, "compare": "exact"})
        measure(server, load, series)
    assert series.failures() == 0
    assert series.rate() > 0
    assert 0 < series.latency_us("p50") <= series.latency_us("p99_9")
    assert series.runs[0].compared >= series.runs[0].calls
    assert series.roles() == {"supervisor", "generator"}
    assert series.cpu("supervisor") > 0
    assert series.cpu("broker") == 0
    assert series.others_cpus[0] >= 0
    report = Report()
    end_to_end.print_series("Stand-in", {"8 in flight": series}, report, "echo")
    shown = capsys.readouterr().out
    assert f"{series.rate():,.0f}" in shown
    assert report.figures["echo 8 in flight rate"] == (series.rate(), "requests/s")


def test_failed_calls_are_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    series = Series()
    with Child(["perf.stand_in", "--echo", "--fault", "value", "--every", "7"], piped=True) as server:
        assert server.process.stdout is not None
        port = int(server.process.stdout.readline())
        load = Plan(1, 0.3, 0.0, 1, 1).load(port, EXCHANGES, 4)
        measure(server, type(load)(**{**load.__dict__, "compare": "exact"}), series)
    assert series.failures() > 0
    assert "x value, for example:" in capsys.readouterr().err


@pytest.mark.parametrize("in_flight", end_to_end.IN_FLIGHT)
def test_never_more_connections_than_calls(in_flight: int) -> None:
    load = Plan(1, 1.0, 0.0, 4, 1).load(1, EXCHANGES, in_flight)
    assert load.connections == min(in_flight, 4)
    assert load.in_flight == in_flight


@pytest.mark.parametrize("start", [["-m", "perf.end_to_end"], ["perf/end_to_end.py"]])
def test_it_starts_as_a_module_and_as_a_file(start: list[str]) -> None:
    command = [sys.executable, *start, "--only", "mlp,nothing"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert "no part is named nothing" in outcome.stderr
