"""The `ringserve` command. Every command imports what it runs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Final

import click

from ringserve import __version__
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
    for name in ("bench", "completion", "config", "convert", "doctor", "inspect", "models", "predict", "top")
} | {"warmup": "ringserve.warmup", "keys": "ringserve.keys"}


class _Commands(click.Group):
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
    settings = load(config_path, flags)
    from ringserve.config.process import Exit
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
def sample_model(directory: str) -> None:
    """Write a small model into DIRECTORY, to try the server with, and say how to call it.

    \b
    ringserve sample-model /tmp/models
    """
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
@click.option("--admin-socket-fd", type=int, default=-1, help="a listening UNIX socket for operators")
@click.option("--rates-fd", type=int, default=-1, help="memory that the requests of keys are counted in")
def frontend(resolved: str, name: str, death_fd: int, index: int, **inherited: int) -> None:
    """Be a frontend."""
    from ringserve.frontend.main import Inherited, run

    settings, run_dir = _resolved(resolved)
    fds = Inherited(**inherited)
    sys.exit(run(settings, name=name, index=index, death_fd=death_fd, run_dir=run_dir, inherited=fds))


@main.command(hidden=True)
def pool(resolved: str, name: str, death_fd: int) -> None:
    """Be the pool of workers."""
    from ringserve.workers.main import run

    settings, run_dir = _resolved(resolved)
    sys.exit(run(settings, name=name, death_fd=death_fd, run_dir=run_dir))


for _command in (broker, frontend, pool):
    _child(_command)
