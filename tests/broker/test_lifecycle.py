"""5.2 - 5.6: the life cycle as stories of disk, workers and time. Chance is in tests/sim/test_life_sim.py."""

from __future__ import annotations

import logging

import pytest

from ringserve.broker.messages import Code, ModelVersion
from tests.broker.life_kit import BROKEN, START_NS, UNLUCKY, Life, S, started

# --------------------------------------------------------------------------------------------------------- the start


def test_at_the_start_all_workers_load_everything_and_each_model_serves_as_soon_as_one_has_it() -> None:
    life = Life(workers=2, a="latest", b="latest")
    life.put("a", 1)
    life.put("b", 7)
    life.pool()
    assert [life.orders(pid) for pid in life.current] == [[("a", 1, False), ("b", 7, False)]] * 2
    first = life.current[0]
    life.begin(first, "a", 1)
    life.crews.worker_loaded(first, ModelVersion("a", 1), None)
    life.crews.worker_ready(first, frozenset({ModelVersion("a", 1)}), complete=False)
    life.turn()
    assert (life.states("a"), life.states("b")) == ({1: "AVAILABLE"}, {7: "LOADING"})
    life.load_all()
    assert life.states("b") == {7: "AVAILABLE"}
    assert life.young == []


def test_the_first_generation_is_number_0_and_its_places_are_the_pools_indexes() -> None:
    life = Life(workers=3, m="latest")
    life.put("m", 1)
    life.pool()
    assert [(plan.worker_index, plan.generation) for plan in life.plan_of.values()] == [(0, 0), (1, 0), (2, 0)]


def test_the_first_plan_waits_a_second_for_a_base_path_that_does_not_answer_and_no_longer() -> None:
    life = Life(workers=1, m="latest", silent="latest")
    look = life.lifecycle.look("m")
    life.disk["m"][1] = 5
    life.plans = {"m": life.plans["m"]}
    assert look is not None
    life.pool()
    life.look()  # of m only
    assert life.now_ns > START_NS + S
    assert life.current
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE"}


def test_without_models_there_are_no_workers() -> None:
    life = Life(workers=2)
    life.serving()
    assert life.plan_of == {}
    assert life.lifecycle.names() == []


@pytest.mark.parametrize("policy", ["latest:2", "all", (1, 2)])
def test_5_3_several_versions_the_highest_first(policy: str | tuple[int, ...]) -> None:
    life = Life(workers=1, m=policy)
    life.put("m", 1, 2)
    life.pool()
    assert life.orders(life.current[0]) == [("m", 2, False), ("m", 1, False)]


# ------------------------------------------------------------------------------------------------------- a new version


def test_5_5_a_new_version_is_tried_by_one_worker_beside_those_that_serve() -> None:
    life = started()
    before = life.current
    life.put("m", 2)
    (scout,) = life.young
    assert life.orders(scout) == [("m", 2, False), ("m", 1, True)]
    assert life.current == before
    assert life.states("m") == {1: "AVAILABLE", 2: "LOADING"}


def test_5_5_when_it_loads_the_others_follow_and_only_then_it_takes_over() -> None:
    life = started()
    before = life.current
    life.put("m", 2)
    (scout,) = life.young
    life.load(scout)
    assert life.states("m") == {1: "AVAILABLE", 2: "LOADING"}
    (filler,) = [pid for pid in life.young if pid != scout]
    assert life.orders(filler) == [("m", 2, False)]
    life.load(filler)
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}
    assert sorted(life.current) == sorted([scout, filler])
    assert life.old == []
    drained = [worker_id for moves in life.moves for worker_id, kept in moves.drain if not kept]
    assert sorted(drained) == sorted(before)


def test_a_version_is_unloading_until_its_workers_have_left() -> None:
    life = started(workers=1)
    (old,) = life.current
    life.put("m", 2)
    scout = life.young[0]
    life.crews.worker_loaded(scout, ModelVersion("m", 2), None)
    life.crews.worker_ready(scout, frozenset({ModelVersion("m", 2)}), complete=True)
    life.lifecycle.touch()
    life.lifecycle.turn(life.now_ns)
    assert life.states("m") == {1: "UNLOADING", 2: "AVAILABLE"}
    life.crews.worker_drained(old, life.now_ns)
    life.turn()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_11_15_a_broken_version_costs_one_worker_and_the_old_one_serves() -> None:
    life = started()
    before = life.current
    life.put("m", 2)
    (scout,) = life.young
    life.load(scout, m_2=BROKEN)
    assert life.crew.find(scout) is None  # it was ended as soon as nothing good could come of it
    assert life.current == before
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    assert life.versions.failure(ModelVersion("m", 2)) == BROKEN
    life.turn(3600 * S)
    assert life.young == []


