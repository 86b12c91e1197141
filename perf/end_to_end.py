"""The whole server under load, beside two baselines in the same run.

    python -m perf.end_to_end                    everything (about four minutes)
    python -m perf.end_to_end --quick            shorter runs, one repetition: does it work, and roughly how fast
    python -m perf.end_to_end --only mlp,conv    parts: mlp, rest, conv, each with its baselines; or baselines alone
    python -m perf.end_to_end --record           also appends a line per figure to perf/results/end_to_end.tsv

Starts `ringserve serve` with its defaults, drives it with the C load generator on the same cores, closed loop, and
prints rates, latencies, the CPU time that each process spends per request, and memory. Repetitions of server and
baselines are interleaved; figures are medians over them. Every answer is checked for status and compared with
TensorFlow's own.
Exit status: 1 if any call failed, 0 otherwise, budgets met or not (`--strict`: 1 if one is missed).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the checkout's root takes this folder's place
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from perf import loadgen, models, processes
from perf.echo import Echo
from perf.echo import available as echo_available
from perf.echo import exchanges as echoed
from perf.loadgen import Exchange, Load
from perf.program import add_json_option, at_least_one, run_program
from perf.report import Report, median, print_table
from perf.series import Series, measure
from perf.servers import Naive, RawLoops, Ringserve

IN_FLIGHT = (1, 8, 32, 128)
CONNECTIONS_MAX = 4
CONV_IN_FLIGHT = (1, 32)
RAW_ROWS = {"mlp": (1, 8, 32, 128), "conv": (1, 4, 8, 16, 32)}
PARTS = ("mlp", "rest", "conv")  # `baselines`: the baselines of mlp without the server


@dataclass(frozen=True)
class Plan:
    """How long to measure, and how often."""

    runs: int
    duration_s: float
    warmup_s: float
    connections: int
    check_every: int

    def load(self, port: int, exchanges: Sequence[Exchange], in_flight: int, *, rest: str = "",
             compare: str | None = None) -> Load:  # fmt: skip
        # More connections than in-flight calls cannot be; and REST holds one connection per call.
        connections = min(in_flight, self.connections)
        load = Load(port, exchanges, connections=connections, in_flight=in_flight, warmup_s=self.warmup_s,
                    duration_s=self.duration_s, check_every=self.check_every, errors_allowed=True,
                    compare=compare)  # fmt: skip
        return load if not rest else Load(**{**load.__dict__, "rest": True, "path": rest})


ROLE_ORDER = ("supervisor", "broker", "frontend", "pool", "worker")


def print_series(title: str, series: dict[str, Series], report: Report, key: str) -> None:
    header = ["", "req/s", "p50 µs", "p90", "p99", "p99.9", "max", "failed", "compared", "others' CPUs"]
    rows = []
    for name, one in series.items():
        quantiles = {q: one.latency_us(q) for q in ("p50", "p90", "p99", "p99_9", "max")}
        report.figure_of(f"{key} {name} rate", one.rates(), "requests/s")
        for quantile in ("p50", "p99", "p99_9"):
            report.figure_of(f"{key} {name} latency {quantile}", one.latencies_us(quantile), "us")
        report.curves[f"{key} {name}"] = one.curve()
        compared = sum(run.compared for run in one.runs)
        # CPUs that were busy with neither server nor generator: above a tenth, the figures are the neighbours' too
        others = report.figure_of(f"{key} {name} others", one.others_cpus, "CPUs")
        tail = [str(one.failures()), f"{compared:,}", f"{others:.2f}"]
        rows.append([name, f"{one.rate():,.0f}", *(f"{v:,.0f}" for v in quantiles.values()), *tail])
    print_table(f"{title}: rate and latency", header, rows)
    found = {role for one in series.values() for role in one.roles()} - {"generator"}
    roles = [role for role in ROLE_ORDER if role in found] + sorted(found - set(ROLE_ORDER)) + ["generator"]
    rows = []
    for name, one in series.items():
        for role in roles:
            report.figure_of(f"{key} {name} cpu {role}", one.cpus(role), "us/request")
        total = sum(one.cpu(role) for role in roles)
        rows.append([name, *(f"{one.cpu(role):.1f}" for role in roles), f"{total:.1f}"])
    print_table(f"{title}: CPU µs per request, all processes of a role together", ["", *roles, "sum"], rows)


def print_memory(server: Ringserve, report: Report, key: str) -> None:
    memories = processes.memories(server.session)
    rows = [[m.role, str(m.pid), f"{m.pss_mib:.1f}", f"{m.private_mib:.1f}", f"{m.shm_mib:.1f}"] for m in memories]
    rows.append(
        [
            "sum",
            "",
            *(f"{sum(v):.1f}" for v in zip(*((m.pss_mib, m.private_mib, m.shm_mib) for m in memories), strict=True)),
        ]
    )
    print_table(f"{key}: memory, MiB", ["process", "pid", "PSS", "private", "rings and weights, part of PSS"], rows)
    report.figure(f"{key} memory pss", sum(m.pss_mib for m in memories), "MiB")
    for role in ("frontend", "broker", "worker"):
        private = [m.private_mib for m in memories if m.role == role]
        if private:
            report.figure(f"{key} memory private {role}", max(private), "MiB")
            if key == "mlp":  # whose working memory is next to nothing; a worker's budget is what comes on top of it
                report.budget(f"{role}: private memory, the largest", max(private), 60.0, "MiB")


def print_raw(raw: list[dict[int, float]], title: str, report: Report, key: str) -> dict[int, float]:
    """The median rows per second of each batch size."""
    rates = {rows: median(run[rows] for run in raw) for rows in raw[0]}
    for rows in rates:
        report.figure_of(f"{key} raw loop {rows} rows", [run[rows] for run in raw], "rows/s")
    table = [[str(rows), f"{rate:,.0f}", f"{1e6 / rate:,.2f}"] for rows, rate in rates.items()]
    print_table(title, ["rows a call", "rows/s", "µs a row"], table)
    return rates


# ------------------------------------------------------------------------------------------------------------- parts


def part_mlp(plan: Plan, report: Report) -> int:
    """Returns how many calls failed."""
    model = models.prepared()["mlp"]
    ours = {f"{n} in flight": Series() for n in IN_FLIGHT}
    naive = {f"{n} in flight": Series() for n in IN_FLIGHT}
    bare = {f"{n} in flight": Series() for n in IN_FLIGHT}
    raw: list[dict[int, float]] = []
    with ExitStack() as stack:
        echo = stack.enter_context(Echo()) if echo_available() else None
        if echo is not None:
            echo.wait_ready(model.exchanges[0])
        server = stack.enter_context(Ringserve(model.name, model.base_path))
        server.wait_ready(model.exchanges[0])
        other = stack.enter_context(Naive(model.version_path))
        other.wait_ready(model.exchanges[0])
        loops = stack.enter_context(
            RawLoops(model.version_path, RAW_ROWS["mlp"], plan.duration_s / 4, usable_cpus()[:1])
        )
        for _ in range(plan.runs):
            for in_flight in IN_FLIGHT:
                name = f"{in_flight} in flight"
                measure(server, plan.load(server.port, model.exchanges, in_flight), ours[name])
                measure(other, plan.load(other.port, model.exchanges, in_flight), naive[name])
                if echo is not None:
                    measure(echo, plan.load(echo.port, echoed(model.exchanges), in_flight, compare="exact"), bare[name])
            raw.append(loops.measure())
        print_series("ringserve, MLP, gRPC", ours, report, "mlp grpc")
        print_memory(server, report, "mlp")
        recovery_s = server.kill_workers(model.exchanges[0])
    print_series("Baseline: naive grpc.aio server, MLP", naive, report, "mlp naive")
    rates = print_raw(raw, "Baseline: raw loop of the execution path, one pinned process", report, "mlp")
    ratios = []
    for name, one in ours.items():
        ratio = report.figure(f"mlp grpc {name} ratio to naive", one.rate() / naive[name].rate(), "")
        ratios.append([name, f"{ratio:.1f}", f"{100 * one.rate() / max(rates.values()):.0f} %"])
    print_table("Ratios", ["", "to the naive server", "of the best raw loop of one core"], ratios)
    judge_mlp(report, ours, naive, rates, server.first_answer_s, recovery_s)
    if echo is not None:
        print_series("Baseline: bare C++ echo of the same requests", bare, report, "mlp echo")
        for name, least in (("128 in flight", 1.5), ("32 in flight", 0.8)):
            ratio = report.figure(f"mlp grpc {name} ratio to echo", ours[name].rate() / bare[name].rate(), "")
            report.budget(f"{name}, times a bare C++ echo server", ratio, least, "", at_least=True)
    return sum(one.failures() for one in (*ours.values(), *naive.values(), *bare.values()))


def judge_mlp(report: Report, ours: dict[str, Series], naive: dict[str, Series], raw: dict[int, float],
              first_answer_s: float, recovery_s: float) -> None:  # fmt: skip
    one, some, many = (ours[f"{n} in flight"] for n in (1, 32, 128))
    report.budget("128 in flight", many.rate(), 60_000, "requests/s", at_least=True)
    report.budget(
        "128 in flight, times the naive server", many.rate() / naive["128 in flight"].rate(), 20, "", at_least=True
    )
    report.budget("32 in flight", some.rate(), 26_000, "requests/s", at_least=True)
    report.budget("1 in flight, median", one.latency_us("p50"), 250, "µs")
    report.budget("1 in flight, p99", one.latency_us("p99"), 600, "µs")
    report.budget(
        "1 in flight, median beyond TensorFlow's time for a row", one.latency_us("p50") - 1e6 / raw[1], 200, "µs"
    )
    report.budget("frontend, CPU per request at 128 in flight", many.cpu("frontend"), 30, "µs")
    report.budget("broker, CPU per request at 128 in flight", many.cpu("broker"), 6, "µs")
    # How many rows a batch really had is not seen from outside; 32 of 128 in flight is what to expect.
    report.budget(
        "worker, CPU per request at 128 in flight beyond TensorFlow's time (raw loop, 32 rows)",
        many.cpu("worker") - 1e6 / raw[32], 5, "µs",
    )  # fmt: skip
    report.budget("start to first answer", report.figure("start to first answer", first_answer_s, "s"), 8, "s")
    report.budget("all workers killed, next answer", report.figure("recovery", recovery_s, "s"), 1, "s")


def part_baselines(plan: Plan, report: Report) -> int:
    model = models.prepared()["mlp"]
    naive = {f"{n} in flight": Series() for n in IN_FLIGHT}
    raw: list[dict[int, float]] = []
    with ExitStack() as stack:
        other = stack.enter_context(Naive(model.version_path))
        other.wait_ready(model.exchanges[0])
        loops = stack.enter_context(
            RawLoops(model.version_path, RAW_ROWS["mlp"], plan.duration_s / 4, usable_cpus()[:1])
        )
        for _ in range(plan.runs):
            for in_flight in IN_FLIGHT:
                measure(other, plan.load(other.port, model.exchanges, in_flight), naive[f"{in_flight} in flight"])
            raw.append(loops.measure())
    print_series("Baseline: naive grpc.aio server, MLP", naive, report, "mlp naive")
    print_raw(raw, "Baseline: raw loop of the execution path, one pinned process", report, "mlp")
    return sum(one.failures() for one in naive.values())


def part_rest(plan: Plan, report: Report) -> int:
    model = models.prepared()["mlp"]
    series = {f"{n} in flight": Series() for n in IN_FLIGHT}
    with Ringserve(model.name, model.base_path) as server:
        server.wait_ready(model.exchanges[0])
        server.wait_until(lambda: server.state() == "AVAILABLE", "GET /v1/models to say AVAILABLE")
        for _ in range(plan.runs):
            for in_flight in IN_FLIGHT:
                path = f"/v1/models/{model.name}:predict"
                measure(
                    server,
                    plan.load(server.rest_port, model.rest_exchanges, in_flight, rest=path),
                    series[f"{in_flight} in flight"],
                )
    print_series("ringserve, MLP, REST (16 KB of JSON)", series, report, "mlp rest")
    report.budget("REST, JSON, 128 in flight", series["128 in flight"].rate(), 15_000, "requests/s", at_least=True)
    return sum(one.failures() for one in series.values())


def part_conv(plan: Plan, report: Report) -> int:
    model = models.prepared()["conv"]
    series = {f"{n} in flight": Series() for n in CONV_IN_FLIGHT}
    raw: list[dict[int, float]] = []
    cpus = (usable_cpus() * 2)[:2]
    with ExitStack() as stack:
        server = stack.enter_context(Ringserve(model.name, model.base_path))
        server.wait_ready(model.exchanges[0])
        loops = stack.enter_context(RawLoops(model.version_path, RAW_ROWS["conv"], plan.duration_s / 2, cpus))
        for _ in range(plan.runs):
            for in_flight in CONV_IN_FLIGHT:
                measure(server, plan.load(server.port, model.exchanges, in_flight), series[f"{in_flight} in flight"])
            raw.append(loops.measure())
        print_series("ringserve, convolutions 96x96x3, gRPC", series, report, "conv grpc")
        print_memory(server, report, "conv")
    rates = print_raw(raw, "Baseline: raw loop, two pinned processes together", report, "conv")
    best = max(rates.values())
    share = report.figure("conv grpc share of raw", 100 * series["32 in flight"].rate() / best, "%")
    report.budget("convolutions, 32 in flight, share of two raw loops", share, 95, "%", at_least=True)
    raw_us = len(cpus) * 1e6 / rates[1]
    times = report.figure("conv grpc 1 in flight times raw", series["1 in flight"].latency_us("p50") / raw_us, "")
    report.budget("convolutions, 1 in flight, median times the raw call", times, 1.1, "")
    return sum(one.failures() for one in series.values())


def usable_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--quick", action="store_true", help="one repetition of 1.5 s")
    parser.add_argument("--runs", type=at_least_one, default=3, help="interleaved repetitions")
    parser.add_argument("--duration_s", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--connections", type=int, default=CONNECTIONS_MAX, help="gRPC connections, at most")
    parser.add_argument("--check_every", type=int, default=1, help="compare every so many answers' values")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--strict", action="store_true", help="exit status 1 when a budget is missed")
    add_json_option(parser)
    options = parser.parse_args()
    parts: dict[str, Callable[[Plan, Report], int]] = {
        "mlp": part_mlp, "rest": part_rest, "conv": part_conv, "baselines": part_baselines,
    }  # fmt: skip

    chosen = options.only.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(
            f"--only={options.only}: no part is named {', '.join(sorted(unknown))}; there are {', '.join(parts)}"
        )

    plan = Plan(options.runs, options.duration_s, 1.0, options.connections, options.check_every)
    if options.quick:
        plan = Plan(1, 1.5, 0.5, options.connections, options.check_every)
    report = Report()

    def program() -> int:
        loadgen.build()
        return sum(parts[part](plan, report) for part in parts if part in chosen)

    return run_program("end_to_end", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
