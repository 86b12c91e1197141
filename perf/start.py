"""How long until the first right answer, and where does the time go? How long until a killed worker is replaced?

    python -m perf.start                    five starts and five kills with the MLP, two of each with 300 MB
    python -m perf.start --quick            one of each, with small models: does it work
    python -m perf.start --record           also appends a line per figure to perf/results/start.tsv

The page cache is warm (one start before, not counted). Between the starts a bare `import tensorflow` is timed: most of
a start is that. The first right answer is one over gRPC, compared with TensorFlow's. The steps between are read from
the server's log. A killed worker (kill -9, under a light load) is back when the server says that a new process is
ready; the other workers go on meanwhile, which the light load shows. Exit status: 1 if a call failed or was answered
wrongly.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import grpc

from perf import answers, loadgen, models, processes
from perf.light_load import LightLoad
from perf.models import PerfModel
from perf.program import add_server_options, at_least_one, run_program, server_flags
from perf.report import Report, median, print_table
from perf.servers import ROOT, Ringserve

START_S_MAX, REPLACED_S_MAX = 8.0, 1.0
_PATIENCE_S = 90.0

#: Steps of a start: what is told, and the first line of the log that says so.
STEPS = (
    ("supervisor runs", r"supervisor: "),
    ("broker is ready", r"supervisor: broker is ready"),
    ("frontend is ready", r"supervisor: frontend-0 is ready"),
    ("pool has TensorFlow", r"supervisor: pool is ready"),
    ("first worker forked", r"pool: forked worker"),
    ("first worker registered", r"broker: worker \d+ registered"),
    ("model loaded", r"broker: Successfully loaded servable version"),
)
_LINE = re.compile(r"^(\d{4}-\d\d-\d\dT[\d:.]+Z) \w+ (.*)$")


@dataclass
class Found:
    """Seconds; one value per repetition."""

    starts: list[float] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)
    kills: list[float] = field(default_factory=list)
    failures: int = 0


def steps_of(log: str, started_s: float) -> dict[str, float]:
    """Seconds from `started_s` (time.time()) to each step's first line; without steps that the log does not tell."""
    found: dict[str, float] = {}
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        for name, pattern in STEPS:
            if name not in found and re.match(pattern, match[2]):
                found[name] = datetime.fromisoformat(match[1]).timestamp() - started_s
    return found


def import_s() -> float:
    """A bare `import tensorflow` in a process and a session of its own, as the server has: some kernels give
    each session the same share of the cores."""
    command = [sys.executable, "-c", "import tensorflow"]
    start_s = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, start_new_session=True)
    return time.monotonic() - start_s


def first_right_answer(server: Ringserve, model: PerfModel) -> float:
    """Seconds since the server was started. Raises ServerError when the first answer is wrong, or none comes."""
    exchange = model.exchanges[0]
    given: list[bytes] = []

    def answered() -> bool:
        try:
            given.append(server.ask(exchange))
        except grpc.RpcError:
            return False
        return True

    server.wait_until(answered, "its first answer", _PATIENCE_S, pause_s=0.01)
    taken_s = time.monotonic() - server.started_s
    different = answers.difference(exchange.expected or b"", given[0])
    if different:
        raise server.failure(f"the first answer is wrong: {different}")
    return taken_s


def start(model: PerfModel, flags: Sequence[str], found: Found) -> None:
    with Ringserve(model.name, model.base_path, flags) as server:
        started_s = time.time() - (time.monotonic() - server.started_s)
        found.starts.append(first_right_answer(server, model))
        for name, seconds in steps_of(Path(server.log.name).read_text(errors="replace"), started_s).items():
            found.steps.setdefault(name, []).append(seconds)


