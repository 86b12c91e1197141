"""Does anyone notice a reload? A model under an open load while another comes and goes, and while it switches versions.

    python -m perf.reload                   quiet, other, quiet, switches; --runs times (about eight minutes)
    python -m perf.reload --quick           small and short: does it work
    python -m perf.reload --reloads 200     only loads and unloads, as fast as it goes: is the memory really returned
    python -m perf.reload --record          also appends a line per figure to perf/results/reload.tsv

Model A is the MLP at half of what the server can answer (measured first, closed loop; or --rate): Poisson arrivals that
wait for nobody, latency from when each call should have been sent. Meanwhile
  other: model B, 300 MB, is added and removed over REST (PUT and DELETE below /ringserve/v1/models/) without a pause;
  switches: every 20 s a new version of A appears in its base path. Versions have different weights, so that an answer
  with the number of one and the values of the other is seen as wrong.
Each is compared with the quiet run before it. Every answer is checked; so is model B after each load. Memory of all
processes is sampled all the time. Tables go to --output, with a plot where matplotlib is installed (the extra `perf`).
Exit status: 1 if any call failed or was answered wrongly, 0 otherwise, targets met or not (`--strict`: 1 if missed).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from perf import churn, loadgen, models, processes, reload_plot, sampling
from perf.changes import ComingAndGoing, Event, Repeated, Versions
from perf.loadgen import Exchange, Figures, Load
from perf.program import add_server_options, at_least_one, run_program, server_flags
from perf.report import Report, median, print_table
from perf.series import found_rate
from perf.servers import Ringserve

KINDS = ("quiet", "other", "switches")
#: Of the open loop's calls in flight; a server that stalls for longer than this lasts is seen in `held back`.
IN_FLIGHT_MAX = 4000
CONNECTIONS = 4


@dataclass(frozen=True)
class Plan:
    """seconds, and which models. rate: calls a second on A, 0: `share` of what the server can do."""

    runs: int
    duration_s: float
    every_s: float
    rate: float
    share: float
    other: str
    sample_s: float
    flags: tuple[str, ...]

    @property
    def switches(self) -> int:
        """How many may begin in one run, the one that begins as the window closes included."""
        return int(self.duration_s / self.every_s) + 2


@dataclass(frozen=True)
class Run:
    """One window of A's load, and what happened in it."""

    kind: str
    figures: Figures
    events: Sequence[Event]
    others_cpus: float
    core_time: dict[str, processes.CoreTime]

    @property
    def from_s(self) -> float:
        return self.figures.window_from_s

    @property
    def until_s(self) -> float:
        return self.from_s + self.figures.seconds

    @property
    def wrong(self) -> int:
        return self.figures.failures_by_kind.get("value", 0)

    def changes(self, what: str) -> list[Event]:
        """Those that ended inside the window."""
        return [one for one in self.events if one.what == what and one.at_s + one.seconds <= self.until_s]


@dataclass
class Course:
    """All of the measurement."""

    rate: float
    runs: list[Run] = field(default_factory=list)
    samples: Sequence[sampling.Sample] = ()

    def of(self, kind: str) -> list[Run]:
        return [run for run in self.runs if run.kind == kind]

    def pairs(self, kind: str) -> list[tuple[Run, Run]]:
        """(the quiet run before, that run)"""
        return [(self.runs[index - 1], run) for index, run in enumerate(self.runs) if run.kind == kind]


def capacity(server: Ringserve, exchanges: Sequence[Exchange], seconds: float) -> float:
    """Calls a second, closed loop with 128 in flight."""
    load = Load(server.port, exchanges, connections=CONNECTIONS, in_flight=128, warmup_s=1.0, duration_s=seconds)
    return found_rate(loadgen.run(load).calls_per_second)


def measure(server: Ringserve, load: Load, kind: str, change: Callable[[], None] | None, events: list[Event],
            every_s: float) -> Run:  # fmt: skip
    """One window; changes begin with it."""
    busy: list[tuple[float, float]] = []
    threads: list[processes.ThreadTimes] = []
    seen = len(events)
    repeated = Repeated(change, every_s) if change is not None else None

    def at_edge() -> None:
        busy.append((processes.machine_busy_s(), processes.family_cpu_s(server.session) + time.process_time()))
        threads.append(processes.thread_times(server.session))
        if repeated is not None:
            repeated.start() if len(busy) == 1 else repeated.end()

    with repeated or nullcontext():
        figures = loadgen.run(load, at_start=at_edge, at_end=at_edge)
    (busy_from_s, ours_from_s), (busy_until_s, ours_until_s) = busy
    ours_s = ours_until_s - ours_from_s + figures.cpu_us_per_call * figures.calls / 1e6
    others = max(busy_until_s - busy_from_s - ours_s, 0.0) / figures.seconds
    for failure, example in figures.examples.items():
        count = figures.failures_by_kind[failure]
        print(f"  FAILED in {kind}: {count} x {failure}, for example: {example}", file=sys.stderr)
    return Run(kind, figures, tuple(events[seen:]), others, processes.core_time(*threads))


