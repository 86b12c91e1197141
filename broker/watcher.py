"""Looks at model directories and the config file in a thread of its own, so that no file system ever holds the broker.

    loop: look(...) ─▶ jobs ─▶ thread: scan ─▶ results, fd readable ─▶ loop: take()

One thread does the looks one after the other. A file system that hangs must not keep the others from being looked at:
when a look has not come back within two seconds, its thread is left to it and a new one does the rest; the base path
gets no further look until the first has come back. So there are never more threads than base paths that hang, plus one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A look that takes longer is left to its thread.
STUCK_NS = 2_000_000_000
#: While more looks are to be done, the loop is woken this often and not for each.
_WAKE_NS = 20_000_000


class Result(NamedTuple, Generic[T]):
    """A look came back. key: as given to `look`. asked: the number of that look."""

    key: str
    asked: int
    value: T


class _Job(NamedTuple):
    key: str
    asked: int
    run: Callable[[], Any]


class _Thread:
    """One thread and its jobs. busy: (job, since when) while it runs one."""

    def __init__(self, done: Callable[[Result[Any]], None], clock: Callable[[], int], number: int) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.busy: tuple[_Job, int] | None = None
        self._done = done
        self._clock = clock
        # A daemon: a look that never comes back must not keep the process from ending.
        threading.Thread(target=self._run, name=f"watcher-{number}", daemon=True).start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            self.busy = (job, self._clock())
            try:
                value = job.run()
            except Exception:
                # A bug. The loop must go on being told, or this key would never be looked at again.
                log.exception("looking at %s", job.key)
                value = None
            self.busy = None
            self._done(Result(job.key, job.asked, value))


class Watcher:
    """Runs looks. Used by one thread, the loop's. fd: readable when `take` has something. clock: monotonic ns."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._clock = clock
        self._results: deque[Result[Any]] = deque()
        self._threads_count = 0
        self._thread = self._start()
        self._under_way: dict[str, int] = {}
        self._following: dict[str, _Job] = {}
        self._woken_ns = 0
        self._asked = 0

    def look(self, key: str, run: Callable[[], Any], *, anew: bool) -> int:
        """Run this in the thread, soon, and return that look's number. While a look of that key is under way no other
        begins: with `anew` this one follows it, otherwise it is the one that counts."""
        if key in self._under_way and not anew:
            return self._under_way[key]
        self._asked += 1
        job = _Job(key, self._asked, run)
        if key in self._under_way:
            self._following[key] = job  # in place of one that waits likewise
        else:
            self._begin(job)
        return self._asked

    def _begin(self, job: _Job) -> None:
        self._under_way[job.key] = job.asked
        self._thread.jobs.put(job)

    def take(self) -> list[Result[Any]]:
        """The looks that have come back, in their order."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        results = []
        while self._results:
            result = self._results.popleft()
            del self._under_way[result.key]
            following = self._following.pop(result.key, None)
            if following is not None:
                self._begin(following)
            results.append(result)
        return results

    def tend(self, now_ns: int) -> int:
        """Leave a thread that hangs to its look. Returns when to call this again; 0 = not before something is asked."""
        busy = self._thread.busy
        if busy is not None and now_ns >= busy[1] + STUCK_NS:
            job, _ = busy
            log.error("looking at %s hangs; the other base paths go on being looked at", job.key)
            os.eventfd_write(self.fd, 1)  # for those that came before it
            stuck, self._thread = self._thread, self._start()
            while True:
                try:
                    waiting = stuck.jobs.get_nowait()
                except Empty:
                    break
                self._thread.jobs.put(waiting)
            stuck.jobs.put(None)  # when its look comes back, it ends
            busy = None
        if not self._under_way:
            return 0
        return (busy[1] if busy is not None else now_ns) + STUCK_NS

    def _start(self) -> _Thread:
        self._threads_count += 1
        return _Thread(self._done, self._clock, self._threads_count)

    def _done(self, result: Result[Any]) -> None:
        """In the thread."""
        self._results.append(result)
        now_ns = self._clock()
        if self._thread.jobs.empty() or now_ns >= self._woken_ns + _WAKE_NS:
            self._woken_ns = now_ns
            os.eventfd_write(self.fd, 1)
