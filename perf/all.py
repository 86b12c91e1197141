"""Everything that is said of performance, in one run: all programs of this folder, then docs/performance.md.

    python -m perf.all                    everything (about forty minutes, on a machine that does nothing else)
    python -m perf.all --quick            the same, short and once (about four minutes), into perf/build/quick/
    python -m perf.all --only many,idle   these again; the page keeps what it had of the others
    python -m perf.all --page             writes the page again from what was measured, measures nothing

Each program runs by itself, for a bounded time, and hands over its figures as JSON (`--json`); all of them together are
kept in perf/results/performance.json, from which perf/page.py makes the page and its plots (matplotlib: the extra
`perf`). A program that fails, or that does not end in time, is told so on the page, and its old figures are dropped.
Exit status: 1 if one failed, or if a call failed in one, 0 otherwise, targets met or not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import loadgen, models, page
from perf.loadgen import PERF, LoadError
from perf.report import revision
from perf.servers import ROOT, die_with_parent

RESULTS = PERF / "results" / "performance.json"
QUICK = PERF / "build" / "quick"
_STOP_S_MAX = 60.0


@dataclass(frozen=True)
class Program:
    """`python -m perf.NAME`. limit_s: it is ended then; quick: its options with --quick, None: not run then."""

    name: str
    limit_s: float
    options: Sequence[str] = ()
    quick: Sequence[str] | None = ("--quick",)


PROGRAMS = (
    Program("end_to_end", 600, ("--runs=5", "--duration_s=3"), ("--quick", "--only=mlp")),
    Program("rest_binary", 300),
    Program("open_loop", 600, quick=("--quick", "--only=mlp")),
    Program("idle", 120),
    Program("many", 400),
    Program("large", 300),
    Program("overload", 600, quick=None),  # its short form offers fixed rates, which say nothing of capacity
    Program("compare_servers", 1500),
    Program("scaling", 300),
)


def run(program: Program, quick: bool, folder: Path) -> dict[str, Any]:
    """Its result; {"trouble": why} when there is none."""
    file = folder / f"{program.name}.json"
    options = program.quick or () if quick else program.options
    command = [sys.executable, "-m", f"perf.{program.name}", *options, f"--json={file}"]
    print(f"\n== perf.{program.name} {' '.join(options)}", flush=True)
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=die_with_parent)
    try:
        process.wait(program.limit_s)
        ended = f"it ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"it had not ended after {program.limit_s:.0f} s"
        print(ended, file=sys.stderr)
    finally:
        stop(process)
    if not file.exists():
        return {"trouble": ended}
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks first: a program stops its servers before it ends."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> int:
    try:
        return measure_all()
    except KeyboardInterrupt:  # what ran has been stopped, and what ended before is kept
        return 130


def measure_all() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [program.name for program in PROGRAMS]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(names), help="programs, separated by commas")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"--only={options.only}: no program is named {', '.join(unknown)}; there are {', '.join(names)}")
    results, docs = (QUICK / "performance.json", QUICK) if options.quick else (RESULTS, ROOT / "docs")
    docs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `run`, which stops what it started
    known: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {"programs": {}}
    failed: list[str] = []
    if not options.page:
        began_s = time.monotonic()
        try:
            loadgen.build()
            models.prepared("mlp", "conv", "pixels", "mirror")
        except LoadError as error:
            print(error, file=sys.stderr)
            return 1
        with tempfile.TemporaryDirectory(prefix="perf-all-") as folder:
            for program in PROGRAMS:
                if program.name not in chosen or (options.quick and program.quick is None):
                    continue
                result = run(program, options.quick, Path(folder))
                known["programs"][program.name] = result
                if "trouble" in result or result["failures"]:
                    failed.append(program.name)
                # After each: an hour's figures are not lost with the last program.
                known |= {"quick": options.quick, "revision": revision()}
                results.write_text(json.dumps(known, indent=1) + "\n")
        print(f"\n{time.monotonic() - began_s:.0f} s; figures in {results}")
    print(f"page: {page.write(known, docs)}")
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
