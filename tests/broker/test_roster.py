"""Roster: wanted against actual workers, as rows of (what happened, what is ordered)."""

from __future__ import annotations

from ringserve.broker.messages import Fork
from ringserve.broker.roster import Roster

MODELS = [("m", 1, "/m/1")]
MS = 1_000_000
S = 1000 * MS


def indexes(forks: list[Fork]) -> list[int]:
    return [fork.worker_index for fork in forks]


def test_all_places_are_filled_once() -> None:
    roster = Roster(3, (0, 1), threads=2)
    roster.pool_joined([], 0)
    forks = roster.due(MODELS, 0)
    assert [(fork.worker_index, fork.cpu, fork.threads) for fork in forks] == [(0, 0, 2), (1, 1, 2), (2, 0, 2)]
    assert forks[0].models == [list(model) for model in MODELS]
    assert roster.due(MODELS, 1) == []
    assert roster.wake_ns() == 0


def test_no_cpus_means_no_pinning() -> None:
    roster = Roster(1, (), threads=1)
    assert roster.due(MODELS, 0)[0].cpu == -1


def test_a_healthy_worker_is_replaced_at_once() -> None:
    roster = Roster(2, (), threads=1)
    roster.due(MODELS, 0)
    roster.joined(0, 0)
    roster.joined(1, 0)
    roster.gone(1, 60 * S)
    assert indexes(roster.due(MODELS, 60 * S)) == [1]


def test_one_that_dies_again_and_again_is_replaced_ever_later_up_to_a_bound() -> None:
    roster = Roster(1, (), threads=1)
    now = 0
    waits = []
    for _ in range(12):
        assert indexes(roster.due(MODELS, now)) == [0]
        roster.gone(0, now)
        waits.append(max(roster.wake_ns() - now, 0))
        if waits[-1]:
            assert roster.due(MODELS, now + waits[-1] - 1) == []
        now += waits[-1]
    assert waits == sorted(waits)
    assert waits[-1] == 5 * S


def test_the_same_death_told_twice_counts_once() -> None:
    roster = Roster(1, (), threads=1)
    roster.due(MODELS, 0)
    roster.joined(0, 0)
    roster.gone(0, 60 * S)
    roster.gone(0, 60 * S)
    assert indexes(roster.due(MODELS, 60 * S)) == [0]


def test_a_new_broker_does_not_fill_places_that_are_filled() -> None:
    roster = Roster(3, (), threads=1)
    roster.pool_joined([0, 2], 5)
    assert indexes(roster.due(MODELS, 5)) == [1]
    roster.joined(0, 6)
    assert roster.due(MODELS, 6) == []


def test_a_new_pool_fills_every_place_at_once_even_in_back_off() -> None:
    roster = Roster(2, (), threads=1)
    roster.due(MODELS, 0)
    for _ in range(5):
        roster.gone(0, 0)
        roster.due(MODELS, roster.wake_ns())
    roster.gone(0, 0)
    roster.pool_joined([], 1)
    assert indexes(roster.due(MODELS, 1)) == [0, 1]
