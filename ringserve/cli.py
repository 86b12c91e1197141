"""The `ringserve` command. Every command imports what it runs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Final, NamedTuple

import click

from ringserve import __version__
from ringserve.commands.console import Group, json_option, print_json
from ringserve.commands.settings import load, settings_options
from ringserve.config.schema import Settings

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


#: Commands in files of their own: a process of a server starts without them.
COMMANDS: Final = {
    name: f"ringserve.commands.{name}"
    for name in (
        *("bench", "completion", "config", "convert", "doctor", "inspect", "models", "predict", "reload"),
        *("systemd", "top"),
    )
} | {"warmup": "ringserve.warmup", "keys": "ringserve.keys"}


class _Commands(Group):
    """A group whose further commands are imported when they are asked for; each is called as its file is."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        return found


@click.group(cls=_Commands, context_settings=_CONTEXT)
@click.version_option(__version__, message="ringserve %(version)s")
def main() -> None:
    """A model server for TensorFlow SavedModels with TensorFlow Serving's gRPC and REST APIs."""


@main.command(epilog=_SERVE_EPILOG)
def serve(config_path: str | None, **flags: Any) -> None:
    """Serve models until stopped (SIGTERM or Ctrl-C: finish what runs; a second one: stop at once).

    \b
    ringserve serve --model_name=digits --model_base_path=/models/digits
    ringserve serve --config=/etc/ringserve/server.toml
    """
    from ringserve.config.process import Exit, open_standard_descriptors

    open_standard_descriptors()
    settings = load(config_path, flags)
    from ringserve.supervisor import ServerFailed, StartError, run

    try:
        sys.exit(run(settings))
    except (StartError, ServerFailed) as error:
        click.echo(f"ringserve: {error}", err=True)
        sys.exit(Exit.FATAL if isinstance(error, ServerFailed) else Exit.FAILED)


settings_options(serve)


# ------------------------------------------------------------------------------------------------------ sample model


@main.command("sample-model")
@click.argument("directory", type=click.Path(file_okay=False))
@json_option
def sample_model(directory: str, as_json: bool) -> None:
    """Write a small model into DIRECTORY, to try the server with, and say how to call it.

    \b
    ringserve sample-model /tmp/models
    """
    from ringserve.sample_model import describe, export_sample
    sample = export_sample(directory)
    print_json(sample._asdict()) if as_json else click.echo(describe(sample))


# ------------------------------------------------- the processes, started by the supervisor or, one by one, by systemd


def _child(command: click.Command) -> click.Command:
    """Options that every process has: what the supervisor gives it, or the configuration's file in its place."""
    options = [
        click.Option(["--resolved"], default="", help="file with the settings as JSON"),
        click.Option(["--config", "config_path"], default="", help="TOML file with settings: there is no supervisor"),
        click.Option(["--name"], default="", help="what the process is called in logs"),
        click.Option(["--death-fd"], type=int, default=-1, help="its end-of-file: the supervisor is gone"),
        click.Option(["--broker-path"], default="", help="the registration socket; in the run directory unless given"),
    ]
    command.params[:0] = options
    return command


class _Start(NamedTuple):
    """What a process starts with. broker_path: where it registers. sockets: those that systemd holds for it, by name.
    """

    settings: Settings
    name: str
    run_dir: str
    broker_path: str
    sockets: dict[str, tuple[int, ...]]


def _begin(name: str, given_name: str, resolved: str, config_path: str, broker_path: str) -> _Start:
    """name: what the process is called if nobody says otherwise."""
    if resolved:
        with open(resolved, encoding="utf-8") as file:
            settings = Settings.from_json(file.read())
        return _Start(settings, given_name or name, settings.server.run_dir, broker_path, {})
    from ringserve import activation, parts
    from ringserve.config.process import Exit

    try:
        sockets = activation.take(os.environ)
        settings, run_dir = parts.settle(config_path, os.environ, sockets)
    except (parts.PartError, activation.ActivationError) as error:
        click.echo(f"ringserve: {name} cannot start:\n  " + str(error).replace("\n", "\n  "), err=True)
        sys.exit(Exit.CONFIG)
    parts.sweep(run_dir, given_name or name)
    return _Start(settings, given_name or name, run_dir, os.path.join(run_dir, "broker.sock"), sockets)


@main.command(hidden=True)
@click.option("--listen-fd", type=int, default=-1, help="the listening registration socket")
def broker(resolved: str, config_path: str, name: str, death_fd: int, broker_path: str, listen_fd: int) -> None:
    """Be the broker."""
    from ringserve.broker.main import run
    from ringserve.config.process import Exit

    start = _begin("broker", name, resolved, config_path, broker_path)
    if listen_fd < 0:
        listen_fd = next(iter(start.sockets.get("broker", ())), -1)
    if listen_fd < 0:
        click.echo("ringserve: the broker needs a socket named 'broker' from systemd: see docs/systemd.md", err=True)
        sys.exit(Exit.CONFIG)
    sys.exit(run(start.settings, name=start.name, listen_fd=listen_fd, death_fd=death_fd, run_dir=start.run_dir))


@main.command(hidden=True)
@click.option("--index", type=int, required=True, help="which of the frontends")
@click.option("--grpc-fd", "grpc_fds", type=int, multiple=True, help="a listening socket for gRPC from systemd")
@click.option("--rest-fd", "rest_fds", type=int, multiple=True, help="likewise for REST")
@click.option("--grpc-socket-fd", type=int, default=-1, help="a listening UNIX socket for gRPC")
@click.option("--admin-socket-fd", type=int, default=-1, help="a listening UNIX socket for operators")
@click.option("--rates-fd", type=int, default=-1, help="memory that the requests of keys are counted in")
def frontend(
    resolved: str, config_path: str, name: str, death_fd: int, broker_path: str, index: int, **inherited: Any
) -> None:
    """Be a frontend."""
    from ringserve.frontend.main import Inherited, run

    start = _begin(f"frontend-{index}", name, resolved, config_path, broker_path)
    fds = Inherited(**inherited)
    if not resolved:
        from ringserve.parts import inherited_of

        fds = Inherited(**inherited_of(start.settings, start.run_dir, start.sockets))
    paths = {"run_dir": start.run_dir, "broker_path": start.broker_path}
    sys.exit(run(start.settings, name=start.name, index=index, death_fd=death_fd, inherited=fds, **paths))


@main.command(hidden=True)
def pool(resolved: str, config_path: str, name: str, death_fd: int, broker_path: str) -> None:
    """Be the pool of workers."""
    from ringserve.workers.main import run

    start = _begin("pool", name, resolved, config_path, broker_path)
    sys.exit(run(start.settings, name=start.name, death_fd=death_fd, broker_path=start.broker_path))


for _command in (broker, frontend, pool):
    _child(_command)
