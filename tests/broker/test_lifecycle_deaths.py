"""The life cycle when workers, the pool or the broker die; state that is in workers; and what became of a model."""

from __future__ import annotations

from typing import Any

from ringserve.broker.directories import SILENT_NS_MAX
from ringserve.broker.messages import ModelVersion
from tests.broker.life_kit import BROKEN, UNLUCKY, Life, S, started

# ---------------------------------------------------------------------------------------------------------- deaths


def test_a_worker_that_dies_is_replaced_in_its_generation() -> None:
    life = started(workers=2)
    first, second = life.current
    life.end(first)
    life.turn()
    replaced = [pid for pid in life.current if pid != second]
    assert [life.orders(pid) for pid in replaced] == [[("m", 1, False)]]
    assert life.states("m") == {1: "AVAILABLE"}
    life.load_all()
    assert len(life.current) == 2


def test_while_others_serve_a_replacement_waits_until_all_is_loaded() -> None:
    life = started(workers=2, m="latest", n="latest")
    life.end(life.current[0])
    life.turn()
    new = max(life.current)
    life.crews.worker_loaded(new, ModelVersion("m", 1), None)
    life.crews.worker_ready(new, frozenset({ModelVersion("m", 1)}), complete=False)
    life.turn()
    assert not [worker_id for worker_id, _, _ in life.moves[-1].serve if worker_id == new]
    life.crews.worker_ready(new, frozenset({ModelVersion("m", 1), ModelVersion("n", 1)}), complete=True)
    life.turn()
    assert any(serve[0] == new for moves in life.moves for serve in moves.serve)


def test_the_pool_dies_during_a_change_and_both_go_on() -> None:
    life = started(workers=2)
    life.put("m", 2)
    workers = [*life.current, *life.young]
    life.crews.pool_left(life.now_ns)
    for pid in workers:
        life.crews.worker_left(pid, life.now_ns)
    life.turn()
    assert life.states("m")[1] == "AVAILABLE"
    life.pool()
    assert [life.orders(pid) for pid in life.current] == [[("m", 1, False)]] * 2
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_a_worker_that_outlives_its_pool_keeps_no_place_and_is_ended() -> None:
    life = started(workers=2)
    hung, other = life.current
    life.lifecycle.supply.pool_left(life.now_ns)
    life.crews.worker_left(other, life.now_ns)
    life.turn(3 * S)
    life.pool()
    assert len(life.current) == 2
    assert hung not in life.current
    life.load_all()
    assert life.old == [hung]
    assert not any(moves.kills for moves in life.moves)
    life.turn(7 * S)
    assert [moves.kills for moves in life.moves if moves.kills] == [[hung]]
    assert life.old == []
    life.put("m", 2)
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_a_scout_that_outlives_its_pool_is_not_waited_for() -> None:
    life = started(workers=1)
    life.put("m", 2)
    (scout,) = life.young
    (serving,) = life.current
    life.lifecycle.supply.pool_left(life.now_ns)
    life.crews.worker_left(serving, life.now_ns)
    life.pool()
    assert [life.orders(pid) for pid in life.current] == [[("m", 1, False)]]
    assert life.old == [scout]
    life.load_all()
    life.turn(10 * S)
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_a_worker_that_registers_for_a_generation_given_up_is_sent_away() -> None:
    life = started(workers=1)
    life.crews.worker_joined(999, 77, 3, 999, life.now_ns)
    moves = life.lifecycle.groups.turn(life.now_ns)
    assert moves.stops == [999]


def test_a_worker_that_does_not_leave_is_killed() -> None:
    life = started(workers=1)
    (old,) = life.current
    member = life.crew.find(old)
    assert member is not None
    life.crews.worker_drained(old, life.now_ns)
    assert life.lifecycle.groups.turn(life.now_ns + 10 * S).kills == [old]


def test_a_load_that_hangs_for_very_long_is_ended() -> None:
    life = started(workers=1)
    life.put("m", 2)
    (scout,) = life.young
    life.begin(scout, "m", 2)
    assert life.lifecycle.groups.turn(life.now_ns + 1_799 * S).kills == []
    assert life.lifecycle.groups.turn(life.now_ns + 1_800 * S).kills == [scout]


# ------------------------------------------------------------------------------------------------- state in workers


def test_a_model_with_state_stays_with_its_worker_when_another_model_changes() -> None:
    """DESIGN: that state ends with its worker, so the worker is kept."""
    life = started(workers=2, m="latest", n="latest")
    life.lifecycle.singles.add(ModelVersion("m", 1))
    life.put("n", 2)
    assert ("m", 1, False) not in life.orders(life.young[0])
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE"}
    (keeper,) = life.old
    life.put("n", 3)
    life.load_all()
    assert life.old == [keeper]
    life.end(keeper)
    life.turn()
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE"}
    assert life.old == []


