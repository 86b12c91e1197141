"""A server that nobody asks: what does it take of a core, and how often does it wake?

    python -m perf.idle             20 s after a load (half a minute)
    python -m perf.idle --quick

Starts `ringserve serve`, lets it answer a load for a moment, so that nothing is cold, and waits until that is over.
Processor time is the scheduler's own, in nanoseconds (/proc/PID/task/TID/schedstat); wakes are voluntary context
switches. Exit status: 1 if any call failed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from perf import loadgen, models, processes
from perf.loadgen import Load
from perf.program import program_parser, run_program, server_flags
from perf.report import Report, print_table
from perf.series import Series, measure
from perf.servers import Ringserve

CORE_PERCENT_MAX = 1.0


def wakes(session: int) -> dict[str, int]:
    """Voluntary context switches of all threads so far, by role."""
    total: dict[str, int] = {}
    for usage in processes.usages(session):
        for status in Path(f"/proc/{usage.pid}/task").glob("*/status"):
            try:
                lines = status.read_text().splitlines()
            except OSError:
                continue  # that thread is gone
            count = next((int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches")), 0)
            total[usage.role] = total.get(usage.role, 0) + count
    return total


def run(seconds: float, runs: int, flags: tuple[str, ...], report: Report) -> int:
    model = models.prepared("mlp")["mlp"]
    warm = Series()
    cpu: dict[str, list[float]] = {}
    woken: dict[str, list[float]] = {}
    others: list[float] = []
    with Ringserve(model.name, model.base_path, flags) as server:
        server.wait_ready(model.exchanges[0])
        server.settle()
        measure(server, Load(server.port, model.exchanges, connections=4, in_flight=32, duration_s=1.0,
                             errors_allowed=True), warm)  # fmt: skip
        time.sleep(2.0)  # what ends shortly after a load is no idling: rings that fall back, metrics that are written
        for _ in range(runs):
            before, switches_before = processes.thread_times(server.session), wakes(server.session)
            busy_before_s = processes.machine_busy_s()
            time.sleep(seconds / runs)
            spent = processes.core_time(before, processes.thread_times(server.session))
            ours_s = sum(times.run_s for times in spent.values())
            others.append(max(processes.machine_busy_s() - busy_before_s - ours_s, 0.0) / (seconds / runs))
            switches = wakes(server.session)
            for role, times in spent.items():
                cpu.setdefault(role, []).append(100 * times.run_s / (seconds / runs))
                woken.setdefault(role, []).append((switches[role] - switches_before[role]) / (seconds / runs))
    rows = []
    for role in sorted(cpu):
        percent = report.figure_of(f"idle cpu {role}", cpu[role], "% of a core")
        per_second = report.figure_of(f"idle wakes {role}", woken[role], "1/s")
        rows.append([role, f"{percent:.3f}", f"{per_second:.1f}"])
    total = report.figure_of("idle cpu", [sum(values) for values in zip(*cpu.values(), strict=True)], "% of a core")
    often = report.figure_of("idle wakes", [sum(values) for values in zip(*woken.values(), strict=True)], "1/s")
    report.figure_of("idle others", others, "CPUs")
    print_table(f"Idle for {seconds:.0f} s", ["", "% of a core", "wakes a second"],
                [*rows, ["sum", f"{total:.3f}", f"{often:.1f}"]])  # fmt: skip
    report.budget("idle: all processes together", total, CORE_PERCENT_MAX, "% of a core")
    return warm.failures()


def main() -> int:
    options = program_parser(__doc__, "idle", runs=5).parse_args()
    seconds, runs = (4.0, 2) if options.quick else (20.0, options.runs)
    report = Report()

    def program() -> int:
        loadgen.build()
        return run(seconds, runs, server_flags(options), report)

    return run_program("idle", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
