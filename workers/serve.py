"""A worker's loop: one thread, Execute in, Result and Done out. It loads its models, serves, and is replaced; it is
never altered.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from ringserve.broker import wire
from ringserve.broker.messages import Code, Execute, Loaded, Ready, Release
from ringserve.shm.ring import RingWriter
from ringserve.shm.segment import Segment
from ringserve.workers.execute import Batch, Executor
from ringserve.workers.failures import LoadError
from ringserve.workers.link import Link
from ringserve.workers.servable import Servable

log = logging.getLogger(__name__)

#: How long the records of a frontend that left are kept.
_LEFT_KEPT_NS = 5_000_000_000
_TIDY_NS = 1_000_000_000
#: How often to look, while there is something to keep or to tidy.
_LOOK_MS = 1000


def load_models(
    models: Sequence[tuple[str, int, str]], load: Callable[[str, str, int], Servable]
) -> tuple[dict[tuple[str, int], Servable], list[Loaded]]:
    """Load each (name, version, path); a model that fails is reported and leaves the others as they are."""
    servables: dict[tuple[str, int], Servable] = {}
    reports = []
    for name, version, path in models:
        try:
            servable = load(path, name, version)
        except LoadError as error:
            log.error("model %s version %d did not load: %s", name, version, error.text)
            reports.append(Loaded(name, version, int(error.code), error.text, b""))
            continue
        servables[name, version] = servable
        reports.append(Loaded(name, version, int(Code.OK), "", servable.signature_defs, servable.changes_state))
    return servables, reports


def make_result_ring(name: str, ring_bytes: int) -> tuple[Segment, RingWriter]:
    """This worker's result ring: its memory and the book of what is free in it."""
    segment = Segment.create(f"{name}-results", ring_bytes)
    return segment, RingWriter(segment.data_bytes)


class Worker:
    """Serves what `executor` holds until told to stop.

    segment, ring: its result ring, which the executor fills. stopping: asked once per turn; when it turns true, what is
    in hand is finished first. clock: monotonic ns.
    """

    def __init__(
        self,
        link: Link,
        executor: Executor,
        segment: Segment,
        ring: RingWriter,
        reports: Sequence[Loaded],
        *,
        stopping: Callable[[], bool],
        clock: Callable[[], int],
    ) -> None:
        self._link = link
        self._executor = executor
        self._segment = segment
        self._ring = ring
        self._reports = reports
        self._stopping = stopping
        self._clock = clock
        self._backlog: deque[Execute] = deque()
        self._batch: Batch | None = None
        #: (when, frontend_id): records of frontends that left, see `_forget_left`.
        self._leaving: deque[tuple[int, int]] = deque()
        self._untidy = False
        self._tidied_ns = 0
        self.messages_dropped_count = 0

    def announce(self) -> None:
        """Tell the broker what is loaded and that batches may come."""
        for report in self._reports:
            self._link.send(report)
        loaded = [[report.name, report.version] for report in self._reports if report.error_code == Code.OK]
        self._link.send(Ready(loaded, True))

    def serve(self) -> None:
        """Run until `stopping`. Raises PoolGone or StopOrdered."""
        link = self._link
        while True:
            mail = link.inbox.drain()
            if not link.news():
                self._come_back(mail)
                continue
            if link.left or self._leaving:
                self._forget_left()
            for data in mail:
                self._take(data)
            self._work()
            if mail:
                continue
            if self._stopping() and self._batch is None:
                return
            link.wait(_LOOK_MS if self._leaving or self._untidy else None)
            if self._untidy:
                self._tidy()

    def _come_back(self, mail: list[bytes]) -> None:
        """The broker is lost. The batches in hand were its, but their frontends still wait for the answers."""
        for data in mail:
            self._take(data)
        self._work()
        # A batch that waits for room is given up: its requests are submitted again to the next broker.
        self._batch = None
        self._backlog.clear()
        log.warning("lost the broker; registering again")
        self._link.register()
        self._executor.worker_id = self._link.worker_id
        self.announce()

    def _take(self, data: bytes) -> None:
        try:
            message = wire.unpack(data)
        except wire.WireError:
            self.messages_dropped_count += 1
            log.exception("dropped a message")
            return
        if isinstance(message, Execute):
            self._backlog.append(message)
        elif isinstance(message, Release):
            self._executor.release(message.frontend_id, message.record_ids)
        else:
            self.messages_dropped_count += 1
            log.error("dropped a %s, which no worker takes", type(message).__name__)

    def _work(self) -> None:
        """Run batches, oldest first, until none is left or the result ring has no room for the next answer."""
        while True:
            batch = self._batch
            if batch is None:
                if not self._backlog:
                    return
                batch = self._executor.execute(self._backlog.popleft())
            else:
                batch.proceed()
            self._send(batch)
            self._untidy = True
            if batch.done is None:
                self._batch = batch
                return
            self._batch = None

    def _tidy(self) -> None:
        """About once a second, and once more after the last batch: give back pages that a burst has left behind."""
        now_ns = self._clock()
        if now_ns - self._tidied_ns >= _TIDY_NS:
            self._tidied_ns = now_ns
            shrunk = self._ring.take_shrunk()
            if shrunk is not None:
                self._segment.free_pages(*shrunk)
            self._untidy = shrunk is not None

    def _send(self, batch: Batch) -> None:
        outboxes = self._link.outboxes
        for frontend_id, result in batch.take_results():
            outbox = outboxes.get(frontend_id)
            if outbox is not None:
                outbox.send(wire.pack(result))
        if batch.done is not None:
            self._link.broker.send(wire.pack(batch.done))

    def _forget_left(self) -> None:
        """Take back the records of frontends that left, but not at once.

        When it is the broker that was lost, the frontends "left" under their old ids only, and Results for these ids
        may still be on their way: their records must not be written over before they can have been read.
        """
        now_ns = self._clock()
        while self._link.left:
            self._leaving.append((now_ns + _LEFT_KEPT_NS, self._link.left.pop()))
        while self._leaving and self._leaving[0][0] <= now_ns:
            self._executor.frontend_left(self._leaving.popleft()[1])
