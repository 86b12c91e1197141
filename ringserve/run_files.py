"""What children need of the run directory to come up: their settings, and the sockets that they come to.

The directory may lie where cleaners remove what is old. So all that is in it is touched from time to time; and what has
been removed all the same, by whomever, is made anew before it is missed: else the next child to start could not, and
those that are there could not say that they live.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import Final

from ringserve.notices import Notices

log = logging.getLogger(__name__)

_MODE: Final = 0o700
_BACKLOG: Final = 1024
#: Cleaners count in days.
_TOUCH_NS: Final = 3600 * 1_000_000_000


class RunFiles:
    """The files and sockets in `folder`. Raises OSError when they cannot be made at first.

    settings: as JSON. listener: the broker's registration socket. It is ours so that it survives a broker: who connects
    while there is none waits in its backlog; its descriptor stays the same number. notices: where children speak.
    """

    def __init__(self, folder: str, settings: str) -> None:
        self._folder = folder
        self._settings = settings
        self.settings_path = os.path.join(folder, "settings.json")
        self.notify_path = os.path.join(folder, "notify.sock")
        self._broker_path = os.path.join(folder, "broker.sock")
        self._touch_ns = 0
        self._is_failing = self._cuts_off = False
        self.listener = self._bind()
        self.notices = Notices(self.notify_path)
        self._write_settings()

    def mend(self, now_ns: int, *, broker_lives: bool) -> None:
        """Make anew what is missing. broker_lives: it has the socket that it was started with, and gets no other."""
        try:
            if not os.path.isdir(self._folder):
                log.error("the run directory %s was removed: making it anew", self._folder)
                os.makedirs(self._folder, _MODE)
            if not os.path.lexists(self.settings_path):
                self._write_settings()
            if not os.path.lexists(self.notify_path):
                gone, self.notices = self.notices, Notices(self.notify_path)
                gone.close()
            self._mend_listener(broker_lives)
            if now_ns >= self._touch_ns:
                self._touch_ns = now_ns + _TOUCH_NS
                self._touch()
        except OSError as error:
            if not self._is_failing:
                log.error("the run directory %s lacks files that cannot be made anew: %s", self._folder, error)
            self._is_failing = True
        else:
            self._is_failing = False

    def _touch(self) -> None:
        for path in (self._folder, *(entry.path for entry in os.scandir(self._folder))):
            with contextlib.suppress(FileNotFoundError):  # whose it is has just removed it
                os.utime(path, follow_symlinks=False)

    def _mend_listener(self, broker_lives: bool) -> None:
        if os.path.lexists(self._broker_path):
            self._cuts_off = False
        elif not broker_lives:
            fresh = self._bind()
            os.dup2(fresh.fileno(), self.listener.fileno(), inheritable=False)
            fresh.close()
        elif not self._cuts_off:
            self._cuts_off = True
            log.error("%s was removed: no new worker reaches the broker. Start the server anew", self._broker_path)

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(self._broker_path)
        listener.listen(_BACKLOG)
        return listener

    def _write_settings(self) -> None:
        with open(os.open(self.settings_path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(self._settings)

    def close(self) -> None:
        self.listener.close()
        self.notices.close()
