"""The keys, kept up to date: their file is read again every few seconds. One that cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from ringserve.config.keys_file import Entry, KeysError, read_keys
from ringserve.frontend.settled import read_settled

log = logging.getLogger(__name__)


class KeyKeeper:
    """Keeps what one file says. Lives on an event loop. Raises KeysError when it cannot be used at first.

    use: told of the keys at once, and whenever they have changed.
    """

    def __init__(self, path: str, period_s: float, use: Callable[[Sequence[Entry]], None]) -> None:
        self._path = path
        self._period_s = period_s
        self._use = use
        self._complaint = ""
        self._entries = read_keys(path)
        use(self._entries)
        log.info("access: %d keys of %s", len(self._entries), path)
        self._task = asyncio.get_running_loop().create_task(self._watch())
        self._task.add_done_callback(_report)

    def close(self) -> None:
        """Look no more."""
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                entries = await read_settled(partial(read_keys, self._path), self._entries, self._period_s)
            except KeysError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("access: %s; the keys that were there go on being used", error)
                continue
            self._complaint = ""
            if entries != self._entries:
                self._tell(entries)

    def _tell(self, entries: tuple[Entry, ...]) -> None:
        names, before = {entry.name for entry in entries}, {entry.name for entry in self._entries}
        self._entries = entries
        self._use(entries)
        gone, new = sorted(before - names), sorted(names - before)
        log.info("access: %d keys now; new: %s; gone: %s", len(entries), new or "none", gone or "none")


def _report(done: asyncio.Task[None]) -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        done.get_loop().call_exception_handler({"message": "looking after keys", "exception": error})
