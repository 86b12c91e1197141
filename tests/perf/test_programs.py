"""The programs about reloads, memory and starts, small and short against real servers: do they measure, and check?

Never how long anything took: that is what they are for, on a quiet machine.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perf import models

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module", autouse=True)
def exported() -> None:
    """All models that the programs here serve, at once: one process less for each."""
    models.prepared("mlp", "mlp_other", "dense-8", "conv")


def run(program: str, output: Path, *options: str) -> str:
    """What it prints; it must end well, and without a failed or wrong call."""
    command = [sys.executable, "-m", f"perf.{program}", "--quick", f"--output={output}", *options]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr[-4000:]
    return outcome.stdout


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def judged(shown: str, budget: str) -> bool:
    """Whether that target was told as met or missed, with a figure."""
    return re.search(rf"^  (met   |MISSED)  {re.escape(budget)}: [\d.,e+-]+ ", shown, re.MULTILINE) is not None


def test_reload(tmp_path: Path) -> None:
    shown = run("reload", tmp_path)
    for kind in ("other", "switches"):
        assert judged(shown, f"{kind}: p99 of A, times the quiet run before it")
    assert "met     failed or wrong calls: 0 calls" in shown
    slices = table(tmp_path / "slices.tsv")
    assert list(dict.fromkeys(row["run"] for row in slices)) == ["quiet", "other", "switches"]
    assert len(slices) == 4 * 20
    assert sum(int(row["good"]) for row in slices) > 4 * 300  # of 600 each
    assert not any(int(row["failed"]) for row in slices)
    events = [row["what"] for row in table(tmp_path / "events.tsv")]
    assert events.count("load") >= 1
    assert events.count("load") == events.count("unload")
    assert events.count("switch") >= 1
    memory = table(tmp_path / "memory.tsv")
    assert len(memory) > 4
    for row in memory:
        roles = sum(float(row[f"{role} PSS MiB"]) for role in ("supervisor", "broker", "frontend", "pool", "worker"))
        assert 100 < roles + float(row["unmapped MiB"]) <= float(row["total MiB"]) + 1
    # Which versions answered is told. (How many did within two seconds is a matter of time.)
    told = shown.split("how many answers each version gave")[1].split("\n\n")[0].splitlines()[2:]
    assert told
    assert all(re.fullmatch(r" +\d+ +[\d, ]+", line) for line in told)


def test_churn(tmp_path: Path) -> None:
    shown = run("reload", tmp_path, "--reloads", "2")
    assert judged(shown, "memory with B loaded, last against after the first 1")
    assert judged(shown, "memory after B left, last against after the first 1")
    assert "met     failed or wrong calls: 0 calls" in shown
    loaded, unloaded = table(tmp_path / "churn_with_B_loaded.tsv"), table(tmp_path / "churn_after_B_left.tsv")
    assert len(loaded) == len(unloaded) == 2
    assert all(float(row["total MiB"]) > float(row["without files MiB"]) > 50 for row in (*loaded, *unloaded))


def test_churn_by_versions(tmp_path: Path) -> None:
    shown = run("reload", tmp_path, "--reloads", "2", "--by", "versions")
    assert judged(shown, "memory with a version of B, last against after the first 1")
    assert "met     failed or wrong calls: 0 calls" in shown
    assert len(table(tmp_path / "churn_with_a_version_of_B.tsv")) == 2


def test_memory(tmp_path: Path) -> None:
    shown = run("memory", tmp_path)
    assert "one more worker takes" in shown
    rows = table(tmp_path / "memory.tsv")
    variants = list(dict.fromkeys(row["sharing"] for row in rows))
    assert variants == ["on", "off"]
    for variant in variants:
        for count in (1, 2):
            of_it = [row for row in rows if (row["sharing"], row["workers"]) == (variant, str(count))]
            assert sum(row["role"] == "worker" for row in of_it) == count
            assert {"supervisor", "broker", "frontend", "pool"} <= {row["role"] for row in of_it}
            assert all(0 < float(row["private MiB"]) <= float(row["PSS MiB"]) + 0.1 for row in of_it)
        assert variant == "off" or judged(shown, f"sharing {variant}: 2 workers in all")


def test_start(tmp_path: Path) -> None:
    shown = run("start", tmp_path)
    assert judged(shown, "mlp: start to the first right answer")
    assert judged(shown, "mlp: killed worker, until its replacement serves")
    assert len(re.findall(r"^  \w+, light load while 1 workers were killed: [\d,]+ calls, 0 failed", shown, re.M)) == 2
    for step in ("supervisor runs", "pool has TensorFlow", "model loaded", "first right answer"):
        assert len(re.findall(rf"^  {step} +\d+\.\d\d", shown, re.MULTILINE)) == 2


def test_overload(tmp_path: Path) -> None:
    """With the generator on a core of its own; `test_starvation` is without."""
    shown = run("overload", tmp_path, "--only", "conv", "--apart")
    assert judged(shown, "conv apart: goodput at 200 %, of the peak")
    assert judged(shown, "conv apart: late at 200 %, of the accepted")
    assert "\nconv apart: back to the quiet p99 of 100 ms (" in shown
    (slices_path,) = tmp_path.glob("*_slices.tsv")
    slices = table(slices_path)
    assert list(dict.fromkeys(row["share"] for row in slices)) == ["50 %", "200 %", "recovery"]
    assert sum(int(row["good"]) for row in slices) > 50


def test_starvation(tmp_path: Path) -> None:
    shown = run("overload", tmp_path, "--starvation")
    assert judged(shown, "starvation: p99 of mlp beside conv at 400 %, times alone")
    assert len(re.findall(r"^  (?:alone|beside) +[\d,]+ ", shown, re.MULTILINE)) == 4


@pytest.mark.parametrize("program", ["reload", "memory", "start", "overload"])
def test_it_says_what_it_does(program: str) -> None:
    command = [sys.executable, "-m", f"perf.{program}", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--weight_sharing" in shown
    assert "--quick" in shown


def test_a_server_that_does_not_come_up_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perf.memory", "--quick", f"--output={tmp_path}", "--server_flag=--no_such_flag=1"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "No such option" in outcome.stderr
