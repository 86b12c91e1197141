"""`ringserve doctor`: what stands between this host and good serving, and the commands that mend it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ringserve.commands.console import Failed, json_option, plural, print_json
from ringserve.commands.settings import load, resolve, settings_options

if TYPE_CHECKING:
    from ringserve.commands.findings import Finding
    from ringserve.config.schema import Model, Settings

_EPILOG = """\b
Exits with 0 when nothing is wrong (notes do not count), 1 with warnings, 2 with errors, 78 when the configuration is
wrong: as plugins of monitoring systems do."""


class _User(NamedTuple):
    """Whose rights are judged."""

    name: str
    uid: int
    gids: frozenset[int]

    @property
    def whom(self) -> str:
        """In words."""
        return self.name or f"user {self.uid}"


@click.command(epilog=_EPILOG)
@json_option
@click.option("--user", metavar="NAME", help="judge files' permissions for this user (default: who runs the command)")
@click.option("--disk/--no_disk", default=True, help="read up to 64 MiB of the models to see how quick their disk is")
@click.option("--quiet", is_flag=True, help="leave out notes")
def doctor(config_path: str | None, as_json: bool, user: str | None, disk: bool, quiet: bool, **flags: Any) -> None:
    """Look at this host and at the models as `serve` would, and say what is wrong, why it matters, and what mends it.

    Takes the same flags as `serve`. It looks at the CPU and its share, memory, limits, ports, the clock, the GPU, swap,
    kernel and network settings; at the models' folders, permissions and files; at where the server writes to; at
    settings that fight each other.

    \b
    ringserve doctor --model_name=digits --model_base_path=/models/digits
    ringserve doctor --config /etc/ringserve/server.toml --user ringserve
    """
    from ringserve.commands import findings as found_things
    from ringserve.commands.findings import Level

    settings, _ = resolve(load(config_path, flags))
    found = _examine(settings, _user(user), disk)
    if as_json:
        print_json({"status": found_things.worst(found).name.lower(), "findings": found_things.as_json(found)})
    else:
        shown = [finding for finding in found if finding.level > Level.NOTE or not quiet]
        for line in found_things.lines(shown):
            click.echo(line)
        counts = {level: sum(finding.level is level for finding in found) for level in Level}
        bad = [plural(counts[level], level.name.lower()) for level in (Level.ERROR, Level.WARNING) if counts[level]]
        click.echo(", ".join(bad) if bad else click.style("nothing stands in the way", fg="green"))
    raise click.exceptions.Exit(int(found_things.worst(found)))


settings_options(doctor)


def _user(name: str | None) -> _User:
    if name is None:
        return _User("", os.geteuid(), frozenset((os.getegid(), *os.getgroups())))
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise Failed(f"this host has no user {name}") from error
    return _User(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def _examine(settings: Settings, user: _User, disk: bool) -> list[Finding]:
    from ringserve.commands import host as hosts
    from ringserve.commands.doctor_checks import host_findings, store_findings
    from ringserve.commands.places import place_findings

    found: list[Finding] = []
    weights, stores = 0, dict[str, str]()
    for model in settings.models:
        about, weights_bytes, largest = _model(model, settings, user)
        found += about
        weights += weights_bytes
        if largest:
            stores.setdefault(os.path.dirname(model.base_path), largest)
    for store, largest in stores.items():
        speed = hosts.read_speed(largest) if disk else None
        found += store_findings(store, hosts.file_system(store), speed, weights)
    found += host_findings(hosts.look(), settings, weights)
    found += _ports(settings)
    found += place_findings(settings, user.uid, user.gids, user.whom)
    return found


def _ports(settings: Settings) -> Iterator[Finding]:
    from ringserve.commands.findings import Finding, Level
    from ringserve.commands.host import port_error

    server = settings.server
    wrong = {
        (flag, port): error
        for flag, port in (("port", server.port), ("rest_api_port", server.rest_api_port))
        if port > 0 and (error := port_error(server.host, port))
    }
    if wrong and _is_ours(server.host, server.rest_api_port):
        yield Finding(Level.NOTE, "ports", "a ringserve runs on this host's ports already", "It answers at /metrics.")
        return
    for (flag, port), error in wrong.items():
        why = "The server does not start while another program has it."
        what = f"{flag} {port} of {server.host} cannot be had: {error}"
        yield Finding(Level.ERROR, "ports", what, why, f"ss -ltnp 'sport = :{port}'")


def _is_ours(host: str, rest_port: int) -> bool:
    """Whether a ringserve answers at that REST port."""
    from ringserve.commands.api import Api

    if rest_port <= 0:
        return False
    where = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        text = Api(f"http://[{where}]:{rest_port}" if ":" in where else f"http://{where}:{rest_port}", 2.0).raw(
            "GET", "/metrics"
        )
    except click.ClickException:
        return False
    return b"ringserve_build_info" in text


# ------------------------------------------------------------------------------------------------------------ models


def _model(model: Model, settings: Settings, user: _User) -> tuple[list[Finding], int, str]:
    """Findings about one model, the bytes of its versions that will serve, and its largest file."""
    from ringserve.broker.aspired import VersionDirectory, choose
    from ringserve.commands.findings import Finding, Level
    from ringserve.commands.saved_model import base_findings, read_version, versions_of

    base = Path(model.base_path)
    found = list(_permissions(base, user))
    try:
        found += base_findings(base)
        versions = versions_of(base)
    except OSError as error:
        if not found:
            why = f"The model {model.name} cannot be served from there."
            fix = f"mkdir -p {shlex.quote(str(base / '1'))}"
            found.append(Finding(Level.ERROR, str(base), error.strerror or str(error), why, fix))
        return found, 0, ""
    listed = [VersionDirectory(version, str(path)) for version, path in versions.items()]
    chosen = choose(listed, model.versions)
    if versions and not chosen:
        what = f"it has none of the versions asked for ({model.versions}), only {', '.join(map(str, versions))}"
        found.append(Finding(Level.ERROR, str(base), what))
    for label, version in model.labels:
        if version not in {directory.version for directory in chosen}:
            what = f"label {label} points to version {version}, which is not going to be served"
            found.append(Finding(Level.WARNING, str(base), what, "Requests by that label are refused."))
    tags = frozenset(settings.workers.saved_model_tags.split(","))
    whole, largest, largest_bytes = 0, "", 0
    for directory in chosen:
        files = read_version(Path(directory.path), tags, judge_access=False)
        found += files.findings
        whole += files.bytes_of("variables/") + files.bytes_of("saved_model.pb")
        for file in files.files:
            if file.size_bytes > largest_bytes:
                largest, largest_bytes = f"{directory.path}/{file.path}", file.size_bytes
    return found, whole, largest


def _permissions(base: Path, user: _User) -> Iterator[Finding]:
    """Folders above and below a base path that the user cannot go into, and files that it cannot read."""
    from ringserve.commands.doctor_checks import may, permission_fix
    from ringserve.commands.findings import Finding, Level

    def judged(path: Path, wanted: int) -> Iterator[Finding]:
        try:
            about = path.stat()
        except OSError:
            return
        if not may(about.st_mode, about.st_uid, about.st_gid, user.uid, user.gids, wanted):
            verb = "be read" if wanted == 4 else "be entered" if wanted == 1 else "be listed"
            fix = permission_fix(str(path), about.st_mode, about.st_uid, about.st_gid, user.uid, user.gids, wanted)
            why = "The server cannot see what lies there."
            yield Finding(Level.ERROR, str(path), f"it cannot {verb} by {user.whom}", why, fix)

    for parent in reversed(base.parents):
        yield from judged(parent, 1)
    for folder, folders, names in os.walk(base, followlinks=True):
        yield from judged(Path(folder), 5)
        folders.sort()
        for name in sorted(names):
            yield from judged(Path(folder, name), 4)
