"""What all connections of an engine hold together, so that many of them cannot hold what one may not."""

from __future__ import annotations

from collections import Counter

from ringserve.frontend.buffers import Buffers
from ringserve.frontend.ledger import Ledger


class Account:
    """input_bytes: of messages that are not complete or not taken. output_bytes: of answers that wait to be sent.

    refusals: how many connections were ended for what their clients did, by the error that they were told.
    calls: the engine's books. buffers: where long messages lie; without it they are put together from their pieces.
    """

    __slots__ = ("buffers", "calls", "input_bytes", "output_bytes", "refusals")

    def __init__(self, buffers: Buffers | None = None) -> None:
        self.buffers = buffers
        self.calls = Ledger()
        self.input_bytes = 0
        self.output_bytes = 0
        self.refusals: Counter[str] = Counter()
