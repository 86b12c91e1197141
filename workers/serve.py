"""A worker's loop: one thread, Execute in, Result and Done out. It serves what is loaded while the rest still loads,
and is replaced; models are never taken out of it.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable

from ringserve.broker import wire
from ringserve.broker.messages import Ask, Execute, Fork, Loaded, Loading, ModelOptions, Ready, Release, Told
from ringserve.config import process
from ringserve.config.limits import lease_ms
from ringserve.config.schema import Workers
from ringserve.shm.ring import RingWriter
from ringserve.shm.segment import Segment
from ringserve.workers.execute import Batch, Executor
from ringserve.workers.handover import Handover
from ringserve.workers.interface import Model
from ringserve.workers.link import Link
from ringserve.workers.loading import NICENESS, LoadEnded, Loader, Open

log = logging.getLogger(__name__)

#: A batch waits for room in the result ring for this part of its lease at most: this worker must not be taken for one
#: that hangs. For one frontend that stands still it waits half of that, and among others much less (`shares.py`).
_LEASE_PART = 0.8
_LOOK_ROOM_MS = 500
_TIDY_NS = 10_000_000_000
#: How often to look while there is something to tidy.
_LOOK_TIDY_MS = 10_000

#: Answers an operator's call, at once or, when it returns None, later through the worker's `told`.
Answer = Callable[[Ask], Told | None]

#: What is loaded, by name and version.
Models = dict[tuple[str, int], Model]


def make_loader(order: Fork, open_model: Open, over: Callable[[], None] = lambda: None) -> Loader:
    """What loads this worker's models. Workers of a later generation do it beside those that serve, and give way.

    over: called by the loading thread when all loads are over.
    """
    return Loader(order.models, open_model, niceness=NICENESS if order.generation else 0, over=over)


def make_told() -> Handover[Told]:
    """Where side threads put answers to operators' calls."""
    return Handover()


def room_ns_max(workers: Workers) -> int:
    """How long a batch waits for room in the result ring."""
    return int(_LEASE_PART * lease_ms(workers) * 1_000_000)


def make_result_ring(name: str, ring_bytes: int) -> tuple[Segment, RingWriter]:
    """This worker's result ring: its memory and the book of what is free in it."""
    segment = Segment.create(f"{name}-results", ring_bytes)
    return segment, RingWriter(segment.data_bytes)


