"""A cable's end on a frontend's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ringserve.broker.cable import Cable


class Line:
    """Sends without waiting, and hands over what comes in. Lives on the running event loop.

    fd: owned from now on. on_mail: given the messages of each arrival, oldest first. That the other side is gone is
    told by the registration; until then what is sent to it goes nowhere.
    """

    def __init__(self, fd: int, on_mail: Callable[[list[bytes]], None]) -> None:
        self._cable = Cable.of_fd(fd)
        self._loop = asyncio.get_running_loop()
        self._on_mail = on_mail
        self._loop.add_reader(fd, self._receive)

    def send(self, message: bytes) -> None:
        """What the kernel does not take is kept, and goes when there is room."""
        if not self._cable.send(message):
            self._loop.add_writer(self._cable.fd, self._flush)

    def close(self) -> None:
        """Drop what is kept, and leave."""
        self._unwatch()
        self._cable.close()

    def _receive(self) -> None:
        messages = self._cable.receive()
        if self._cable.over:
            self._unwatch()  # it would wake the loop without end
        if messages:
            self._on_mail(messages)

    def _flush(self) -> None:
        if self._cable.flush():
            self._loop.remove_writer(self._cable.fd)

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._cable.fd)
        self._loop.remove_writer(self._cable.fd)
