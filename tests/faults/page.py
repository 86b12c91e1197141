"""docs/faults.md: the table of cases with the times that were measured. The page is also where the times are kept.

`page` makes the text from cases.py and times, `times_of` takes the times out of a text, so that a case can be measured
again by itself, and a test can tell that the page says what the table says: page(times_of(text)) == text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.cases import CASES, CLASSES, FAULTS, HAVE, MOMENTS, NO_CELLS, ROLES, STORMS, Case, why_no_cell

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"

_HEAD = """\
# Faults

<!-- Written by `python -m tests.faults` from tests/faults/cases.py and what it measured; a test compares. -->

What clients see when a process of the server fails: each kind of process, each fault, each moment. Every row is run
with real processes and real clients (official gRPC clients, some with a retry policy), whose answers are checked value
by value. `tests/faults/` asserts the class of each row, that a server which goes on is whole again after it, and that
nothing is left behind: no process, no socket in the run directory, no memory, mapped or named, no descriptor.

A process is brought to the moment from outside: tests put a module on its Python path that holds it there, and
nothing in the server knows of it. OOM kills are the kernel's, in a memory control group with a hog. Aborts are
`abort()`, forks, files and memory that fail give the error that the system would.

What clients see, in one word:

"""
_TIMES = """\

*No answer for* is the longest time in which no client got an answer, of all that asked all the time; *slowest call* is
the longest that one waited. Times are measured, not promised: {measured}.
The server had two workers, two frontends, a lease of 2 s (30 s by default), a drain of 3 s at most, and started who had
died before after 100 ms (by default after twice as long each time while it keeps dying within 10 s). A new pool imports
TensorFlow, and a new broker Python, which is nearly all of their times.
"""
_TABLE = (
    "| fault | moment | clients see | no answer for | slowest call | what happens |",
    "|---|---|---|---|---|---|",
)
_STORM = """\

## Storms

`kill -9` of a random process of a role at random moments, with 500 calls in flight on ten connections all the time. Of
two roles the second is killed at once or within 0.6 s, while the first one's successor takes over. A recovery is the
longest time without any answer after a kill.

| killed | times | answers | failed or wrong | recovery: median | longest |
|---|---|---|---|---|---|
"""
_NOT_RUN = "not run yet"


class Times(NamedTuple):
    """Of one case, as they stand on the page."""

    gap: str
    slowest: str


class StormRow(NamedTuple):
    """Of one of STORMS."""

    name: str
    kills: str
    answers: str
    failed: str
    median: str
    longest: str


class Measured(NamedTuple):
    """All that the page knows and the table does not. where: machine and date, in words. cases: by name."""

    where: str
    cases: Mapping[str, Times]
    storms: Sequence[StormRow]


def page(measured: Measured) -> str:
    """The text of the page."""
    lines = [f"* **{word}**: {text}" for word, text in CLASSES.items()]
    text = _HEAD + "\n".join(lines) + "\n" + _TIMES.format(measured=measured.where)
    for role in ROLES:
        text += f"\n## {role.capitalize()}\n\n" + "\n".join((*_TABLE, *_rows(role, measured.cases))) + "\n"
    text += _STORM
    for row in measured.storms:
        text += "| " + " | ".join(row) + " |\n"
    return text


def _rows(role: str, times: Mapping[str, Times]) -> Iterator[str]:
    for fault in FAULTS:
        for case in CASES:
            if (case.role, case.fault) == (role, fault):
                gap, slowest = times.get(case.name, Times(_NOT_RUN, _NOT_RUN))
                missing = case.waits_for not in HAVE and case.waits_for
                what = case.about + (f" (not built yet: {missing})" if missing else "")
                yield f"| {_fault(case)} | {MOMENTS[case.moment]} | **{case.sees}** | {gap} | {slowest} | {what} |"
        for why in dict.fromkeys(cell[3] for cell in NO_CELLS):
            moments = [MOMENTS[moment] for moment in MOMENTS if why_no_cell(role, fault, moment) == why]
            if moments and not any(case[:2] == (role, fault) and MOMENTS[case.moment] in moments for case in CASES):
                all_of_them = len(moments) == len(MOMENTS)
                yield f"| {FAULTS[fault]} | {'any' if all_of_them else '; '.join(moments)} | – | | | {why} |"


def _fault(case: Case) -> str:
    return FAULTS[case.fault] + (f", {case.times} times" if case.times > 1 else "")


def times_of(text: str) -> Measured:
    """What is measured, from the text of a page."""
    where = re.search(r"not promised: (.*?)\.\nThe server had", text, re.DOTALL)
    cases: dict[str, Times] = {}
    storms = []
    role = ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            role = line[3:].lower()
        elif role == "storms" and line.startswith("|") and cells[0] in STORMS:
            storms.append(StormRow(*cells))
        elif role in ROLES and line.startswith("| ") and cells[2].startswith("**"):
            for case in CASES:
                if (case.role, _fault(case), MOMENTS[case.moment]) == (role, cells[0], cells[1]):
                    key = case.name
                    if f"**{case.sees}**" == cells[2] and cells[3] != _NOT_RUN:
                        cases[key] = Times(cells[3], cells[4])
    return Measured(where[1] if where else "", cases, storms)
