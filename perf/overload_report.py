"""What `overload.py` tells: goodput and refusals at each level, recovery, the targets; tables of the 100 ms pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.loadgen import Figures
from perf.report import Report, print_table

#: Failures that overload is allowed to cause.
REFUSED_CODES = ("8", "14")
LATE_CODE = "4"
GOODPUT_SHARE_MIN = 0.95
REFUSAL_MS_MAX = 5.0
#: Of the accepted calls: that their p99 is within the deadline says that no more than this part is late.
LATE_SHARE_MAX = 0.01
#: A recovery is over when so many pieces one after the other are as in quiet.
PIECES_IN_A_ROW = 3


def failed_otherwise(figures: Figures) -> int:
    """Calls of the whole run that were neither answered rightly nor refused nor late."""
    by_kind = {kind: count for kind, count in figures.failures_by_kind.items() if kind not in ("late", "grpc_status")}
    by_status = figures.failures_by_grpc_status
    return sum(by_kind.values()) + sum(n for code, n in by_status.items() if code not in (*REFUSED_CODES, LATE_CODE))


@dataclass(frozen=True)
class Level:
    """One window at `share` percent of the capacity. generator_cpus: what the load generator itself took."""

    share: int
    rate: float
    figures: Figures
    others_cpus: float
    generator_cpus: float

    @property
    def good(self) -> int:
        return self.figures.latency_us.count

    @property
    def goodput(self) -> float:
        return self.good / self.figures.seconds

    @property
    def refused(self) -> int:
        return self.figures.refused_us.count

    @property
    def late(self) -> int:
        """Sent, and not answered before the deadline."""
        return self.figures.late - self.figures.unsent

    @property
    def late_share(self) -> float:
        """Of the calls that the server accepted."""
        return self.late / max(self.good + self.late, 1)

    @property
    def failed(self) -> int:
        return failed_otherwise(self.figures)


@dataclass(frozen=True)
class Recovery:
    """Overload until `step_s` into the window, then half of the capacity. quiet: a run at half of it."""

    figures: Figures
    step_s: float
    quiet: Figures

    @property
    def quiet_us(self) -> float:
        """The p99 that 19 of 20 pieces of the quiet run do not exceed."""
        quantiles = sorted(self.quiet.slices.p99)
        return quantiles[int(0.95 * (len(quantiles) - 1))] if quantiles else 0.0

    @property
    def after_ms(self) -> float:
        """From the end of the overload to the first of PIECES_IN_A_ROW pieces as in quiet; infinite when none come."""
        slices = self.figures.slices
        first = round(self.step_s * 1e3 / slices.ms)
        as_quiet = [
            failed == 0 and p99 <= self.quiet_us
            for failed, p99 in zip(slices.failed[first:], slices.p99[first:], strict=True)
        ]
        for index in range(len(as_quiet) - PIECES_IN_A_ROW + 1):
            if all(as_quiet[index : index + PIECES_IN_A_ROW]):
                return index * slices.ms
        return float("inf")

    @property
    def failed(self) -> int:
        return failed_otherwise(self.figures)


def print_course(
    name: str, deadline_ms: float, capacity: float, levels: Sequence[Level], recovery: Recovery, report: Report
) -> None:
    peak = max(level.goodput for level in levels)
    report.figure(f"{name} capacity", capacity, "requests/s")
    report.figure(f"{name} peak goodput", peak, "requests/s")
    header = ["of capacity", "offered/s", "goodput/s", "of peak", "refused", "by code", "late", "unsent", "p50 ms",
              "p99",
              "p99.9", "refusal p50 ms", "p99", "failed", "generator CPUs", "others'"]  # fmt: skip
    rows = []
    for level in levels:
        figures, latency, refusal = level.figures, level.figures.latency_us, level.figures.refused_us
        due = max(figures.due, 1)
        codes = ", ".join(f"{code}: {n:,}" for code, n in figures.refused_by_grpc_status.items())
        rows.append([
            f"{level.share} %", f"{figures.due / figures.seconds:,.0f}", f"{level.goodput:,.0f}",
            f"{level.goodput / peak:.1%}", f"{level.refused / due:.1%}", codes or "-", f"{level.late / due:.2%}",
            f"{figures.unsent / due:.2%}", f"{latency.p50 / 1e3:.2f}", f"{latency.p99 / 1e3:.1f}",
            f"{latency.p99_9 / 1e3:.1f}", f"{refusal.p50 / 1e3:.2f}", f"{refusal.p99 / 1e3:.1f}", str(level.failed),
            f"{level.generator_cpus:.2f}", f"{level.others_cpus:.2f}",
        ])  # fmt: skip
        prefix = f"{name} {level.share}%"
        report.figure(f"{prefix} goodput", level.goodput, "requests/s")
        report.figure(f"{prefix} refused", level.refused / due, "")
        report.figure(f"{prefix} late", level.late / due, "")
        report.figure(f"{prefix} unsent", figures.unsent / due, "")
        for quantile in ("p50", "p99", "p99_9"):
            report.figure(f"{prefix} latency {quantile}", getattr(latency, quantile), "us")
        for quantile in ("p50", "p99"):
            report.figure(f"{prefix} refusal {quantile}", getattr(refusal, quantile), "us")
        report.figure(f"{prefix} others", level.others_cpus, "CPUs")
        for failure, example in figures.examples.items():
            if failure not in ("late", "grpc_status"):
                print(f"  FAILED at {level.share} %: {figures.failures_by_kind[failure]} x {failure}: {example}")
        if level.share == 200:
            report.budget(f"{name}: goodput at 200 %, of the peak", level.goodput / peak, GOODPUT_SHARE_MIN, "",
                          at_least=True)  # fmt: skip
        if level.share >= 100:
            report.budget(f"{name}: late at {level.share} %, of the accepted", level.late_share, LATE_SHARE_MAX, "")
        if level.refused:
            bound_us = REFUSAL_MS_MAX * 1e3
            report.budget(f"{name}: p99 of a refusal at {level.share} %", refusal.p99, bound_us, "us")
    title = f"{name}: Poisson arrivals, deadline {deadline_ms:g} ms; latency of the good from their intended start"
    print_table(title, header, rows)
    after_ms = report.figure(f"{name} recovery", recovery.after_ms, "ms")
    print(f"\n{name}: back to the quiet p99 of 100 ms ({recovery.quiet_us / 1e3:.1f} ms) {after_ms:,.0f} ms after the "
          "overload")  # fmt: skip
    report.budget(f"{name}: recovery after overload", after_ms, 100.0, "ms")


def write_tables(name: str, levels: Sequence[Level], recovery: Recovery, output: Path) -> None:
    """NAME_slices.tsv: every 100 ms of every window."""
    lines = ["share\tseconds\tgood\tfailed\tp50 us\tp99 us\tmax us"]
    runs = [*((f"{level.share} %", level.figures) for level in levels), ("recovery", recovery.figures)]
    for share, figures in runs:
        slices = figures.slices
        columns = zip(slices.good, slices.failed, slices.p50, slices.p99, slices.max, strict=True)
        for index, values in enumerate(columns):
            lines.append("\t".join((share, f"{index * slices.ms / 1e3:.3f}", *map(str, values))))
    (output / f"{name}_slices.tsv").write_text("\n".join(lines) + "\n")
