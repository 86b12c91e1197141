"""What operators do to a server that serves: models come and go over REST, versions appear in directories.

Each change is checked: what came answers rightly, what went is gone, and no worker is coming or going any more when
the next one begins.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from perf import answers
from perf.loadgen import Exchange
from perf.models import PerfModel
from perf.servers import Ringserve, ServerError

PATIENCE_S = 120.0


class Event(NamedTuple):
    """Something that was done, and how long it took. at_s: when it began, time.monotonic()."""

    at_s: float
    what: str
    seconds: float


def check(server: Ringserve, exchanges: Sequence[Exchange]) -> None:
    """Each exchange once. Raises ServerError when an answer is missing or wrong."""
    for exchange in exchanges:
        answer = server.ask(exchange)
        different = answers.difference(exchange.expected or b"", answer)
        if different:
            raise server.failure(f"a wrong answer: {different}")


class ComingAndGoing:
    """A model that is added and removed over REST."""

    def __init__(self, server: Ringserve, model: PerfModel) -> None:
        self.events: list[Event] = []
        self._server = server
        self._model = model
        self._path = f"/ringserve/v1/models/{model.name}"

    def load(self) -> None:
        """Until it serves."""
        start_s = time.monotonic()
        self._server.call("PUT", self._path, {"base_path": str(self._model.base_path)}, PATIENCE_S)
        self.events.append(Event(start_s, "load", time.monotonic() - start_s))
        check(self._server, self._model.exchanges[:1])  # one: its 300 MB are read in the way of model A

    def unload(self) -> None:
        """Until no worker has it and none is coming or going."""
        start_s = time.monotonic()
        self._server.call("DELETE", self._path)
        name = self._model.name

        def gone() -> bool:
            states = self._server.worker_states()
            return not any(key[0] == name for worker in states for key in worker["loaded"])

        self._server.wait_until(gone, f"{name} to leave all workers", PATIENCE_S, pause_s=0.2)
        self._server.settle(PATIENCE_S)
        self.events.append(Event(start_s, "unload", time.monotonic() - start_s))

    def once(self) -> None:
        self.load()
        self._server.settle(PATIENCE_S)
        self.unload()


def _link(source: str, target: str) -> None:
    """The same file again: hundreds of versions take no room, and their pages are cached already."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)  # another file system


class Versions:
    """A model's base path in which versions appear, each complete at once, and the ones before the last disappear.

    sources: whose files they are, in turn: version 1 the first's, version 2 the second's and so on.
    """

    def __init__(self, base_path: Path, sources: Sequence[PerfModel]) -> None:
        self.base_path = base_path
        self.newest = 0
        self.events: list[Event] = []
        self._sources = sources
        base_path.mkdir(parents=True)
        self.appear()

    def source(self, version: int) -> PerfModel:
        return self._sources[(version - 1) % len(self._sources)]

    def exchanges(self, last: int) -> tuple[Exchange, ...]:
        """What may be answered while the versions from the newest of now to `last` come."""
        return answers.alternatives({v: self.source(v).exchanges for v in range(self.newest, last + 1)})

    def appear(self) -> None:
        version = self.newest + 1
        made = self.base_path.with_name(f"{self.base_path.name}-made")
        shutil.copytree(self.source(version).version_path, made, copy_function=_link)
        made.rename(self.base_path / str(version))
        self.newest = version

    def switch(self, server: Ringserve) -> None:
        """The next version, until it alone serves and no worker is coming or going."""
        start_s = time.monotonic()
        self.appear()
        name = self.source(self.newest).name

        def alone() -> bool:
            states = server.versions(name)
            if states.get(self.newest) == "END":
                raise ServerError(f"version {self.newest} of {name} did not load")
            return [version for version, state in states.items() if state == "AVAILABLE"] == [self.newest]

        server.wait_until(alone, f"version {self.newest} of {name} to serve alone", PATIENCE_S, pause_s=0.05)
        server.settle(PATIENCE_S)
        self.events.append(Event(start_s, "switch", time.monotonic() - start_s))
        check(server, self.exchanges(self.newest)[:4])
        old = self.base_path / str(self.newest - 2)
        if old.exists():
            os.rename(old, self.base_path.with_name("gone"))
            shutil.rmtree(self.base_path.with_name("gone"))


class Repeated:
    """Calls `change` again and again in a thread, `every_s` from start to start, until the `with` ends.

    A change that has begun is finished. An exception of it is raised when the `with` ends.
    """

    def __init__(self, change: Callable[[], None], every_s: float = 0.0, count_max: int = 1 << 30) -> None:
        self._change = change
        self._every_s = every_s
        self._count_max = count_max
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="changes", daemon=True)

    def _run(self) -> None:
        count = 0
        while count < self._count_max and not self._over.is_set():
            start_s = time.monotonic()
            try:
                self._change()
            except BaseException as error:
                self._error = error
                return
            count += 1
            self._over.wait(max(self._every_s - (time.monotonic() - start_s), 0.0))

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """No further change; does not wait for the one that goes on."""
        self._over.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None and kind is None:
            raise self._error
