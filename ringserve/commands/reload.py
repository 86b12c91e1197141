"""`ringserve reload`: a running server takes over the models of its configuration as it is now."""

from __future__ import annotations

import json
from typing import Final

import click

from ringserve.commands.console import Failed, Status, json_option, print_json
from ringserve.commands.settings import load

_GOES_ON: Final = "the change may go on; `ringserve models list` shows it"


@click.command()
@click.option("--config", "config_path", metavar="FILE", required=True, help="the server's TOML file")
@click.option("--socket", "socket_path", metavar="PATH", required=True, help="its UNIX socket for operators")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(1), help="seconds to wait at most")
@json_option
def reload(config_path: str, socket_path: str, timeout: float, as_json: bool) -> None:
    """Replace a server's models by those of its configuration as it is now, and wait until they serve.

    What `systemctl reload ringserve` does. Models come from [[models]], or from model_config_file, which is read again.
    All other settings hold from the next start on. Models that operators added since are gone.

    \b
    ringserve reload --config /etc/ringserve/server.toml --socket /run/ringserve/server/admin.sock
    """
    import http.client

    from ringserve.canary import call
    from ringserve.config.model_config import ModelConfigError, config_dict, config_of, read_model_config

    def post(path: str, body: bytes) -> str:
        try:
            status, text = call(socket_path, "POST", f"/ringserve/v1/{path}", body, timeout)
        except TimeoutError as error:
            raise Failed(f"no answer within {timeout:g} s: {_GOES_ON}") from error
        except (ConnectionResetError, http.client.IncompleteRead) as error:  # RemoteDisconnected is one of the first
            raise Failed(f"a process of the server ended before it had answered: {_GOES_ON}") from error
        except (OSError, http.client.HTTPException) as error:
            text = f"nobody answers at {socket_path}: {error}"
            raise Failed(text, Status.UNREACHABLE) from error
        if status != 200:
            raise Failed(text)
        return text

    settings = load(config_path, {})
    listed = config_of(settings.models, settings.batching)
    if settings.lifecycle.model_config_file:
        try:
            # As it stands: an empty file is no list of no models.
            listed = read_model_config(settings.lifecycle.model_config_file)
        except ModelConfigError as error:
            raise Failed(error.text) from error
    text = post("config", json.dumps(config_dict(listed)).encode())
    if settings.lifecycle.model_config_file:
        # The server's own look would not wait for what it finds. Now it finds nothing new, and knows the file.
        post("rescan", b"{}")
    told = json.loads(text or "{}").get("models", {})
    failed = {name: why for name, why in told.items() if why != "OK"}
    if as_json:
        print_json({"models": [model.name for model in settings.models], "failed": failed})
    for name, why in failed.items():
        click.echo(f"{name}: {why}", err=True)
    if failed:
        raise click.exceptions.Exit(Status.FAILED)
    if not as_json:
        click.echo(f"reloaded: {', '.join(model.name for model in settings.models) or 'no models'}", color=False)
