"""The smoke run of the measurement: a real server under a load for about a second, every answer checked, none wrong;
and what perf/all.py takes from every program, its figures as JSON with spread, machine, versions and command. No times.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(420)


def test_answers_are_right_and_figures_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--quick", "--only=mlp", "--duration_s=1", f"--json={file}"]
    command = [sys.executable, "-m", "perf.open_loop", *options]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr[-4000:]
    judged = r"^  (met   |MISSED)  mlp: p99 at 70 % of capacity, times p50: [\d.,e+-]+ "
    assert re.search(judged, outcome.stdout, re.MULTILINE)
    told = json.loads(file.read_text())
    assert told["failures"] == 0
    assert told["figures"]["mlp capacity"]["value"] > 0
    assert told["figures"]["mlp 70% rate"]["value"] >= 0  # where the machine stood still, no answer is in the window
    assert len(told["figures"]["mlp 70% latency p99"]["spread"]) == 2
    assert {"machine", "versions", "revision", "at"} <= set(told)
    assert told["command"] == "-m perf.open_loop --quick --only=mlp --duration_s=1"
    curve = told["curves"]["mlp 70%"]
    assert [share for share, _ in curve] == sorted(share for share, _ in curve)
    assert curve[-1][0] == 1.0
    assert [us for _, us in curve] == sorted(us for _, us in curve)
