"""`python -m tests.faults [CASE ...] [--storm [NAME ...]] [--kills N]`: runs cases and writes docs/faults.md.

All cases, or those named: by the names that the tests have, such as `worker-kill-batch`, which may hold `*`. Times of
cases that are not run stay as the page has them. --storm: storms only, all of `STORMS`, or those named.
Ends with 1 when clients saw anything else than the table says; of such a case nothing is written.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.cases import CASES, HAVE, STORMS, Case
from tests.faults.endings import run_alone, why_impossible
from tests.faults.load import Load
from tests.faults.page import PAGE, Measured, StormRow, Times, page, times_of
from tests.faults.runner import Outcome, run
from tests.faults.stage import Stage, export_models
from tests.faults.storm import storm


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--storm", nargs="*", metavar="NAME", help="kill these again and again under load")
    parser.add_argument("--kills", type=int, default=20, help="so often")
    parser.add_argument("cases", nargs="*", help="names of cases, or patterns")
    arguments = parser.parse_args()
    patterns = arguments.cases or (["*"] if arguments.storm is None else [])
    wanted = [case for case in CASES if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    wanted = [case for case in wanted if not case.waits_for or case.waits_for in HAVE]
    before = times_of(PAGE.read_text()) if PAGE.exists() else Measured("", {}, [])
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        export_models(models)
        outcomes = _run_all(wanted, Path(folder), models)
        rows = {row.name: row for row in before.storms}
        if arguments.storm is not None:
            rows |= _storms(arguments.storm or tuple(STORMS), arguments.kills, Path(folder) / "storm", models)
    right = [case for case in wanted if case.name in outcomes and outcomes[case.name].sees == case.sees]
    wrong = [f"{case.name}: {outcomes[case.name].sees}, not {case.sees}" for case in wanted
             if case.name in outcomes and outcomes[case.name].sees != case.sees]
    wrong += [f"storm of {row.name}: {row.failed} failed" for row in rows.values() if row.failed != "0"]
    times = {case.name: Times(f"{outcomes[case.name].gap_s:.2f} s", f"{outcomes[case.name].slowest_s:.2f} s")
             for case in right}
    where = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, with the clients on them"
    PAGE.write_text(page(Measured(where, {**before.cases, **times}, [rows[name] for name in STORMS if name in rows])))
    if wrong:
        print("\n".join(("NOT WHAT THE TABLE SAYS:", *wrong)))
    return 1 if wrong else 0


def _run_all(cases: Sequence[Case], folder: Path, models: Path) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}

    def told(case: Case, run_it: Callable[[], Outcome]) -> None:
        try:
            outcome = run_it()
        except AssertionError as error:
            outcome = Outcome(f"it went wrong ({error})", 0.0, 0.0)
        outcomes[case.name] = outcome
        print(f"{case.name}: {outcome.sees}, {outcome.gap_s:.2f} s, {outcome.slowest_s:.2f} s", flush=True)

    shared = [case for case in cases if not case.own_server and not why_impossible(case)]
    if shared:
        with Stage(folder / "stage", models) as stage:
            stage.wait_ready()
            with Load(stage.grpc_target) as load:
                for case in shared:
                    told(case, functools.partial(run, case, stage, load))
    for case in cases:
        if case.own_server and not why_impossible(case):
            told(case, functools.partial(run_alone, case, folder / case.name, models))
    return outcomes


def _storms(roles: Sequence[str], kills: int, folder: Path, models: Path) -> dict[str, StormRow]:
    rows = {}
    with Stage(folder, models) as stage:
        stage.wait_ready()
        for role in roles:
            found = storm(stage, role, kills)
            print(f"storm of {role}: {found}", flush=True)
            median, longest = statistics.median(found.recoveries_s), max(found.recoveries_s)
            failed = sum(found.failures.values())
            times = (f"{median:.2f} s", f"{longest:.2f} s")
            rows[role] = StormRow(role, str(kills), str(found.answered), str(failed), *times)
    return rows


if __name__ == "__main__":
    sys.exit(main())