class Worker:
    """Serves what the loader has handed over until told to stop.

    models: the executor's view of what is loaded, filled here. segment, ring: the result ring, which the executor
    fills. told: late answers to operators' calls. stopping: asked once per turn; when it turns true, what is in hand is
    finished first, and a load is left alone. clock: monotonic ns. room_ns_max: of the function above. The link
    wakes for `loader.events` and `told`.
    """

    def __init__(
        self,
        link: Link,
        executor: Executor,
        segment: Segment,
        ring: RingWriter,
        models: Models,
        loader: Loader,
        *,
        answer: Answer,
        told: Handover[Told],
        stopping: Callable[[], bool],
        clock: Callable[[], int],
        room_ns_max: int,
    ) -> None:
        self._link = link
        self._executor = executor
        self._segment = segment
        self._ring = ring
        self._models = models
        self._loader = loader
        self._answer = answer
        self._told = told
        #: What the broker knows of the loads, for the next broker.
        self._reports: list[Loaded] = []
        self._loading: Loading | None = None
        self._complete = False
        self._stopping = stopping
        self._clock = clock
        self._backlog: deque[Execute] = deque()
        self._batch: Batch | None = None
        self._room_ns_max = room_ns_max
        self._look_room_ms = min(_LOOK_ROOM_MS, room_ns_max // 8_000_000)
        self._untidy = False
        self._tidied_ns = 0
        self.messages_dropped_count = 0

    # --------------------------------------------------------------------------------------------------- loading

    def _start_loading(self) -> None:
        for order in self._loader.orders:
            if order.options:
                self._executor.set_options(order.name, ModelOptions(order.name, *order.options))
        # What a load leaves behind is collected once, at its end: a collection takes long with TensorFlow in memory.
        gc.disable()
        self._loader.start()

    def _on_loads(self) -> None:
        """Take over what is loaded, and tell the broker."""
        for event in self._loader.events.take():
            if isinstance(event, Loading):
                self._loading = event
                self._link.send(event)
                self._loader.go_on()
            elif isinstance(event, LoadEnded):
                self._loading = None
                self._reports.append(event.report)
                self._link.send(event.report)
                if event.model is not None:
                    self._models[event.report.name, event.report.version] = event.model
                    self._executor.forget_lanes()  # those of requests that came too early
                    self._link.send(self._ready())
            else:
                process.freeze_heap()
                gc.enable()
                self._complete = True
                self._link.send(self._ready())

    def _ready(self) -> Ready:
        return Ready([[name, version] for name, version in self._models], self._complete)

    def _announce_again(self) -> None:
        """Tell a new broker what the one before it knew."""
        for report in self._reports:
            self._link.send(report._replace(again=True))
        if self._loading is not None:
            self._link.send(self._loading)
        if self._models or self._complete:
            self._link.send(self._ready())

    # --------------------------------------------------------------------------------------------------- serving

    def serve(self) -> None:
        """Run until `stopping`. Raises PoolGone or StopOrdered."""
        link = self._link
        self._start_loading()
        while True:
            mail = link.mail()
            if not link.news():
                self._come_back(mail)
                continue
            while link.left:
                self._executor.frontend_left(link.left.pop())
            if link.options or link.asks or link.found:
                self._on_control()
            self._on_side_threads()
            for data in mail:
                self._take(data)
            self._work()
            while self._executor.trials.found:
                link.send(self._executor.trials.found.pop())
            if not mail and self._stopping() and self._batch is None:
                return
            link.wait(self._look_room_ms if self._batch is not None else _LOOK_TIDY_MS if self._untidy else None)
            if self._untidy:
                self._tidy()

    def _come_back(self, mail: list[bytes]) -> None:
        """The broker is lost. The batches in hand were its, but their frontends still wait for the answers."""
        for data in mail:
            self._take(data)
        self._work()
        # A batch that waits for room is given up: its requests are submitted again to the next broker.
        self._batch = None
        self._executor.shares.end_wait()
        self._backlog.clear()
        log.warning("lost the broker; registering again")
        self._link.register()
        self._executor.worker_id = self._link.worker_id
        self._told.take()  # answers for the broker that is gone
        self._announce_again()

    def _on_control(self) -> None:
        link = self._link
        for options in link.options:
            self._executor.set_options(options.name, options)
        link.options.clear()
        for found in link.found:
            if (found.name, found.version) in self._models:
                self._executor.trials.hear(found)
                log.info("model %s version %d, signature %s: found to depend by another worker", *found[:3])
        link.found.clear()
        while link.asks:
            told = self._answer(link.asks.pop(0))
            if told is not None:
                link.send(told)

    def _on_side_threads(self) -> None:
        self._on_loads()
        for told in self._told.take():
            self._link.send(told)

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
                batch.look(self._clock())
                batch.proceed()
            self._send(batch)
            self._untidy = True
            while batch.done is None and self._gives_up(batch):
                batch.proceed()
                self._send(batch)
            if batch.done is None:
                self._batch = batch
                return
            self._batch = None

    def _gives_up(self, batch: Batch) -> bool:
        """Whether this batch, which waits, does not any more: not for anything, or not for some frontend."""
        now_ns = self._clock()
        batch.look(now_ns)
        if not batch.waits_for_bytes:
            return False
        # Sooner than this batch gives up: who is silent by then keeps no further one waiting.
        is_news = self._executor.shares.look(now_ns, self._room_ns_max // 2)
        if batch.waited_ns > self._room_ns_max:
            batch.give_up()
            return True
        return is_news

    def _tidy(self) -> None:
        """Every ten seconds, and once more after the last batch: give back pages that a burst has left behind."""
        now_ns = self._clock()
        if now_ns - self._tidied_ns >= _TIDY_NS:
            self._tidied_ns = now_ns
            shrunk = self._ring.take_shrunk()
            if shrunk is not None:
                self._segment.free_pages(*shrunk)
            self._untidy = shrunk is not None

    def _send(self, batch: Batch) -> None:
        for frontend_id, result in batch.take_results():
            self._link.send_result(frontend_id, wire.pack(result))
        if batch.done is not None:
            self._link.send_done(wire.pack(batch.done))
