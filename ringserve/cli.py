"""The `ringserve` command. Every command imports what it runs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ringserve import __version__
from ringserve.config.schema import MODEL_FLAGS, Settings
from ringserve.config.table import SETTINGS, Setting
from ringserve.warmup import warmup

_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # --model_name and --model-name are one flag.
    "token_normalize_func": lambda token: token.replace("-", "_"),
}

_SERVE_EPILOG = """\b
A setting is looked up in this order; the first that gives it counts:
  1. the flag                       --rest_api_port=8501  (dashes may stand for underscores)
  2. the environment                RINGSERVE_REST_API_PORT=8501
  3. the file named by --config     [server]
                                    rest_api_port = 8501
  4. the default
`ringserve config show` prints a file with every setting."""


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, message="ringserve %(version)s")
def main() -> None:
    """A model server for TensorFlow SavedModels with TensorFlow Serving's gRPC and REST APIs."""


# ------------------------------------------------------------------------------------------------- settings as flags


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


def _settings_options(command: click.Command) -> click.Command:
    """Give a command a flag for every setting, and --config."""
    command.params.append(click.Option(["--config", "config_path"], metavar="FILE", help="TOML file with settings"))
    command.params += [
        click.Option([f"--{name}", name], metavar="TEXT", help=why) for name, why in MODEL_FLAGS.items()
    ]
    command.params += [_option(row) for row in SETTINGS]
    return command


def _load(config_path: str | None, flags: dict[str, Any]) -> Settings:
    from ringserve.config.load import ConfigError, load_settings
    from ringserve.config.process import Exit

    try:
        given = {name: value for name, value in flags.items() if value is not None}
        return load_settings(given, os.environ, config_path)
    except ConfigError as error:
        count = len(error.mistakes)
        click.echo(f"ringserve: {count} mistake{'s' if count > 1 else ''} in the configuration:", err=True)
        for mistake in error.mistakes:
            click.echo(f"  {mistake}", err=True)
        sys.exit(Exit.CONFIG)


@main.command(epilog=_SERVE_EPILOG)
def serve(config_path: str | None, **flags: Any) -> None:
    """Serve models until stopped (SIGTERM or Ctrl-C: finish what runs; a second one: stop at once).

    \b
    ringserve serve --model_name=digits --model_base_path=/models/digits
    ringserve serve --config=/etc/ringserve/server.toml
    """
    settings = _load(config_path, flags)
    from ringserve.config.process import Exit
    from ringserve.supervisor import ServerFailed, StartError, run

    try:
        sys.exit(run(settings))
    except (StartError, ServerFailed) as error:
        click.echo(f"ringserve: {error}", err=True)
        sys.exit(Exit.FATAL if isinstance(error, ServerFailed) else Exit.FAILED)


_settings_options(serve)


# ------------------------------------------------------------------------------------------------------------ config


@main.group()
def config() -> None:
    """Check a configuration, or print one to start from."""


@config.command()
def check(config_path: str | None, **flags: Any) -> None:
    """Say what is wrong with the configuration, or what follows from it. Takes the same flags as `serve`."""
    from ringserve.config import limits
    from ringserve.config.devices import DeviceError
    from ringserve.config.topology import read_topology

    machine = read_topology()
    try:
        settings = limits.resolve(_load(config_path, flags), machine)
        limits.slots_of(settings, machine)
    except DeviceError as error:
        raise click.ClickException(str(error)) from error
    for warning in limits.warnings(settings):
        click.echo(f"warning: {warning}")
    for model in settings.models:
        versions = model.versions if isinstance(model.versions, str) else ", ".join(map(str, model.versions))
        click.echo(f"model {model.name}: {versions} of {model.base_path}")
    click.echo(
        f"{settings.workers.workers} workers and {settings.server.frontends} frontends on {machine.count} usable CPUs"
    )
    for line in limits.memory_bill(settings):
        click.echo(f"  {line}")
    click.echo("the configuration is right")


_settings_options(check)


@config.command()
def show() -> None:
    """Print a configuration file with every setting at its default."""
    from ringserve.config.reference import server_toml

    click.echo(server_toml(), nl=False)


# ------------------------------------------------------------------------------------------------------ sample model


@main.command("sample-model")
@click.argument("directory", type=click.Path(file_okay=False))
def sample_model(directory: str) -> None:
    """Write a small model into DIRECTORY, to try the server with, and say how to call it."""
    from ringserve.sample_model import describe, export_sample

    click.echo(describe(export_sample(directory)))


# ---------------------------------------------------------------------------- the processes, started by the supervisor


def _child(command: click.Command) -> click.Command:
    """Options that the supervisor gives every process."""
    options = [
        click.Option(["--resolved"], required=True, help="file with the settings as JSON"),
        click.Option(["--name"], required=True, help="what the process is called in logs"),
        click.Option(["--death-fd"], type=int, required=True, help="its end-of-file: the supervisor is gone"),
    ]
    command.params[:0] = options
    return command


def _resolved(path: str) -> tuple[Settings, str]:
    """The settings in that file, and the run directory, which it lies in."""
    with open(path, encoding="utf-8") as file:
        return Settings.from_json(file.read()), os.path.dirname(path)


@main.command(hidden=True)
@click.option("--listen-fd", type=int, required=True, help="the listening registration socket")
def broker(resolved: str, name: str, death_fd: int, listen_fd: int) -> None:
    """Be the broker."""
    from ringserve.broker.main import run

    settings, run_dir = _resolved(resolved)
    sys.exit(run(settings, name=name, listen_fd=listen_fd, death_fd=death_fd, run_dir=run_dir))


@main.command(hidden=True)
@click.option("--index", type=int, required=True, help="which of the frontends")
@click.option("--grpc-socket-fd", type=int, default=-1, help="a listening UNIX socket for gRPC")
def frontend(resolved: str, name: str, death_fd: int, index: int, grpc_socket_fd: int) -> None:
    """Be a frontend."""
    from ringserve.frontend.main import run

    settings, run_dir = _resolved(resolved)
    sys.exit(
        run(settings, name=name, index=index, death_fd=death_fd, run_dir=run_dir, grpc_socket_fd=grpc_socket_fd)
    )


@main.command(hidden=True)
def pool(resolved: str, name: str, death_fd: int) -> None:
    """Be the pool of workers."""
    from ringserve.workers.main import run

    settings, run_dir = _resolved(resolved)
    sys.exit(run(settings, name=name, death_fd=death_fd, run_dir=run_dir))


for _command in (broker, frontend, pool):
    _child(_command)

main.add_command(warmup)
