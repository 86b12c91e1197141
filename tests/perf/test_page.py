"""docs/performance.md is made from figures: with spread, command and machine; missed targets and what was not measured
are said plainly. And perf/all.py names its mistakes. With made-up figures; nothing is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf import all as everything
from perf import page, page_plots, page_texts
from perf.report import Report

ROOT = Path(__file__).resolve().parents[2]


def results() -> dict[str, Any]:
    """Of two programs; one failed, the others were not run."""
    end_to_end, idle = Report(), Report()
    for count, rates in ((1, [4000.0, 4100.0, 3900.0]), (128, [60_000.0, 61_000.0, 59_500.0])):
        prefix = f"mlp grpc {count} in flight"
        end_to_end.figure_of(f"{prefix} rate", rates, "requests/s")
        for quantile, us in (("p50", 240.0), ("p99", 580.0), ("p99_9", 900.0)):
            end_to_end.figure_of(f"{prefix} latency {quantile}", [us], "us")
        end_to_end.figure_of(f"{prefix} cpu frontend", [9.5, 9.7, 9.6], "us/request")
        end_to_end.figure_of(f"{prefix} others", [0.0, 0.02, 0.01], "CPUs")
    end_to_end.budget("128 in flight", 60_000, 64_000, "requests/s", at_least=True)
    end_to_end.budget("1 in flight, median", 240, 250, "µs")
    idle.figure_of("idle cpu", [0.4, 0.5], "% of a core")
    idle.figure_of("idle wakes", [3.0, 4.0], "1/s")
    idle.figure("idle others", 0.3, "CPUs")
    programs = {
        "end_to_end": end_to_end.as_json("end_to_end", 0),
        "idle": idle.as_json("idle", 2),
        "many": {"trouble": "it ended with 1"},
    }
    return {"programs": programs, "revision": "abc"}


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_figures_have_their_spread_and_their_source() -> None:
    told = section(page.text(results(), []), "End to end")
    assert "| 128 in flight | 60,000 (59,500–61,000) | 240 | 580 | 900 |" in told
    assert "| mlp grpc, 1 in flight | 9.60 (9.50–9.70) |" in told
    assert "python -m" in told or "`python " in told
    assert "Others used at most 0.02 CPUs beside a run." in told


def test_each_machine_is_named() -> None:
    known = results()
    for name in ("end_to_end", "idle"):
        known["programs"][name]["machine"] = "Abacus x2"
    assert "\nMachine: Abacus x2. Versions: " in page.text(known, [])
    known["programs"]["idle"]["machine"] = "Slide rule x1"
    text = page.text(known, [])
    assert "**Measured on different machines**, which each section names: Abacus x2, Slide rule x1. Versions: " in text
    assert "Slide rule x1." in section(text, "Idle")


def test_missed_targets_are_plain() -> None:
    text = page.text(results(), [])
    assert "Of 2 targets 1 are met. **Missed:**\n\n- 128 in flight: 60,000 requests/s\n" in text
    told = section(text, "End to end")
    assert "| 128 in flight | at least 64,000 requests/s | 60,000 requests/s | **missed** |" in told
    assert "| 1 in flight, median | at most 250 µs | 240 µs | met |" in told


def test_failed_calls_and_noise_are_plain() -> None:
    told = section(page.text(results(), []), "Idle")
    assert "**2 calls failed.**" in told
    assert "0.30 CPUs beside a run: **not a quiet machine.**" in told
    assert "| all | 0.45 (0.40–0.50) | 3.50 (3.00–4.00) |" in told


def test_what_was_not_measured_is_said() -> None:
    text = page.text(results(), [])
    assert "**Not measured: it ended with 1.**" in section(text, "Many models, many connections, mixed sizes")
    assert "**Not measured: it was not run.**" in section(text, "Large tensors")


def test_a_short_run_says_so() -> None:
    assert "**Short windows, measured once" in page.text({**results(), "quick": True}, [])
    assert "**Short windows" not in page.text(results(), [])


def test_only_plots_that_there_are_are_shown() -> None:
    assert "](images/" not in page.text(results(), [])
    assert "](images/performance-throughput.svg)" in page.text(results(), ["throughput"])


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert page_plots.draw(results()["programs"], tmp_path) == ["throughput"]
    assert (tmp_path / "performance-throughput.svg").read_text().startswith("<?xml")


def test_every_program_has_a_section_with_words() -> None:
    names = [program.name for program in everything.PROGRAMS]
    assert names == [section[0] for section in page.SECTIONS] == list(page_texts.SECTIONS)
    assert all((ROOT / "perf" / f"{name}.py").exists() for name in names)


def test_a_program_that_does_not_end_in_time_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = everything.run(everything.Program("idle", limit_s=0.05), quick=True, folder=tmp_path)
    assert told == {"trouble": "it had not ended after 0 s"}
    assert "== perf.idle --quick" in capfd.readouterr().out


def test_the_page_is_made_from_the_recorded_figures() -> None:
    """Nobody types a figure in; whoever changes the words writes the page anew: python -m perf.all --page."""
    known = json.loads(everything.RESULTS.read_text())
    drawn = [name for name in page_plots.TITLES if (ROOT / f"docs/images/performance-{name}.svg").exists()]
    assert (ROOT / "docs/performance.md").read_text() == page.text(known, drawn)


def test_unknown_programs_are_named() -> None:
    command = [sys.executable, "-m", "perf.all", "--only=idle,nothing"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert "no program is named nothing" in outcome.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [(123456.7, "123,457"), (99.94, "99.9"), (9.994, "9.99"), (0.012345, "0.0123"), (float("inf"), "never"), (0, "0")],
)
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert page.number(value) == text
