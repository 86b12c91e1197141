"""What the measuring programs are told wrongly is named in argparse's words; what others did beside them is told."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from perf import echo, large, loadgen, models, program, rest_binary
from perf.loadgen import Figures, LoadError, Spread
from perf.report import Report
from perf.series import Series

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "", " "])
def test_there_is_at_least_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of at least 1"):
        program.at_least_one(text)
    with pytest.raises(argparse.ArgumentTypeError):
        program.counts(f"1,{text}")


def test_numbers_are_read() -> None:
    assert program.at_least_one("12") == 12
    assert program.counts("50,200") == [50, 200]


@pytest.mark.parametrize(
    ("name", "option"),
    [("many", "--runs=0"), ("end_to_end", "--runs=-1"), ("memory", "--workers=x"), ("overload", "--shares=abc")],
)
def test_mistakes_are_named(name: str, option: str) -> None:
    command = [sys.executable, "-m", f"perf.{name}", option]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert f"argument {option.partition('=')[0]}: " in outcome.stderr
    assert "is not a whole number of at least 1" in outcome.stderr


def test_where_nothing_can_be_built_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "build").write_text("a file in the folder's place")
    (tmp_path / "echo.cc").write_text("int main() {}")
    for module in (loadgen, echo, models):
        monkeypatch.setattr(module, "PERF", tmp_path)
    monkeypatch.setenv("CC", "true")
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(LoadError, match=r"nothing can be built in .*/build: "):
        loadgen.compile_c("one", [], ())
    with pytest.raises(LoadError, match=r"nothing can be built in .*/build: "):
        echo.build()
    with pytest.raises(LoadError, match=r"nothing can be built in .*/build/models-"):
        models.prepared("mlp")


def one_series(others_cpus: float) -> Series:
    figures = Figures(10, 1.0, 10.0, Spread(10, 1, 2, 3, 4, 5, 6, 7), Spread(), 1.0, 10, 1, 0)
    return Series([figures], [{"frontend": 10.0, "generator": 1.0}], [others_cpus], [0.0])


def test_what_others_used_is_told_by_every_program() -> None:
    report = Report()
    rest_binary.tell({("json", 128): one_series(0.2), ("npy", 128): one_series(0.3)}, report)
    large.tell({("mirror", 8): one_series(0.4)}, [10.0], report)
    large.tell_echo({("mirror", 8): one_series(0.4)}, {8: one_series(0.5)}, report)
    told = {name: value for name, (value, _) in report.figures.items() if name.endswith(" others")}
    assert told == {
        "json 128 in flight others": 0.2, "npy 128 in flight others": 0.3, "mirror 8 rows others": 0.4,
        "echo 8 rows others": 0.5,
    }  # fmt: skip
