"""4.6, 5.7, 5.8: operators' calls and the config file, on a real life cycle with workers by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from ringserve.broker.admin import Admin, FileRead
from ringserve.broker.core import Core
from ringserve.broker.labels import Labels
from ringserve.broker.messages import Code, Failure, ModelOptions
from ringserve.broker.setup import Policies, plan_of
from ringserve.broker.state_file import State
from ringserve.config.model_config import config_of, parse_model, parse_model_config
from ringserve.config.schema import Batching, Model, Settings
from tests.broker.life_kit import BROKEN, Life, S


class Desk:
    """An Admin with one model m (versions 1 and 2 on disk, all of them served) and one worker."""

    def __init__(self, *, allow_labels: bool = False) -> None:
        self.life = Life(workers=1)
        self.told: list[ModelOptions] = []
        self.saved: list[State] = []
        self.answers: list[tuple[Failure, bytes]] = []
        self.labels = Labels(allow_unavailable=allow_labels)
        core = Core(lambda key: pytest.fail("no lane here"))
        self.admin = Admin(
            self.life.lifecycle,
            self.labels,
            Policies(core, Settings()),
            Batching(),
            look=self.look,
            tell_workers=self.told.extend,
            save=self.saved.append,
        )
        self._looks: list[Callable[[], None]] = []
        self.put("m", 1, 2)
        self.admin.start(State((Model("m", "/m", "all"),), ""), self.life.now_ns)
        self.plan(self.admin.models)
        self.life.look()
        self.life.serving()

    def put(self, name: str, *versions: int) -> None:
        self.life.disk.setdefault(name, {}).update({version: 1000 + version for version in versions})

    def plan(self, models: tuple[Model, ...]) -> None:
        """The kit looks at the base paths of these."""
        self.life.plans = {model.name: plan_of(model) for model in models}

    def look(self, names: list[str], now_ns: int, over: Callable[[], None]) -> None:
        self._looks.append(over)

    def ask(self, verb: str, body: bytes | Any = b"") -> None:
        body = body if isinstance(body, bytes) else body.SerializeToString()
        self.admin.ask(verb, body, lambda failure, answer: self.answers.append((failure, answer)))
        self.turn()

    def turn(self) -> None:
        self.admin.turn(self.life.now_ns)
        self.life.turn()

    def looked(self, *models: Model) -> None:
        """The watcher has been everywhere; workers load what they are told to."""
        self.plan((*self.admin.models, *models))
        self.life.look()
        looks, self._looks = self._looks, []
        for over in looks:
            over()
        self.turn()

    def config(self, *texts: str) -> Any:
        listed = " ".join(f"config {{ {text} }}" for text in texts)
        return parse_model_config(f"model_config_list {{ {listed} }}")

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.admin.models]

    def answer(self) -> tuple[Failure, bytes]:
        (answer,) = self.answers
        self.answers.clear()
        return answer


def text_of(name: str, base: str = "", more: str = "model_version_policy { all {} }") -> str:
    return f'name: "{name}" base_path: "{base or "/" + name}" model_platform: "tensorflow" {more}'


N = Model("n", "/n", "all")


def test_4_6_a_reload_is_answered_when_the_new_model_serves() -> None:
    desk = Desk()
    desk.put("n", 5)
    desk.ask("reload", desk.config(text_of("m"), text_of("n")))
    assert desk.answers == []
    desk.looked(N)
    assert desk.answers == []
    desk.life.load_all()
    desk.turn()
    failure, body = desk.answer()
    assert failure == (Code.OK, "")
    assert json.loads(body) == {"models": {"m": "OK", "n": "OK"}}
    assert desk.names == ["m", "n"]
    assert [model.name for model in desk.saved[-1].models] == ["m", "n"]


def test_5_8_what_is_not_in_the_list_goes_only_when_all_that_is_new_serves() -> None:
    desk = Desk()
    desk.put("n", 5)
    desk.ask("reload", desk.config(text_of("n")))
    desk.looked(N)
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}
    desk.life.load_all()
    desk.turn()
    assert desk.answer()[0].code is Code.OK
    desk.life.load_all()
    assert desk.life.states("m") == {1: "END", 2: "END"}
    assert desk.names == ["n"]


def test_5_8_a_change_that_fails_has_changed_nothing() -> None:
    desk = Desk()
    before = desk.life.current
    desk.put("n", 5)
    desk.ask("reload", desk.config(text_of("n")))
    desk.looked(N)
    desk.life.load_all(n_5=BROKEN)
    desk.turn()
    failure, body = desk.answer()
    assert failure.code is Code.UNKNOWN
    assert failure.text == (
        "1 model(s) did not become available: {{{name: n version: 5} due to error: INVALID_ARGUMENT: broken}, }"
    )
    assert json.loads(body) == {"models": {"n": "INVALID_ARGUMENT: broken"}}
    assert desk.names == ["m"]
    assert desk.life.lifecycle.names() == ["m"]
    assert desk.life.current == before
    assert desk.life.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"}


def test_5_8_a_model_without_versions_is_answered_after_one_look() -> None:
    desk = Desk()
    desk.put("n")
    desk.ask("add", parse_model(text_of("n")))
    desk.looked(N)
    failure, body = desk.answer()
    assert failure.code is Code.UNKNOWN
    assert "No versions of servable n found under base path /n." in failure.text
    assert list(json.loads(body)["models"]) == ["n"]


def test_5_8_the_kind_of_config_must_be_a_list() -> None:
    desk = Desk()
    desk.ask("reload", b"")
    assert desk.answer()[0] == (
        Code.INVALID_ARGUMENT,
        "ServerModelConfig type not supported by HandleReloadConfigRequest. "
        "Only ModelConfigList is currently supported",
    )


def test_5_8_an_empty_list_takes_everything_out() -> None:
    desk = Desk()
    desk.ask("reload", parse_model_config("model_config_list {}"))
    desk.looked()
    assert desk.answer()[0].code is Code.OK
    assert desk.names == []
    desk.life.load_all()
    assert desk.life.states("m") == {1: "END", 2: "END"}


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a"])
@pytest.mark.parametrize("verb", ["reload", "add"])
def test_bytes_that_are_no_message_are_refused(verb: str, body: bytes) -> None:
    desk = Desk()
    desk.ask(verb, body)
    assert desk.answer()[0].code is Code.INVALID_ARGUMENT


def test_one_change_waits_for_the_one_before() -> None:
    desk = Desk()
    desk.put("n", 5)
    desk.put("o", 6)
    desk.ask("add", parse_model(text_of("n")))
    desk.ask("add", parse_model(text_of("o")))
    desk.ask("remove", b"m")
    desk.looked(N)
    assert desk.life.lifecycle.names() == ["m", "n"]
    desk.life.load_all()
    desk.turn()
    assert desk.answers[0][0].code is Code.OK
    desk.looked(N, Model("o", "/o", "all"))
    desk.life.load_all()
    desk.turn()
    assert [failure.code for failure, _ in desk.answers] == [Code.OK] * 3
    assert desk.names == ["n", "o"]
    assert not desk.admin.changing


def test_the_config_is_told_as_it_is() -> None:
    desk = Desk()
    desk.ask("config")
    assert desk.answer() == ((Code.OK, ""), config_of(desk.admin.models, Batching()).SerializeToString())


def test_5_7_labels_are_refused_or_assigned_together() -> None:
    desk = Desk()
    desk.ask("labels", json.dumps({"model": "m", "labels": {"a": 1, "b": 2}}).encode())
    assert desk.answer()[0].code is Code.OK
    assert desk.labels.assigned() == {"m": {"a": 1, "b": 2}}
    assert desk.saved[-1].models[0].labels == (("a", 1), ("b", 2))
    desk.ask("labels", json.dumps({"model": "m", "labels": {"a": 2, "b": 9}}).encode())
    assert desk.answer()[0].code is Code.FAILED_PRECONDITION
    assert desk.labels.assigned() == {"m": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"model": "m"}', b'{"model": 1, "labels": {}}', b'{"model": "m", "labels": {"a": "1"}}', b"\xff"],
)
def test_labels_that_cannot_be_read_are_refused(body: bytes) -> None:
    desk = Desk()
    desk.ask("labels", body)
    assert desk.answer()[0].code is Code.INVALID_ARGUMENT


def test_5_7_a_reload_with_labels_waits_for_the_versions_that_it_brings() -> None:
    desk = Desk()
    desk.put("m", 3)
    labelled = text_of("m", more='model_version_policy { all {} } version_labels { key: "c" value: 3 }')
    desk.ask("reload", desk.config(labelled))
    desk.looked()
    assert desk.answers == []
    desk.life.load_all()
    desk.turn()
    assert desk.answer()[0].code is Code.OK
    assert desk.labels.assigned() == {"m": {"c": 3}}


def test_5_7_a_label_to_what_does_not_come_undoes_the_change() -> None:
    desk = Desk()
    desk.ask("reload", desk.config(text_of("m", more='version_labels { key: "c" value: 9 }')))
    desk.looked()
    assert desk.answer()[0] == (
        Code.FAILED_PRECONDITION,
        "Request to assign label to version 9 of model m, which is not currently available for inference",
    )
    assert desk.admin.models[0].versions == "all"


def test_5_7_with_the_flag_a_new_label_may_point_anywhere() -> None:
    desk = Desk(allow_labels=True)
    desk.ask("reload", desk.config(text_of("m", more='version_labels { key: "c" value: 9 }')))
    desk.looked()
    assert desk.answer()[0].code is Code.OK
    assert desk.labels.assigned() == {"m": {"c": 9}}


def test_2008_batching_reaches_workers_and_is_kept_by_a_reload_that_says_nothing_of_it() -> None:
    desk = Desk()
    batching = {"batch_rows_max": 7, "pad_inputs": True, "row_independence": "assumed"}
    desk.ask("batching", json.dumps({"model": "m", "batching": batching}).encode())
    assert desk.answer()[0].code is Code.OK
    assert desk.told == [ModelOptions("m", 7, [], True, False, True)]
    desk.ask("reload", desk.config(text_of("m")))
    desk.looked()
    assert desk.answer()[0].code is Code.OK
    assert desk.admin.models[0].batching.batch_rows_max == 7


@pytest.mark.parametrize(
    ("batching", "text"),
    [
        ({"batch_row_max": 7}, "did you mean 'batch_rows_max'?"),
        ({"batch_rows_max": 0}, "batch_rows_max: 0 is not a number"),
        ({"batch_rows_max": 200_000}, "queue_rows_max"),
    ],
)
def test_batching_that_is_wrong_is_refused(batching: dict[str, Any], text: str) -> None:
    desk = Desk()
    desk.ask("batching", json.dumps({"model": "m", "batching": batching}).encode())
    failure, _ = desk.answer()
    assert failure.code is Code.INVALID_ARGUMENT
    assert text in failure.text
    assert desk.told == []


@pytest.mark.parametrize("verb", ["remove", "labels", "batching"])
def test_a_model_that_is_not_configured_is_not_found(verb: str) -> None:
    desk = Desk()
    body = b"x" if verb == "remove" else json.dumps({"model": "x", verb: {}}).encode()
    desk.ask(verb, body)
    assert desk.answer()[0] == (Code.NOT_FOUND, "Model x is not configured")


def test_an_unknown_verb_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Desk().ask("dance")


# --------------------------------------------------------------------------------------------------- the config file


def test_5_8_the_file_is_applied_like_a_reload() -> None:
    desk = Desk()
    desk.put("n", 5)
    desk.admin.file_read(FileRead("digest", desk.config(text_of("m"), text_of("n")), ""))
    desk.turn()
    desk.looked(N)
    desk.life.load_all()
    desk.turn()
    assert desk.names == ["m", "n"]
    assert desk.admin.file_digest(desk.life.now_ns) == "digest"
    assert desk.saved[-1].file_digest == "digest"


def test_5_8_a_file_that_cannot_be_read_is_logged_once_and_the_old_config_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = Desk()
    caplog.set_level(logging.ERROR)
    for _ in range(3):
        desk.admin.file_read(FileRead("", None, "Invalid protobuf file: '/f'"))
        desk.turn()
    assert [record.getMessage() for record in caplog.records] == [
        "Failed to read ModelServerConfig file: Invalid protobuf file: '/f'"
    ]
    assert desk.names == ["m"]


def test_5_8_a_file_that_fails_is_logged_and_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    caplog.set_level(logging.ERROR)
    desk.admin.file_read(FileRead("digest", desk.config(text_of("m"), text_of("m")), ""))
    desk.turn()
    assert [record.getMessage() for record in caplog.records] == [
        "PollFilesystemAndReloadConfig failed to ReloadConfig: INVALID_ARGUMENT: "
        "Illegal to list model m multiple times in config list"
    ]
    caplog.clear()
    assert desk.admin.file_digest(desk.life.now_ns) == "digest"
    assert desk.admin.file_digest(desk.life.now_ns, now=True) == ""
    desk.admin.file_read(FileRead("digest", desk.config(text_of("m"), text_of("m")), ""))
    desk.turn()
    assert desk.admin.file_digest(desk.life.now_ns + 59 * S) == "digest"
    assert desk.admin.file_digest(desk.life.now_ns + 60 * S) == ""


def test_5_8_an_empty_file_is_no_list() -> None:
    desk = Desk()
    desk.admin.file_read(FileRead("digest", parse_model_config(""), ""))
    desk.turn()
    assert desk.names == ["m"]


def test_a_change_that_cannot_be_saved_holds_and_is_saved_when_there_is_room() -> None:
    desk = Desk()
    room = False

    def save(state: State) -> None:
        if not room:
            raise OSError(28, "No space left on device")
        desk.saved.append(state)

    desk.saved.clear()
    desk.admin._save = save
    desk.ask("remove", b"m")
    assert desk.answer()[0].code is Code.OK
    assert desk.names == []
    desk.turn()
    room = True
    desk.turn()
    assert desk.saved == []  # not at every turn
    desk.life.now_ns += 5 * S
    desk.turn()
    desk.turn()
    assert [state.models for state in desk.saved] == [()]
