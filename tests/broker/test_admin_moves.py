"""5.8: changes that move what serves: other versions, another base path; and names that come back."""

from __future__ import annotations

import json

import pytest

from ringserve.broker.messages import Code
from ringserve.config.model_config import parse_model
from ringserve.config.schema import Model
from tests.broker.life_kit import BROKEN, UNLUCKY, S
from tests.broker.test_admin import Desk, N, text_of


def only(*versions: int) -> str:
    """A policy that asks for these versions."""
    return f"model_version_policy {{ specific {{ {' '.join(f'versions: {version}' for version in versions)} }} }}"


ONLY_1 = Model("m", "/m", (1,))
ELSEWHERE = Model("m", "/elsewhere", "all")


def serving_1() -> Desk:
    """Of versions 1 and 2 only the first is asked for."""
    desk = Desk()
    desk.ask("reload", desk.config(text_of("m", more=only(1))))
    desk.looked(ONLY_1)
    assert desk.answer()[0].code is Code.OK
    desk.turn()
    desk.life.load_all()
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "END"}
    return desk


@pytest.mark.parametrize("way", ["reload", "add"])
def test_other_versions_are_answered_when_they_serve(way: str) -> None:
    desk = serving_1()
    desk.life.groups.take_begun()
    wanted = text_of("m", more=only(2))
    desk.ask(way, desk.config(wanted) if way == "reload" else parse_model(wanted))
    desk.looked(Model("m", "/m", (2,)))
    assert desk.answers == []
    assert desk.admin.models == (ONLY_1,)
    begun = len(desk.life.groups.take_begun())
    desk.life.load_all()
    desk.turn()
    assert desk.answer()[0].code is Code.OK
    assert desk.life.states("m") == {1: "END", 2: "AVAILABLE"}
    desk.life.load_all()
    assert (begun, desk.life.groups.take_begun()) == (1, []), "one generation brings it"


def test_other_versions_that_fail_are_taken_back() -> None:
    desk = serving_1()
    before = desk.life.current
    desk.ask("reload", desk.config(text_of("m", more=only(2))))
    desk.looked(Model("m", "/m", (2,)))
    desk.life.load_all(m_2=BROKEN)
    desk.turn()
    failure, body = desk.answer()
    assert failure == (
        Code.UNKNOWN,
        "1 model(s) did not become available: {{{name: m version: 2} due to error: INVALID_ARGUMENT: broken}, }",
    )
    assert json.loads(body) == {"models": {"m": "INVALID_ARGUMENT: broken"}}
    assert desk.admin.models == (ONLY_1,)
    assert desk.life.states("m")[1] == "AVAILABLE"
    # After the death of all workers, too.
    desk.life.lose_pool()
    desk.life.serving()
    assert desk.life.states("m")[1] == "AVAILABLE"
    assert desk.life.current != before


def test_another_base_path_is_answered_when_it_serves_or_taken_back() -> None:
    desk = Desk()
    for outcomes, code, base in (({"m_1": BROKEN, "m_2": BROKEN}, Code.UNKNOWN, "/m"), ({}, Code.OK, "/elsewhere")):
        desk.ask("add", parse_model(text_of("m", "/elsewhere")))
        desk.looked(ELSEWHERE)
        assert desk.answers == []
        desk.life.load_all(**outcomes)
        desk.turn()
        assert desk.answer()[0].code is code
        assert desk.admin.models[0].base_path == base
        assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}
        assert {order.path for order in desk.life.groups.published().values()} == {f"{base}/1", f"{base}/2"}


@pytest.mark.parametrize("more", [only(1, 2), only(2, 7), "", "model_version_policy { latest { num_versions: 2 } }"])
def test_what_serves_already_is_answered_at_once(more: str) -> None:
    desk = Desk()
    desk.ask("reload", desk.config(text_of("m", more=more)))
    desk.looked()
    assert desk.answer()[0].code is Code.OK


def test_one_of_several_versions_is_enough_as_for_a_new_model() -> None:
    desk = serving_1()
    desk.put("m", 3)
    desk.ask("reload", desk.config(text_of("m", more="model_version_policy { latest { num_versions: 2 } }")))
    desk.looked(Model("m", "/m", "latest:2"))
    assert desk.answers == []
    desk.life.load_all(m_3=BROKEN)
    desk.turn()
    assert desk.answer()[0].code is Code.OK
    assert desk.life.states("m") == {1: "END", 2: "AVAILABLE", 3: "END"}


def test_bad_luck_is_waited_for_as_with_any_load() -> None:
    desk = serving_1()
    desk.ask("reload", desk.config(text_of("m", more=only(2))))
    desk.looked(Model("m", "/m", (2,)))
    desk.life.load_all(m_2=UNLUCKY)
    desk.turn()
    assert desk.answers == []
    for _ in range(6):
        desk.life.now_ns += 2 * S
        desk.turn()
        desk.life.load_all(m_2=UNLUCKY)
    desk.turn()
    assert desk.answer()[0].code is Code.UNKNOWN
    assert desk.life.states("m")[1] == "AVAILABLE"


def test_what_moved_beside_a_model_that_fails_goes_back() -> None:
    desk = serving_1()
    desk.put("n", 5)
    desk.ask("reload", desk.config(text_of("m", more=only(2)), text_of("n")))
    desk.looked(Model("m", "/m", (2,)), N)
    desk.life.load_all(n_5=BROKEN)
    desk.turn()
    assert desk.answer()[0].code is Code.UNKNOWN
    desk.turn()
    desk.life.load_all()
    assert desk.admin.models == (ONLY_1,)
    assert desk.life.states("m")[1] == "AVAILABLE"


