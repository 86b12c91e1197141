"""What all commands share: exit statuses, failures as one line, tables, sizes, JSON, and the options that many take."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final, TypeVar

import click

KIB: Final = 1024
DEFAULT_URL: Final = "http://127.0.0.1:8501"

F = TypeVar("F", bound=Callable[..., Any])


class Status(IntEnum):
    """Exit statuses of the commands (docs/cli.md lists them); those of processes of a server are process.Exit."""

    OK = 0
    #: The server, or what was asked for, says no.
    FAILED = 1
    #: The command line is wrong (click's own status).
    USAGE = 2
    #: It ran, and what it measured is over a limit that was given, or cannot be trusted.
    LIMIT = 3
    #: What was to be sent cannot be read, or does not fit (sysexits' EX_DATAERR).
    DATA = 65
    #: Nobody answers at that address (EX_UNAVAILABLE).
    UNREACHABLE = 69
    #: The configuration is wrong (EX_CONFIG).
    CONFIG = 78


class Failed(click.ClickException):
    """Ends the command with a line on standard error and this exit status."""

    def __init__(self, text: str, status: Status = Status.FAILED) -> None:
        super().__init__(text)
        # A class variable in click's type stubs, and an instance's in its code.
        self.__dict__["exit_code"] = int(status)


class Group(click.Group):
    """A group that says which command was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 3)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(near)}?", ctx) from None


def json_option(command: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="print JSON, for scripts")(command)


def json_anyway_option(command: F) -> F:
    """`--json` of a command that prints nothing else: whoever gives it to all commands need not make an exception."""
    return click.option("--json", is_flag=True, expose_value=False, help="print JSON, as it does anyhow")(command)


def url_option(command: F) -> F:
    """`--url`, of a server's REST API."""
    return click.option(
        "--url",
        envvar="RINGSERVE_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help="the server's REST address",
    )(command)


def waiting(text: str) -> None:
    """Say on standard error what takes long, on a terminal."""
    if sys.stderr.isatty():
        click.echo(f"{text} ...", err=True)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Columns of text below bold heads, two blanks between them. right: columns of numbers."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(_width(line[i]) for line in ([*heads], *texts)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> list[str]:
        return [
            " " * (width - _width(cell)) + cell if i in right else cell + " " * (width - _width(cell))
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]

    lines = ["  ".join(click.style(cell, bold=True) for cell in line(heads)).rstrip()]
    return "\n".join([*lines, *("  ".join(line(row)).rstrip() for row in texts)])


def _width(text: str) -> int:
    return len(click.unstyle(text))


def size_text(count_bytes: float) -> str:
    """A number of bytes for people: `1.5 MiB`."""
    value, unit = float(count_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < KIB:
            break
        value, unit = value / KIB, bigger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """A time for people, with three digits that count: `1.23 ms`."""
    if seconds != seconds:  # not a number
        return "-"
    value, unit = (seconds * 1e6, "µs") if seconds < 1e-3 else (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def plural(count: int, word: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def pairs(given: Sequence[str], what: str) -> dict[str, str]:
    """`name=value` arguments. Raises click.BadParameter for one without an equals sign."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not {what}")
        found[name] = value
    return found