def run_course(plan: Plan, folder: Path) -> Course:
    chosen = models.prepared("mlp", "mlp_other", plan.other)
    versions = Versions(folder / "a", (chosen["mlp"], chosen["mlp_other"]))
    with ExitStack() as stack:
        server = stack.enter_context(Ringserve("mlp", versions.base_path, plan.flags))
        server.wait_ready(chosen["mlp"].exchanges[0])
        other = ComingAndGoing(server, chosen[plan.other])
        rate = plan.rate or plan.share * capacity(server, versions.exchanges(versions.newest), 3.0)
        print(f"load on A: {rate:,.0f} calls a second; each run {plan.duration_s:g} s, {plan.runs} of each kind")
        other.once()  # page cache, and what any first load costs
        course = Course(rate)
        sampler = stack.enter_context(sampling.Sampler(server.session, plan.sample_s))
        for _ in range(plan.runs):
            for kind in ("quiet", "other", "quiet", "switches"):
                last = versions.newest + (plan.switches if kind == "switches" else 0)
                load = Load(
                    server.port, versions.exchanges(last), connections=CONNECTIONS, in_flight=IN_FLIGHT_MAX,
                    rate=rate, tick_us=200.0, slice_ms=100.0, warmup_s=min(2.0, plan.duration_s / 2),
                    duration_s=plan.duration_s, errors_allowed=True, extra=[f"--seed={len(course.runs) + 1}"],
                )  # fmt: skip
                change, events, every_s = None, list[Event](), 0.0
                if kind == "other":
                    change, events = other.once, other.events
                elif kind == "switches":
                    change, events, every_s = lambda: versions.switch(server), versions.events, plan.every_s
                course.runs.append(measure(server, load, kind, change, events, every_s))
                server.settle()
        course.samples = sampler.samples
    return course


# ------------------------------------------------------------------------------------------------------------ telling


def print_course(course: Course, report: Report) -> None:
    header = ["", "calls/s", "p50 µs", "p99", "p99.9", "max", "failed", "wrong", "held back", "loads", "switches",
              "others' CPUs"]  # fmt: skip
    rows = []
    for run in course.runs:
        latency = run.figures.latency_us
        rows.append([
            run.kind, f"{run.figures.calls_per_second:,.0f}", f"{latency.p50:,.0f}", f"{latency.p99:,.0f}",
            f"{latency.p99_9:,.0f}", f"{latency.max:,.0f}", str(run.figures.failures - run.wrong), str(run.wrong),
            str(run.figures.held_back), str(len(run.changes("load"))), str(len(run.changes("switch"))),
            f"{run.others_cpus:.2f}",
        ])  # fmt: skip
    print_table("Latency of A, from when each call should have been sent", header, rows)
    report.figure("rate", course.rate, "requests/s")
    for kind in KINDS:
        for quantile in ("p50", "p99", "p99_9", "max"):
            values = [getattr(run.figures.latency_us, quantile) for run in course.of(kind)]
            report.figure(f"{kind} latency {quantile}", median(values), "us")
        report.figure(f"{kind} others", median(run.others_cpus for run in course.of(kind)), "CPUs")
    rows = []
    for kind in KINDS[1:]:
        row = [kind]
        for quantile in ("p50", "p99", "p99_9"):
            ratios = [
                getattr(run.figures.latency_us, quantile) / max(getattr(quiet.figures.latency_us, quantile), 1e-9)
                for quiet, run in course.pairs(kind)
            ]
            ratio = report.figure(f"{kind} {quantile} to quiet", median(ratios), "")
            row.append(f"{ratio:.2f}")
            if quantile == "p99":
                report.budget(f"{kind}: p99 of A, times the quiet run before it", ratio, 1.3, "")
        rows.append(row)
    print_table("Ratio to the quiet run before it", ["", "p50", "p99", "p99.9"], rows)
    for kind, what in (("other", "load"), ("other", "unload"), ("switches", "switch")):
        done = [one.seconds for run in course.of(kind) for one in run.changes(what)]
        report.figure(f"{kind} {what}s", len(done), "")
        if done:
            report.figure(f"{kind} {what} time", median(done), "s")
    print_answers(course)
    print_core_time(course, report)
    failed = sum(run.figures.failures for run in course.runs)
    report.budget("failed or wrong calls", report.figure("failed", failed, "calls"), 0, "calls")


def print_answers(course: Course) -> None:
    rows = [
        [str(len(run.changes("switch"))), ", ".join(f"{count:,}" for count in run.figures.met)]
        for run in course.of("switches")
    ]
    print_table("Switches of A, and how many answers each version gave", ["switches", "answers"], rows)


