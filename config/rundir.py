"""The run directory: where the processes of one server find each other's sockets. Made, locked and removed here.

The lock is a file in it whose descriptor every process of the server inherits: it is held while any of them lives,
however they die, so that a later server knows whether a directory is in use or was left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

PREFIX: Final = "ringserve-"
_LOCK: Final = "lock"
_FATAL: Final = "fatal.txt"
#: Where operators find the server when `admin_socket_path` names no other place.
ADMIN_SOCKET: Final = "admin.sock"
#: The directory is its user's alone.
MODE: Final = 0o700
#: With these others could put files of their own there.
_OTHERS_WRITE: Final = 0o022
#: A process that was importing TensorFlow when its server was killed notices afterwards: 10 s on a slow host.
_LOCK_TRIES: Final = 150
_LOCK_TRY_S: Final = 0.1
_TRIES_SILENT: Final = 20


class RunDirError(Exception):
    """No run directory can be had; the text says what was tried and what to do."""


class RunDir(NamedTuple):
    """path: the directory, mode 0700. lock_fd: holds its lock; children inherit it; the owner's to close."""

    path: str
    lock_fd: int


def make_run_dir(wanted: str, environ: dict[str, str] | None = None) -> RunDir:
    """Make (or, when it is named and nobody uses it, empty) a run directory and lock it. Raises RunDirError.

    wanted: an absolute path, or "" for a private directory in the first writable one of $XDG_RUNTIME_DIR, /run and
    the temporary folder. What dead servers left there is removed on the way.
    """
    if wanted:
        return _take(wanted)
    environment = dict(os.environ) if environ is None else environ
    tried = [environment.get("XDG_RUNTIME_DIR", ""), "/run", tempfile.gettempdir()]
    for parent in tried:
        if parent and os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
            sweep(parent)
            while True:
                run_dir = _lock(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
                # Another server's sweep may have had the lock between its making and our locking it.
                if run_dir is not None and os.path.exists(os.path.join(run_dir.path, _LOCK)):
                    return run_dir
    raise RunDirError(f"no writable folder for sockets among {', '.join(filter(None, tried))}: set run_dir")


def _take(path: str) -> RunDir:
    try:
        run_dir = _try_to_take(path)
        tries = 0
        while run_dir is None and tries < _LOCK_TRIES:
            # A server that was just killed leaves processes that need a moment to notice.
            if tries == _TRIES_SILENT:
                log.info("run_dir %s: waiting for processes of another server, which hold its lock", path)
            time.sleep(_LOCK_TRY_S)
            tries += 1
            run_dir = _try_to_take(path)
        if run_dir is None:
            raise RunDirError(f"run_dir {path} is in use by another server: give each its own")
        os.chmod(path, MODE)
        _empty(path)
    except OSError as error:
        raise RunDirError(f"run_dir {path}: {error.strerror}") from error
    return run_dir


def _try_to_take(path: str) -> RunDir | None:
    """Make the directory where it is missing, and lock it. None when another server holds it, or just removes it."""
    with contextlib.suppress(FileExistsError):  # for what is there, see below
        os.makedirs(path, mode=MODE, exist_ok=True)
    try:
        about = os.lstat(path)
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            raise RunDirError(f"run_dir {path} is not a folder of user {os.geteuid()}")
        strangers = [entry.name for entry in os.scandir(path) if not _is_ours(entry)]
        if strangers:
            raise RunDirError(f"run_dir {path} holds foreign files ({strangers[0]!r}): give it a folder of its own")
        run_dir = _lock(path)
    except FileNotFoundError:
        return None  # its last process has removed it meanwhile
    if run_dir is not None and not _is_locked_by(path, run_dir.lock_fd):
        os.close(run_dir.lock_fd)  # likewise, and the lock is of a file that nobody else will find
        return None
    return run_dir


def _empty(path: str) -> None:
    """Remove all but the lock."""
    for entry in list(os.scandir(path)):
        if entry.name != _LOCK:
            with contextlib.suppress(FileNotFoundError):  # whose it was may remove it, too
                os.unlink(entry.path)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether a server's directory may hold this: its sockets, its lock, its settings, its metrics, its last words."""
    mode = entry.stat(follow_symlinks=False).st_mode
    named = entry.name in (_LOCK, _FATAL) or entry.name.endswith((".json", ".db", ".db.new"))
    is_link = stat.S_ISLNK(mode) and entry.name == ADMIN_SOCKET  # see ringserve/run_files.py
    return stat.S_ISSOCK(mode) or is_link or (stat.S_ISREG(mode) and named)


def _lock(path: str) -> RunDir | None:
    """Lock the directory; None when somebody else holds the lock."""
    fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return RunDir(path, fd)


def is_private(path: str) -> bool:
    """Whether the directory at `path` is still one that only this process's user puts files into.

    Where it was removed from a folder that others write to, anybody may have made it first: no file in there is to be
    trusted then, nor made, since a link may lead it elsewhere. A link to the directory counts if root or this user made
    it (systemd does).
    """
    try:
        about = os.lstat(path)
        if stat.S_ISLNK(about.st_mode) and about.st_uid in (0, os.geteuid()):
            about = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & _OTHERS_WRITE


def open_private(path: str, flags: int) -> int:
    """An opener for `open`, for files of a run directory. Raises PermissionError where that is not `is_private`."""
    folder = os.path.dirname(path)
    if not is_private(folder):
        os.lstat(folder)  # which tells that it is missing
        raise PermissionError(errno.EPERM, "others may write to the run directory", path)
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def hold_lock(path: str, lock_fd: int) -> bool:
    """See to it that `lock_fd` holds the directory's lock, also where its file was removed: then the file is made anew,
    and the descriptor, with the same number, is one of that. False when another server has locked it meanwhile.

    Processes that inherited the descriptor before hold the old file's lock only.
    """
    if _is_locked_by(path, lock_fd):
        return True
    fresh = _lock(path)
    if fresh is None:
        return False
    os.dup2(fresh.lock_fd, lock_fd, inheritable=False)
    os.close(fresh.lock_fd)
    return True


def _is_locked_by(path: str, lock_fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(os.path.join(path, _LOCK)), os.fstat(lock_fd))
    except OSError:  # one of the two is not there
        return False


def sweep(parent: str) -> list[str]:
    """Remove the private run directories in `parent` whose servers are dead; returns their paths."""
    removed = []
    for entry in list(os.scandir(parent)):
        if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
            continue
        lock = os.path.join(entry.path, _LOCK)
        try:
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            # No lock file: another server is just making this one.
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_run_dir(entry.path)
            removed.append(entry.path)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
    return removed


def remove_run_dir(path: str) -> None:
    """Remove a run directory and what is in it, as far as it goes. The last process of a server calls it.

    Only whoever has its lock open: after it was removed another server may use one of that name.
    """
    if is_private(path) and any(_is_locked_by(path, int(fd)) for fd in os.listdir("/proc/self/fd")):
        # The lock goes last: until then no other server begins here, and files of its would have the same names.
        with contextlib.suppress(OSError):
            _empty(path)
        shutil.rmtree(path, ignore_errors=True)


def write_fatal(run_dir: str, text: str) -> None:
    """Write down why the whole server must end, as `CODE: text` (`UNKNOWN: 1 servable(s) did not become ...`).

    The process that writes it then exits with `process.Exit.FATAL`; the supervisor stops the others and reports it.
    Where it cannot be written that status alone must do.
    """
    path = os.path.join(run_dir, _FATAL)
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8", opener=open_private) as file:
        file.write(text)


def read_fatal(run_dir: str) -> str:
    """What `write_fatal` wrote; empty when nobody did."""
    try:
        with open(os.path.join(run_dir, _FATAL), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
