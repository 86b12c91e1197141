"""Where children say READY and WATCHDOG, by the protocol of sd_notify(3); the kernel adds who spoke."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_SO_PASSCRED: Final = 16
_UCRED: Final = struct.Struct("3i")
_BYTES_MAX: Final = 4096


class Notice(NamedTuple):
    """What a process said. pid: whose it is, by the kernel."""

    pid: int
    ready: bool
    lives: bool


class Notices:
    """The socket at `path`, which is made here. fd: readable when somebody spoke."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)
        self._socket.bind(path)
        self.fd = self._socket.fileno()

    def read(self) -> Iterator[Notice]:
        """All that was said, oldest first."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_BYTES_MAX, socket.CMSG_SPACE(_UCRED.size))
            except BlockingIOError:
                return
            lines = data.split(b"\n")
            for _, _, credentials in ancillary:
                pid, _, _ = _UCRED.unpack(credentials)
                yield Notice(pid, b"READY=1" in lines, b"WATCHDOG=1" in lines)

    def close(self) -> None:
        self._socket.close()