def replaced_s(server: Ringserve) -> float:
    """Kills one worker that is ready; seconds until a new one is ready and there are as many as before."""
    before = [worker["pid"] for worker in server.worker_states() if worker["state"] == "ready"]
    victim = before[-1]
    start_s = time.monotonic()
    os.kill(victim, signal.SIGKILL)

    def replaced() -> bool:
        ready = {worker["pid"] for worker in server.worker_states() if worker["state"] == "ready"}
        return victim not in ready and len(ready) >= len(before) and bool(ready - set(before))

    server.wait_until(replaced, "a killed worker's replacement", _PATIENCE_S, pause_s=0.005)
    taken_s = time.monotonic() - start_s
    if victim in {usage.pid for usage in processes.usages(server.session)}:
        raise server.failure(f"worker process {victim} still runs")
    return taken_s


def kill(model: PerfModel, flags: Sequence[str], count: int, rate: float, found: Found) -> None:
    with Ringserve(model.name, model.base_path, flags) as server:
        server.wait_ready(model.exchanges[0])
        server.settle()
        with LightLoad(server, model, rate, piece_s=1.0) as load:
            server.wait_until(lambda: load.calls, "answers to the light load")
            for _ in range(count):
                found.kills.append(replaced_s(server))
                server.settle()
        print(f"  {model.name}, light load while {count} workers were killed: {load.told()}")
        found.failures += load.failures


def tell(name: str, found: Found, imports: Sequence[float], report: Report, judged: bool) -> None:
    total = report.figure(f"{name} start to first answer", median(found.starts), "s")
    rows, before = [], 0.0
    for step, _ in STEPS:
        if step in found.steps:
            at_s = report.figure(f"{name} start: {step}", median(found.steps[step]), "s")
            rows.append([step, f"{at_s:.2f}", f"{at_s - before:+.2f}"])
            before = at_s
    rows.append(["first right answer", f"{total:.2f}", f"{total - before:+.2f}"])
    header = ["", "s from the start", "s from the line above"]
    print_table(f"{name}: start, median of {len(found.starts)}", header, rows)
    ratio = report.figure(f"{name} start to import tensorflow", total / median(imports), "")
    spread = f"{min(found.starts):.2f}-{max(found.starts):.2f}"
    print(f"  from {spread} s; {ratio:.2f} times `import tensorflow` alone ({median(imports):.2f} s)")
    back = report.figure(f"{name} killed worker replaced", median(found.kills), "s")
    print(f"  a killed worker is replaced after {back:.2f} s, longest of {len(found.kills)}: {max(found.kills):.2f} s")
    if judged:
        report.budget(f"{name}: start to the first right answer", total, START_S_MAX, "s")
        report.budget(f"{name}: killed worker, until its replacement serves", back, REPLACED_S_MAX, "s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one start and one kill of each, a large model of 8 MB")
    parser.add_argument("--runs", type=at_least_one, default=5, help="starts, and kills, of the MLP")
    parser.add_argument("--megabytes", type=at_least_one, default=300, help="of the large model")
    parser.add_argument("--large_runs", type=at_least_one, default=2, help="starts, and kills, of the large model")
    add_server_options(parser, "start")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.large_runs, options.megabytes = 1, 1, 8
    flags = server_flags(options)
    report = Report()

    def program() -> int:
        loadgen.build()
        large = f"dense-{options.megabytes}"
        chosen = models.prepared("mlp", large)
        found = {"mlp": Found(), large: Found()}
        if not options.quick:
            start(chosen["mlp"], flags, Found())  # into the page cache
        imports = []
        for turn in range(max(options.runs, options.large_runs)):
            imports.append(import_s())
            if turn < options.runs:
                start(chosen["mlp"], flags, found["mlp"])
            if turn < options.large_runs:
                start(chosen[large], flags, found[large])
        report.figure("import tensorflow", median(imports), "s")
        kill(chosen["mlp"], flags, options.runs, 500.0, found["mlp"])
        kill(chosen[large], flags, options.large_runs, 20.0, found[large])
        for name, one in found.items():
            tell(name, one, imports, report, judged=name == "mlp")
        return sum(one.failures for one in found.values())

    return run_program("start", options, report, program)


if __name__ == "__main__":
    sys.exit(main())
