"""Two revisions of this repository beside each other: has a figure moved?

    python -m perf.compare main HEAD                      about six minutes, more when something seems to have moved
    python -m perf.compare HEAD .                         `.` is the checkout as it is, with what is not committed
    python -m perf.compare v1 v2 --figure rate128 --figure rest --pairs 8
    python -m perf.compare v1 v2 --quick                  short windows, nothing is measured twice: look, do not decide

Each revision is checked out into a temporary folder (`git worktree`) and served by its own code with its own defaults;
the generator, the models and the checks are this checkout's. In each pair both servers start anew, and each load runs
on one, at once on the other, and so on; the next pair begins with the other one. A pair's value is the median of its
rounds. `perf/moved.py` says how it is judged: a figure
has moved when all but the outermost ratios say so in the first set of pairs, and again in a second set, which is
measured only for the loads whose figures seemed to have moved.

Exit status: 0: nothing got worse; 3: something did; 1: a call failed, or it was broken off: a server that does not come
up, or answers nothing at all. The whole pairs until then are told.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf import loadgen, models, moved
from perf.loadgen import Load, LoadError
from perf.program import add_json_option, at_least_one, run_program
from perf.report import Report, machine, median, print_table, versions
from perf.series import Series, measure
from perf.servers import ROOT, Ringserve, ServerError, model_config

CONNECTIONS_MAX = 4
ROLES = ("frontend", "broker", "worker")
#: A run beside which others used more of the machine than this is told: its figures are also theirs.
OTHERS_CPUS_MAX = 0.1


@dataclass(frozen=True)
class Probe:
    """One load. figures: which of its values are compared, in this order."""

    model: str
    in_flight: int
    figures: Sequence[str]
    rest: bool = False


_CPU = tuple(f"cpu {role}" for role in (*ROLES, "all"))
PROBES = {
    "rate128": Probe("mlp", 128, ("rate", *_CPU)),
    "rate32": Probe("mlp", 32, ("rate", *_CPU)),
    "latency1": Probe("mlp", 1, ("p50", "p99", *_CPU)),
    "rest": Probe("mlp", 128, ("rate", *_CPU), rest=True),
    "conv": Probe("conv", 32, ("rate", "p99")),
}
UNITS = {"rate": "requests/s", "p50": "us", "p99": "us", **dict.fromkeys(_CPU, "us/request")}


@dataclass(frozen=True)
class Plan:
    """rounds: windows of a load on each side, in turn, in one pair; what counts is their median."""

    pairs: int
    rounds: int
    warmup_s: float
    duration_s: float
    least: float
    again: bool


@dataclass
class Side:
    """A revision: where its files are, and what was measured of it: a Series for each pair."""

    name: str
    folder: Path
    runs: dict[str, list[Series]] = field(default_factory=dict)

    def values(self, probe: str, figure: str) -> list[float]:
        return [value_of(one, figure) for one in self.runs[probe]]


def value_of(series: Series, figure: str) -> float:
    if figure == "rate":
        return series.rate()
    if figure == "cpu all":
        return sum(series.cpu(role) for role in series.roles() - {"generator"})
    if figure.startswith("cpu "):
        return series.cpu(figure.removeprefix("cpu "))
    # A window in which no call was begun and answered: those that were in flight waited for all of it.
    return median(getattr(run.latency_us, figure) if run.latency_us.count else 1e6 * run.seconds for run in series.runs)


# ----------------------------------------------------------------------------------------------------------- revisions


def git(*arguments: str) -> str:
    outcome = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise ServerError(f"git {' '.join(arguments)}: {outcome.stderr.strip()}")
    return outcome.stdout.strip()


@contextmanager
def checked_out(revision: str) -> Iterator[Side]:
    """That revision's files, in a folder of their own while the block runs; `.`: this checkout's."""
    if revision == ".":
        yield Side(git("describe", "--always", "--dirty=+", "--abbrev=12"), ROOT)
        return
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="perf-compare-") as parent:
        folder = Path(parent) / "tree"
        git("worktree", "add", "--detach", "--force", str(folder), commit)
        try:
            check_import(folder)
            yield Side(commit[:12], folder)
        finally:
            git("worktree", "remove", "--force", str(folder))


def check_import(folder: Path) -> None:
    """That a process started there runs its code, not an installed one. Raises ServerError."""
    command = [sys.executable, "-c", "import ringserve; print(ringserve.__file__)"]
    outcome = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                             env={"PYTHONPATH": str(folder)})  # fmt: skip
    found = Path(outcome.stdout.strip() or "nowhere")
    if not found.is_relative_to(folder):
        raise ServerError(f"{folder} has no package of its own: `import ringserve` finds {found}\n{outcome.stderr}")


# ----------------------------------------------------------------------------------------------------------- measuring


def run_pair(sides: Sequence[Side], names: Sequence[str], plan: Plan, config: Path) -> None:
    """Both servers anew; each load on the first, then on the second of `sides`."""
    prepared = models.prepared(*models_of(names))
    with ExitStack() as stack:
        servers = [stack.enter_context(Ringserve(next(iter(prepared)), config, folder=side.folder)) for side in sides]
        for server in servers:
            for model in prepared.values():
                server.wait_ready(model.exchanges[0])
        for name in names:
            probe = PROBES[name]
            both = [Series(), Series()]
            for _ in range(plan.rounds):
                for server, series in zip(servers, both, strict=True):
                    measure(server, load_of(probe, server, prepared[probe.model], plan), series)
            for side, series in zip(sides, both, strict=True):
                side.runs.setdefault(name, []).append(series)


def models_of(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(PROBES[name].model for name in names))


def load_of(probe: Probe, server: Ringserve, model: models.PerfModel, plan: Plan) -> Load:
    path = f"/v1/models/{model.name}:predict" if probe.rest else Load.path
    return Load(
        server.rest_port if probe.rest else server.port, model.rest_exchanges if probe.rest else model.exchanges,
        path=path, rest=probe.rest, connections=min(CONNECTIONS_MAX, probe.in_flight), in_flight=probe.in_flight,
        warmup_s=plan.warmup_s, duration_s=plan.duration_s, errors_allowed=True,
    )  # fmt: skip


def run_set(before: Side, after: Side, names: Sequence[str], plan: Plan, config: Path) -> None:
    for pair in range(plan.pairs):
        print(f"  pair {pair + 1} of {plan.pairs}: {', '.join(names)}", flush=True)
        run_pair((before, after) if pair % 2 == 0 else (after, before), names, plan, config)


def keep_whole_pairs(before: Side, after: Side, names: Sequence[str]) -> int:
    """Of a set that was broken off: drops what was measured of the last pair. Returns how many pairs there are."""
    whole = min(len(before.runs.get(name, ())) for name in names)
    for side in (before, after):
        side.runs = {name: side.runs[name][:whole] for name in names if whole}
    return whole


# ------------------------------------------------------------------------------------------------------------- telling


@dataclass
class Row:
    """One figure of both. again: the ratios of the second set, None when there was none."""

    probe: str
    figure: str
    before: list[float]
    after: list[float]
    again: list[float] | None = None

    @property
    def ratios(self) -> list[float]:
        return moved.ratios(self.before, self.after)

    @property
    def more_is_better(self) -> bool:
        return self.figure == "rate"

    def verdict(self, plan: Plan) -> str:
        return moved.verdict(self.ratios, self.again, self.more_is_better, plan.least)

    def as_json(self, plan: Plan) -> dict[str, Any]:
        bounds = moved.interval(self.ratios)
        return {
            "load": self.probe, "figure": self.figure, "unit": UNITS[self.figure], "before": self.before,
            "after": self.after, "ratios": self.ratios, "median_ratio": moved.median_ratio(self.ratios),
            "interval": [bounds.low, bounds.high], "coverage": bounds.coverage, "ratios_again": self.again,
            "verdict": self.verdict(plan),
        }  # fmt: skip


def rows_of(before: Side, after: Side, names: Sequence[str]) -> list[Row]:
    return [Row(name, figure, before.values(name, figure), after.values(name, figure))
            for name in names for figure in PROBES[name].figures]  # fmt: skip


def print_rows(rows: Sequence[Row], before: Side, after: Side, plan: Plan) -> None:
    header = ["", "unit", before.name, after.name, "ratio", f"{100 * moved.interval(rows[0].ratios).coverage:.0f} % "
              "of the median", "each pair's", "again", ""]  # fmt: skip
    lines = []
    for row in rows:
        bounds = moved.interval(row.ratios)
        again = "" if row.again is None else f"{moved.median_ratio(row.again):.3f}"
        lines.append([
            f"{row.probe} {row.figure}", UNITS[row.figure], f"{median(row.before):,.5g}", f"{median(row.after):,.5g}",
            f"{moved.median_ratio(row.ratios):.3f}", f"{bounds.low:.3f} to {bounds.high:.3f}",
            " ".join(f"{ratio:.2f}" for ratio in row.ratios), again, row.verdict(plan),
        ])  # fmt: skip
    print_table(f"{after.name} against {before.name}: medians, and ratios of the pairs", header, lines)


def noise(sides: Sequence[Side]) -> dict[str, float]:
    """Of all runs: how many CPUs others had, how much of it the host took, and beside how many runs it was too much."""
    every = [one for side in sides for series in side.runs.values() for one in series]
    others = [value for one in every for value in one.others_cpus]
    return {
        "runs": len(others), "disturbed": sum(value > OTHERS_CPUS_MAX for value in others),
        "others_cpus_median": median(others), "others_cpus_max": max(others),
        "steal_cpus_max": max(value for one in every for value in one.steal_cpus),
    }  # fmt: skip


def print_noise(told: dict[str, float]) -> None:
    print(
        f"\nThe machine: others used {told['others_cpus_median']:.2f} CPUs in the middle, "
        f"{told['others_cpus_max']:.2f} at most, of which the host took up to {told['steal_cpus_max']:.2f}; "
        f"{told['disturbed']:.0f} of {told['runs']:.0f} runs had more than {OTHERS_CPUS_MAX} beside them"
    )
    if told["disturbed"] > told["runs"] / 4:
        print("THE MACHINE WAS NOT QUIET: repeat it before you believe any of this, whatever it says")


def compare(options: argparse.Namespace, plan: Plan, status: list[int]) -> int:
    """Returns how many calls failed; `status` gets the exit status for a figure that got worse."""
    names = options.figure or list(PROBES)
    trouble: LoadError | ServerError | None = None
    loadgen.build()
    with ExitStack() as stack:
        before, after = (stack.enter_context(checked_out(each)) for each in (options.before, options.after))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perf-compare-")))
        base_paths = {name: model.base_path for name, model in models.prepared(*models_of(names)).items()}
        config = model_config(folder / "models.config", base_paths)
        print(f"before: {options.before} = {before.name}, after: {options.after} = {after.name}; {machine()}")
        try:
            run_set(before, after, names, plan, config)
        except (LoadError, ServerError) as error:
            if not keep_whole_pairs(before, after, names):
                raise
            trouble = error
        rows = rows_of(before, after, names)
        suspects = {row.probe for row in rows if moved.direction(row.ratios, plan.least)}
        sides = [before, after]
        if plan.again and suspects and trouble is None:
            print("again, for what seems to have moved:")
            before_again, after_again = (Side(side.name, side.folder) for side in (before, after))
            sides += [before_again, after_again]
            chosen = [name for name in names if name in suspects]
            try:
                run_set(before_again, after_again, chosen, plan, config)
                repeated = {(row.probe, row.figure): row for row in rows_of(before_again, after_again, chosen)}
                for row in rows:
                    if moved.direction(row.ratios, plan.least):
                        row.again = repeated[row.probe, row.figure].ratios
            except (LoadError, ServerError) as error:
                trouble = error
    print_rows(rows, before, after, plan)
    told = noise(sides)
    print_noise(told)
    failures = sum(one.failures() for side in sides for series in side.runs.values() for one in series)
    if any(row.verdict(plan).endswith(moved.WORSE) for row in rows):
        status.append(3)
    if options.json is not None:
        told_all = {
            "before": before.name, "after": after.name, "machine": machine(), "versions": versions(),
            "command": sys.argv, "pairs": plan.pairs, "rounds": plan.rounds,
            "duration_s": plan.duration_s, "noise": told, "figures": [row.as_json(plan) for row in rows],
            "failures": failures, "trouble": None if trouble is None else str(trouble),
        }  # fmt: skip
        options.json.write_text(json.dumps(told_all, indent=1) + "\n")
    if trouble is not None:
        print("\nBROKEN OFF; told is what was measured before", file=sys.stderr)
        raise trouble
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="REV1")
    parser.add_argument("after", metavar="REV2")
    parser.add_argument("--figure", action="append", choices=list(PROBES), help="may be repeated; without: all")
    parser.add_argument("--pairs", type=at_least_one, default=moved.PAIRS_LEAST)
    parser.add_argument("--duration_s", type=float, default=1.2, help="of each measured window")
    parser.add_argument("--rounds", type=at_least_one, default=3,
                        help="windows of a load on each side in one pair, in turn")  # fmt: skip
    parser.add_argument("--least", type=float, default=1.0, help="percent; smaller changes do not count")
    parser.add_argument("--once", action="store_true", help="do not measure again what seems to have moved")
    parser.add_argument("--quick", action="store_true", help="one window of 0.8 s, and --once")
    add_json_option(parser)
    options = parser.parse_args()
    quick = options.quick
    plan = Plan(options.pairs, options.rounds, 0.4, options.duration_s, options.least / 100, again=not options.once)
    if quick:
        plan = Plan(options.pairs, 1, 0.3, 0.8, options.least / 100, again=False)
    status: list[int] = []
    # run_program's own record of figures is not for pairs of revisions: this program writes its JSON itself
    bare = argparse.Namespace(record=False, strict=False, json=None)
    failed = run_program("compare", bare, Report(), lambda: compare(options, plan, status))
    return failed or max(status, default=0)


if __name__ == "__main__":
    sys.exit(main())
