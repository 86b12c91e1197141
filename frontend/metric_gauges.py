"""What this frontend looks like now: its request ring, its connections, how late its loop is. Once a second.

Gauges go into the metric file like counts, so that whichever frontend is scraped can tell those of all. So do the
books of all protocols. A frontend that takes the place of one that was killed finds by them what that had in flight,
and books it as lost. What came to that one in its last second, after the books were put down for the last time, is in
none of them, neither as received nor as ended.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from ringserve.config import metrics
from ringserve.config.metric_file import MetricFile
from ringserve.frontend import ledger
from ringserve.frontend.ledger import Books
from ringserve.shm.ring import RingStatistics

_PERIOD_S: Final = 1.0
_NS_PER_S: Final = 1_000_000_000


class Watched(Protocol):
    """What is looked at of `client.Client`."""

    @property
    def pending_count(self) -> int: ...

    def ring_statistics(self) -> RingStatistics: ...


class Gauges:
    """Sets the gauges of one frontend. `connections`: how many are open, by protocol; `refusals`: how many clients
    were refused or cut off, by protocol and reason; `books`: by protocol. Lives on one event loop."""

    def __init__(
        self,
        file: MetricFile,
        process: str,
        client: Watched,
        connections: Callable[[], Mapping[str, int]],
        clock_ns: Callable[[], int],
        refusals: Callable[[], Mapping[str, Mapping[str, int]]] = dict,
        books: Callable[[], Mapping[str, Sequence[Books]]] = dict,
    ) -> None:
        self._file = file
        self._process = process
        self._client = client
        self._connections = connections
        self._clock_ns = clock_ns
        self._full_count = 0
        self._refusals = refusals
        self._refused: dict[tuple[str, str], int] = {}
        self._books = books
        self._booked: Counter[tuple[str, int]] = Counter()
        self._received: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        self._bury()
        self._loop = asyncio.get_running_loop()
        self._plan()

    def update(self) -> None:
        """Set all gauges now."""
        file, own = self._file, (self._process,)
        ring = self._client.ring_statistics()
        file.set(metrics.PENDING, own, self._client.pending_count)
        file.set(metrics.RING_CAPACITY, own, ring.capacity_bytes)
        file.set(metrics.RING_EXTENT, own, ring.extent_bytes)
        file.set(metrics.RING_USED, own, ring.used_bytes)
        file.add(metrics.RING_FULL, own, ring.full_count - self._full_count)
        self._full_count = ring.full_count
        self._put_books()
        for protocol, count in self._connections().items():
            file.set(metrics.CONNECTIONS, (self._process, protocol), count)
        for protocol, reasons in self._refusals().items():
            for reason, count in reasons.items():
                before = self._refused.get((protocol, reason), 0)
                if count > before:
                    file.add(metrics.REFUSALS, (self._process, protocol, reason), count - before)
                    self._refused[protocol, reason] = count

    def close(self) -> None:
        """Look for the last time."""
        self._timer.cancel()
        self.update()

    def _bury(self) -> None:
        """Book what a process that was killed in this place had in flight."""
        file = self._file
        for labels, count in ledger.open_items(
            file.cells(metrics.CALLS_RECEIVED), file.cells(metrics.CALLS_ENDED)
        ).items():
            if count:
                file.add(metrics.CALLS_ENDED, (*labels, ledger.name_of(ledger.LOST)), count)

    def _put_books(self) -> None:
        file, process = self._file, self._process
        for protocol, books in self._books().items():
            received = sum(each.ledger.received for each in books)
            ended = sum((each.ledger.ended for each in books), Counter[int]())
            file.add(metrics.CALLS_RECEIVED, (process, protocol), received - self._received[protocol])
            self._received[protocol] = received
            unread = sum(each.ledger.unread for each in books)
            file.add(metrics.CALLS_UNREAD, (process, protocol), unread - self._unread[protocol])
            self._unread[protocol] = unread
            for end, count in ended.items():
                new = count - self._booked[protocol, end]
                if new:
                    file.add(metrics.CALLS_ENDED, (process, protocol, ledger.name_of(end)), new)
                    self._booked[protocol, end] = count
            unbalanced = received - ended.total() - sum(each.in_flight() for each in books)
            file.set(metrics.CALLS_UNBALANCED, (process, protocol), unbalanced)

    def _plan(self) -> None:
        self._due_ns = self._clock_ns() + int(_PERIOD_S * _NS_PER_S)
        self._timer = self._loop.call_later(_PERIOD_S, self._on_time)

    def _on_time(self) -> None:
        self._file.restore()
        late_ns = max(self._clock_ns() - self._due_ns, 0)
        bucket = bisect_right(metrics.LOOP_LAG.edges, late_ns)
        self._file.observe(metrics.LOOP_LAG, (self._process,), ((bucket, 1),), late_ns / metrics.LOOP_LAG.scale)
        self.update()
        self._plan()
