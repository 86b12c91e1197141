"""The server beside those that a user would choose instead: same model, same inputs, same generator, same cores.

    python -m perf.compare_servers                     all (about twelve minutes, and the installations before it)
    python -m perf.compare_servers --only mosec        one or several, by part of the name; `--list` tells the names
    python -m perf.compare_servers --quick             one short round of those that are installed quickest
    python -m perf.compare_servers --install           install what is missing, measure nothing

REST with JSON for all of them, the MLP, one row a request; and gRPC beside the grpc.aio server that a team writes
first. Each contestant is installed into an environment of its own (`perf/environments.py`), pinned, and tuned as its
documentation says (`perf/contestants.py`, `perf/peers/`). They run one after the other, in another order each round,
each alone with ours, which is idle meanwhile: closed loop with 1, 32 and 128 in flight, then an open loop with Poisson
arrivals at 70 % of what that contestant reached, and at once the same rate against ours. Every answer is checked. What
cannot be installed, or does not start, is said.

Exit status: 1 if a call of ours failed, or nothing could be measured; those of others are told in the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from perf import loadgen, models
from perf.contestants import CONTESTANTS, Contestant, PeerServer
from perf.environments import InstallError, installed_versions, python_of
from perf.loadgen import Exchange, Load, LoadError
from perf.models import PerfModel
from perf.program import add_server_options, at_least_one, run_program, server_flags
from perf.report import Report, print_table
from perf.series import Series, found_rate, measure
from perf.servers import Child, Naive, Ringserve, ServerError

IN_FLIGHT = (1, 32, 128)
SHARE = 0.7
OPEN_CONNECTIONS = 256  # REST, open loop: calls in flight at most
P99_RATIO_MAX = 1 / 3
OURS, NAIVE = "ringserve", "naive grpc.aio"
QUICK = ("FastAPI + uvicorn", "mosec")


@dataclass(frozen=True)
class Plan:
    rounds: int
    warmup_s: float
    duration_s: float


@dataclass
class Entry:
    """What was measured of one server. versions: of its packages. ours_at_rate: our server's open loop at its rate."""

    name: str
    tuning: str
    versions: str = ""
    rest: bool = True
    trouble: str = ""
    closed: dict[int, Series] = field(default_factory=lambda: {n: Series() for n in IN_FLIGHT})
    open: Series = field(default_factory=Series)
    ours_at_rate: Series = field(default_factory=Series)

    def failures(self) -> int:
        return sum(one.failures() for one in (*self.closed.values(), self.open))


@dataclass(frozen=True)
class Target:
    """A running server, how it is asked, and with what."""

    server: Child
    port: int
    path: str
    rest: bool
    exchanges: Sequence[Exchange]

    def load(self, plan: Plan, in_flight: int, rate: float = 0.0, seed: int = 1) -> Load:
        connections = in_flight if self.rest else min(in_flight, 4)
        extra = ["--reconnect", f"--seed={seed}"]  # a server may close a connection between calls
        return Load(self.port, self.exchanges, path=self.path, rest=self.rest, connections=connections,
                    in_flight=in_flight, rate=rate, warmup_s=plan.warmup_s, duration_s=plan.duration_s,
                    errors_allowed=True, extra=extra)  # fmt: skip


def close_loops(target: Target, entry: Entry, plan: Plan) -> float:
    """One repetition of each; returns the best rate, calls a second."""
    best = 0.0
    for in_flight, series in entry.closed.items():
        measure(target.server, target.load(plan, in_flight), series)
        best = max(best, series.rates()[-1])
    return best


def run_round(entry: Entry, target: Target, ours: Target, plan: Plan, seed: int) -> None:
    best = close_loops(target, entry, plan)
    rate, in_flight = SHARE * found_rate(best), OPEN_CONNECTIONS if target.rest else 20_000
    measure(target.server, target.load(plan, in_flight, rate, seed), entry.open)
    measure(ours.server, ours.load(plan, in_flight, rate, seed), entry.ours_at_rate)


