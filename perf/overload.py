"""More than the server can do: what is still answered in time, who is refused and how soon, and when is it over?

    python -m perf.overload                 all of it (about five minutes)
    python -m perf.overload --only conv     one of mlp, mlp_400, conv, starvation (--starvation is the last one)
    python -m perf.overload --apart         the generator on a core of its own, the server on the others
    python -m perf.overload --quick         small and short: does it work
    python -m perf.overload --record        also appends a line per figure to perf/results/overload.tsv

First the capacity, closed loop. Then Poisson arrivals that wait for nobody, at 50 to 400 % of it, each call with a
deadline that counts from when it should have been sent; the server is told of it (grpc-timeout) and the client gives
up when it has passed, as gRPC's clients do. Every answer is checked. Goodput is what was answered rightly within the
deadline. Two models: the MLP, which is cheap, so that the frontend is what is overloaded, asked over 8 connections and
(mlp_400) over 400; and the convolution net, 4 ms a row, where it is TensorFlow. Then recovery: seconds at 200 %, then
50 %, and how many 100 ms pass until the p99 of such a piece is what it was in quiet. Starvation: model B under a light
load, alone and beside model A at 400 % of its capacity.

The generator takes its share of the same cores, the more the more it sends, unless it has one of its own: what it
cannot send in time counts as late, in the column `unsent` when every connection had as many calls in flight as the
server allows.
Exit status: 1 if any answer was wrong or any call failed in another way than refused or late, 0 otherwise, targets met
or not (`--strict`: 1 if missed).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from perf import loadgen, models, overload_starvation, processes
from perf.loadgen import Exchange, Figures, Load
from perf.overload_report import Level, Recovery, print_course, write_tables
from perf.program import add_server_options, counts, run_program, server_flags
from perf.report import Report
from perf.series import found_rate
from perf.servers import Ringserve

#: Calls in flight at most: more than any rate here times its deadline.
IN_FLIGHT_MAX = 100_000


@dataclass(frozen=True)
class Kind:
    """An overload of a model. in_flight: of the closed loop that finds the capacity. deadline_ms: of every call."""

    name: str
    model: str
    in_flight: int
    deadline_ms: float
    connections: int = 8


KINDS = (
    Kind("mlp", "mlp", 256, 50.0),
    Kind("mlp_400", "mlp", 400, 50.0, connections=400),
    Kind("conv", "conv", 32, 100.0),
)


@dataclass(frozen=True)
class Plan:
    """shares: of the capacity, percent. duration_s: of each. overload_s, quiet_s: of the recovery."""

    shares: Sequence[int]
    warmup_s: float
    duration_s: float
    overload_s: float
    quiet_s: float
    recovery_share: int
    rate: float
    flags: tuple[str, ...]
    generator_cores: tuple[int, ...] = ()


def load_of(kind: Kind, server: Ringserve, exchanges: Sequence[Exchange], rate: float, plan: Plan, seed: int) -> Load:
    """An open loop at that rate."""
    return Load(
        server.port, exchanges, connections=kind.connections, in_flight=IN_FLIGHT_MAX, rate=rate, tick_us=200.0,
        slice_ms=100.0, warmup_s=plan.warmup_s, duration_s=plan.duration_s, deadline_ms=kind.deadline_ms,
        errors_allowed=True, cores=plan.generator_cores, extra=[f"--seed={seed}", "--reconnect"],
    )  # fmt: skip


def capacity(kind: Kind, server: Ringserve, exchanges: Sequence[Exchange], plan: Plan) -> float:
    """Calls a second, closed loop."""
    seconds = plan.duration_s / 2
    load = Load(server.port, exchanges, connections=min(kind.connections, kind.in_flight), in_flight=kind.in_flight,
                warmup_s=seconds / 2, duration_s=seconds, cores=plan.generator_cores)  # fmt: skip
    return found_rate(loadgen.run(load).calls_per_second)


def run_level(server: Ringserve, load: Load, share: int) -> Level:
    busy: list[tuple[float, float]] = []

    def at_edge() -> None:
        busy.append((processes.machine_busy_s(), processes.family_cpu_s(server.session) + time.process_time()))

    figures = loadgen.run(load, at_start=at_edge, at_end=at_edge)
    (busy_from_s, ours_from_s), (busy_until_s, ours_until_s) = busy
    generator_s = figures.cpu_us_per_call * figures.calls / 1e6
    ours_s = ours_until_s - ours_from_s + generator_s
    others = max(busy_until_s - busy_from_s - ours_s, 0.0) / figures.seconds
    return Level(share, load.rate, figures, others, generator_s / figures.seconds)


def recover(kind: Kind, server: Ringserve, load: Load, plan: Plan, full_rate: float, quiet: Figures) -> Recovery:
    """Overload, then half of the capacity."""
    figures = loadgen.run(
        Load(
            **{
                **load.__dict__,
                "rate": full_rate * plan.recovery_share / 100,
                "duration_s": plan.overload_s + plan.quiet_s,
                "later_s": plan.overload_s,
                "later_rate": full_rate / 2,
            }
        )
    )
    return Recovery(figures, plan.overload_s, quiet)


def run_kind(kind: Kind, plan: Plan, report: Report, options: argparse.Namespace) -> int:
    """Returns how many calls failed that were neither refused nor late."""
    model = models.prepared(kind.model)[kind.model]
    name = f"{kind.name} apart" if plan.generator_cores else kind.name
    with ExitStack() as stack:
        server = stack.enter_context(Ringserve(kind.model, model.base_path, plan.flags))
        server.wait_ready(model.exchanges[0])
        full_rate = plan.rate or capacity(kind, server, model.exchanges, plan)
        print(f"\n{name}: capacity {full_rate:,.0f} calls a second, deadline {kind.deadline_ms:g} ms", flush=True)
        levels = []
        for seed, share in enumerate(plan.shares):
            load = load_of(kind, server, model.exchanges, full_rate * share / 100, plan, seed + 1)
            levels.append(run_level(server, load, share))
        quiet = min(levels, key=lambda level: level.share).figures
        recovery = recover(kind, server, load, plan, full_rate, quiet)
        server.settle()
    print_course(name, kind.deadline_ms, full_rate, levels, recovery, report)
    write_tables(name, levels, recovery, options.output)
    return sum(level.failed for level in levels) + recovery.failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(kind.name for kind in KINDS), "starvation"]
    parser.add_argument("--quick", action="store_true", help="half a second of each, at fixed low rates")
    parser.add_argument("--only", choices=names)
    parser.add_argument("--starvation", action="store_true", help="--only starvation")
    parser.add_argument("--shares", type=counts, default="50,80,100,150,200,400", help="percent of the capacity")
    parser.add_argument("--duration_s", type=float, default=8.0, help="of each measured window")
    parser.add_argument("--rate", type=float, default=0.0, help="the capacity, calls a second; 0: measure it")
    parser.add_argument("--deadline_ms", type=float, default=0.0, help="0: the model's own")
    parser.add_argument("--connections", type=int, default=0, help="of the clients; 0: as many as each has")
    parser.add_argument("--apart", action="store_true", help="the generator has the last core for itself")
    add_server_options(parser, "overload")
    options = parser.parse_args()
    only = "starvation" if options.starvation else options.only
    shares = sorted(set(options.shares))
    plan = Plan(shares, 1.5, options.duration_s, 4.0, 5.0, 200, options.rate, server_flags(options))
    if options.quick:
        plan = Plan((50, 200), 0.3, 0.7, 0.5, 0.7, 200, options.rate or 200.0, server_flags(options))
    if options.apart:
        *server_cores, last = sorted(os.sched_getaffinity(0))
        if not server_cores:
            parser.error("--apart needs two cores")
        os.sched_setaffinity(0, server_cores)
        plan = replace(plan, generator_cores=(last,))
    report = Report()

    def program() -> int:
        loadgen.build()
        options.output.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        failed = 0
        for kind in KINDS:
            if only in (None, kind.name):
                chosen = replace(
                    kind,
                    in_flight=max(kind.in_flight, options.connections),
                    deadline_ms=options.deadline_ms or kind.deadline_ms,
                    connections=options.connections or kind.connections,
                )
                failed += run_kind(chosen, plan, report, options)
        if only in (None, "starvation") and not options.apart:
            failed += overload_starvation.run(plan.duration_s, plan.rate, plan.flags, report)
        print(f"\n{time.monotonic() - began_s:.0f} s; tables in {options.output}")
        return failed

    return run_program("overload", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
