"""What children need to come up: their settings, the sockets that they come to, and a run directory that is ours.

The directory may lie where cleaners remove what is old, or where others may make one of its name once it is gone. So
children get what the server stands on by descriptors, which nobody can remove or replace: the settings, and both
sockets' files, to which one can still connect by /proc/self/fd when they have no name any more. The directory itself is
touched from time to time, and made anew where it was removed: processes that start keep their own files there.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from typing import Final

from ringserve.config.rundir import ADMIN_SOCKET, MODE, RunDir, hold_lock, is_private, open_private
from ringserve.notices import Notices

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
#: Cleaners count in days.
_TOUCH_NS: Final = 3600 * 1_000_000_000
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class RunFiles:
    """The settings and sockets of one server, and its run directory. Raises OSError when they cannot be made at first.

    settings: as JSON. admin_path: the operators' socket; empty: there is none.

    fds: what every child inherits, by the same numbers. settings_path, broker_path, notify_path: what those descriptors
    are in a child. admin_path: likewise in this process. listener: the broker's registration socket. It is ours so that
    it survives a broker: who connects while there is none waits in its backlog. notices: where children speak.
    usable: whether children may be started; set by `mend`.
    """

    def __init__(self, run_dir: RunDir, settings: str, admin_path: str = "") -> None:
        self._run_dir = run_dir
        self._opened = contextlib.ExitStack()
        self._touch_ns = 0
        self._wrong = ""
        broker_path, notify_path = (os.path.join(run_dir.path, name) for name in ("broker.sock", "notify.sock"))
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.listener.bind(broker_path)
        self.listener.listen(_BACKLOG)
        self.notices = Notices(notify_path)
        # For people, and to find out now whether there is room for files.
        with open(os.path.join(run_dir.path, "settings.json"), "w", encoding="utf-8", opener=open_private) as file:
            file.write(settings)
        settings_fd = self._keep(_sealed(settings))
        broker_fd, notify_fd = self._file_of(broker_path), self._file_of(notify_path)
        self.fds = (settings_fd, broker_fd, notify_fd)
        self.settings_path, self.broker_path, self.notify_path = map(_by_number, self.fds)
        admin_fd = self._file_of(admin_path) if admin_path else -1
        self.admin_path = _by_number(admin_fd) if admin_path else ""
        self._admin_name = os.path.join(run_dir.path, ADMIN_SOCKET)
        # To others it is this process's descriptor.
        self._admin_link = f"/proc/{os.getpid()}/fd/{admin_fd}" if admin_path == self._admin_name else ""

    @property
    def usable(self) -> bool:
        return not self._wrong

    def mend(self, now_ns: int) -> None:
        """Make anew what is missing of the directory, and see whose it is."""
        try:
            wrong = self._mend(now_ns)
        except OSError as error:
            wrong = f"what was removed from it cannot be made anew: {error}"
        if wrong and wrong != self._wrong:
            log.error("no process is started with the run directory %s as it is: %s", self._run_dir.path, wrong)
        elif self._wrong and not wrong:
            log.info("the run directory %s is as it was: processes are started again", self._run_dir.path)
        self._wrong = wrong

    def _mend(self, now_ns: int) -> str:
        """Returns what keeps the directory from being used."""
        folder = self._run_dir.path
        if not os.path.lexists(folder):
            log.error("the run directory %s was removed: making it anew", folder)
            with contextlib.suppress(FileExistsError):  # somebody was faster
                os.makedirs(folder, MODE)
        if not is_private(folder):
            return f"it is no directory that only user {os.geteuid()} may write to: somebody else may have made it"
        if not hold_lock(*self._run_dir):
            return "it was removed, and another server uses it now; give each its own"
        if self._admin_link and not os.path.lexists(self._admin_name):
            log.warning("%s was removed: a link to the operators' socket takes its place", self._admin_name)
            os.symlink(self._admin_link, self._admin_name)
        if now_ns >= self._touch_ns:
            self._touch_ns = now_ns + _TOUCH_NS
            self._touch()
        return ""

    def _touch(self) -> None:
        folder = self._run_dir.path
        for path in (folder, *(entry.path for entry in os.scandir(folder))):
            with contextlib.suppress(FileNotFoundError):  # whose it is has just removed it
                os.utime(path, follow_symlinks=False)

    def _file_of(self, path: str) -> int:
        """A descriptor of a socket's file, which one can connect to as long as it is open."""
        return self._keep(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))

    def _keep(self, fd: int) -> int:
        self._opened.callback(os.close, fd)
        return fd

    def close(self) -> None:
        self.listener.close()
        self.notices.close()
        self._opened.close()


def _by_number(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _sealed(text: str) -> int:
    """A descriptor of memory with this text, which nobody can change any more."""
    fd = os.memfd_create("ringserve-settings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "w", encoding="utf-8", closefd=False) as file:
        file.write(text)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