def installed(contestant: Contestant, entry: Entry) -> Path | None:
    try:
        python = python_of(contestant.name.split()[0].lower(), contestant.requirements)
    except InstallError as error:
        entry.trouble = f"not installed: {error}"
        print(f"{contestant.name}: {entry.trouble}", file=sys.stderr)
        return None
    versions = installed_versions(python, contestant.packages)
    entry.versions = ", ".join(f"{package} {version}" for package, version in versions.items())
    return python


def run_contestant(contestant: Contestant, entry: Entry, python: Path, model: PerfModel, ours: Target, plan: Plan,
                   seed: int) -> None:  # fmt: skip
    try:
        with PeerServer(contestant, python, model.version_path) as server:
            server.wait_ready(model.rest_exchanges[0])
            run_round(entry, Target(server, server.port, contestant.path, True, model.rest_exchanges), ours, plan, seed)
    except (ServerError, LoadError) as error:
        entry.trouble = str(error).splitlines()[0]
        print(f"{contestant.name}: {error}", file=sys.stderr)


def run_naive(entry: Entry, model: PerfModel, ours: Target, plan: Plan, seed: int) -> None:
    with Naive(model.version_path) as server:
        server.wait_ready(model.exchanges[0])
        run_round(entry, Target(server, server.port, Load.path, False, model.exchanges), ours, plan, seed)


def run_rounds(chosen: Sequence[Contestant], naive: bool, plan: Plan, flags: Sequence[str]) -> list[Entry]:
    """Ours first, REST and gRPC, then the others as they were named."""
    model = models.prepared("mlp")["mlp"]
    entries = {each.name: Entry(each.name, each.tuning) for each in chosen}
    pythons = {each.name: installed(each, entries[each.name]) for each in chosen}
    rest = Entry(f"{OURS}, REST", "defaults")
    grpc = Entry(f"{OURS}, gRPC", "defaults", rest=False)
    by_hand = Entry(NAIVE, "1 process, asyncio", rest=False)
    with ExitStack() as stack:
        server = stack.enter_context(Ringserve(model.name, model.base_path, flags))
        server.wait_ready(model.exchanges[0])
        server.settle()
        path = f"/v1/models/{model.name}:predict"
        over_rest = Target(server, server.rest_port, path, True, model.rest_exchanges)
        over_grpc = Target(server, server.port, Load.path, False, model.exchanges)
        for turn in range(plan.rounds):
            close_loops(over_rest, rest, plan)
            close_loops(over_grpc, grpc, plan)
            if naive:
                run_naive(by_hand, model, over_grpc, plan, turn + 1)
            for contestant in chosen if turn % 2 == 0 else reversed(chosen):
                python, entry = pythons[contestant.name], entries[contestant.name]
                if python is not None and not entry.trouble:
                    run_contestant(contestant, entry, python, model, over_rest, plan, turn + 1)
    return [rest, grpc, *([by_hand] if naive else []), *entries.values()]


# ------------------------------------------------------------------------------------------------------------- telling


def tell(entries: Sequence[Entry], report: Report) -> None:
    measured = [entry for entry in entries if all(one.runs for one in entry.closed.values())]
    rows = []
    for entry in measured:
        one, some, many = entry.closed.values()
        for in_flight, series in entry.closed.items():
            key = f"{entry.name} {in_flight} in flight"
            report.figure_of(f"{key} rate", series.rates(), "requests/s")
            for quantile in ("p50", "p99"):
                report.figure_of(f"{key} latency {quantile}", series.latencies_us(quantile), "us")
            total = [sum(spent.values()) - spent["generator"] for spent in series.cpu_us]
            report.figure_of(f"{key} cpu", total, "us/request")
            report.figure_of(f"{key} others", series.others_cpus, "CPUs")
        report.figure(f"{entry.name} failed", entry.failures(), "calls")
        cpu = report.figures[f"{entry.name} 128 in flight cpu"][0]
        rows.append([entry.name, f"{one.latency_us('p50'):,.0f}", f"{one.latency_us('p99'):,.0f}",
                     f"{some.rate():,.0f}", f"{many.rate():,.0f}", f"{many.latency_us('p99') / 1e3:,.1f}",
                     f"{cpu:,.0f}", str(entry.failures()), entry.versions, entry.tuning])  # fmt: skip
    print_table(
        "Closed loop, MLP, one row a request",
        ["", "1: p50 µs", "p99", "32: req/s", "128: req/s", "p99 ms", "CPU µs", "failed", "versions", "tuning"], rows,
    )  # fmt: skip
    tell_open([entry for entry in measured if entry.open.runs and entry.ours_at_rate.runs], report)
    for entry in entries:
        if entry.trouble:
            print(f"\n{entry.name}: NOT MEASURED, {entry.trouble}")