# -------------------------------------------------------------------------------------------------- another broker


def adopted(life: Life, heirs: list[tuple[int, int, set[tuple[str, int]]]]) -> Life:
    """A new broker finds these workers: (pid, generation, what they have loaded)."""
    policies: dict[str, Any] = {name: plan.versions for name, plan in life.plans.items()}
    heir = Life(life.workers_count, **policies)
    heir.disk = life.disk
    for place, (pid, generation, loaded) in enumerate(heirs):
        index = generation * life.workers_count + place % life.workers_count
        heir.crews.worker_joined(pid, generation, index, pid, heir.now_ns)
        heir.crews.worker_ready(pid, frozenset(ModelVersion(*key) for key in loaded), complete=True)
        heir.plan_of[pid] = life.plan_of[next(iter(life.plan_of))]._replace(worker_index=index, generation=generation)
    heir.crews.pool_joined({heir.plan_of[pid].worker_index: pid for pid, _, _ in heirs}, heir.now_ns)
    return heir


def test_a_broker_that_follows_takes_the_workers_over_and_forks_none() -> None:
    life = started(workers=2)
    heir = adopted(life, [(11, 0, {("m", 1)}), (12, 0, {("m", 1)})])
    heir.lifecycle.turn(heir.now_ns)
    assert heir.states("m") == {1: "AVAILABLE"}
    heir.look()
    assert heir.current == [11, 12]
    assert heir.crew.adoption is None
    assert [moves.forks for moves in heir.moves if moves.forks] == []


def test_it_fills_the_places_that_are_vacant() -> None:
    life = started(workers=2)
    heir = adopted(life, [(11, 0, {("m", 1)})])
    heir.look()
    heir.load_all()
    assert len(heir.current) == 2
    assert 11 in heir.current


def test_after_a_death_in_the_middle_of_a_change_it_ends_with_one_generation() -> None:
    life = started(workers=2)
    life.put("m", 2)
    heir = adopted(life, [(11, 0, {("m", 1)}), (12, 0, {("m", 1)}), (13, 1, {("m", 2)})])
    heir.lifecycle.turn(heir.now_ns)
    assert heir.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}
    heir.look()
    heir.load_all()
    assert heir.states("m") == {1: "END", 2: "AVAILABLE"}
    assert len(heir.current) == 2
    assert heir.old == []


def test_it_does_not_wait_for_ever_for_a_worker_that_the_pool_knows_and_that_never_comes() -> None:
    life = started(workers=2)
    heir = adopted(life, [(11, 0, {("m", 1)})])
    heir.crews.pool_joined({0: 11, 1: 5555}, heir.now_ns)
    for name in heir.plans:
        heir.lifecycle.looks.pop(name, None)
    heir.plan_of[5555] = heir.plan_of[11]
    heir.look()
    heir.turn(4 * S)
    assert heir.crew.adoption is None
    assert any(5555 in moves.kills for moves in heir.moves)


# --------------------------------------------------------------------------------------------------------- outcomes


def test_the_outcome_of_a_model_is_known_when_it_serves_or_failed_or_has_nothing_to_serve() -> None:
    life = Life(workers=1, good="latest", bad="latest", empty="latest", slow="latest")
    life.disk["good"][1] = life.disk["bad"][1] = life.disk["slow"][1] = 5
    assert not life.lifecycle.outcome("good", life.now_ns).settled
    life.look()
    life.pool()
    life.load(life.current[0], bad_1=BROKEN, slow_1=UNLUCKY)
    outcomes = {name: life.lifecycle.outcome(name, life.now_ns) for name in life.plans}
    assert outcomes["good"] == (True, [])
    assert outcomes["bad"] == (True, [(1, BROKEN)])
    assert outcomes["empty"].settled
    assert "No versions of servable empty" in outcomes["empty"].failures[0][1].text
    assert outcomes["slow"] == (False, [])


def test_a_base_path_that_never_answers_is_settled_in_the_end() -> None:
    life = Life(workers=1, m="latest")
    assert not life.lifecycle.outcome("m", life.now_ns + SILENT_NS_MAX - 1).settled
    outcome = life.lifecycle.outcome("m", life.now_ns + SILENT_NS_MAX)
    assert outcome.settled
    assert "does not answer" in outcome.failures[0][1].text
