"""Pure: the places of one generation of workers, and which of them are to be filled now.

*Desired* is one worker per place; *actual* is what the pool was told and what registered. The two are reconciled in
`due` and nowhere else, so that a crash, a failed start and a lost pool are the same case: a place without a process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

#: A worker that lived this long was healthy: its next death starts the back-off afresh.
_HEALTHY_NS = 10_000_000_000
_BACKOFF_FIRST_NS = 50_000_000
_BACKOFF_LAST_NS = 5_000_000_000


class Place(Enum):
    """State of one place: vacant -> forking -> joined -> vacant."""

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
    """The places 0..n-1 of one generation."""

    def __init__(self, workers_count: int) -> None:
        self._seats = [_Seat() for _ in range(workers_count)]

    def __getitem__(self, place: int) -> Place:
        return self._seats[place].place

    def __len__(self) -> int:
        return len(self._seats)

    def joined(self, place: int, now_ns: int) -> None:
        """The worker of this place has registered."""
        seat = self._seats[place]
        seat.place, seat.joined_ns = Place.JOINED, now_ns

    def gone(self, place: int, now_ns: int) -> None:
        """The process of this place has ended, whether or not it ever registered. Said twice, it counts once."""
        seat = self._seats[place]
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

    def pool_joined(self, living: Iterable[int], now_ns: int) -> None:
        """There is a pool that can fork; `living` are the places of its workers. All others are vacant, and to be
        filled at once."""
        living = set(living)
        for place, seat in enumerate(self._seats):
            if place not in living:
                seat.place, seat.not_before_ns, seat.backoff_ns = Place.VACANT, now_ns, 0
            elif seat.place is Place.VACANT:
                seat.place = Place.FORKING

    def vacate(self, place: int) -> None:
        """Its worker belongs to this generation no more."""
        self._seats[place] = _Seat()

    def due(self, places: Iterable[int], now_ns: int, *, only_look: bool = False) -> list[int]:
        """Those of `places` for which a worker is to be ordered from the pool now; from now on they are forking."""
        due = []
        for place in places:
            seat = self._seats[place]
            if seat.place is Place.VACANT and seat.not_before_ns <= now_ns:
                seat.place = seat.place if only_look else Place.FORKING
                due.append(place)
        return due

    def wake_ns(self, places: Iterable[int]) -> int:
        """When `due` will have something of `places`, 0 for never (as far as is known now)."""
        seats = [self._seats[place] for place in places]
        return min((seat.not_before_ns for seat in seats if seat.place is Place.VACANT), default=0)
