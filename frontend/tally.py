"""What this frontend counts: requests by outcome, and how long they took. The API's files call it, `metrics` reads it.

One call per request, when it is answered; under half a microsecond, because it stands on the hot path.
"""

from __future__ import annotations

import time
from typing import Final

GRPC: Final = "GRPC"
REST: Final = "REST"


class Tally:
    """Counters of one frontend process. `clock_ns`: what `started_ns` below was taken with."""

    def __init__(self) -> None:
        self.clock_ns = time.monotonic_ns

    def request(self, entrypoint: str, api: str, model: str, code: int, started_ns: int) -> None:
        """A request that TF Serving counts has been answered with `code`.

        entrypoint: GRPC or REST. api: `Predict`, `Classify`, `Regress` over gRPC; `predict`, `classify`, `regress`
        over REST, "" for its GETs and what is malformed. model: as the client sent it, "" when there is none.
        started_ns: when its bytes were there, by `clock_ns`.
        """

    def run(self, api: str, model: str, started_ns: int) -> None:
        """A model run for this request has ended well. api is capitalised for both entry points.

        started_ns: when it was handed to the client (so waiting in the broker's queue counts, as in TF Serving).
        """

    def count(self, name: str) -> int:
        """The first cell of TF Serving's counter `name` (`/tensorflow/serving/request_count`); 0 when unknown."""
        return 0
