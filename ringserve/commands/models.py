"""`ringserve models`: look at the models of a running server and change them, through its REST admin API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ringserve.commands.api import Api, Refused, model_path
from ringserve.commands.console import (
    Failed,
    Group,
    Status,
    json_anyway_option,
    json_option,
    pairs,
    print_json,
    table,
    url_option,
    waiting,
)

_COLOURS = {"AVAILABLE": "green", "LOADING": "yellow", "START": "yellow", "UNLOADING": "yellow", "END": "red"}


def complete_models(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the server's models, for the shell; nothing when the server does not answer at once."""
    try:
        models = Api(context.params.get("url") or "http://127.0.0.1:8501", timeout_s=1.0).models()
    except click.ClickException:
        return []
    return [CompletionItem(model["name"]) for model in models if model["name"].startswith(incomplete)]


_name = click.argument("name", shell_complete=complete_models)


@click.group(cls=Group)
def models() -> None:
    """Look at the models of a running server and change them.

    The server must let this host operate it (its setting rest_admin); what is changed here is in force until the server
    ends.

    \b
    ringserve models list
    ringserve models add digits /models/digits
    ringserve models label digits stable=3 canary=4
    """


@models.command("list")
@url_option
@json_option
def list_models(url: str, as_json: bool) -> None:
    """List all models with their versions and labels.

    \b
    ringserve models list
    ringserve models list --json | jq -r '.[] | select(.ready | not).name'
    """
    found = Api(url).models()
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("the server has no models: ringserve models add NAME PATH")
        return
    rows = [
        (model["name"], _serving(model), _versions(model), _labels(model["labels"]) or "-")
        for model in sorted(found, key=lambda model: str(model["name"]))
    ]
    click.echo(table(("MODEL", "SERVING", "VERSIONS", "LABELS"), rows))


@models.command()
@_name
@click.option("--version", type=click.IntRange(0), help="the version that counts (default: any)")
@click.option("--wait", is_flag=True, help="wait for the server, and until the version (or any) serves or has failed")
@click.option("--timeout", default=300.0, show_default=True, type=click.FloatRange(0), help="seconds to wait at most")
@url_option
@json_option
def status(name: str, version: int | None, wait: bool, timeout: float, url: str, as_json: bool) -> None:
    """Say everything of one model: versions, errors, notes, labels, signatures.

    Exits with 1 when no version of it, or not the one asked for, serves.

    \b
    ringserve models status digits
    ringserve models status digits --wait --timeout 60
    ringserve models status digits --version 4 --wait
    """
    api = Api(url)
    found = _awaited(api, name, version, timeout) if wait else api.admin("GET", model_path(name))
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found['name']}: {_serving(found)}")
        rows = [
            (each["version"], _state(each["state"]), _error(each), "; ".join(each["notes"]))
            for each in found["versions"]
        ]
        if rows:
            click.echo("\n" + table(("VERSION", "STATE", "ERROR", "NOTES"), rows))
        if found["labels"]:
            click.echo(f"\nlabels: {_labels(found['labels'])}")
        for signature, about in found["signatures"].items():
            if signature == "__saved_model_init_op":
                continue  # it says what to run after loading; nobody can call it
            click.echo(f"\n{click.style(signature, bold=True)} {about['method_name']}")
            click.echo(f"  inputs:  {_tensors(about['inputs'])}\n  outputs: {_tensors(about['outputs'])}")
    if not _serves(found, version):
        raise click.exceptions.Exit(Status.FAILED)


