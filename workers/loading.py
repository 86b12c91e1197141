"""Loading beside serving: a thread that loads the ordered models one after another and hands each over when it is done.

The serving thread alone speaks with the broker, so this one reports through a `Handover`, and before each load it waits
until the broker has been told of it: a model that ends the process while it loads must be known by name.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ringserve.broker.messages import Code, Failure, Loaded, Loading, LoadOrder
from ringserve.workers.failures import LoadError
from ringserve.workers.handover import Handover
from ringserve.workers.interface import Model

log = logging.getLogger(__name__)

#: Of the loading thread, when others serve meanwhile. The kernel gives it a tenth of a contended core's time; much less
#: would be too little, because it holds the interpreter's lock now and then, for which the serving thread waits.
NICENESS = 10

#: How soon the loading thread lets the serving thread have the interpreter. Python's own 5 ms are long for a request.
_SWITCH_S = 0.001


class Opened(NamedTuple):
    """A model that is loaded and warm. The other fields are those of `Loaded`."""

    model: Model
    notes: list[str]
    load_ns: int
    warmup_ns: int
    warmup_records: int


#: Loads one version. Raises LoadError.
Open = Callable[[LoadOrder], Opened]


class LoadEnded(NamedTuple):
    """One load is over. model: None when it failed."""

    report: Loaded
    model: Model | None


class AllLoaded(NamedTuple):
    """Every order has been carried out or was not needed."""


Event = Loading | LoadEnded | AllLoaded


class Loader:
    """Carries out `orders` in a thread of its own, which ends with the process at the latest.

    niceness: of that thread and of the threads that it starts; 0 leaves them as they are. over: called by that thread
    at its end.
    """

    def __init__(
        self,
        orders: Sequence[LoadOrder],
        open_model: Open,
        *,
        niceness: int,
        over: Callable[[], None] = lambda: None,
    ) -> None:
        self.orders = list(orders)
        self.events: Handover[Event] = Handover()
        self._open = open_model
        self._niceness = niceness
        self._over = over
        self._told = threading.Semaphore(0)
        # A load cannot be interrupted, and a worker that is to leave does not wait for it.
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self) -> None:
        """Begin. For each `Loading` that comes out of `events`, call `go_on` when the broker has been told."""
        self._thread.start()

    def go_on(self) -> None:
        """The broker knows what is loaded next."""
        self._told.release()

    def _run(self) -> None:
        if self._niceness:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        succeeded: set[str] = set()
        for order in in_turn(self.orders, succeeded):
            self.events.put(Loading(order.name, order.version))
            self._told.acquire()
            ended = self._load(order)
            if ended.model is not None:
                succeeded.add(order.name)
            self.events.put(ended)
        self._over()
        sys.setswitchinterval(usual_s)
        self.events.put(AllLoaded())

    def _load(self, order: LoadOrder) -> LoadEnded:
        name, version = order.name, order.version
        log.debug("loading model %s version %d", name, version)
        try:
            opened = self._open(order)
        except Exception as error:
            code, text = failure_of_load(error, name, version)
        else:
            log.debug("loaded model %s version %d", name, version)
            model = opened.model
            report = Loaded(name, version, int(Code.OK), "", model.signature_defs, model.changes_state, *opened[1:])
            return LoadEnded(report, model)
        log.debug("model %s version %d did not load: %s", name, version, text)  # the broker says it once for all
        return LoadEnded(Loaded(name, version, int(code), text or code.name, b""), None)


def failure_of_load(error: Exception, name: str, version: int) -> Failure:
    """What an exception that ended a load means for the version."""
    if isinstance(error, LoadError):
        return Failure(error.code, error.text)
    if isinstance(error, MemoryError):
        return Failure(Code.RESOURCE_EXHAUSTED, "Out of memory while the model was loaded.")
    # A bug, here or in TensorFlow, that one model's files bring up. The other models are not to blame.
    log.error("model %s version %d", name, version, exc_info=error)
    return Failure(Code.INTERNAL, f"Loading ended with a {type(error).__name__}: {error}")


def in_turn(orders: Sequence[LoadOrder], succeeded: set[str]) -> Iterator[LoadOrder]:
    """The orders in their order; a fallback waits until the other orders of its model are through.

    succeeded: names of models of which a version has loaded; the caller adds to it. A fallback for one is left out.
    """
    waiting = list(orders)
    while waiting:
        unsettled = {order.name for order in waiting if not order.fallback}
        order = next(order for order in waiting if not order.fallback or order.name not in unsettled)
        waiting.remove(order)
        if not order.fallback or order.name not in succeeded:
            yield order
