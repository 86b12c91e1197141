"""What do the weights cost, and what does one more worker? A 300 MB model with 1, 2, 4 and 8 workers.

    python -m perf.memory                   sharing on and off
    python -m perf.memory --quick           a small model, 1 and 2 workers
    python -m perf.memory --record          also appends a line per figure to perf/results/memory.tsv

Every worker is made to answer first. PSS divides a page among those who map it, so the sum over all processes counts
every page once; shared memory that nobody maps is added. Pages of files are divided among all processes of the machine:
where others run TensorFlow too, the sum is too low, and a line says so. Exit status: 1 if a call failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf import loadgen, models, plots, processes, sampling
from perf.loadgen import Load
from perf.models import PerfModel
from perf.processes import Memory
from perf.program import add_server_options, at_least_one, counts, run_program
from perf.report import Report, print_table
from perf.servers import Ringserve

#: The targets, MiB beside the weights: what the server takes with no worker, and each worker.
BASE_MIB, WORKER_MIB = 450.0, 60.0
#: The server's largest batch, rows, unless told otherwise.
BATCH_ROWS = 128
#: CPU seconds after which a worker has answered something: three ticks of /proc, which no idle worker spends.
_SERVED_S = 0.03
_ROUNDS_MAX = 40


@dataclass(frozen=True)
class Point:
    """One server with so many workers."""

    sharing: str
    workers: int
    sample: sampling.Sample
    memories: Sequence[Memory]
    failures: int

    def of_workers(self, what: str) -> list[float]:
        return [float(getattr(memory, what)) for memory in self.memories if memory.role == "worker"]


def weights_mib(model: PerfModel) -> float:
    files = (model.version_path / "variables").glob("variables.data-*")
    return sum(file.stat().st_size for file in files) / 2**20


def let_all_serve(server: Ringserve, model: PerfModel, workers: int) -> int:
    """Calls the model until every worker has worked. Returns how many calls failed.

    So many calls at a time that each worker gets a full batch: fewer would be one worker's.
    """
    before = {usage.pid: usage.cpu_s for usage in processes.usages(server.session)}
    many = BATCH_ROWS * workers
    load = Load(server.port, model.exchanges, connections=4, in_flight=many, count=4 * many, errors_allowed=True)
    failures = 0
    for _ in range(_ROUNDS_MAX):
        failures += loadgen.run(load).failures
        spent = [usage.cpu_s - before.get(usage.pid, 0.0) for usage in processes.usages(server.session)
                 if usage.role == "worker"]  # fmt: skip
        if len(spent) == workers and min(spent) >= _SERVED_S:
            return failures
    raise server.failure(f"after {_ROUNDS_MAX * load.count} calls not every worker has worked: CPU seconds {spent}")


def measure(model: PerfModel, sharing: str, workers: int, flags: Sequence[str]) -> Point:
    chosen = (f"--weight_sharing={sharing}",)
    extra = [f"--workers={workers}", "--pin=false", *chosen, *flags]
    with Ringserve(model.name, model.base_path, extra) as server:
        server.wait_ready(model.exchanges[0])
        server.settle()
        failures = let_all_serve(server, model, workers)
        point = Point(sharing, workers, sampling.sample(server.session), processes.memories(server.session), failures)
        others = processes.others_with_tensorflow(server.session)
    if others:
        print(f"  {others} other processes of this machine map TensorFlow: the PSS of its files is too low",
              file=sys.stderr)  # fmt: skip
    return point


def tell(points: Sequence[Point], weights: float, report: Report) -> None:
    report.figure("weights", weights, "MiB")
    rows = []
    for point in points:
        one, key = point.sample, f"sharing {point.sharing} {point.workers} workers"
        shm = sum(memory.shm_mib for memory in point.memories) + one.unmapped_mib
        private = max(point.of_workers("private_mib"))
        report.figure(f"{key} total", one.total_mib, "MiB")
        report.figure(f"{key} without files", one.made_mib, "MiB")
        report.figure(f"{key} private of a worker", private, "MiB")
        by_role = [one.by_role.get(role, 0.0) for role in sampling.ROLES]
        rows.append([point.sharing, str(point.workers), f"{one.total_mib:,.0f}", f"{one.made_mib:,.0f}", f"{shm:,.0f}",
                     f"{max(point.of_workers('pss_mib')):,.0f}", f"{private:,.0f}", *(f"{v:,.0f}" for v in by_role),
                     f"{weights + WORKER_MIB * point.workers + BASE_MIB:,.0f}"])  # fmt: skip
    header = ["sharing", "workers", "all PSS", "without files", "shared memory", "a worker's PSS", "private",
              *(f"PSS: {role}" for role in sampling.ROLES), "target"]  # fmt: skip
    print_table(f"Memory, MiB; weights {weights:,.0f} MiB", header, rows)
    for sharing in dict.fromkeys(point.sharing for point in points):
        of_it = [point for point in points if point.sharing == sharing]
        first, last = of_it[0], of_it[-1]
        if last.workers == first.workers:
            continue
        extra = (last.sample.made_mib - first.sample.made_mib) / (last.workers - first.workers)
        report.figure(f"sharing {sharing} one more worker", extra, "MiB")
        print(f"  sharing {sharing}: one more worker takes {extra:,.1f} MiB")
        if sharing != "off":
            report.budget(f"sharing {sharing}: one more worker, without files", extra, WORKER_MIB, "MiB")
            bound = weights + WORKER_MIB * last.workers + BASE_MIB
            report.budget(f"sharing {sharing}: {last.workers} workers in all", last.sample.total_mib, bound, "MiB")


def write_table(points: Sequence[Point], path: Path) -> None:
    """A line for each process."""
    lines = ["sharing\tworkers\trole\tpid\tPSS MiB\tprivate MiB\tshared memory MiB\tfiles MiB"]
    for point in points:
        for one in point.memories:
            figures = (one.pss_mib, one.private_mib, one.shm_mib, one.file_mib)
            texts = (point.sharing, str(point.workers), one.role, str(one.pid), *(f"{v:.2f}" for v in figures))
            lines.append("\t".join(texts))
    path.write_text("\n".join(lines) + "\n")


def plot(points: Sequence[Point], workers: Sequence[int], weights: float, path: Path) -> bool:
    series: dict[str, list[float]] = {}
    for point in points:
        series.setdefault(f"sharing {point.sharing}", []).append(point.sample.total_mib)
    series["target"] = [weights + WORKER_MIB * count + BASE_MIB for count in workers]
    groups = [f"{count} worker{'s' * (count > 1)}" for count in workers]
    return plots.bars(path, f"PSS of all processes, {weights:,.0f} MiB of weights", groups, series)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 MB of weights, 1 and 2 workers")
    parser.add_argument("--workers", type=counts, default="1,2,4,8", help="numbers of workers, separated by commas")
    parser.add_argument("--megabytes", type=at_least_one, default=300, help="of weights")
    add_server_options(parser, "memory")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.megabytes = [1, 2], 8
    report = Report()

    def program() -> int:
        loadgen.build()
        options.output.mkdir(parents=True, exist_ok=True)
        name = f"dense-{options.megabytes}"
        model = models.prepared(name)[name]
        variants = [options.weight_sharing] if options.weight_sharing else ["on", "off"]
        points = [measure(model, sharing, count, options.server_flag) for sharing in variants
                  for count in options.workers]  # fmt: skip
        weights = weights_mib(model)
        tell(points, weights, report)
        write_table(points, options.output / "memory.tsv")
        plotted = plot(points, options.workers, weights, options.output / "memory.png")
        print(f"\ntable{' and plot' if plotted else ''} in {options.output}")
        return sum(point.failures for point in points)

    return run_program("memory", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
