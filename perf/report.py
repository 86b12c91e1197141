"""What a measurement found: a table for people, budgets met or missed, and a dated line per figure for the record."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perf.host import python_build
from perf.loadgen import PERF


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print(f"\n{title}")
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())


@dataclass(frozen=True)
class Budget:
    """A figure and its bound; `at_least` tells which side of the bound is good."""

    name: str
    value: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        relation = "at least" if self.at_least else "at most"
        mark = "met   " if self.met else "MISSED"
        return f"  {mark}  {self.name}: {self.value:,.4g} {self.unit} ({relation} {self.bound:,.4g})"


@dataclass
class Report:
    """Figures by name, `(value, unit)`, and the budgets judged from them.

    spreads: of figures that are medians, the smallest and the largest. curves: latency by share of calls, (share, µs).
    notes: what else belongs to the figures, such as how something was configured.
    """

    figures: dict[str, tuple[float, str]] = field(default_factory=dict)
    budgets: list[Budget] = field(default_factory=list)
    spreads: dict[str, tuple[float, float]] = field(default_factory=dict)
    curves: dict[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def figure(self, name: str, value: float, unit: str, spread: tuple[float, float] | None = None) -> float:
        self.figures[name] = (value, unit)
        if spread is not None:
            self.spreads[name] = spread
        return value

    def figure_of(self, name: str, values: Sequence[float], unit: str) -> float:
        """The median of these repetitions, with their spread."""
        return self.figure(name, median(values), unit, (min(values), max(values)))

    def budget(self, name: str, value: float, bound: float, unit: str, *, at_least: bool = False) -> None:
        self.budgets.append(Budget(name, value, bound, unit, at_least))

    def print_budgets(self) -> None:
        if self.budgets:
            print("\nBudgets and targets")
        for budget in self.budgets:
            print(budget.line())

    def record(self, program: str) -> Path:
        """Appends a line per figure to perf/results/PROGRAM.tsv: time, revision, machine, figure, value, unit."""
        path = PERF / "results" / f"{program}.tsv"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
        lines = [
            "\t".join((now, revision(), machine(), name, f"{value:.6g}", unit))
            for name, (value, unit) in self.figures.items()
        ]
        with path.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return path

    def as_json(self, program: str, failures: int) -> dict[str, Any]:
        return {
            "program": program, "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"), "revision": revision(),
            "machine": machine(), "versions": versions(), "command": command(),
            "failures": failures,
            "figures": {
                name: {"value": value, "unit": unit, **({"spread": self.spreads[name]} if name in self.spreads else {})}
                for name, (value, unit) in self.figures.items()
            },
            "targets": [{**asdict(budget), "met": budget.met} for budget in self.budgets],
            "curves": self.curves, "notes": self.notes,
        }  # fmt: skip

    def write_json(self, path: Path, program: str, failures: int) -> None:
        """Everything that was found, with machine, versions and command; see `as_json`."""
        path.write_text(json.dumps(self.as_json(program, failures), indent=1) + "\n")


def command() -> str:
    """What was typed after `python`, but for where the JSON goes."""
    return shlex.join(word for word in sys.orig_argv[1:] if not word.startswith("--json"))


def versions() -> dict[str, str]:
    """Of what the figures depend on beside the code itself."""
    found = {"Python": python_build(), "Linux": platform.release().partition("-")[0]}
    for package in ("tensorflow", "numpy", "pyzmq", "uvloop", "grpcio"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The checkout's commit, with a `+` when files differ from it; `unknown` outside a repository.

    Not those that the programs write themselves: their figures would have a `+` from the second one on.
    """
    described, changed = (
        subprocess.run(["git", *words], cwd=PERF.parent, capture_output=True, text=True, check=False).stdout.strip()
        for words in (
            ("describe", "--always", "--abbrev=12"),
            ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!perf/results", ":!docs"),
        )
    )
    return f"{described}{'+' if changed else ''}" if described else "unknown"


def machine() -> str:
    """Processor model and how many of its CPUs this process may use."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model} x{len(os.sched_getaffinity(0))}"