def print_core_time(course: Course, report: Report) -> None:
    """A broker that waits for a core lets every request wait."""
    rows = []
    for kind in KINDS:
        row = [kind]
        for role in ("broker", "frontend"):  # workers are replaced, and nobody waits for a loading one
            found = [(run.core_time.get(role, processes.CoreTime()), run.figures.seconds) for run in course.of(kind)]
            waits = report.figure(f"{kind} {role} waits", median(1e3 * one.wait_s / s for one, s in found), "ms/s")
            row += [f"{median(1e3 * one.run_s / s for one, s in found):,.0f}", f"{waits:,.0f}"]
        rows.append(row)
    header = ["", "broker runs", "waits", "frontend runs", "waits"]
    print_table("Threads' time on a core, and ready without one, ms per second", header, rows)


def print_memory(course: Course, report: Report) -> None:
    rows = []
    for kind in KINDS:
        samples = [one for run in course.of(kind) for one in course.samples if run.from_s <= one.at_s < run.until_s]
        if not samples:
            continue
        total = [one.total_mib for one in samples]
        roles = [max(one.by_role.get(role, 0.0) for one in samples) for role in sampling.ROLES]
        report.figure(f"{kind} memory median", median(total), "MiB")
        report.figure(f"{kind} memory max", max(total), "MiB")
        cost_ms = median(one.cost_ms for one in samples)
        rows.append([kind, str(len(samples)), f"{min(total):,.0f}", f"{median(total):,.0f}", f"{max(total):,.0f}",
                     *(f"{v:,.0f}" for v in roles), f"{cost_ms:.1f}"])  # fmt: skip
    header = ["", "samples", "least", "median", "most", *(f"most: {role}" for role in sampling.ROLES), "ms a sample"]
    print_table("Memory of all processes (PSS), MiB", header, rows)


def write_tables(course: Course, output: Path) -> None:
    """memory.tsv, slices.tsv and events.tsv; seconds from the start of the first run."""
    from_s = course.runs[0].from_s
    sampling.write_tsv(output / "memory.tsv", course.samples, from_s)
    lines = ["seconds\trun\tgood\tfailed\tp50 us\tp99 us\tmax us"]
    events = ["seconds\twhat\ttook s"]
    for run in course.runs:
        slices = run.figures.slices
        columns = zip(slices.good, slices.failed, slices.p50, slices.p99, slices.max, strict=True)
        for index, values in enumerate(columns):
            at_s = run.from_s - from_s + index * slices.ms / 1e3
            lines.append("\t".join((f"{at_s:.3f}", run.kind, *map(str, values))))
        events += [f"{one.at_s - from_s:.3f}\t{one.what}\t{one.seconds:.3f}" for one in run.events]
    (output / "slices.tsv").write_text("\n".join(lines) + "\n")
    (output / "events.tsv").write_text("\n".join(events) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of 2 s of each kind, and a model B of 8 MB")
    parser.add_argument("--runs", type=at_least_one, default=2, help="of each kind, interleaved")
    parser.add_argument("--duration_s", type=float, default=60.0, help="of each run")
    parser.add_argument("--every", type=float, default=20.0, help="seconds from switch to switch of A's version")
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second on A; 0: --share of the capacity")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--megabytes", type=at_least_one, default=300, help="of model B")
    parser.add_argument("--sample_s", type=float, default=2.0, help="from memory sample to memory sample")
    parser.add_argument("--reloads", type=int, default=0, help="only load and unload B so many times")
    parser.add_argument("--by", choices=sorted(churn.WAYS), default="rest", help="how --reloads reloads B")
    add_server_options(parser, "reload")
    options = parser.parse_args()
    flags = server_flags(options)
    if options.quick:
        options.runs, options.duration_s, options.every, options.megabytes = 1, 2.0, 1.0, 8
        options.rate, options.sample_s = options.rate or 300.0, 0.2
        flags = (*flags, "--settle_ms", "0")
    other = f"dense-{options.megabytes}"
    report = Report()

    def program() -> int:
        loadgen.build()
        options.output.mkdir(parents=True, exist_ok=True)
        if options.reloads:
            return churn.run(options.reloads, options.by, other, flags, options.rate or 200.0, options.output, report)
        plan = Plan(options.runs, options.duration_s, options.every, options.rate, options.share, other,
                    options.sample_s, flags)  # fmt: skip
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="perf-reload-") as folder:
            course = run_course(plan, Path(folder))
        print_course(course, report)
        print_memory(course, report)
        write_tables(course, options.output)
        plotted = reload_plot.draw(course, options.output / "reload.png")
        print(f"\n{time.monotonic() - began_s:.0f} s; tables{' and plot' if plotted else ''} in {options.output}")
        return sum(run.figures.failures for run in course.runs)

    return run_program("reload", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
