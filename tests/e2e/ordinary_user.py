"""Starts a program as an ordinary user, whoever runs the tests: `python -m tests.e2e.ordinary_user UID COMMAND...`, by
root, ends as COMMAND of that user, in a mount namespace of its own where the interpreter lies below root's home.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000


class NoOrdinaryUser(Exception):
    """Programs cannot be started as another user here; the text says why."""


def command_as(uid: int, command: list[str]) -> list[str]:
    """The command line that runs `command` as that user."""
    return [sys.executable, "-m", "tests.e2e.ordinary_user", str(uid), *command]


def free_uid() -> int:
    """A user id that nobody has processes or a name under."""
    used = {entry.stat().st_uid for entry in os.scandir("/proc") if entry.name.isdigit()}
    named = {int(line.split(":")[2]) for line in Path("/etc/passwd").read_text().splitlines() if line.count(":") == 6}
    return next(uid for uid in range(48_611, 65_000) if uid not in used | named)


def become(uid: int) -> None:
    """Leave root behind, for good. What the interpreter needs stays in sight. Raises NoOrdinaryUser."""
    for path in _needed():
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & 0o001:
                _open_up(folder, path)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _needed() -> list[Path]:
    base, prefix, here = Path(sys.base_prefix).resolve(), Path(sys.prefix), Path(__file__).resolve().parents[2]
    return [path for path in (base, prefix.resolve(), here) if path.is_dir()]


def _open_up(folder: Path, inside: Path) -> None:
    """Cover a folder that only root may enter by one that shows nothing but `inside`. For this process and its own."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        words = [None if word is None else word.encode() for word in (source, target, kind)]
        if libc.mount(*words, ctypes.c_ulong(flags), None if options is None else options.encode()):
            raise NoOrdinaryUser(f"{folder}: {os.strerror(ctypes.get_errno())}")

    if libc.unshare(_CLONE_NEWNS):
        raise NoOrdinaryUser(f"only root may enter {folder}, and it cannot be shown to others")
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    aside = tempfile.mkdtemp()
    mount(str(inside), aside, None, _MS_BIND)
    mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
    inside.mkdir(parents=True)
    mount(aside, str(inside), None, _MS_MOVE)
    with contextlib.suppress(OSError):
        os.rmdir(aside)


def main() -> None:
    become(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
