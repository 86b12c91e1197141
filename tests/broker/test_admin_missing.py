"""Changes that bring nothing: versions that fail, versions that are not there; and what is told of them afterwards."""

from __future__ import annotations

import pytest

from ringserve.broker.admin import FileRead
from ringserve.broker.messages import Code, ModelVersion
from ringserve.config.model_config import parse_model
from tests.broker.life_kit import BROKEN
from tests.broker.test_admin import Desk, N, text_of


def test_4_5_what_failed_in_a_change_that_is_undone_stays_listed_with_its_error() -> None:
    desk = Desk()
    desk.put("n", 5)
    desk.ask("reload", desk.config(text_of("m"), text_of("n")))
    desk.looked(N)
    (pid,) = desk.life.young
    key = ModelVersion("n", 5)
    # As in the broker's loop, where the change is undone in the turn that brings the failure.
    desk.life.crews.worker_loading(pid, key, desk.life.now_ns)
    failed = desk.life.crews.worker_loaded(pid, key, BROKEN)
    assert failed is not None
    desk.life.lifecycle.load_failed(failed, desk.life.now_ns)
    desk.turn()
    assert desk.answer()[0].code is Code.UNKNOWN
    assert desk.life.states("n") == {5: "END"}
    assert desk.life.versions.failure(key) == BROKEN
    # It comes again, as if it had never been there.
    desk.ask("add", parse_model(text_of("n")))
    desk.looked(N)
    assert desk.life.states("n") == {5: "LOADING"}
    assert desk.life.versions.failure(key).code is Code.OK


@pytest.mark.parametrize("way", ["reload", "add", "file"])
def test_5_3_other_versions_that_are_all_missing_fail_the_change(way: str, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    wanted = text_of("m", more="model_version_policy { specific { versions: 5 versions: 7 } }")
    if way == "file":
        desk.admin.file_read(FileRead("digest", desk.config(wanted), ""))
        desk.turn()
    else:
        desk.ask(way, desk.config(wanted) if way == "reload" else parse_model(wanted))
    desk.looked()
    text = "None of the versions asked for of servable m is under its base path /m: asked for 5, 7, found 1, 2"
    if way == "file":
        assert desk.answers == []
        assert "PollFilesystemAndReloadConfig failed to ReloadConfig" in caplog.text
        assert text in caplog.text
    else:
        failure, _ = desk.answer()
        assert failure.code is Code.UNKNOWN
        assert text in failure.text
    assert desk.admin.models[0].versions == "all"
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}


def test_5_3_versions_of_which_one_is_there_are_enough_and_none_at_all_unloads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = Desk()
    for versions, states in (
        ("versions: 2 versions: 7", {1: "END", 2: "AVAILABLE"}),
        ("", {1: "END", 2: "END"}),
    ):
        desk.ask("reload", desk.config(text_of("m", more=f"model_version_policy {{ specific {{ {versions} }} }}")))
        desk.looked()
        assert desk.answer()[0].code is Code.OK
        desk.looked()
        desk.life.load_all()
        assert desk.life.states("m") == states
    said = "Versions asked for of servable m that are not under its base path /m: 7"
    assert caplog.messages.count(said) == 1, "once, though every look finds it"


def test_a_model_whose_versions_went_missing_earlier_does_not_keep_other_changes_out() -> None:
    desk = Desk()
    desk.ask("reload", desk.config(text_of("m", more="model_version_policy { specific { versions: 2 } }")))
    desk.looked()
    assert desk.answer()[0].code is Code.OK
    desk.life.remove("m", 2)
    desk.put("n", 5)
    only_2 = text_of("m", more="model_version_policy { specific { versions: 2 } }")
    desk.ask("reload", desk.config(only_2, text_of("n")))
    desk.looked(N)
    desk.life.load_all()
    desk.turn()
    assert desk.answer()[0].code is Code.OK


def test_another_base_path_without_versions_fails_the_change() -> None:
    desk = Desk()
    desk.ask("reload", desk.config(text_of("m", "/elsewhere")))
    desk.life.disk["m"].clear()
    desk.looked()
    failure, _ = desk.answer()
    assert "No versions of servable m found under base path /elsewhere." in failure.text
    assert desk.admin.models[0].base_path == "/m"
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}
