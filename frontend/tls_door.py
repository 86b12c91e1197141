"""Where TLS connections come in: a listening socket, and so many handshakes at a time.

A connection counts as one when its handshake is over. Before that it costs memory and a descriptor, so whoever begins
handshakes and does not go on could have as many as there are descriptors. When HANDSHAKES_MAX are under way nothing
more is accepted (the kernel keeps some thousand that wait) until one ends; the oldest then has CROWDED_S and not
HANDSHAKE_S. An honest crowd, which waits for this process's own arithmetic, comes through in that time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

#: Of one port of one frontend. A handshake takes a millisecond or two of its time, five with the longest keys.
HANDSHAKES_MAX: Final = 512
#: How long a handshake may take, and the end of TLS; and the first while others wait.
HANDSHAKE_S: Final = 20.0
CROWDED_S: Final = 4.0
#: Connections that may wait to be accepted, and those that are accepted before others have their turn.
_BACKLOG: Final = 1024
_ACCEPTS_AT_ONCE: Final = 32
#: How long nothing is accepted when the system has no descriptor or no memory for it.
_PAUSE_S: Final = 1.0


class TlsDoor:
    """Accepts from a socket, which it owns. Lives on the running event loop.

    protocol: makes the protocol of a connection whose handshake is over. refusals: `handshake` counts there what was
    cut off because it took too long.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        refusals: Counter[str],
        *,
        handshakes_max: int = HANDSHAKES_MAX,
        handshake_s: float = HANDSHAKE_S,
        crowded_s: float = CROWDED_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._protocol = protocol
        self._context = context
        self._refusals = refusals
        self._handshakes_max = handshakes_max
        self._handshake_s = handshake_s
        self._crowded_s = crowded_s
        #: Under way, the oldest first: its task, and when it began.
        self._handshakes: dict[asyncio.Task[None], float] = {}
        self._timer: asyncio.TimerHandle | None = None  # while nothing is accepted
        self._is_closed = False
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        self._loop.add_reader(sock, self._accept)

    @property
    def handshakes_count(self) -> int:
        """How many are under way."""
        return len(self._handshakes)

    def close(self) -> None:
        """Accept nothing more. Handshakes that are under way go on."""
        if not self._is_closed:
            self._is_closed = True
            self._go_on_later(None)
            self._sock.close()

    def abort(self) -> None:
        """Close, and end the handshakes that are under way."""
        self.close()
        for task in list(self._handshakes):
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if len(self._handshakes) >= self._handshakes_max:
                self._wait_for_room()
                return
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("no connection can be accepted: %s", error)
                self._go_on_later(_PAUSE_S)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._shake_hands(sock))
            self._handshakes[task] = self._loop.time()
            task.add_done_callback(self._ended)

    def _wait_for_room(self) -> None:
        """Somebody waits, and there are too many: the oldest must go when it has had its time."""
        task, since = next(iter(self._handshakes.items()))
        left_s = since + self._crowded_s - self._loop.time()
        if left_s <= 0:
            self._refusals["handshake"] += 1
            task.cancel()
        self._go_on_later(max(left_s, _PAUSE_S if left_s <= 0 else 0.0))

    def _go_on_later(self, wait_s: float | None) -> None:
        """Accept nothing for so long (None: ever again), or until a handshake ends."""
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if wait_s is None else self._loop.call_later(wait_s, self._go_on)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._loop.add_reader(self._sock, self._accept)

    async def _shake_hands(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=self._handshake_s,
            )
        except OSError as error:  # of TLS, too: whoever this was, it is no client of ours
            if isinstance(error, ConnectionAbortedError):  # what both loops call a time that is over
                self._refusals["handshake"] += 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._handshakes[task]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._loop.call_exception_handler({"message": "a TLS handshake", "exception": error})
        if not self._is_closed:
            self._go_on()
