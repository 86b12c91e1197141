"""Weights before workers: who gets an author and when; authors that fail, die or hang; pools that are lost."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from ringserve.broker.budget import Budget, Limits, Share, Weight
from ringserve.broker.messages import Authored, Code, ModelVersion
from ringserve.broker.orders import Order
from ringserve.broker.preparation import Authors, Preparation
from tests.broker.life_kit import BROKEN, UNLUCKY, Life, S, sharing


def life_of(*names: str, at_once_max: int = 2, answers: bool = True, checkpoint: int = 1_000) -> Life:
    """One version of each model lies there, large enough to be shared; no pool yet."""
    models: dict[str, Any] = dict.fromkeys(names, "latest")
    life = Life(preparation=sharing(at_once_max=at_once_max), **models)
    life.answers = answers
    for name in names:
        life.checkpoints[name] = checkpoint
        life.put(name, 1)
    return life


def ids_of(life: Life, name: str, version: int = 1) -> set[int]:
    """The ids of weights that living workers were told to map for it."""
    found = set()
    for member in life.crew.members():
        given = {order.key: weights_id for order, weights_id in life.weights_of[member.pid].items()}
        found.add(given.get(ModelVersion(name, version), -1))
    return found


def test_workers_map_what_an_author_has_loaded() -> None:
    life = life_of("m", answers=False)
    life.pool()
    (author,) = life.authors.values()
    assert author.order[:3] == ("m", 1, "/m/1")
    assert author.order.weights_id == author.weights_id
    assert not author.gentle
    assert not life.current
    (info,) = life.versions.infos()
    assert info.notes == ["waits: its weights are being loaded"]
    life.author("m")
    assert len(life.current) == 2
    assert ids_of(life, "m") == {author.weights_id}
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE"}


def test_small_checkpoints_and_models_without_one_get_no_author() -> None:
    life = Life(preparation=sharing(bytes_min=100), small="latest", none="latest")
    life.checkpoints["small"] = 99
    life.put("small", 1)
    life.put("none", 1)
    life.serving()
    assert ids_of(life, "small") == ids_of(life, "none") == {0}
    assert life.states("small") == life.states("none") == {1: "AVAILABLE"}


def test_what_an_author_cannot_share_workers_load_by_themselves() -> None:
    life = life_of("m", answers=False)
    life.pool()
    life.author("m", bytes_shared=0, notes=["it changes all its variables"])
    assert ids_of(life, "m") == {0}
    (order,) = (entry.order for entry in life.preparation.entries())
    assert life.preparation.notes(order) == ("it changes all its variables",)


def test_authors_are_few_at_a_time_and_gentle_beside_what_serves() -> None:
    life = life_of("a", "b", "c", at_once_max=2, answers=False)
    life.pool()
    assert [author.cpus for author in life.authors.values()] == [[0], [1]]
    assert {author.order.name for author in life.authors.values()} == {"a", "b"}
    life.author("a")
    assert {author.order.name for author in life.authors.values()} == {"b", "c"}
    life.author("b")
    life.author("c")
    life.load_all()
    for name in "abc":
        life.put(name, 2)
    (gentle,) = life.authors.values()
    assert gentle.gentle
    assert gentle.cpus == [0, 1]


def test_a_failed_load_is_retried_like_any_other() -> None:
    life = life_of("m", "n", answers=False)
    life.pool()
    life.author("m", failure=BROKEN)
    assert life.states("m") == {1: "END"}
    life.author("n", failure=UNLUCKY)
    assert life.states("n") == {1: "LOADING"}
    assert not life.authors
    life.turn(2 * S)
    life.author("n")
    life.load_all()
    assert life.states("n") == {1: "AVAILABLE"}
    assert life.versions.failure(ModelVersion("m", 1)) == BROKEN


def test_an_author_that_dies_is_followed_by_one_more() -> None:
    life = life_of("m", answers=False)
    life.pool()
    life.author("m", status=-signal.SIGABRT)
    assert life.states("m") == {1: "LOADING"}
    life.author("m", status=-signal.SIGABRT)
    assert not life.authors
    failure = life.versions.failure(ModelVersion("m", 1))
    assert failure == (Code.INTERNAL, "Loading it ended 2 worker processes, the last by signal SIGABRT")
    assert life.states("m") == {1: "END"}


def test_an_author_that_hangs_is_given_up_like_one_that_died() -> None:
    life = life_of("m", answers=False)
    life.pool()
    (first,) = life.authors
    life.turn(1_801 * S)
    (second,) = life.authors
    assert first != second
    life.turn(1_801 * S)
    assert not life.authors
    assert "SIGKILL" in life.versions.failure(ModelVersion("m", 1)).text


def test_a_bad_new_version_leaves_the_old_one_and_its_weights() -> None:
    life = life_of("m")
    life.serving()
    (held,) = life.held
    life.answers = False
    life.put("m", 2)
    life.author("m", 2, failure=BROKEN)
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    assert list(life.held) == [held]


def test_old_weights_go_with_the_last_worker_that_maps_them() -> None:
    life = life_of("m")
    life.serving()
    (before,) = life.held
    life.put("m", 2)
    assert before in life.held
    assert len(life.held) == 2
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}
    assert before not in life.held
    assert len(life.held) == 1


def test_a_worker_that_takes_anothers_place_finds_the_same_weights() -> None:
    life = life_of("m")
    life.serving()
    (held,) = life.held
    life.end(life.current[0])
    life.turn()
    life.load_all()
    assert ids_of(life, "m") == {held}
    assert list(life.held) == [held]


def test_a_removed_model_frees_its_weights() -> None:
    life = life_of("m", "n")
    life.serving()
    assert {held.name for held in life.held.values()} == {"m", "n"}
    del life.plans["n"]
    life.configure()
    life.turn()
    life.load_all()
    assert {held.name for held in life.held.values()} == {"m"}


def test_an_author_of_what_nobody_wants_any_more_is_ended() -> None:
    life = life_of("m", "n", answers=False)
    life.pool()
    del life.plans["n"]
    life.configure()
    life.turn()
    assert [author.order.name for author in life.authors.values()] == ["m"]


def test_one_generation_brings_all_that_is_ready_in_time() -> None:
    life = life_of("a", "b", "slow", at_once_max=4, answers=False)
    life.pool()
    life.author("a")
    life.author("b")
    assert not life.current
    life.turn(4 * S)
    assert not life.current
    life.turn(1 * S)
    life.load_all()
    assert life.states("a") == life.states("b") == {1: "AVAILABLE"}
    assert life.states("slow") == {1: "LOADING"}
    life.author("slow")
    life.load_all()
    assert life.states("slow") == {1: "AVAILABLE"}
    assert life.states("a") == {1: "AVAILABLE"}


def test_after_a_lost_pool_weights_are_loaded_before_workers_are_forked() -> None:
    life = life_of("m", "n")
    life.serving()
    before = set(life.held)
    life.answers = False
    life.lose_pool()
    life.pool()
    assert {author.order.name for author in life.authors.values()} == {"m", "n"}
    assert not any(author.gentle for author in life.authors.values())
    assert not life.current
    life.author("m")
    assert not life.current
    life.author("n")
    life.load_all()
    assert life.states("m") == life.states("n") == {1: "AVAILABLE"}
    assert not before & set(life.held)
    assert ids_of(life, "m") | ids_of(life, "n") == set(life.held)


@pytest.mark.parametrize("ends", ["hangs", "dies", "fails"])
def test_one_bad_author_does_not_keep_everything_else_down(ends: str) -> None:
    life = life_of("m", "n")
    life.serving()
    life.answers = False
    life.lose_pool()
    life.pool()
    life.author("m")
    if ends == "hangs":
        life.turn(5 * S)
    elif ends == "fails":
        life.author("n", failure=BROKEN)
    else:
        life.author("n", status=-9)
        life.author("n", status=-9)
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE"}
    assert life.states("n") == {1: "LOADING" if ends == "hangs" else "END"}
    assert ids_of(life, "n") == {-1}
    if ends == "hangs":
        life.author("n")
        life.load_all()
        assert life.states("n") == {1: "AVAILABLE"}
        assert 0 not in ids_of(life, "n")


def test_a_new_broker_takes_over_what_the_pool_holds() -> None:
    preparation = sharing()
    held = Authored(77, "m", 1, "/m/1", 0, 0, "", 1_000, 10, ["a note"], 5)
    old = held._replace(weights_id=70)
    other = held._replace(weights_id=78, version=2, path="/m/2")
    preparation.pool_joined([held, old, other], 0)
    assert preparation.take_forgets() == [70]
    order = Order("m", 1, "/m/1")
    preparation.adopt(order, Weight(1_000, 1))
    assert preparation.weights_id(order) == 77
    assert preparation.notes(order) == ("a note",)
    private = Order("n", 1, "/n/1")
    preparation.adopt(private, Weight(1_000, 1))
    assert preparation.is_ready(private)
    assert preparation.weights_id(private) == 0
    preparation.keep_only({}, lambda order: True, 9 * S)
    assert preparation.take_forgets() == []
    preparation.keep_only({}, lambda order: True, 10 * S)
    assert preparation.take_forgets() == [78]
    assert preparation.ask(Order("n", 2, "/n/2"), Weight(1_000, 1)).ready is False
    (author,) = preparation.order_authors(10 * S, gentle=False)
    assert author.weights_id > 78


def budgeted(limit: int, *, workers: int = 2) -> Preparation:
    return Preparation(Authors(100), Budget(Limits(limit, "memory_bytes_max"), lambda _: Share("", workers)))


def test_a_load_over_the_budget_is_refused_and_comes_when_there_is_room() -> None:
    life = Life(preparation=budgeted(2_500), m="latest", n="latest")
    life.checkpoints.update(m=1_000, n=2_000)
    life.put("m", 1)
    life.serving()
    life.put("n", 1)
    assert life.states("m") == {1: "AVAILABLE"}
    assert life.states("n") == {1: "END"}
    failure = life.versions.failure(ModelVersion("n", 1))
    assert failure.code is Code.RESOURCE_EXHAUSTED
    assert "memory_bytes_max" in failure.text
    moves = len(life.moves)
    for _ in range(5):
        life.turn(60 * S)
    assert not any(any(moved[:-1]) for moved in life.moves[moves:])
    del life.plans["m"]
    life.configure()
    life.turn()
    life.turn()
    life.load_all()
    life.turn()
    assert life.states("n") == {1: "AVAILABLE"}


def test_the_old_version_stays_when_there_is_no_room_for_the_new_one() -> None:
    life = Life(preparation=budgeted(1_500), m="latest")
    life.checkpoints["m"] = 1_000
    life.put("m", 1)
    life.serving()
    life.put("m", 2)
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    life.preparation.budget.set_limits(Limits(5_000, "memory_bytes_max"))
    life.turn()
    life.turn(1)
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_weights_that_turn_out_private_count_for_each_worker() -> None:
    life = Life(preparation=budgeted(1_500), m="latest")
    life.checkpoints["m"] = 1_000
    life.answers = False
    life.put("m", 1)
    life.pool()
    life.author("m", bytes_shared=0)
    assert life.states("m") == {1: "END"}
    assert life.versions.failure(ModelVersion("m", 1)).code is Code.RESOURCE_EXHAUSTED
