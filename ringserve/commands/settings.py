"""Settings as a command line takes them: a flag for each, --config, and all mistakes told together."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ringserve.config.schema import MODEL_FLAGS, Settings
from ringserve.config.table import SETTINGS, Setting

if TYPE_CHECKING:
    from ringserve.config.topology import Topology


def settings_options(command: click.Command) -> click.Command:
    """Give a command a flag for every setting, and --config."""
    command.params.append(click.Option(["--config", "config_path"], metavar="FILE", help="TOML file with settings"))
    command.params += [
        click.Option([f"--{name}", name], metavar="TEXT", help=why) for name, why in MODEL_FLAGS.items()
    ]
    command.params += [_option(row) for row in SETTINGS]
    return command


def _option(row: Setting) -> click.Option:
    # Values stay text here: load.py parses all sources alike and reports all mistakes together.
    kind = {"int": "NUMBER", "float": "NUMBER", "bytes": "SIZE", "bool": "BOOL", "str": "TEXT"}[row.kind]
    extra: dict[str, Any] = {"flag_value": "true", "is_flag": False} if row.kind == "bool" else {}
    return click.Option(
        [f"--{row.flag}", row.flag],
        metavar="|".join(row.choices) or kind,
        help=f"{row.why}  [default: {row.default_text}]",
        **extra,
    )


def load(config_path: str | None, flags: dict[str, Any], *, as_json: bool = False) -> Settings:
    """The settings that these flags, the environment and the file make; ends the process when they are wrong.

    as_json: then say so in JSON, on standard output.
    """
    from ringserve.config.load import ConfigError, load_settings
    from ringserve.config.process import Exit

    try:
        given = {name: value for name, value in flags.items() if value is not None}
        return load_settings(given, os.environ, config_path)
    except ConfigError as error:
        if as_json:
            click.echo(json.dumps({"mistakes": error.mistakes}, indent=1, ensure_ascii=False))
            sys.exit(Exit.CONFIG)
        count = len(error.mistakes)
        click.echo(f"ringserve: {count} mistake{'s' if count > 1 else ''} in the configuration:", err=True)
        for mistake in error.mistakes:
            click.echo(f"  {mistake}", err=True)
        sys.exit(Exit.CONFIG)


def resolve(settings: Settings) -> tuple[Settings, Topology]:
    """The same with all that is derived, and the machine that it is derived from; ends the process when workers are to
    run on what this machine does not have."""
    from ringserve.config import limits
    from ringserve.config.devices import DeviceError
    from ringserve.config.process import Exit
    from ringserve.config.topology import read_topology

    machine = read_topology()
    try:
        resolved = limits.resolve(settings, machine)
        limits.slots_of(resolved, machine)
    except DeviceError as error:
        click.echo(f"ringserve: {error}", err=True)
        sys.exit(Exit.CONFIG)
    return resolved, machine
