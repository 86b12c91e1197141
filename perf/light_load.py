"""A light load beside something else: does anybody fail, is anybody answered wrongly meanwhile?"""

from __future__ import annotations

import threading
from typing import Self

from perf import loadgen
from perf.loadgen import Figures, Load
from perf.models import PerfModel
from perf.servers import Ringserve


class LightLoad:
    """Poisson calls on a model, `rate` a second, until the `with` ends; in pieces of `piece_s`, as the generator runs
    for a time that is known beforehand. An error of the generator is raised when the `with` ends."""

    def __init__(self, server: Ringserve, model: PerfModel, rate: float, piece_s: float = 5.0) -> None:
        self.pieces: list[Figures] = []
        self._load = Load(server.port, model.exchanges, connections=2, in_flight=1000, rate=rate, duration_s=piece_s,
                          errors_allowed=True)  # fmt: skip
        self._over = threading.Event()
        self._error: loadgen.LoadError | None = None
        self._thread = threading.Thread(target=self._run, name="light load", daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.pieces.append(loadgen.run(self._load))
            except loadgen.LoadError as error:
                self._error = error
                return

    @property
    def calls(self) -> int:
        return sum(one.calls for one in self.pieces)

    @property
    def failures(self) -> int:
        return sum(one.failures for one in self.pieces)

    def told(self) -> str:
        """In a line."""
        if not self.pieces:
            return "no calls"
        worst_us = max(piece.latency_us.p99 for piece in self.pieces)
        examples = {text for piece in self.pieces for text in piece.examples.values()}
        failed = f"{self.failures} failed" + (f" ({'; '.join(sorted(examples))})" if examples else "")
        piece_s = self._load.duration_s
        return f"{self.calls:,} calls, {failed}, p99 of the worst {piece_s:g} s {worst_us:,.0f} µs"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error