@models.command()
@click.argument("name")
@click.argument("path")
@click.option("--versions", metavar="TEXT", help="which versions: latest, latest:N, all, or numbers such as 1,2")
@click.option("--label", "labels", multiple=True, metavar="LABEL=VERSION", help="a label; may be repeated")
@click.option("--batching", multiple=True, metavar="KEY=VALUE", help="a key of [batching]; may be repeated")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(1), help="seconds to wait at most")
@url_option
@json_option
def add(
    name: str,
    path: str,
    versions: str | None,
    labels: tuple[str, ...],
    batching: tuple[str, ...],
    timeout: float,
    url: str,
    as_json: bool,
) -> None:
    """Add the model NAME whose versions are in PATH, a folder of the server's host, and wait until it serves.

    A model of that name is replaced.

    \b
    ringserve models add digits /models/digits
    ringserve models add digits /models/digits --versions latest:2 --batching batch_rows_max=64
    """
    from ringserve.config.load import absolute

    body: dict[str, Any] = {"base_path": absolute(path)}
    if versions is not None:
        body["model_version_policy"] = _policy(versions)
    if labels:
        body["version_labels"] = _label_versions(labels)
    if batching:
        body["batching"] = pairs(batching, "KEY=VALUE")
    api = Api(url)
    waiting(f"{name} is being loaded")
    api.admin("PUT", model_path(name), body, timeout)
    found = api.admin("GET", model_path(name))
    print_json(found) if as_json else click.echo(f"{name}: {_serving(found)} ({_versions(found)})")


