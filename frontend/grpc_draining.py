"""The stop of the server as health checks and streams without an end of their own see it.

First it is announced: health checks say so, and everything is served as before. Then it begins: such streams must end,
or they would hold it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ringserve.broker.messages import Code
from ringserve.frontend.handler import Stream, StreamFailure

STOPPING_TEXT: Final = "the server is shutting down"


class Draining:
    """Whether the server is about to stop. `watch`ers are told of each of the two steps once."""

    def __init__(self) -> None:
        self.announced = False
        self.began = False
        self._watchers: dict[object, Callable[[], object]] = {}

    def announce(self) -> None:
        """The server shall be sent nothing more from here on; it still takes what comes."""
        self.announced = True
        self._tell()

    def begin(self) -> None:
        """The server takes no new connections from here on."""
        self.announced = self.began = True
        self._tell()

    def _tell(self) -> None:
        for watcher in list(self._watchers.values()):
            watcher()

    def watch(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Call `changed` at each step. Returns what takes that back."""
        key = object()
        self._watchers[key] = changed
        return lambda: self._forget(key)

    def _forget(self, key: object) -> None:
        self._watchers.pop(key, None)

    async def next_message(self, stream: Stream) -> bytes | None:
        """`stream.receive()`, but a StreamFailure (UNAVAILABLE) when the server stops meanwhile."""
        receiving = asyncio.ensure_future(stream.receive())
        receiving.add_done_callback(_note_exception)
        forget = self.watch(lambda: receiving.cancel() if self.began else None)
        try:
            if self.began:
                receiving.cancel()
            return await receiving
        except asyncio.CancelledError:
            if self.began and receiving.cancelled():
                raise stopping() from None
            receiving.cancel()
            raise
        finally:
            forget()


def _note_exception(done: asyncio.Future[bytes | None]) -> None:
    """What nobody waits for any more has no say: without this the loop would report it as a bug."""
    if not done.cancelled():
        done.exception()


def stopping() -> StreamFailure:
    """The end of a stream whose server stops. A client goes to another server with it, or tries again."""
    return StreamFailure(Code.UNAVAILABLE, STOPPING_TEXT)