def test_a_label_that_cannot_be_takes_the_versions_back() -> None:
    desk = serving_1()
    desk.ask("reload", desk.config(text_of("m", more=f'{only(2)} version_labels {{ key: "c" value: 9 }}')))
    desk.looked(Model("m", "/m", (2,)))
    desk.life.load_all()
    desk.turn()
    assert desk.answer()[0].code is Code.FAILED_PRECONDITION
    assert desk.life.states("m")[1] == "AVAILABLE"


def test_versions_are_not_judged_by_a_look_from_before_nor_waited_for_when_nobody_answers() -> None:
    desk = serving_1()
    desk.ask("reload", desk.config(text_of("m", more=only(7))))
    for over in desk._looks:  # the file system hangs
        over()
    desk._looks.clear()
    desk.life.now_ns += 10 * S - 1
    desk.turn()
    assert desk.answers == []
    desk.life.now_ns += 1
    desk.turn()
    assert "Base path /m for servable m does not answer" in desk.answer()[0].text
    assert desk.life.states("m")[1] == "AVAILABLE"


def test_no_change_keeps_the_others_waiting_for_ever() -> None:
    desk = Desk()
    desk.put("n", 5)
    begun_ns = desk.life.now_ns
    desk.ask("add", parse_model(text_of("n")))
    desk.looked(N)
    desk.life.now_ns = begun_ns + 7_200 * S - 1
    desk.admin.turn(desk.life.now_ns)
    assert desk.answers == []
    desk.life.now_ns += 1
    desk.turn()
    assert desk.answer()[0].code is Code.DEADLINE_EXCEEDED
    assert desk.names == ["m"]
    assert not desk.admin.changing


# ------------------------------------------------------------------------------------------------ names that come back


def came_back(base: str) -> Desk:
    """m was taken out; before its workers were replaced another one of that name was asked for."""
    desk = Desk()
    desk.put("n", 5)
    desk.ask("add", parse_model(text_of("n")))
    desk.looked(N)
    desk.life.load_all()
    desk.turn()
    desk.ask("remove", b"m")
    assert [failure.code for failure, _ in desk.answers] == [Code.OK, Code.OK]
    desk.answers.clear()
    assert desk.life.states("m") == {1: "UNLOADING", 2: "UNLOADING"}
    desk.ask("add", parse_model(text_of("m", base)))
    desk.looked(Model("m", base, "all"))
    return desk


def test_a_removed_model_does_not_come_back_under_a_new_base_path() -> None:
    desk = came_back("/elsewhere")
    assert desk.answers == []
    assert not desk.life.lifecycle.is_available("m", 1)
    assert set(desk.life.states("m").values()) == {"UNLOADING"}
    desk.life.load_all()
    desk.turn()
    assert desk.answer()[0].code is Code.OK
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}
    paths = {"/n/5", "/elsewhere/1", "/elsewhere/2"}
    assert {order.path for order in desk.life.groups.published().values()} == paths


def test_5_8_nor_when_the_new_one_fails() -> None:
    desk = came_back("/elsewhere")
    desk.life.load_all(m_1=BROKEN, m_2=BROKEN)
    desk.turn()
    assert desk.answer()[0].code is Code.UNKNOWN
    assert desk.names == ["n"]
    assert not desk.life.lifecycle.is_available("m", 1)
    desk.life.turn(60 * S)
    desk.life.load_all()
    assert desk.life.states("m") == {1: "END", 2: "END"}


def test_a_removed_model_that_comes_back_from_where_it_was_serves_at_once() -> None:
    desk = came_back("/m")
    assert desk.answer()[0].code is Code.OK
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}


@pytest.mark.parametrize("base", ["/m", "/elsewhere"])
def test_one_that_came_back_goes_on_when_the_next_change_fails_or_its_directory_is_made_anew(base: str) -> None:
    desk = came_back(base)
    desk.life.load_all()
    desk.turn()
    for other in ("/elsewhere", "/m"):  # and so to where it was taken out, once more
        if other == desk.admin.models[-1].base_path:
            continue
        desk.ask("add", parse_model(text_of("m", other)))
        desk.looked(Model("m", other, "all"))
        desk.life.load_all()
        desk.turn()
        assert desk.admin.models[-1].base_path == other
    desk.answers.clear()
    desk.ask("add", parse_model(text_of("m", "/nowhere")))
    desk.turn()
    assert desk.life.lifecycle.is_available("m", 1)
    desk.plan((N, Model("m", "/nowhere", "all")))
    desk.life.look(error="no such folder", missing=True)
    for over in desk._looks:
        over()
    desk._looks.clear()
    desk.turn()
    assert desk.answer()[0].code is Code.UNKNOWN
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}
    desk.plan(desk.admin.models)
    desk.life.disk["m"][1] = 4711
    desk.life.look()
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}


def test_what_an_earlier_broker_s_workers_have_under_a_new_name_is_not_taken_for_it() -> None:
    desk = Desk()
    life = desk.life
    desk.put("n", 5)
    desk.ask("add", parse_model(text_of("n")))
    desk.looked(N)
    life.load_all()
    desk.turn()
    # As if taken over by a broker that knows of n only: nobody knows from where m was loaded.
    current = life.crew.current
    assert current is not None
    for orders in (current.ready, current.orders, *(member.loaded for member in current.members.values())):
        orders.update({key: order._replace(path="") for key, order in orders.items() if key.name == "m"})
    desk.ask("remove", b"m")
    desk.answers.clear()
    desk.ask("add", parse_model(text_of("m", "/elsewhere")))
    desk.looked(ELSEWHERE)
    assert desk.answers == []
    life.load_all()
    desk.turn()
    assert desk.answer()[0].code is Code.OK
    assert {order.path for order in life.groups.published().values()} == {"/n/5", "/elsewhere/1", "/elsewhere/2"}
