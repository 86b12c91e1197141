"""The books of one protocol in one process: what came in, and how it ended. Each request is written down once in each.

    received = ended + in flight

What is in flight is told by the difference, as two numbers of one file always fit together; whether the books are right
is found by looking at every connection, once a second, in the process itself (`ringserve_calls_unbalanced`). An engine
books a request when its head is there and accepted, and its end when the answer is decided or the client has gone,
whichever comes first. What becomes of the books of a frontend that is killed: see `metric_gauges.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from ringserve.broker.messages import Code
from ringserve.config.metric_file import Labels

#: Ends that are no gRPC code or HTTP status. The client went, or the server stopped, before there was an answer; nobody
#: was asked, as the request named no method that there is, or broke gRPC's rules; the process that held it died.
CANCELLED: Final = -1
REFUSED: Final = -2
LOST: Final = -3
_NAMES: Final = {CANCELLED: "CANCELLED", REFUSED: "REFUSED", LOST: "LOST", **{int(code): code.name for code in Code}}
_HTTP_STATUS_MIN: Final = 100
_RESOURCE_EXHAUSTED: Final = int(Code.RESOURCE_EXHAUSTED)


class Ledger:
    """ended: how many, by gRPC code or HTTP status, or one of the ends above. unread: those of them that were refused
    because they had waited for too long to be read."""

    __slots__ = ("ended", "received", "unread")

    def __init__(self) -> None:
        self.received = 0
        self.unread = 0
        self.ended: Counter[int] = Counter()

    def refuse(self, end: int = REFUSED) -> None:
        """A request is answered that never was in flight."""
        self.received += 1
        self.ended[end] += 1

    def turn_away(self, count: int) -> None:
        """So many requests came, and were refused because they had waited for too long to be read."""
        self.unread += count
        self.refuse_all(_RESOURCE_EXHAUSTED, count)

    def refuse_all(self, end: int, count: int) -> None:
        """So many requests came and are answered that never were in flight."""
        self.received += count
        self.ended[end] += count


class Books(NamedTuple):
    """in_flight: requests that are in and have not ended, found by looking at them, not by counting."""

    ledger: Ledger
    in_flight: Callable[[], int]


def open_items(received: Mapping[Labels, float], ended: Mapping[Labels, float]) -> dict[Labels, float]:
    """What is in flight, by process and protocol. ended: by process, protocol and code."""
    found = dict(received)
    for labels, count in ended.items():
        found[labels[:2]] = found.get(labels[:2], 0) - count
    return found


def name_of(end: int) -> str:
    """What an end is called in metrics: `OK`, `200`, `CANCELLED`."""
    return str(end) if end >= _HTTP_STATUS_MIN else _NAMES.get(end, f"CODE_{end}")
