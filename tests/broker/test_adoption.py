"""A new broker loses what it takes over before it has: workers, and the pool with all of them. Whatever they served is
known on, waits, and is loaded again, as if they had died under a broker of long standing."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.messages import Authored, ModelVersion
from tests.broker.life_kit import Life, S, sharing

M1 = ("m", 1)


Heir = tuple[int, int, tuple[tuple[str, int], ...]]


def heir_of(
    *workers: Heir, count: int = 2, looked: bool = False, shares: bool = False, held: bool = True, models: str = "m"
) -> Life:
    """A broker that has just come, to whom these workers have told themselves: (pid, generation, what they have), and
    then their pool. Version 1 of each model has lain there for long. looked: that had been seen before the pool came.
    shares: weights are shared; held: the pool has them."""
    policies: dict[str, Any] = dict.fromkeys(models, "latest")
    heir = Life(count, preparation=sharing() if shares else None, **policies)
    weights = []
    for name in heir.plans:
        heir.disk[name][1] = 50
        if shares:
            heir.checkpoints[name] = 1_000
        if shares and held:
            weights.append(Authored(9, name, 1, f"/{name}/1", 0, 0, "", 1_000, 0, [], 5))
    heir.held = {each.weights_id: each for each in weights}
    living = {}
    for place, (pid, generation, loaded) in enumerate(workers):
        index = generation * heir.workers_count + place
        heir.crews.worker_joined(pid, generation, index, pid, heir.now_ns)
        heir.crews.worker_ready(pid, frozenset(ModelVersion(*key) for key in loaded), complete=True)
        living[index] = pid
    if looked:
        heir.look()
    heir.lifecycle.supply.pool_joined(living, weights, heir.now_ns)
    if not looked:
        heir.turn()
    assert heir.crew.adoption is not None
    return heir


@pytest.mark.parametrize("looked", [False, True], ids=["before a look", "after a look"])
@pytest.mark.parametrize("shares", [False, True], ids=["private weights", "shared weights"])
def test_the_pool_dies_with_all_workers_while_they_are_taken_over(looked: bool, shares: bool) -> None:
    heir = heir_of((11, 4, (M1,)), (12, 4, (M1,)), looked=looked, shares=shares)
    heir.lose_pool()
    assert heir.states("m") == {1: "AVAILABLE"}
    heir.look()
    heir.turn(60 * S)
    assert heir.states("m") == {1: "AVAILABLE"}
    assert not any(moves.forks for moves in heir.moves)
    heir.pool()
    workers = heir.current
    assert [heir.orders(pid) for pid in workers] == [[("m", 1, False)]] * 2
    assert all(bool(each) is shares for pid in workers for each in heir.weights_of[pid].values())
    assert heir.states("m") == {1: "AVAILABLE"}
    heir.load_all()
    heir.look()
    assert heir.current == workers
    assert heir.states("m") == {1: "AVAILABLE"}


def test_what_has_nothing_to_share_is_not_loaded_anew_by_every_broker() -> None:
    """The pool holds no weights of it, as its author found none: the workers have their own."""
    heir = heir_of((11, 0, (M1,)), (12, 0, (M1,)), shares=True, held=False)
    heir.look()
    heir.turn(60 * S)
    assert heir.crew.adoption is None
    assert heir.current == [11, 12]
    assert not any(moves.forks for moves in heir.moves)
    assert heir.states("m") == {1: "AVAILABLE"}


def test_what_was_told_of_goes_on_even_when_nobody_had_it_but_one() -> None:
    """Of a change, its scout had brought the new version when the broker died."""
    heir = heir_of((11, 0, (M1,)), (13, 1, (("n", 1),)), models="mn")
    heir.crews.worker_left(13, heir.now_ns)
    heir.turn()
    assert heir.states("n")[1] == "AVAILABLE"
    heir.look()
    assert heir.states("n")[1] == "AVAILABLE"
    assert heir.orders(heir.current[-1]) == [("m", 1, False), ("n", 1, False)]
    heir.load_all()
    assert {name: heir.states(name)[1] for name in "mn"} == {"m": "AVAILABLE", "n": "AVAILABLE"}


def test_what_is_not_configured_any_more_is_forgotten() -> None:
    heir = heir_of((11, 0, (M1, ("gone", 1))), (12, 0, (M1,)))
    heir.lose_pool()
    heir.look()
    heir.pool()
    assert heir.orders(heir.current[0]) == [("m", 1, False)]
    assert heir.states("gone") == {}


def test_what_is_not_there_any_more_is_forgotten() -> None:
    heir = heir_of((11, 0, (M1,)), (12, 0, (M1,)))
    heir.lose_pool()
    heir.disk["m"].clear()
    heir.look()
    heir.pool()
    heir.turn(4 * S)
    assert heir.states("m")[1] == "END"


def test_a_file_system_that_answers_late_is_waited_for() -> None:
    """Where the files lie is known when it answers, and until the next pool has come nothing is lost by waiting."""
    heir = heir_of((11, 0, (M1,)), (12, 0, (M1,)))
    heir.lose_pool()
    heir.turn(60 * S)
    assert heir.states("m") == {1: "AVAILABLE"}
    heir.look()
    heir.pool()
    assert [heir.orders(pid) for pid in heir.current] == [[("m", 1, False)]] * 2
    assert heir.states("m") == {1: "AVAILABLE"}


def test_a_worker_that_dies_while_it_is_taken_over_is_replaced_at_once() -> None:
    heir = heir_of((11, 0, (M1,)), (12, 0, (M1,)), looked=True)
    heir.crews.worker_left(11, heir.now_ns)
    heir.crews.worker_exited(0, 11, -9, heir.now_ns)
    heir.turn()
    assert heir.crew.adoption is None
    assert len(heir.current) == 2
    assert 12 in heir.current


def test_a_pool_that_leaves_before_any_worker_came_leaves_nothing_behind() -> None:
    heir = heir_of(count=1)
    heir.lose_pool()
    heir.look()
    heir.pool()
    assert [heir.orders(pid) for pid in heir.current] == [[("m", 1, False)]]
    heir.load_all()
    assert heir.states("m") == {1: "AVAILABLE"}
