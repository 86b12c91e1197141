"""Budgets, tables and the record."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from perf import report
from perf.report import Budget, Report


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [(9.0, False, True), (10.0, False, True), (11.0, False, False), (9.0, True, False), (10.0, True, True)],
)
def test_a_budget_has_a_good_side(value: float, at_least: bool, met: bool) -> None:
    budget = Budget("frontend", value, 10.0, "µs", at_least)
    assert budget.met is met
    assert budget.line().split()[0] == ("met" if met else "MISSED")


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_table("Rates", ["", "req/s"], [["1 in flight", "9"], ["8", "1,234"]])
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Rates",
        "               req/s",
        "  1 in flight      9",
        "  8            1,234",
    ]


def test_a_record_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PERF", tmp_path)
    (tmp_path / "results").mkdir()
    one = Report()
    assert one.figure("mlp rate", 61234.56, "requests/s") == 61234.56
    one.figure("start", 6.5, "s")
    path = one.record("end_to_end")
    one.record("end_to_end")
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert [line[3:] for line in lines] == 2 * [["mlp rate", "61234.6", "requests/s"], ["start", "6.5", "s"]]
    assert all(line[0].endswith("Z") and line[1] and line[2] for line in lines)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_what_the_programs_write_themselves_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """perf.all records after each program: the second one's figures are of the same revision as the first one's."""
    monkeypatch.setattr(report, "PERF", tmp_path / "perf")
    (tmp_path / "perf").mkdir()
    assert report.revision() == "unknown"
    written = [tmp_path / name for name in ("perf/results/performance.json", "docs/performance.md", "perf/code.py")]
    for file in written:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one\n")
    git = ["git", "-c", "user.name=one", "-c", "user.email=one@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    clean = report.revision()
    assert len(clean) == 12
    for file in written[:2]:
        file.write_text("two\n")
    assert report.revision() == clean
    written[2].write_text("two\n")
    assert report.revision() == f"{clean}+"
