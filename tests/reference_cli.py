"""docs/cli.md as text, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from ringserve.cli import main
from ringserve.commands.console import Status
from ringserve.config.schema import MODEL_FLAGS
from ringserve.config.table import SETTINGS

_SETTING_FLAGS = {row.flag for row in SETTINGS} | set(MODEL_FLAGS)

#: What a script may conclude. `doctor` is the exception, and says so itself.
_STATUSES: dict[Status, str] = {
    Status.OK: "done",
    Status.FAILED: "the server, or what was asked for, says no; a model does not serve",
    Status.USAGE: "the command line is wrong",
    Status.LIMIT: "`bench`: it ran, and a figure is over its limit, requests failed, or it cannot be trusted",
    Status.DATA: "`predict`, `bench`, `convert`: what was given cannot be read, or does not fit the signature",
    Status.UNREACHABLE: "nobody answers at that address; `serve`: a model that is required did not load",
    Status.CONFIG: "`serve`, `config check`, `doctor`: the configuration is wrong",
}


def commands(group: click.Group = main, path: tuple[str, ...] = ("ringserve",)) -> Iterator[tuple[str, click.Command]]:
    """Every command that is advertised, groups before what is in them, by name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        whole = (*path, name)
        yield " ".join(whole), command
        if isinstance(command, click.Group):
            yield from commands(command, whole)


def cli_md() -> str:
    """The reference of the command line."""
    lines = [
        "# Command line",
        "",
        "<!-- Written by `python -m tests.reference` from the commands; a test compares. -->",
        "",
        "`ringserve COMMAND --help` says the same. Dashes may stand for underscores in flags. Colours and progress are",
        "for terminals only; `--json` is for scripts. `RINGSERVE_URL` and `RINGSERVE_GRPC` name the server for all",
        "commands that call one. `tensorflow_model_server` is described in its [own page](tensorflow_model_server.md).",
        "",
        "| exit status | means |",
        "|---|---|",
        *(f"| {int(status)} | {_STATUSES[status]} |" for status in Status),
        "",
        "`doctor` exits with 0, 1 (warnings) or 2 (errors), as plugins of monitoring systems do.",
        "",
        "## Commands",
        "",
        "| command | |",
        "|---|---|",
    ]
    found = list(commands())
    lines += [f"| [`{name}`](#{name.replace(' ', '-')}) | {_first(command)} |" for name, command in found]
    for name, command in found:
        lines += ["", f"## {name}", "", *_described(name, command)]
    return "\n".join(lines) + "\n"


def _first(command: click.Command) -> str:
    text = inspect.cleandoc(command.help or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def _described(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=name)
    lines = [f"`{' '.join(command.collect_usage_pieces(context)).join((f'{name} ', ''))}`", ""]
    lines += _paragraphs(command.help or "")
    lines += _paragraphs(command.epilog or "")
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    has_settings = any(option.name in _SETTING_FLAGS for option in options)
    family = _SETTING_FLAGS | {"config_path"} if has_settings else set()
    own = [option for option in options if option.name not in family]
    if own:
        lines += ["| option | |", "|---|---|"]
        for option in own:
            record = option.get_help_record(context)
            if record is not None:
                flag, text = (part.replace("|", "\\|") for part in record)
                lines.append(f"| `{flag}` | {text} |")
        lines.append("")
    if has_settings:
        lines += ["And `--config FILE`, and a flag for each setting: [configuration.md](configuration.md).", ""]
    return lines[:-1]


def _paragraphs(text: str) -> list[str]:
    """Help text as Markdown: blocks marked with a backspace are shown as they are."""
    lines: list[str] = []
    for paragraph in filter(None, inspect.cleandoc(text).split("\n\n")):
        first, _, rest = paragraph.partition("\n")
        if first.strip() == "\b":
            is_shell = rest.lstrip().startswith("ringserve")
            lines += [f"```{'sh' if is_shell else 'text'}", inspect.cleandoc(rest), "```", ""]
        else:
            lines += [paragraph, ""]
    return lines
