"""docs/performance.md is made from figures: with spread, command and machine; missed targets and what was not measured
are said plainly. And perf/all.py names its mistakes. With made-up figures; nothing is measured."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf import all as everything
from perf import loadgen, models, page, page_plots, page_texts
from perf.loadgen import LoadError
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
    plots = page_plots.found(known["programs"], ROOT / "docs/images")
    assert (ROOT / "docs/performance.md").read_text() == page.text(known, *plots)


def test_nobody_plans_with_figures_that_the_page_has_others_of() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    assert re.findall(r"\d µs|\d (?:gRPC )?requests|\d REST ones|\d a second", text) == []
    assert "performance.md#" in text


def test_plots_of_other_figures_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib: those of these very figures stay, others are said to be missing."""
    monkeypatch.setattr(page_plots, "pyplot", lambda: None)
    known = results()
    (tmp_path / "images").mkdir()
    plot = tmp_path / "images" / "performance-throughput.svg"
    plot.write_text("<svg/>\n" + page_plots.mark(known["programs"]["end_to_end"]["figures"]))
    assert "](images/performance-throughput.svg)" in page.write(known, tmp_path).read_text()
    known["programs"]["end_to_end"]["figures"]["mlp grpc 1 in flight rate"]["value"] *= 10
    text = page.write(known, tmp_path).read_text()
    assert "performance-throughput.svg" not in text
    assert "*Left out, as it was drawn from other figures: Throughput against latency" in section(text, "End to end")
    plot.unlink()
    assert "Left out" not in page.write(known, tmp_path).read_text()


def others(failed: float | None) -> dict[str, Any]:
    """Of compare_servers, as a record without that figure or with it."""
    report = Report()
    for name in ("ringserve, REST", "Robyn"):
        report.figure(f"{name} 128 in flight rate", 1000.0, "requests/s")
        if failed is not None:
            report.figure(f"{name} failed", failed, "calls")
    return report.as_json("compare_servers", 0)


def test_failed_calls_of_others_are_told() -> None:
    assert "| Robyn | 1,000 | 987,654 |" in page.comparison(others(987654))
    assert "| Robyn | 1,000 | 0 |" in page.comparison(others(0))
    assert "| Robyn | 1,000 | – |" in page.comparison(others(None))
    assert "|  | 128: requests/s | failed calls |" in page.comparison(others(None))


def test_how_full_the_models_machines_are_is_said() -> None:
    result = Report()
    result.figure("predicted 4 cores", 1000.0, "requests/s")
    told = page.scaling(result.as_json("scaling", 0))
    assert any("busier than 70%, and clients elsewhere" in line for line in told)


def test_each_plot_is_of_one_program(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    programs = {**results()["programs"], "compare_servers": others(0)}
    figures = programs["compare_servers"]["figures"]
    for name in ("ringserve, REST", "Robyn"):
        for figure in ("rate", "latency p99"):
            figures[f"{name} 32 in flight {figure}"] = {"value": 1000.0, "unit": ""}
        figures[f"{name} 128 in flight latency p99"] = {"value": 1000.0, "unit": ""}
    assert page_plots.draw(programs, tmp_path) == ["throughput", "throughput-others"]
    assert page_plots.found(programs, tmp_path) == (["throughput", "throughput-others"], [])
    assert "Robyn" not in (tmp_path / "performance-throughput.svg").read_text()
    assert "Robyn" in (tmp_path / "performance-throughput-others.svg").read_text()


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """perf.all as it is started, with results and page in this folder."""
    monkeypatch.setattr(everything, "RESULTS", tmp_path / "performance.json")
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(loadgen, "build", lambda: None)
    monkeypatch.setattr(models, "prepared", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["all", "--only=idle,many"])
    return tmp_path


def test_what_cannot_be_built_is_told(unmeasured: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def build() -> None:
        raise LoadError("it needs a C compiler")

    monkeypatch.setattr(loadgen, "build", build)
    assert everything.main() == 1
    assert capsys.readouterr().err == "it needs a C compiler\n"


def test_ctrl_c_ends_it_and_keeps_what_was_measured(unmeasured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(program: everything.Program, *_: object) -> dict[str, Any]:
        if program.name == "many":
            raise KeyboardInterrupt
        return {**Report().as_json(program.name, 0)}

    monkeypatch.setattr(everything, "run", run)
    assert everything.main() == 130
    assert list(json.loads((unmeasured / "performance.json").read_text())["programs"]) == ["idle"]


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
