"""5.2, 5.8, 11.16: models that are configured and taken out, base paths that change, vanish and say nothing."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import Code, Failure, ModelVersion
from tests.broker.life_kit import BROKEN, Life, S, started

# ------------------------------------------------------------------------------------------- models that come and go


def test_a_new_model_serves_as_soon_as_the_scout_has_it() -> None:
    life = started(workers=2)
    life.plans["n"] = life.plans["m"]._replace(name="n", base_path="/n")
    life.disk["n"] = {4: 77}
    life.configure()
    life.look()
    (scout,) = life.young
    assert life.orders(scout) == [("n", 4, False), ("m", 1, False)]
    life.crews.worker_loaded(scout, ModelVersion("n", 4), None)
    life.crews.worker_ready(scout, frozenset({ModelVersion("n", 4)}), complete=False)
    life.turn()
    assert life.states("n") == {4: "AVAILABLE"}
    assert life.moves[-1].serve == [] or life.moves[-1].serve[0][2] == {("n", 4)}
    assert len(life.current) == 2


def test_a_model_that_is_taken_out_is_told_at_once_and_its_memory_is_given_back() -> None:
    life = started(workers=2, m="latest", n="latest")
    before = life.current
    del life.plans["n"]
    life.configure()
    life.turn()
    assert life.states("n") == {1: "UNLOADING"}
    life.load_all()
    assert life.states("n") == {1: "END"}
    assert not set(life.current) & set(before)
    assert [life.orders(pid) for pid in life.current] == [[("m", 1, False)]] * 2


def test_a_model_that_comes_back_at_once_serves_at_once() -> None:
    life = started(workers=1, m="latest", n="latest")
    plan = life.plans.pop("n")
    life.configure()
    life.turn()
    life.plans["n"] = plan
    life.configure()
    life.look()
    life.load_all()
    assert life.states("n") == {1: "AVAILABLE"}


def test_another_base_path_brings_its_own_files_even_under_the_same_number() -> None:
    """5.2: TF Serving does not notice that the files of a number are others."""
    life = started(workers=1)
    life.plans["m"] = life.plans["m"]._replace(base_path="/elsewhere")
    life.disk["m"] = {1: 700}
    life.configure()
    life.look()
    orders = [(order.path, fallback) for order, fallback in life.plan_of[life.young[0]].orders]
    assert orders[0] == ("/elsewhere/1", False)
    assert life.states("m") == {1: "AVAILABLE"}
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE"}
    assert [order.path for order, _ in life.plan_of[life.current[0]].orders] == ["/elsewhere/1"]


def test_a_directory_that_is_made_anew_is_loaded_anew() -> None:
    life = started(workers=1)
    before = life.current
    life.remove("m", 1)
    assert life.states("m") == {1: "AVAILABLE"}
    life.put("m", 1)
    life.load_all()
    assert life.current != before
    assert life.states("m") == {1: "AVAILABLE"}


def test_a_version_that_vanished_between_looks_gives_way_to_those_that_are_there() -> None:
    """11.16: nobody may look by himself (file_system_poll_wait_seconds is 0)."""
    life = started(workers=1)
    life.put("m", 2)
    life.load_all()
    life.lifecycle.looks.clear()
    del life.disk["m"][2]
    life.lose_pool()
    life.serving(m_2=Failure(Code.NOT_FOUND, "no such file"))
    assert life.lifecycle.due_looks(life.now_ns) == ["m"]
    life.look()
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}


def test_new_inodes_of_the_same_files_are_no_change() -> None:
    """Some file systems number anew whatever is not in their cache."""
    life = started(workers=1)
    before = life.current
    life.disk["m"][1] += 50_000
    life.contents[life.disk["m"][1]] = life.disk["m"][1] - 50_000
    life.look()
    assert (life.young, life.current) == ([], before)
    look = life.lifecycle.look("m")
    assert look is not None
    assert look.known == life.disk["m"]


# ------------------------------------------------------------------------------------------ listings that say nothing


@pytest.mark.parametrize("how", ["empty", "missing", "unreadable"])
def test_5_2_a_base_path_without_versions_keeps_what_serves(how: str) -> None:
    life = started()
    if how == "empty":
        life.remove("m", 1)
    else:
        life.look(error="gone", missing=how == "missing")
    life.turn(3600 * S)
    assert life.states("m") == {1: "AVAILABLE"}
    assert life.young == []


@pytest.mark.parametrize(("how", "goes"), [("empty", True), ("missing", True), ("unreadable", False)])
def test_5_2_with_unload_when_empty_it_goes_as_in_tf_serving(how: str, goes: bool) -> None:
    life = Life(unload_when_empty=True, m="latest")
    life.put("m", 1)
    life.serving()
    if how == "empty":
        life.remove("m", 1)
    else:
        life.look(error="gone", missing=how == "missing")
    life.load_all()
    assert life.states("m") == {1: "END" if goes else "AVAILABLE"}
    life.put("m", 1)
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE"}


def test_nothing_is_given_up_for_another_policy_before_the_base_path_was_looked_at_again() -> None:
    life = Life(unload_when_empty=True, m="latest")
    life.put("m", 1)
    life.serving()
    life.disk["m"][2] = 77
    life.plans["m"] = life.plans["m"]._replace(versions=(2,))
    life.configure()
    life.turn(S)
    assert life.states("m") == {1: "AVAILABLE"}
    life.look()
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_11_16_a_kept_version_without_files_outlives_a_change_of_another_model() -> None:
    life = started(workers=2, m="latest", n="latest")
    before = life.current
    life.remove("m", 1)
    life.put("n", 2)
    assert ("m", 1, False) not in life.orders(life.young[0])
    life.load_all()
    assert life.states("n") == {1: "END", 2: "AVAILABLE"}
    assert life.states("m") == {1: "AVAILABLE"}
    assert sorted(life.old) == sorted(before)  # kept, for m alone
    life.put("m", 2)
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}
    assert life.old == []


def test_a_version_nobody_can_bring_back_ends_when_its_last_worker_does() -> None:
    life = started(workers=1)
    life.remove("m", 1)
    life.end(life.current[0], -9)
    life.turn()
    life.load_all(m_1=BROKEN)
    assert life.states("m") == {1: "END"}


def test_1_4_what_is_wrong_with_a_base_path_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    life = Life(m="latest")
    for _ in range(3):
        life.look(error="NOT_FOUND: /m; No such file or directory", missing=True)
    for _ in range(3):
        life.look()
    assert [record.getMessage() for record in caplog.records] == [
        "FileSystemStoragePathSource encountered a filesystem access error: Could not find base path /m for servable m "
        "with error NOT_FOUND: /m; No such file or directory",
        "No versions of servable m found under base path /m. Did you forget to name your leaf directory as a number "
        "(eg. '/1/')?",
    ]


def test_a_model_that_was_taken_out_goes_in_the_end_though_the_others_cannot_be_loaded_again() -> None:
    life = started(2, m="latest", n="latest")
    before = life.current
    del life.plans["n"]
    life.configure()
    life.turn()
    for _ in range(10):
        life.load_all(m_1=BROKEN)
        life.turn(61 * S)
    assert life.states("m") == {1: "AVAILABLE"}
    assert not life.groups.serves(ModelVersion("n", 1))
    assert set(life.old) <= set(before)
    assert all(member.kept == frozenset({ModelVersion("m", 1)}) for member in life.crew.old)
