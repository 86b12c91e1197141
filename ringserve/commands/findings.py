"""What a command found out that somebody should know: one value, and how it is shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import click


class Level(IntEnum):
    """How bad it is."""

    #: Good to know.
    NOTE = 0
    #: It serves, and not as well as it could; or it may stop to.
    WARNING = 1
    #: It does not serve.
    ERROR = 2


class Finding(NamedTuple):
    """One of them. subject: what it is about; what: the fact; why it matters; fix: a command that mends it, or what to
    do in words; empty when there is nothing to say."""

    level: Level
    subject: str
    what: str
    why: str = ""
    fix: str = ""


_COLOURS: Final = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "cyan"}


def worst(findings: Iterable[Finding]) -> Level:
    """The highest level among them; NOTE for none."""
    return max((finding.level for finding in findings), default=Level.NOTE)


def lines(findings: Sequence[Finding], width: int = 100) -> list[str]:
    """Findings for people, the worst first."""
    found = []
    for finding in sorted(findings, key=lambda finding: -finding.level):
        mark = click.style(finding.level.name.lower(), fg=_COLOURS[finding.level], bold=True)
        found.append(f"{mark} {click.style(finding.subject, bold=True)}: {finding.what}")
        if finding.why:
            found += textwrap.wrap(finding.why, width, initial_indent="    ", subsequent_indent="    ")
        if finding.fix:
            found.append(click.style(f"    → {finding.fix}", fg="green"))
    return found


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings as JSON's values."""
    return [{**finding._asdict(), "level": finding.level.name.lower()} for finding in findings]
