"""Roster: wanted against actual workers, as rows of (what happened, what is ordered)."""

from __future__ import annotations

from ringserve.broker.roster import Place, Roster

MS = 1_000_000
S = 1000 * MS


def test_all_places_are_filled_once() -> None:
    roster = Roster(3)
    assert roster.due(range(3), 0) == [0, 1, 2]
    assert roster.due(range(3), 1) == []
    assert roster.wake_ns(range(3)) == 0


def test_only_the_places_asked_for_are_filled() -> None:
    roster = Roster(3)
    assert roster.due([1], 0) == [1]
    assert [roster[place] for place in range(3)] == [Place.VACANT, Place.FORKING, Place.VACANT]


def test_a_healthy_worker_is_replaced_at_once() -> None:
    roster = Roster(2)
    roster.due(range(2), 0)
    roster.joined(0, 0)
    roster.joined(1, 0)
    roster.gone(1, 60 * S)
    assert roster.due(range(2), 60 * S) == [1]


def test_one_that_dies_again_and_again_is_replaced_ever_later_up_to_a_bound() -> None:
    roster = Roster(1)
    now = 0
    waits = []
    for _ in range(12):
        assert roster.due([0], now) == [0]
        roster.gone(0, now)
        waits.append(max(roster.wake_ns([0]) - now, 0))
        if waits[-1]:
            assert roster.due([0], now + waits[-1] - 1) == []
        now += waits[-1]
    assert waits == sorted(waits)
    assert waits[-1] == 5 * S


def test_the_same_death_told_twice_counts_once() -> None:
    roster = Roster(1)
    roster.due([0], 0)
    roster.joined(0, 0)
    roster.gone(0, 60 * S)
    roster.gone(0, 60 * S)
    assert roster.due([0], 60 * S) == [0]


def test_a_new_broker_does_not_fill_places_that_are_filled() -> None:
    roster = Roster(3)
    roster.pool_joined([0, 2], 5)
    assert roster.due(range(3), 5) == [1]
    roster.joined(0, 6)
    assert roster.due(range(3), 6) == []


def test_a_new_pool_fills_every_place_at_once_even_in_back_off() -> None:
    roster = Roster(2)
    roster.due(range(2), 0)
    for _ in range(5):
        roster.gone(0, 0)
        roster.due(range(2), roster.wake_ns(range(2)))
    roster.gone(0, 0)
    roster.pool_joined([], 1)
    assert roster.due(range(2), 1) == [0, 1]