def tell_open(entries: Sequence[Entry], report: Report) -> None:
    rows, ratios = [], []
    for entry in entries:
        key = f"{entry.name} open"
        report.figure_of(f"{key} rate", entry.open.rates(), "requests/s")
        for who, series in ((key, entry.open), (f"{key}, ours", entry.ours_at_rate)):
            for quantile in ("p50", "p99", "p99_9"):
                report.figure_of(f"{who} latency {quantile}", series.latencies_us(quantile), "us")
            report.curves[who] = series.curve()
        theirs, ours = entry.open.latency_us("p99"), entry.ours_at_rate.latency_us("p99")
        ratio = report.figure(f"{key} p99, ours to theirs", ours / theirs, "")
        ratios.append(ratio)
        rows.append([entry.name, f"{entry.open.rate():,.0f}", f"{entry.open.latency_us('p50'):,.0f}", f"{theirs:,.0f}",
                     f"{entry.open.latency_us('p99_9'):,.0f}", f"{entry.ours_at_rate.latency_us('p50'):,.0f}",
                     f"{ours:,.0f}", f"{entry.ours_at_rate.latency_us('p99_9'):,.0f}", f"{ratio:.2f}"])  # fmt: skip
    if rows:
        print_table(
            f"Open loop, Poisson, at {SHARE:.0%} of what that server reached: its latencies and ours, µs",
            ["", "req/s", "p50", "p99", "p99.9", "ours p50", "p99", "p99.9", "p99 ratio"], rows,
        )  # fmt: skip
        report.budget("p99 at equal rate, of the baseline's, the worst ratio", max(ratios), P99_RATIO_MAX, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"one short round of {', '.join(QUICK)}, or of --only")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--duration_s", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--install", action="store_true", help="install what is missing, measure nothing")
    add_server_options(parser, "compare_servers")
    options = parser.parse_args()
    parts = [part.lower() for part in options.only.split(",") if part]
    chosen = [each for each in CONTESTANTS if not parts or any(part in each.name.lower() for part in parts)]
    if options.quick and not parts:
        chosen = [each for each in CONTESTANTS if each.name in QUICK]
    naive = not parts or any(part in NAIVE for part in parts)
    if parts and not chosen and not naive:
        parser.error(f"--only={options.only}: there are {', '.join(each.name for each in CONTESTANTS)} and {NAIVE}")
    plan = Plan(1, 0.5, 1.0) if options.quick else Plan(options.rounds, 1.0, options.duration_s)
    report = Report()

    def program() -> int:
        if options.list or options.install:
            for each in chosen:
                entry = Entry(each.name, each.tuning)
                text = each.tuning if options.list else (installed(each, entry) and entry.versions) or entry.trouble
                print(f"{each.name}: {text}", flush=True)
            return 0
        loadgen.build()
        began_s = time.monotonic()
        entries = run_rounds(chosen, naive, plan, server_flags(options))
        tell(entries, report)
        for entry in entries:
            commands = [f"`{each.command}`" for each in chosen if each.name == entry.name]
            words = filter(None, (entry.versions, entry.tuning, *commands))
            report.notes[entry.name] = entry.trouble or "; ".join(words)
        print(f"\n{time.monotonic() - began_s:.0f} s")
        return sum(entry.failures() for entry in entries if entry.name.startswith(OURS)) + sum(
            entry.ours_at_rate.failures() for entry in entries
        )

    return run_program("compare_servers", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