@models.command()
@_name
@click.option("--yes", is_flag=True, help="do not ask on a terminal")
@url_option
@json_option
def remove(name: str, yes: bool, url: str, as_json: bool) -> None:
    """Stop serving a model; its files stay.

    \b
    ringserve models remove digits --yes
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Stop serving {name} at {url}?", abort=True)
    Api(url).admin("DELETE", model_path(name))
    print_json({"removed": name}) if as_json else click.echo(f"{name} is removed")


@models.command()
@_name
@click.argument("given", metavar="[LABEL=VERSION]...", nargs=-1)
@click.option("--remove", "gone", multiple=True, metavar="LABEL", help="a label to take away; may be repeated")
@click.option("--replace", is_flag=True, help="take all other labels away")
@url_option
@json_option
def label(name: str, given: tuple[str, ...], gone: tuple[str, ...], replace: bool, url: str, as_json: bool) -> None:
    """Point labels of a model to versions; without any, print them. Other labels stay as they are.

    \b
    ringserve models label digits stable=3 canary=4
    ringserve models label digits stable=4 --remove canary
    """
    api = Api(url)
    before: dict[str, int] = api.admin("GET", model_path(name))["labels"]
    after = {} if replace else dict(before)
    after.update(_label_versions(given))
    for each in gone:
        if each not in after:
            raise Failed(f"{name} has no label {each}; it has {_labels(before) or 'none'}")
        del after[each]
    if after != before:
        api.admin("PUT", model_path(name, "/labels"), after)
    print_json(after) if as_json else click.echo(_labels(after) or "no labels")


@models.command()
@_name
@click.argument("given", metavar="KEY=VALUE...", nargs=-1, required=True)
@url_option
@json_option
def batching(name: str, given: tuple[str, ...], url: str, as_json: bool) -> None:
    """Change how requests of a model are batched, at once: keys of [batching].

    \b
    ringserve models batching digits batch_rows_max=64 policy=timeout
    """
    values = {key: _typed(value) for key, value in pairs(given, "KEY=VALUE").items()}
    Api(url).admin("PUT", model_path(name, "/batching"), values)
    print_json(values) if as_json else click.echo(", ".join(f"{key} = {value}" for key, value in values.items()))


@models.command()
@url_option
@json_option
def rescan(url: str, as_json: bool) -> None:
    """Look at the models' folders, and the model configuration file, now.

    \b
    ringserve models rescan
    """
    told = Api(url).admin("POST", "rescan", {})
    print_json(told) if as_json else click.echo("the server looks at its folders now: ringserve models list")


@models.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(1), help="seconds to wait at most")
@url_option
@json_option
def reload(file: Path, timeout: float, url: str, as_json: bool) -> None:
    """Replace all models by those of FILE, a ModelServerConfig in the text format or JSON, and wait until they serve.

    \b
    ringserve models export > models.json     # what is served now
    ringserve models reload models.json
    """
    api = Api(url)
    waiting("models are being loaded")
    api.admin("POST", "config", file.read_bytes(), timeout)
    names = [model["name"] for model in api.models()]
    print_json(names) if as_json else click.echo(f"the server has {', '.join(names) or 'no models'} now")


@models.command()
@url_option
@json_anyway_option
def export(url: str) -> None:
    """Print the server's models as a ModelServerConfig in JSON, which `reload` and model_config_file take.

    \b
    ringserve models export > models.json
    """
    print_json(Api(url).admin("GET", "config"))


# ------------------------------------------------------------------------------------------------------------- words


def _serves(found: dict[str, Any], version: int | None) -> bool:
    """Whether that version of a model serves; None: any."""
    states = {int(each["version"]): each["state"] for each in found["versions"]}
    return bool(found["ready"]) if version is None else states.get(version) == "AVAILABLE"


def _awaited(api: Api, name: str, version: int | None, timeout_s: float) -> Any:
    """The model's summary once the version serves or has failed (None: any serves, or the newest has failed); or when
    the time is over. A server that is not there yet is waited for, too."""
    import time

    tries = max(1, int(timeout_s / 0.2))
    while True:
        try:
            found = api.admin("GET", model_path(name))
        except Refused as error:
            if error.http_status not in (404, 503) or tries <= 0:  # 503: it has only begun to start
                raise
        except Failed as error:
            if error.exit_code != Status.UNREACHABLE or tries <= 0:
                raise
        else:
            judged = [each for each in found["versions"] if version in (None, int(each["version"]))]
            newest = max(judged, key=lambda each: int(each["version"]), default=None)
            failed = newest is not None and newest["state"] == "END" and newest["error"] is not None
            if _serves(found, version) or failed or tries <= 0:
                return found
        tries -= 1
        time.sleep(0.2)


def _serving(model: dict[str, Any]) -> str:
    if not model["ready"]:
        return click.style("nothing serves", fg="red")
    return click.style(f"version {model['serving']}", fg="green")


def _state(state: str) -> str:
    return click.style(state, fg=_COLOURS.get(state))


def _versions(model: dict[str, Any]) -> str:
    texts = [
        f"{version['version']} {_state(version['state'])}{' (error)' if version['error'] else ''}"
        for version in model["versions"]
    ]
    return ", ".join(texts) or "none"


def _error(version: dict[str, Any]) -> str:
    error = version["error"]
    return f"{error['code']}: {error['text']}" if error else "-"


def _labels(labels: dict[str, int]) -> str:
    return ", ".join(f"{label}={version}" for label, version in sorted(labels.items()))


def _tensors(tensors: dict[str, Any]) -> str:
    return ", ".join(f"{alias} {about['dtype']} {shape_text(about['shape'])}" for alias, about in tensors.items())


def shape_text(shape: list[int] | tuple[int, ...] | None) -> str:
    """`[?, 64]`; `(any)` for an unknown rank."""
    return "(any)" if shape is None else f"[{', '.join('?' if size < 0 else str(size) for size in shape)}]"


def _label_versions(given: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for label, version in pairs(given, "LABEL=VERSION").items():
        if not version.isdecimal():
            raise click.BadParameter(f"{label}={version}: the version must be a number")
        found[label] = int(version)
    return found


def _policy(text: str) -> dict[str, Any]:
    from ringserve.config.model_config import ModelConfigError, parse_version_policy

    try:
        versions = parse_version_policy(text)
    except ModelConfigError as error:
        raise click.BadParameter(f"--versions: {text!r}: {error}") from error
    if isinstance(versions, tuple):
        return {"specific": {"versions": list(versions)}}
    if versions == "all":
        return {"all": {}}
    return {"latest": {"num_versions": int(versions.partition(":")[2] or 1)}}


def _typed(text: str) -> int | bool | str:
    return {"true": True, "false": False}.get(text, int(text) if text.lstrip("-").isdecimal() else text)
