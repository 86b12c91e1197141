"""What a server writes to, and whether its user can: the run directory, and the access log's folder."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringserve.commands.doctor_checks import may, permission_fix
from ringserve.commands.findings import Finding, Level
from ringserve.config.access_log import STDERR
from ringserve.config.schema import Settings

_ENTER: Final = 1
_WRITE: Final = 2


def place_findings(settings: Settings, uid: int, gids: frozenset[int], whom: str) -> Iterator[Finding]:
    """Both checks. uid, gids, whom: the user whose rights are judged."""
    # Without one the server finds a private folder by itself.
    run_dir, to = settings.server.run_dir, settings.access_log.to
    if run_dir:
        yield from _seen("run_dir", run_dir, _run_dir(Path(os.path.abspath(run_dir)), uid, gids, whom))
    if to and to != STDERR:
        yield from _seen("access_log", to, _access_log(Path(os.path.abspath(to)), uid, gids, whom))


def _seen(subject: str, path: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """`findings`, or that whoever asks, who need not be the server's user, may not look there."""
    try:
        yield from findings
    except PermissionError as error:
        what = f"{path} cannot be looked at by you: {error.filename} is closed to user {os.geteuid()}"
        yield Finding(Level.NOTE, subject, what, "What keeps the server from it is not known.", "ask as root")


def _run_dir(path: Path, uid: int, gids: frozenset[int], whom: str) -> Iterator[Finding]:
    why = "The server does not start: its processes find each other there."
    own = f"install -d -m 700 -o {uid} {shlex.quote(str(path))}"
    try:
        about = path.lstat()
    except FileNotFoundError:
        parent = next(folder for folder in path.parents if folder.exists())
        closed = _closed(parent, _WRITE | _ENTER, uid, gids, whom)
        if closed is not None:
            yield Finding(Level.ERROR, "run_dir", f"{path} cannot be made: {closed[0]}", why, own)
        return
    except PermissionError:
        raise
    except OSError as error:
        yield Finding(Level.ERROR, "run_dir", f"{path} cannot be made: {error.strerror}", why, own)
        return
    if not stat.S_ISDIR(about.st_mode):
        yield Finding(Level.ERROR, "run_dir", f"{path} is no folder", why, "set run_dir to a folder of its own")
    elif about.st_uid != uid:
        what = f"{path} is not a folder of {whom}, but of user {about.st_uid}"
        yield Finding(Level.ERROR, "run_dir", what, why, "set run_dir to a folder of its own")
    elif (closed := _closed(path, _WRITE | _ENTER, uid, gids, whom)) is not None:
        yield Finding(Level.ERROR, "run_dir", f"{path} cannot be used: {closed[0]}", why, closed[1])


def _access_log(path: Path, uid: int, gids: frozenset[int], whom: str) -> Iterator[Finding]:
    why = "The server serves, and no call is written down."
    try:
        exists = path.exists()
        missing = not exists and not path.parent.exists()
    except OSError as error:
        yield Finding(Level.WARNING, "access_log", f"{path} cannot be written: {error.strerror}", why)
        return
    if missing:
        what = f"{path} cannot be written: there is no folder {path.parent}"
        yield Finding(Level.WARNING, "access_log", what, why, f"mkdir -p {shlex.quote(str(path.parent))}")
        return
    closed = _closed(path, _WRITE, uid, gids, whom) if exists else None
    closed = closed or _closed(path.parent, _ENTER if exists else _WRITE | _ENTER, uid, gids, whom)
    if closed is not None:
        yield Finding(Level.WARNING, "access_log", f"{path} cannot be written: {closed[0]}", why, closed[1])


def _closed(path: Path, wanted: int, uid: int, gids: frozenset[int], whom: str) -> tuple[str, str] | None:
    """Why this user cannot do that there, and what mends it; None when nothing is in the way. path: what is there."""
    for each, right in [(folder, _ENTER) for folder in reversed(path.parents)] + [(path, wanted)]:
        about = each.stat()
        if right & _ENTER and not stat.S_ISDIR(about.st_mode):
            return f"{each} is no folder", ""
        whose = (about.st_mode, about.st_uid, about.st_gid, uid, gids, right)
        if not may(*whose):
            verb = "written" if right & _WRITE else "entered"
            # Whose a shared folder is is not for us to change.
            fix = f"name another place, in a folder of {whom}" if right & _WRITE else permission_fix(str(each), *whose)
            return f"{each} cannot be {verb} by {whom}", fix
    if wanted & _WRITE and os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path} is on a file system that is mounted read-only", ""
    return None
