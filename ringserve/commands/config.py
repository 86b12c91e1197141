"""`ringserve config`: check a configuration, say what it comes to, print one to start from."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ringserve.commands.console import Group, json_option, plural, print_json
from ringserve.commands.settings import load, resolve, settings_options
from ringserve.config.schema import SECTIONS, Settings
from ringserve.config.table import SETTINGS


@click.group(cls=Group)
def config() -> None:
    """Check a configuration, or print one to start from."""


@config.command()
@json_option
@click.option("--all", "everything", is_flag=True, help="print every setting's value; those that differ are marked")
def check(config_path: str | None, as_json: bool, everything: bool, **flags: Any) -> None:
    """Say what is wrong with the configuration, or what follows from it. Takes the same flags as `serve`.

    Exits with 78 when the configuration is wrong, as `serve` does.

    \b
    ringserve config check --config /etc/ringserve/server.toml
    ringserve config check --config server.toml --workers 4 --all
    """
    from ringserve.config import limits

    settings, machine = resolve(load(config_path, flags, as_json=as_json))
    warnings, bill = limits.warnings(settings), limits.memory_bill(settings)
    if as_json:
        values = dataclasses.asdict(settings)
        usable = [cpu.number for cpu in machine.cpus]
        print_json({**values, "warnings": warnings, "usable_cpus": usable, "memory_bill": bill})
        return
    for warning in warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}")
    for model in settings.models:
        versions = model.versions if isinstance(model.versions, str) else ", ".join(map(str, model.versions))
        click.echo(f"model {model.name}: {versions} of {model.base_path}")
    if everything:
        for line in resolved_lines(settings):
            click.echo(line)
    workers = sum(group.workers for group in limits.groups_of(settings))
    processes = f"{plural(workers, 'worker')} and {plural(settings.server.frontends, 'frontend')}"
    click.echo(f"{processes} on {plural(machine.count, 'usable CPU')}")
    for line in bill:
        click.echo(f"  {line}")
    click.echo("the configuration is right")


settings_options(check)


@config.command()
@json_option
def show(as_json: bool) -> None:
    """Print a configuration file with every setting at its default.

    \b
    ringserve config show > server.toml
    ringserve config show --json | jq '.server.port'
    """
    from ringserve.config.reference import server_toml

    if as_json:
        print_json({name: dataclasses.asdict(section()) for name, section in SECTIONS.items()})
        return
    click.echo(server_toml(), nl=False)


def resolved_lines(settings: Settings) -> list[str]:
    """Every setting with its value as in a TOML file; `*` in front of those that are not at their default."""
    import json

    lines, section = [], ""
    for row in SETTINGS:
        if row.section != section:
            section = row.section
            lines.append(f"  [{section}]")
        value = getattr(getattr(settings, section), row.key)
        lines.append(f"{' ' if value == row.default else '*'} {row.key} = {json.dumps(value)}")
    return lines
