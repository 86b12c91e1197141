"""`ringserve systemd`: a server as services of this host: install, upgrade without a failed call, uninstall."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click

from ringserve.commands import units
from ringserve.commands.console import Failed, Status, pairs, print_json, waiting
from ringserve.config.schema import Settings

_STANDBY_SOCKET = "ringserve-standby/server/admin.sock"
_SERVICE_SOCKET = "ringserve/server/admin.sock"
_PARTS_SOCKET = "ringserve/admin.sock"
_STEPS = "ringserve.systemd.steps"


@click.group()
def systemd() -> None:
    """Run the server as services of this host, under systemd."""


def _where(command: Callable[..., None]) -> Callable[..., None]:
    command = _json(command)
    command = click.option("--user", is_flag=True, help="of this user's systemd, not of the host's")(command)
    command = click.option("--dry-run", is_flag=True, help="say what would be done, and do nothing")(command)
    return click.option(
        "--root",
        default="/",
        type=click.Path(file_okay=False, path_type=Path),
        help="the host's root: for images; nothing is started there",
    )(command)


def _json(command: Callable[..., None]) -> Callable[..., None]:
    """`--json`: the steps as a list, at the end, also when one of them failed."""

    def begin(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            steps = context.meta[_STEPS] = []
            context.call_on_close(lambda: print_json(steps))

    text = "print what is done as JSON, for scripts"
    return click.option("--json", is_flag=True, expose_value=False, callback=begin, help=text)(command)


def _tell(step: str, of: str, *, dry_run: bool, text: str = "") -> None:
    """Say what is done, or would be. text: of a file that would be written."""
    steps = click.get_current_context().meta.get(_STEPS)
    if steps is not None:
        steps.append({"step": step, "of": of, "done": not dry_run, **({"text": text} if text else {})})
        return
    click.echo(f"{'would ' if dry_run else ''}{step}: {of}")
    click.echo("".join(f"    {line}\n" for line in text.splitlines()), nl=False)


@systemd.command()
@click.option("--model", "models", multiple=True, metavar="NAME=PATH", help="a model to serve; may be repeated")
@click.option(
    "--split/--no-split",
    default=None,
    help="broker, workers and frontends as services of their own, or all as one  [default: as it is; one at first]",
)
@click.option("--start/--no-start", default=True, help="start the server, or only enable it")
@click.option("--force", is_flag=True, help="write over files that were edited")
@_where
def install(
    models: tuple[str, ...], split: bool | None, start: bool, force: bool, user: bool, dry_run: bool, root: Path
) -> None:
    """Write the units and server.toml, enable the server and start it.

    What was written before and not edited since is brought up to date; so it may be run again, after an upgrade, too.

    \b
    ringserve systemd install --model digits=/models/digits
    ringserve systemd install --split --model digits=/models/digits --dry-run
    """
    if split and user:
        raise click.UsageError("--split needs the host's systemd: its services share a user of their own")
    where = units.places(user=user, root=root)
    split = where.under_root(where.units / units.TARGET).exists() if split is None else split
    config = where.under_root(where.config)
    given = {name: os.path.abspath(path) for name, path in pairs(models, "NAME=PATH").items()}
    files: dict[Path, str] = {}
    if given:
        files[where.config] = units.server_toml(given)
    elif not config.exists():
        raise click.UsageError(f"{config} is not there: give at least one --model NAME=PATH")
    settings = _settings(config, files.get(where.config), units.environment(where, split=split))
    files |= units.unit_files(where, settings.server, split=split, user=user)
    stale = [path for path in units.all_paths(where) if path not in files and where.under_root(path).exists()]
    _refuse_edited([*files, *stale], where, force=force)
    for name, base_path in given.items():
        _warn_of_mode(name, Path(base_path), user=user)
    ctl = _Systemctl(user=user, dry_run=dry_run, root=root)
    if stale:
        _disable(ctl, [path.name for path in stale])
    changed = [_write(where.under_root(path), text, dry_run=dry_run) for path, text in files.items()]
    for path in stale:
        _remove(where.under_root(path), dry_run=dry_run)
    if split:
        ctl.run_other("systemd-sysusers", "ringserve.conf")
    ctl.run("daemon-reload")
    sockets = [path.name for path in files if path.name in (units.GRPC_SOCKET, units.REST_SOCKET)]
    if split:
        frontends = [units.FRONTEND.format(index) for index in range(_frontends(settings))]
        wanted = [*sockets, "ringserve-broker.service", "ringserve-workers.service", *frontends, units.TARGET]
    else:
        wanted = [*sockets, units.SERVICE]
    ctl.run("enable", *wanted)
    if start:
        # A restart leaves the sockets open. One that begins anew must have them first.
        ctl.run("start", *sockets)
        ctl.run("restart" if any(changed) else "start", wanted[-1])


@systemd.command()
@click.option("--force", is_flag=True, help="also remove files that were edited")
@_where
def uninstall(force: bool, user: bool, dry_run: bool, root: Path) -> None:
    """Stop the server, disable it and remove its units; server.toml stays.

    \b
    ringserve systemd uninstall
    """
    where = units.places(user=user, root=root)
    found = [path for path in units.all_paths(where) if where.under_root(path).exists()]
    _refuse_edited(found, where, force=force)
    ctl = _Systemctl(user=user, dry_run=dry_run, root=root)
    _disable(ctl, [path.name for path in found])
    for path in found:
        _remove(where.under_root(path), dry_run=dry_run)
    ctl.run("daemon-reload")


@systemd.command()
@click.option("--timeout", default=900.0, show_default=True, type=click.FloatRange(1), help="seconds to wait at most")
@click.option("--user", is_flag=True, help="of this user's systemd, not of the host's")
@click.option("--dry-run", is_flag=True, help="say what would be done, and do nothing")
@_json
def upgrade(timeout: float, user: bool, dry_run: bool) -> None:
    """Restart the server, as after an upgrade of ringserve, without a failed call.

    A second server (ringserve-standby.service) accepts from the same sockets in the meantime: the models are in memory
    twice. If it does not come up, or a model does not serve, nothing is restarted.

    \b
    /opt/ringserve/bin/pip install --upgrade ringserve
    ringserve systemd install --no-start    # the units of this release
    ringserve systemd upgrade
    """
    ctl = _Systemctl(user=user, dry_run=dry_run, root=Path("/"))
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", "/run") if user else "/run")
    split = ctl.is_active(units.TARGET)
    main, socket = (units.TARGET, _PARTS_SOCKET) if split else (units.SERVICE, _SERVICE_SOCKET)
    if not split and not dry_run and not ctl.is_active(main):
        raise Failed(f"{main} does not run: systemctl start {main}")
    ctl.run("daemon-reload")
    ctl.run("start", units.STANDBY)
    try:
        _wait_ready(runtime / _STANDBY_SOCKET, timeout, dry_run=dry_run)
        ctl.run("restart", main)
        _wait_ready(runtime / socket, timeout, dry_run=dry_run)
    finally:
        ctl.run("stop", "--quiet", units.STANDBY)


# -------------------------------------------------------------------------------------------------------------- steps


class _Systemctl:
    """Runs systemctl, or says what it would run. In another root it only enables and disables."""

    def __init__(self, *, user: bool, dry_run: bool, root: Path) -> None:
        self._words = ["systemctl", *(["--user"] if user else [])]
        self._dry_run = dry_run
        self._root = root
        self._elsewhere = root.resolve() != Path("/")

    def run(self, verb: str, *names: str) -> None:
        words = [*self._words, verb, *names]
        if self._elsewhere:
            if verb not in ("enable", "disable"):
                return
            words = ["systemctl", f"--root={self._root}", verb, *names]
        self._run(words)

    def run_other(self, program: str, *arguments: str) -> None:
        self._run([program, *([f"--root={self._root}"] if self._elsewhere else []), *arguments])

    def is_active(self, name: str) -> bool:
        words = [*self._words, "is-active", "--quiet", name]
        return shutil.which(words[0]) is not None and subprocess.run(words, check=False).returncode == 0

    def _run(self, words: list[str]) -> None:
        _tell("run", " ".join(words), dry_run=self._dry_run)
        if self._dry_run:
            return
        if shutil.which(words[0]) is None:
            raise Failed(f"there is no {words[0]} on this host: is systemd its init?")
        status = subprocess.run(words, check=False).returncode
        if status:
            raise Failed(f"{' '.join(words)} ended with status {status}")


def _settings(config: Path, text: str | None, environ: dict[str, str]) -> Settings:
    """What the units depend on: the settings of the file (text: before it is written) under this environment."""
    import tempfile

    from ringserve.config.load import ConfigError, load_settings

    path = str(config)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        if text is not None:
            file.write(text)
            file.flush()
            path = file.name
        try:
            settings = load_settings({}, environ, path)
        except ConfigError as error:
            raise Failed(f"{config}: {error}", Status.CONFIG) from error
    if settings.server.port == 0 or settings.server.rest_api_port < 0:
        raise Failed(f"{config}: systemd's sockets need ports that are fixed", Status.CONFIG)
    return settings


def _frontends(settings: Settings) -> int:
    from ringserve.commands.settings import resolve

    return resolve(settings)[0].server.frontends


def _refuse_edited(paths: list[Path], where: units.Places, *, force: bool) -> None:
    edited = [str(where.under_root(path)) for path in paths if units.is_edited(where.under_root(path))]
    if edited and not force:
        files = "\n  ".join(edited)
        raise Failed(f"edited, or not written by this command (--force to write over them):\n  {files}")


def _write(path: Path, text: str, *, dry_run: bool) -> bool:
    """Returns whether anything changes."""
    whole = units.marked(text)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") == whole:
        return False
    _tell("write", str(path), dry_run=dry_run, text=text if dry_run else "")
    if dry_run:
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(whole, encoding="utf-8")
    temporary.chmod(0o644)
    os.replace(temporary, path)
    return True


def _remove(path: Path, *, dry_run: bool) -> None:
    _tell("remove", str(path), dry_run=dry_run)
    if not dry_run:
        path.unlink()


def _disable(ctl: _Systemctl, names: list[str]) -> None:
    # The sockets first: a client that calls now would start the server again.
    order = sorted((name for name in names if "." in name), key=lambda name: not name.endswith(".socket"))
    stoppable = [name.replace("@.", "@*.") for name in order if name.endswith((".socket", ".service", ".target"))]
    if stoppable:
        ctl.run("stop", *stoppable)
        ctl.run("disable", *(name for name in order if name.endswith((".socket", ".service", ".target"))))


def _warn_of_mode(name: str, path: Path, *, user: bool) -> None:
    if not path.is_dir():
        click.echo(f"model {name}: {path} is not there yet", err=True)
    elif not user and path.stat().st_mode & 0o005 != 0o005:
        click.echo(f"model {name}: the service's user cannot read it: chmod -R o+rX {path}", err=True)


def _wait_ready(socket: Path, timeout_s: float, *, dry_run: bool) -> None:
    import http.client
    import time

    from ringserve.canary import call

    _tell("wait", f"until models serve ({socket})", dry_run=dry_run)
    if dry_run:
        return
    waiting("the server loads its models")
    tries = max(1, int(timeout_s / 0.2))
    for _ in range(tries):
        try:
            if call(str(socket), "GET", "/readyz", None, 5.0)[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.2)
    raise Failed(f"not all models serve after {timeout_s:.0f} s: journalctl -u 'ringserve*'")