def test_a_broken_version_is_tried_again_when_its_directory_changes() -> None:
    life = started()
    life.put("m", 2)
    life.load(life.young[0], m_2=BROKEN)
    life.put("m", 2)  # made anew
    assert life.young
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_other_models_changes_go_through_beside_a_broken_version() -> None:
    life = started(m="latest", n="latest")
    life.disk["m"][2] = 901
    life.put("n", 2)
    assert life.orders(life.young[0])[:2] == [("m", 2, False), ("n", 2, False)]
    life.load_all(m_2=BROKEN)
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    assert life.states("n") == {1: "END", 2: "AVAILABLE"}


def test_5_6_bad_luck_is_tried_again_and_shown_meanwhile() -> None:
    life = started(workers=1)
    life.put("m", 2)
    life.load(life.young[0], m_2=UNLUCKY)
    assert life.states("m") == {1: "AVAILABLE", 2: "LOADING"}
    assert life.versions.failure(ModelVersion("m", 2)) == UNLUCKY
    assert life.young == []
    life.turn(S)
    life.load(life.young[0])
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}
    assert life.versions.failure(ModelVersion("m", 2)).code is Code.OK


def test_5_6_retries_end() -> None:
    life = started(workers=1)
    life.put("m", 2)
    for pause_s in (1, 2, 4):
        life.load(life.young[0], m_2=UNLUCKY)
        life.turn(pause_s * S)
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    assert life.young == []


def test_5_6_log_lines_of_retries(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    life = started(workers=1)
    life.put("m", 2)
    for pause_s in (1, 2, 4):
        life.load(life.young[0], m_2=UNLUCKY)
        life.turn(pause_s * S)
    lines = [record.getMessage() for record in caplog.records]
    for line in (
        "Loading servable: {name: m version: 2} failed: UNAVAILABLE: bad luck",
        "Retrying of Loading servable: {name: m version: 2} retry: 1",
        "Retrying of Loading servable: {name: m version: 2} retry: 2",
        "Retrying of Loading servable: {name: m version: 2} exhausted max_num_retries: 2",
        "Successfully loaded servable version {name: m version: 1}",
        "Loading servable version {name: m version: 2}",
    ):
        assert lines.count(line) == (3 if "failed" in line else lines.count(line))
        assert line in lines


def test_a_version_that_ends_its_worker_twice_is_over() -> None:
    life = started(workers=1)
    life.put("m", 2)
    for _ in range(2):
        scout = life.young[0]
        life.begin(scout, "m", 2)
        life.end(scout, -11)
        life.turn(6 * S)
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    failure = life.versions.failure(ModelVersion("m", 2))
    assert failure.code is Code.INTERNAL
    assert "SIGSEGV" in failure.text
    assert life.young == []


def test_a_death_that_was_ordered_or_of_the_pool_is_held_against_no_version() -> None:
    life = started(workers=1)
    life.put("m", 2)
    for _ in range(4):
        scout = life.young[0]
        life.begin(scout, "m", 2)
        life.crews.worker_left(scout, life.now_ns)  # and no pool is left to say how it ended
        life.turn(6 * S)
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_when_what_serves_cannot_be_loaded_beside_itself_the_change_is_given_up_for_now() -> None:
    """Out of memory, say: nothing is wrong with n."""
    life = started(workers=1, m="latest", n="latest")
    life.put("m", 2)
    for _ in range(2):
        scout = life.young[0]
        life.crews.worker_loaded(scout, ModelVersion("m", 2), None)
        life.begin(scout, "n", 1)
        life.end(scout, -9)
        life.turn(6 * S)
    assert life.states("n") == {1: "AVAILABLE"}
    assert life.states("m")[1] == "AVAILABLE"
    assert life.versions.failure(ModelVersion("m", 2)).code is Code.RESOURCE_EXHAUSTED


def test_of_two_changes_the_second_waits_for_the_first() -> None:
    life = started(workers=1, m="latest", n="latest")
    life.put("m", 2)
    (scout,) = life.young
    life.put("n", 2)
    assert life.young == [scout]
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}
    assert life.states("n") == {1: "END", 2: "AVAILABLE"}


def test_a_version_that_is_overtaken_while_it_loads_still_serves_in_between() -> None:
    """Versions that come faster than they load would otherwise never be served."""
    life = started(workers=1)
    life.put("m", 2)
    (scout,) = life.young
    life.put("m", 3)
    assert life.young == [scout]
    life.load(scout)
    assert life.states("m")[2] == "AVAILABLE"
    life.load_all()
    assert life.states("m") == {1: "END", 2: "END", 3: "AVAILABLE"}


def test_a_model_that_is_taken_out_while_it_loads_is_not_waited_for() -> None:
    life = started(workers=1)
    life.plans["n"] = life.plans["m"]._replace(name="n", base_path="/n")
    life.disk["n"] = {1: 5}
    life.configure()
    life.look()
    (scout,) = life.young
    life.begin(scout, "n", 1)
    del life.plans["n"]
    life.configure()
    life.turn()
    assert life.young == []
    assert life.states("n") == {1: "END"}
