"""Work that would hold up the event loop, done on a thread, one piece after the other.

Decompressing is the only such work: C code that lets other threads run. Its results are large, so the next piece begins
only when the last result was taken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Done = Callable[[Any, Exception | None], None]


class Aside:
    """A queue of work and the thread that does it. Lives on one event loop. The thread starts with the first work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_bug: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._on_bug = on_bug
        self._queue: deque[tuple[Callable[[], Any], Done]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grpc-side")
        self._task: asyncio.Task[None] | None = None

    def do(self, work: Callable[[], Any], done: Done) -> None:
        """Does `work` on the thread; `done` is then called on the loop with what it returned or raised."""
        self._queue.append((work, done))
        if self._task is None:
            self._task = self._loop.create_task(self._run())

    def close(self) -> None:
        """Ends the thread when its present work is done. What still waits is dropped: its calls are over."""
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while self._queue:
            work, done = self._queue.popleft()
            result, error = None, None
            try:
                result = await self._loop.run_in_executor(self._thread, work)
            except Exception as raised:
                error = raised
            try:
                done(result, error)
            except Exception as bug:
                self._on_bug(bug)
            del work, done, result, error
        self._task = None
