"""From the processes' budgets to machines that are not here: where does one broker saturate, and is the model right?

    python -m perf.scaling            (about a minute)
    python -m perf.scaling --quick

The model: at saturation every request costs each process its CPU time, so that C cores give C / (sum of all costs)
requests a second, as long as no process that cannot be multiplied needs more than one core: there is one broker, so
that 1 / (its cost) is the end, and there are as many frontends and workers as their costs ask for. The check: the
costs that were measured on one core are to tell the rate on two, and those on two the rate on one. The generator is a
process like any other here, as it runs on the same cores; what is told of larger machines is without it. `used` is
how much of the cores these processes took: what is missing to 100 % is waiting, which the model knows nothing of.

Server and generator are bound to the first one, then two, of the cores that this process may use. MLP over gRPC, closed
loop with 128 in flight for each core: so that batches are alike. Exit status: 1 if any call failed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perf import loadgen, models
from perf.loadgen import Load
from perf.program import program_parser, run_program, server_flags
from perf.report import Report, print_table
from perf.series import Series, measure
from perf.servers import Ringserve

CORES = (1, 2)
TOLERANCE = 0.15
#: Not above this: a process that has no room left answers late (see perf/open_loop.py).
FULL = 0.7
MACHINES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Costs:
    """CPU µs per request, by role; the generator among them."""

    us: Mapping[str, float]

    def rate(self, cores: float, *, generator: bool) -> float:
        """Requests a second that so many cores can give, if every process finds the core that it needs."""
        total = sum(us for role, us in self.us.items() if generator or role != "generator")
        return cores * 1e6 / total

    def broker_rate(self) -> float:
        """With one core that the broker has for itself."""
        return 1e6 / self.us["broker"]

    def processes(self, rate: float) -> dict[str, int]:
        """How many frontends and workers that rate needs, none of them busier than FULL of a core."""
        return {role: max(math.ceil(rate * self.us[role] / 1e6 / FULL), 1) for role in ("frontend", "worker")}


@dataclass(frozen=True)
class Prediction:
    """For a machine of so many cores."""

    cores: int
    rate: float
    limit: str
    frontends: int
    workers: int


def predict(costs: Costs, cores: int) -> Prediction:
    """At FULL of the machine, and never more than FULL of the broker's core."""
    by_cores, by_broker = FULL * costs.rate(cores, generator=False), FULL * costs.broker_rate()
    rate = min(by_cores, by_broker)
    needed = costs.processes(rate)
    limit = "the broker" if by_broker < by_cores else "cores"
    return Prediction(cores, rate, limit, needed["frontend"], needed["worker"])


def broker_cores(costs: Costs) -> float:
    """How many cores there must be before the broker is what ends it."""
    return costs.broker_rate() / costs.rate(1, generator=False)


def run(runs: int, seconds: float, flags: Sequence[str], report: Report) -> int:
    allowed = sorted(os.sched_getaffinity(0))
    model = models.prepared("mlp")["mlp"]
    series = {count: Series() for count in CORES if count <= len(allowed)}
    try:
        for _ in range(runs):
            for count, one in series.items():
                os.sched_setaffinity(0, allowed[:count])  # what is started from now on is bound likewise
                with Ringserve(model.name, model.base_path, flags) as server:
                    server.wait_ready(model.exchanges[0])
                    server.settle()
                    measure(server, Load(server.port, model.exchanges, connections=4, in_flight=128 * count,
                                         warmup_s=1.0, duration_s=seconds, errors_allowed=True), one)  # fmt: skip
    finally:
        os.sched_setaffinity(0, allowed)
    tell(series, report)
    return sum(one.failures() for one in series.values())


def tell(series: Mapping[int, Series], report: Report) -> None:
    costs = {count: Costs({role: one.cpu(role) for role in one.roles()}) for count, one in series.items()}
    rows = []
    for count, one in series.items():
        report.figure_of(f"{count} cores rate", one.rates(), "requests/s")
        report.figure_of(f"{count} cores others", one.others_cpus, "CPUs")
        used = [rate * sum(spent.values()) / 1e4 / count for rate, spent in zip(one.rates(), one.cpu_us, strict=True)]
        report.figure_of(f"{count} cores used", used, "%")
        for role in sorted(one.roles()):
            report.figure_of(f"{count} cores cpu {role}", one.cpus(role), "us/request")
        for other, cost in costs.items():
            predicted = report.figure(f"{count} cores predicted by costs on {other}", cost.rate(count, generator=True),
                                      "requests/s")  # fmt: skip
            error = predicted / one.rate() - 1
            rows.append([f"{count} cores", f"{one.rate():,.0f}", f"{other} cores", f"{predicted:,.0f}",
                         f"{error:+.1%}"])  # fmt: skip
            if other != count:
                report.budget(f"cores: {count}, rate predicted by the costs on {other}: error", abs(error), TOLERANCE,
                              "")  # fmt: skip
    print_table("The model's check", ["", "measured/s", "by the costs on", "predicted/s", "error"], rows)
    best = costs[max(costs)]
    rows = []
    for cores in MACHINES:
        told = predict(best, cores)
        report.figure(f"predicted {cores} cores", told.rate, "requests/s")
        report.notes[f"predicted {cores} cores"] = f"{told.limit}; {told.frontends} frontends, {told.workers} workers"
        rows.append([str(cores), f"{told.rate:,.0f}", told.limit, str(told.frontends), str(told.workers)])
    print_table(f"What the costs on {max(costs)} cores tell of larger machines, nothing busier than {FULL:.0%}, "
                "clients elsewhere", ["cores", "req/s", "ended by", "frontends", "workers"], rows)  # fmt: skip
    limit = report.figure("broker saturates", best.broker_rate(), "requests/s")
    where = report.figure("broker saturates at", broker_cores(best), "cores")
    print(f"\nOne broker on a core of its own takes {limit:,.0f} requests a second; a machine of {where:.0f} cores "
          "reaches that with this model, of more cores or hosts only with a smaller one")  # fmt: skip


def main() -> int:
    options = program_parser(__doc__, "scaling", runs=3).parse_args()
    runs, seconds = (1, 1.5) if options.quick else (options.runs, 4.0)
    report = Report()

    def program() -> int:
        loadgen.build()
        return run(runs, seconds, server_flags(options), report)

    return run_program("scaling", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
