"""Pure: who wants to know of every batch (metrics). Called once per batch, never per request."""

from __future__ import annotations

from typing import Protocol

from ringserve.broker.messages import LaneSpec


class Observer(Protocol):
    """Told of batches while the core decides, so it must be quick and must not raise. Times in ns."""

    def batch_granted(
        self, lane: LaneSpec, rows: int, rows_run: int, parts: list[list[int]], waits_ns: list[int]
    ) -> None:
        """A batch of `rows` goes to a worker, which pads it to `rows_run` (the same where sizes are not prescribed).

        lane: always the same object for one lane. parts: as Execute carries them; they must not be changed. waits_ns:
        how long each of the parts has waited; the first one has nearly always waited longest. A batch that goes again
        because its worker died is told again.
        """

    def batch_done(self, lane: LaneSpec, rows: int, run_ns: int) -> None:
        """A batch is over. run_ns: time inside TensorFlow; 0 when it did not run."""
