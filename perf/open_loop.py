"""Below capacity: how much longer than the rest do the slowest calls take? And latency by rate.

    python -m perf.open_loop                  MLP over gRPC and REST, convolution net (about three minutes)
    python -m perf.open_loop --only mlp       some of these: mlp,rest,conv
    python -m perf.open_loop --quick

The capacity first, closed loop. Then Poisson arrivals, which wait for nobody: at 70 % of it, several times, and once
at 10 to 95 %. Latency counts from when a call should have been sent (no coordinated omission): a stall is charged with
every call that fell into it. Every answer is checked. What is generator (it shares the cores) is told: `late start` is
how long after its time a call was sent, which is part of its latency.
Exit status: 1 if any call failed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from perf import loadgen, models
from perf.loadgen import Load
from perf.program import program_parser, run_program, server_flags
from perf.report import Report, median, print_table
from perf.series import Series, found_rate, measure
from perf.servers import Ringserve

SHARE = 70
SHARES = (10, 30, 50, 60, 80, 90, 95)
#: Above this rate the generator wakes for arrivals every TICK_US only; what that makes them later counts as latency. A
#: timer for each would take half a core, and every 50 us still 0.43 of one, where the closed loop takes 0.08: 36,000
#: calls a second were answered in 160 ms in the middle then, with 200 us in 25 (four runs each, in turns).
TICK_RATE, TICK_US = 10_000.0, 200.0


@dataclass(frozen=True)
class Kind:
    """in_flight: of the closed loop that finds the capacity. room: calls in flight at most in the open loop."""

    key: str
    model: str
    in_flight: int
    room: int
    rest: bool = False


KINDS = (Kind("mlp", "mlp", 128, 20_000), Kind("rest", "mlp", 128, 512, rest=True), Kind("conv", "conv", 32, 20_000))


@dataclass(frozen=True)
class Plan:
    runs: int
    warmup_s: float
    duration_s: float
    shares: Sequence[int]


def load_of(kind: Kind, server: Ringserve, plan: Plan, rate: float = 0.0, seed: int = 1) -> Load:
    model = models.prepared(kind.model)[kind.model]
    in_flight = kind.room if rate else kind.in_flight
    return Load(
        server.rest_port if kind.rest else server.port, model.rest_exchanges if kind.rest else model.exchanges,
        path=f"/v1/models/{model.name}:predict" if kind.rest else Load.path, rest=kind.rest,
        connections=in_flight if kind.rest else 8, in_flight=in_flight, rate=rate,
        tick_us=TICK_US if rate > TICK_RATE else 0.0, warmup_s=plan.warmup_s, duration_s=plan.duration_s,
        errors_allowed=True, extra=[f"--seed={seed}"],
    )  # fmt: skip


def run_kind(kind: Kind, plan: Plan, flags: Sequence[str], report: Report) -> int:
    """Returns how many calls failed."""
    model = models.prepared(kind.model)[kind.model]
    closed, at_share = Series(), Series()
    levels = {share: Series() for share in plan.shares}
    with Ringserve(model.name, model.base_path, flags) as server:
        server.wait_ready(model.exchanges[0])
        server.settle()
        for turn in range(plan.runs):
            measure(server, load_of(kind, server, plan), closed)
            # Of the repetition just before: so that a machine that is slower for a while is not asked for too much.
            rate = found_rate(closed.rates()[-1]) * SHARE / 100
            measure(server, load_of(kind, server, plan, rate, turn + 1), at_share)
        for share, series in levels.items():
            measure(server, load_of(kind, server, plan, found_rate(closed.rate()) * share / 100, share), series)
    levels[SHARE] = at_share
    tell(kind, closed, dict(sorted(levels.items())), report)
    return sum(one.failures() for one in (closed, *levels.values()))


def tell(kind: Kind, closed: Series, levels: dict[int, Series], report: Report) -> None:
    capacity = report.figure_of(f"{kind.key} capacity", closed.rates(), "requests/s")
    rows = []
    for share, series in levels.items():
        key = f"{kind.key} {share}%"
        report.figure_of(f"{key} rate", series.rates(), "requests/s")
        for quantile in ("p50", "p99", "p99_9", "max"):
            report.figure_of(f"{key} latency {quantile}", series.latencies_us(quantile), "us")
        report.figure_of(f"{key} others", series.others_cpus, "CPUs")
        report.curves[key] = series.curve()
        delay = report.figure_of(f"{key} late start p99", [run.start_delay_us.p99 for run in series.runs], "us")
        held = sum(run.held_back for run in series.runs)
        rows.append([f"{share} %", f"{series.rate():,.0f}",
                     *(f"{series.latency_us(q):,.0f}" for q in ("p50", "p99", "p99_9", "max")), f"{delay:,.0f}",
                     str(held), str(series.failures()), f"{median(series.others_cpus):.2f}"])  # fmt: skip
    print_table(
        f"{kind.key}: Poisson arrivals; capacity {capacity:,.0f} a second ({kind.in_flight} in flight)",
        ["of capacity", "req/s", "p50 µs", "p99", "p99.9", "max", "late start p99", "held back", "failed",
         "others' CPUs"], rows,
    )  # fmt: skip
    series = levels[SHARE]
    for quantile, bound in (("p99", 4.0), ("p99_9", 10.0)):
        pairs = zip(series.latencies_us(quantile), series.latencies_us("p50"), strict=True)
        name = f"{kind.key}: {quantile.replace('_', '.')} at {SHARE} % of capacity, times p50"
        report.budget(name, report.figure_of(name, [tail / middle for tail, middle in pairs], ""), bound, "")


def main() -> int:
    parser = program_parser(__doc__, "open_loop", runs=5)
    keys = [kind.key for kind in KINDS]
    parser.add_argument("--only", default=",".join(keys), help="of these, separated by commas")
    parser.add_argument("--duration_s", type=float, help="of one measurement; 5, with --quick 1.5")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(keys)):
        parser.error(f"--only={options.only}: there is no {', '.join(unknown)}; there are {', '.join(keys)}")
    plan = Plan(options.runs, 1.0, options.duration_s or 5.0, SHARES)
    if options.quick:
        seconds = options.duration_s or 1.5
        plan = Plan(1, min(seconds / 2, 0.5), seconds, (30,))
    report = Report()

    def program() -> int:
        loadgen.build()
        kinds = [kind for kind in KINDS if kind.key in chosen]
        return sum(run_kind(kind, plan, server_flags(options), report) for kind in kinds)

    return run_program("open_loop", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
