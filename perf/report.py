"""What a measurement found: a table for people, budgets met or missed, and a dated line per figure for the record."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

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
    """Figures by name, `(value, unit)`, and the budgets judged from them."""

    figures: dict[str, tuple[float, str]] = field(default_factory=dict)
    budgets: list[Budget] = field(default_factory=list)

    def figure(self, name: str, value: float, unit: str) -> float:
        self.figures[name] = (value, unit)
        return value

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


def revision() -> str:
    """The checkout's commit, with a `+` when files differ from it; `unknown` outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    outcome = subprocess.run(command, cwd=PERF, capture_output=True, text=True, check=False)
    return outcome.stdout.strip() or "unknown"


def machine() -> str:
    """Processor model and how many of its CPUs this process may use."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model} x{len(os.sched_getaffinity(0))}"
