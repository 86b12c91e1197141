"""Operators' calls that the broker answers: numbered, waited for, and ended when the broker is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ringserve.broker.messages import Ask, Code, Told

_LOST = "the broker was replaced while it worked on this; look at the models' state, and ask again if need be"
_NONE = "there is no broker just now; try again"


class Asks:
    """The calls of one frontend that are not answered yet. `send`: gives an Ask to the broker, False without one."""

    def __init__(self, send: Callable[[Ask], bool]) -> None:
        self._send = send
        self._next_id = 1
        self._waiting: dict[int, asyncio.Future[tuple[int, str, bytes]]] = {}

    async def ask(self, verb: str, body: bytes = b"", timeout_s: float | None = None) -> tuple[int, str, bytes]:
        """(code, text, body); never raises but when the caller is cancelled."""
        ask_id = self._next_id
        self._next_id += 1
        future: asyncio.Future[tuple[int, str, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[ask_id] = future
        try:
            if not self._send(Ask(ask_id, verb, body)):
                return int(Code.UNAVAILABLE), _NONE, b""
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return int(Code.DEADLINE_EXCEEDED), "Deadline Exceeded", b""
        finally:
            del self._waiting[ask_id]

    def told(self, told: Told) -> None:
        """An answer came; one that nobody waits for any more is dropped."""
        future = self._waiting.get(told.ask_id)
        if future is not None and not future.done():
            future.set_result((told.code, told.text, told.body))

    def lost(self) -> None:
        """The broker is gone: it will answer none of these."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result((int(Code.UNAVAILABLE), _LOST, b""))
