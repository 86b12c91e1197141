"""What the measuring programs have in common: their options for the server, how they end, what they return."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from perf import host
from perf.loadgen import PERF, LoadError
from perf.report import Report
from perf.servers import ServerError


def at_least_one(text: str) -> int:
    """For argparse: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def counts(text: str) -> list[int]:
    """For argparse: such numbers, separated by commas."""
    return [at_least_one(each) for each in text.split(",")]


def program_parser(text: str | None, program: str, runs: int) -> argparse.ArgumentParser:
    """Of a program with interleaved repetitions, `runs` as a rule: --quick, --runs, and the server's options."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short and once: does it work, and roughly how fast")
    parser.add_argument("--runs", type=at_least_one, default=runs, help="interleaved repetitions")
    add_server_options(parser, program)
    return parser


def add_server_options(parser: argparse.ArgumentParser, program: str) -> None:
    parser.add_argument("--weight_sharing", choices=("on", "off"), help="passed on to the server when given")
    parser.add_argument("--server_flag", action="append", default=[], metavar="--NAME=VALUE",
                        help="passed on to the server as it is; may be repeated")  # fmt: skip
    parser.add_argument("--output", type=Path, default=PERF / "build" / program, help="folder for tables and plots")
    parser.add_argument("--record", action="store_true", help="append the figures to perf/results")
    parser.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, with their spread, as JSON")


def server_flags(options: argparse.Namespace) -> tuple[str, ...]:
    sharing = () if options.weight_sharing is None else (f"--weight_sharing={options.weight_sharing}",)
    return (*sharing, *options.server_flag)


def run_program(name: str, options: argparse.Namespace, report: Report, program: Callable[[], int]) -> int:
    """Runs `program`, which returns how many calls failed, and tells the targets. Returns the exit status.

    However it ends, by SIGTERM too, the `with` statements in it stop what they started. How fast the host was is
    measured before and after it.
    """

    def on_sigterm(*_: object) -> NoReturn:
        sys.exit(143)

    signal.signal(signal.SIGTERM, on_sigterm)
    steps_ns = [host.step_ns()]
    try:
        failures = program()
    except (LoadError, ServerError, PermissionError) as error:  # the last: where tables and plots are to be written
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    steps_ns.append(host.step_ns())
    report.figure_of(host.STEP, steps_ns, "ns")
    took = " and ".join(f"{each:.0f}" for each in steps_ns)
    print(f"\nPython {host.python_build()}; a step of it took {took} ns, at the beginning and at the end")
    report.print_budgets()
    if options.json is not None:
        report.write_json(options.json, name, failures)
    if options.record:
        print(f"\nrecorded in {report.record(name)}")
    if failures:
        print(f"\n{failures} calls FAILED", file=sys.stderr)
    return 1 if failures or (options.strict and any(not budget.met for budget in report.budgets)) else 0
