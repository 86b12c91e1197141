"""`ringserve keys`: make keys for those who may ask, and look at the file of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ringserve.commands.console import Group, json_option, print_json

if TYPE_CHECKING:
    from ringserve.config.keys_file import Entry

_FILE_OPTION = click.option(
    "--file",
    "path",
    envvar="RINGSERVE_KEYS_FILE",
    default="keys.toml",
    show_default=True,
    help="the file of keys, keys_file of the server",
)


@click.group(cls=Group)
def keys() -> None:
    """Keys of those who may ask the server: tokens, of which the server knows only hashes.

    The server reads its file of keys (keys_file) again by itself. To take a key back, delete its table there.
    """


@keys.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, help="predict, predict:GLOB, status or admin")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="requests a second at most  [default: no limit]")
@click.option("--burst", type=click.IntRange(1), help="requests that may come at once  [default: those of a second]")
@_FILE_OPTION
@json_option
def new(
    name: str, scopes: tuple[str, ...], rate: float | None, burst: int | None, path: str, as_json: bool
) -> None:
    """Print a new token, this once, and add the hash of it to the file.

    \b
    ringserve keys new team-a --scope 'predict:digits*' --scope status --rate 100
    """
    from ringserve.config.keys_file import new_token, parse_keys, written

    token = new_token()
    with _words(), _locked(path) as fd:
        text = written(name, token, list(scopes), rate or 0.0, burst or 0)
        with open(fd, "r+", encoding="utf-8", closefd=False) as file:
            before = file.read()
            glue = "" if before.endswith("\n") or not before else "\n"
            parse_keys(before + glue + text, path)  # finds a name that is there already
            file.write(glue + text)
    if as_json:
        print_json({"name": name, "scopes": list(scopes), "token": token})
        return
    click.echo(f"{name} may: {', '.join(scopes)}. The token, which is shown only now:", err=True)
    click.echo(token)


@keys.command("list")
@_FILE_OPTION
@json_option
def list_keys(path: str, as_json: bool) -> None:
    """Show who may ask for what.

    \b
    ringserve keys list --file /etc/ringserve/keys.toml
    """
    from ringserve.config.keys_file import read_keys

    with _words():
        entries = read_keys(path)
        if as_json:
            print_json([_about(entry) for entry in entries])
            return
        for entry in entries:
            scopes = _scopes(entry)
            rate = f"  {entry.requests_per_s:g}/s, burst {entry.burst}" if entry.requests_per_s else ""
            click.echo(f"{entry.name}  {entry.certificate or 'token'}  {' '.join(scopes)}{rate}")


def _scopes(entry: Entry) -> list[str]:
    scopes = [f"predict:{glob}" for glob in entry.scopes.predict]
    return scopes + ["status"] * entry.scopes.status + ["admin"] * entry.scopes.admin


def _about(entry: Entry) -> dict[str, Any]:
    limit = {"requests_per_s": entry.requests_per_s, "burst": entry.burst} if entry.requests_per_s else {}
    return {"name": entry.name, "certificate": entry.certificate or None, "scopes": _scopes(entry), **limit}


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int]:
    """The file, made if need be, for nobody else to change meanwhile; nobody but its owner may read a new one."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _words() -> Iterator[None]:
    """Mistakes as a line, not as a traceback."""
    from ringserve.config.keys_file import KeysError

    try:
        yield
    except KeysError as error:
        click.echo(f"ringserve: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"ringserve: {error.filename}: {error.strerror}", err=True)
        sys.exit(1)
