"""One load on one server, measured again and again: rates, latencies, what each process spent, and who else was there.

All programs of this folder that drive a server measure through `measure`, so that their figures mean the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from perf import loadgen, processes
from perf.loadgen import Figures, Load, LoadError
from perf.report import median
from perf.servers import Child


@dataclass
class Series:
    """The repetitions of one load on one server. others_cpus: CPUs that neither the server nor the generator used;
    steal_cpus: of these, those that the host gave to other guests."""

    runs: list[Figures] = field(default_factory=list)
    cpu_us: list[dict[str, float]] = field(default_factory=list)
    others_cpus: list[float] = field(default_factory=list)
    steal_cpus: list[float] = field(default_factory=list)

    def rates(self) -> list[float]:
        return [run.calls_per_second for run in self.runs]

    def rate(self) -> float:
        return median(self.rates())

    def latencies_us(self, quantile: str) -> list[float]:
        return [getattr(run.latency_us, quantile) for run in self.runs]

    def latency_us(self, quantile: str) -> float:
        return median(self.latencies_us(quantile))

    def cpu(self, role: str) -> float:
        """µs per request."""
        return median(self.cpus(role))

    def cpus(self, role: str) -> list[float]:
        return [spent.get(role, 0.0) for spent in self.cpu_us]

    def roles(self) -> set[str]:
        return {role for spent in self.cpu_us for role in spent}

    def failures(self) -> int:
        return sum(run.failures for run in self.runs)

    def curve(self) -> Sequence[tuple[float, float]]:
        """Latency by share of calls, of the repetition whose p99 is the middle one."""
        return sorted(self.runs, key=lambda run: run.latency_us.p99)[len(self.runs) // 2].latency_curve_us


def found_rate(capacity: float) -> float:
    """A capacity that open loops take their rates from: one of nothing would make closed ones of them.

    Raises LoadError when no call ended within the window, or windows, that were to find it.
    """
    if capacity <= 0:
        raise LoadError("there is no capacity: no call was answered within the window that was to find it")
    return capacity


def measure(server: Child, load: Load, series: Series) -> None:
    """One repetition: the load's figures, and what each process of the server spent meanwhile."""
    samples: list[tuple[list[processes.Usage], float, float]] = []

    def sample() -> None:
        samples.append((server.usages(), processes.machine_busy_s(), processes.machine_steal_s()))

    figures = loadgen.run(load, at_start=sample, at_end=sample)
    (before, busy_before_s, steal_before_s), (after, busy_after_s, steal_after_s) = samples
    spent = processes.cpu_between(before, after)
    ours_s = sum(spent.values()) + figures.cpu_us_per_call * figures.calls / 1e6
    series.others_cpus.append(max((busy_after_s - busy_before_s - ours_s) / figures.seconds, 0.0))
    series.steal_cpus.append((steal_after_s - steal_before_s) / figures.seconds)
    cpu_us = {role: seconds / max(figures.calls, 1) * 1e6 for role, seconds in spent.items()}
    series.runs.append(figures)
    series.cpu_us.append({**cpu_us, "generator": figures.cpu_us_per_call})
    for kind, example in figures.examples.items():
        print(f"  FAILED {figures.failures_by_kind[kind]} x {kind}, for example: {example}", file=sys.stderr)
