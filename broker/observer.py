"""Pure: who wants to know of every batch (metrics). Called once per batch, never per request."""

from __future__ import annotations

from typing import Protocol

from ringserve.broker.messages import LaneSpec


class Observer(Protocol):
    """Told of batches while the core decides, so it must be quick and must not raise. Times in ns."""

    def batch_done(
        self, lane: LaneSpec, rows: int, rows_run: int, parts: list[list[int]], waits_ns: list[int], run_ns: int
    ) -> None:
        """A batch of `rows` is over, which its worker padded to `rows_run` (the same where sizes are not prescribed).

        lane: always the same object for one lane. parts: as Execute carries them, but for those that the worker left;
        they must not be changed; empty when it left all of them. waits_ns: how long each had waited when the batch went
        out; the first one has nearly always waited longest. run_ns: time inside TensorFlow; 0 when it did not run. A
        batch whose worker died is not told.
        """
