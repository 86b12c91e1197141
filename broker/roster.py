"""Pure: which workers there should be, and which to fork now.

*Desired* is one worker per index; *actual* is what the pool was told and what registered. The two are reconciled in
`due` and nowhere else, so that a crash, a failed start and a lost pool are the same case: an index without a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ringserve.broker.messages import Fork, LoadOrder

#: A worker that lived this long was healthy: its next death starts the back-off afresh.
_HEALTHY_NS = 10_000_000_000
_BACKOFF_FIRST_NS = 50_000_000
_BACKOFF_LAST_NS = 5_000_000_000


class Place(Enum):
    """State of one worker index: vacant -> forking -> joined -> vacant."""

    VACANT = "vacant"
    FORKING = "forking"
    JOINED = "joined"


@dataclass
class _Seat:
    place: Place = Place.VACANT
    not_before_ns: int = 0
    joined_ns: int = 0
    backoff_ns: int = 0


class Roster:
    """The worker indexes 0..n-1 of one pool.

    cpus: cores to pin to, round robin; empty = no pinning. threads: of each worker's TensorFlow session.
    """

    def __init__(self, workers_count: int, cpus: tuple[int, ...], threads: int) -> None:
        self._seats = [_Seat() for _ in range(workers_count)]
        self._cpus = cpus
        self._threads = threads

    def joined(self, index: int, now_ns: int) -> None:
        """The worker with this index has registered."""
        seat = self._seats[index]
        seat.place, seat.joined_ns = Place.JOINED, now_ns

    def gone(self, index: int, now_ns: int) -> None:
        """The process of this index has ended, whether or not it ever registered. Said twice, it counts once."""
        seat = self._seats[index]
        if seat.place is Place.VACANT:
            return
        lived_ns = now_ns - seat.joined_ns if seat.place is Place.JOINED else 0
        # The first replacement goes out at once: a single crash must not cost the back-off as well.
        if lived_ns >= _HEALTHY_NS or (seat.place is Place.JOINED and not seat.backoff_ns):
            seat.not_before_ns, seat.backoff_ns = now_ns, _BACKOFF_FIRST_NS
        else:
            seat.not_before_ns = now_ns + seat.backoff_ns
            seat.backoff_ns = min(max(2 * seat.backoff_ns, _BACKOFF_FIRST_NS), _BACKOFF_LAST_NS)
        seat.place = Place.VACANT

    def pool_joined(self, living: list[int], now_ns: int) -> None:
        """A pool can fork; `living` are the indexes of its workers. All others are vacant, and to be filled at once."""
        for index, seat in enumerate(self._seats):
            if index not in living:
                seat.place, seat.not_before_ns, seat.backoff_ns = Place.VACANT, now_ns, 0
            elif seat.place is Place.VACANT:
                seat.place = Place.FORKING

    def due(self, models: Sequence[tuple[str, int, str]], now_ns: int) -> list[Fork]:
        """The forks to order from the pool now."""
        forks = []
        for index, seat in enumerate(self._seats):
            if seat.place is Place.VACANT and seat.not_before_ns <= now_ns:
                seat.place = Place.FORKING
                cpu = self._cpus[index % len(self._cpus)] if self._cpus else -1
                forks.append(Fork(index, 0, cpu, self._threads, [LoadOrder(*model, False, []) for model in models]))
        return forks

    def wake_ns(self) -> int:
        """When `due` will have something, 0 for never (as far as is known now)."""
        return min((seat.not_before_ns for seat in self._seats if seat.place is Place.VACANT), default=0)
