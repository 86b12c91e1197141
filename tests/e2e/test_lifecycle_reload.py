"""4.6, 5.7, 5.8, 11.17: the configuration changes while the server runs, all or nothing, and no call fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from ringserve.broker.messages import Code
from tests.e2e.clients import make_request, outputs_of
from tests.e2e.operator import ask, ask_json, state
from tests.e2e.server import Server, wait_until
from tests.e2e.test_lifecycle_versions import put, states, wait_states
from tests.e2e.traffic import Traffic

CONFIG = """
[workers]
workers = 2
[lifecycle]
settle_ms = 300
file_system_poll_wait_seconds = 0
[[models]]
name = "m"
base_path = "{base}"
versions = "all"
"""


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name, versions in (("m", (1, 2)), ("n", (7,))):
        (folder / name).mkdir()
        for version in versions:
            put(models, folder / name, version)
    (folder / "broken" / "3").mkdir(parents=True)
    (folder / "broken" / "3" / "saved_model.pb").write_bytes(b"no model at all")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    (place / "server.toml").write_text(CONFIG.format(base=folder / "m"))
    with Server(place, "--config", str(place / "server.toml")) as server:
        wait_states(server, {1: "AVAILABLE", 2: "AVAILABLE"})
        yield server


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_target) as channel:
        yield channel


def config(*models: dict[str, Any]) -> model_server_config_pb2.ModelServerConfig:
    """models: fields of a ModelConfig; the platform is added."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()
    for fields in models:
        config.model_config_list.config.add(**{"model_platform": "tensorflow", **fields})
    return config


def all_of(folder: Path, **labels: int) -> dict[str, Any]:
    """The model m with all its versions."""
    return {
        "name": "m",
        "base_path": str(folder / "m"),
        "model_version_policy": {"all": {}},
        "version_labels": labels,
    }


def reload(channel: grpc.Channel, *models: dict[str, Any]) -> model_management_pb2.ReloadConfigResponse:
    request = model_management_pb2.ReloadConfigRequest(config=config(*models))
    return model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)


def refusal(channel: grpc.Channel, *models: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        reload(channel, *models)
    return caught.value.code().name, str(caught.value.details())


def configured(server: Server) -> list[str]:
    found = model_server_config_pb2.ModelServerConfig.FromString(ask(server, "config").body)
    return [model.name for model in found.model_config_list.config]


def by_label(channel: grpc.Channel, label: str) -> int:
    request = make_request("m", x=np.array([2.0], np.float32))
    request.model_spec.version_label = label
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert outputs_of(response)["y"].tolist() == [3.0]
    version: int = response.model_spec.version.value
    return version


def test_4_6_a_second_model_is_available_when_the_call_returns(
    folder: Path, server: Server, channel: grpc.Channel
) -> None:
    """Although nothing polls: tensorflow/serving #1519."""
    with Traffic(server, "m"):
        response = reload(channel, all_of(folder), {"name": "n", "base_path": str(folder / "n")})
        assert response.status.error_code == 0
        assert states(server, "n") == {7: "AVAILABLE"}
        assert configured(server) == ["m", "n"]
    with Traffic(server, "n") as traffic:
        assert set(traffic.versions) == {7}


def test_5_8_a_model_that_does_not_load_undoes_the_whole_change(
    folder: Path, server: Server, channel: grpc.Channel
) -> None:
    with Traffic(server, "m"), Traffic(server, "n"):
        code, text = refusal(channel, all_of(folder), {"name": "b", "base_path": str(folder / "broken")})
        assert code == "UNKNOWN"
        assert text.startswith("1 model(s) did not become available: {{{name: b version: 3} due to error: ")
        assert text.endswith("}, }")
        # n was not in the list; had the change succeeded, it would be gone.
        assert configured(server) == ["m", "n"]
        assert states(server, "n") == {7: "AVAILABLE"}


def test_what_serves_moves_when_the_new_one_serves_and_is_gone_when_it_was_taken_out(
    models: Path, folder: Path, server: Server, channel: grpc.Channel
) -> None:
    for version in (1, 2):
        put(models, folder / "p", version)
    (folder / "p" / "2" / "saved_model.pb").write_bytes(b"no model at all")
    others = (all_of(folder), {"name": "n", "base_path": str(folder / "n")})

    def p(base: str, *versions: int) -> dict[str, Any]:
        policy = {"specific": {"versions": versions}} if versions else {}
        return {"name": "p", "base_path": str(folder / base), "model_version_policy": policy}

    reload(channel, *others, p("p", 1))
    with Traffic(server, "p") as traffic:
        for moved, version in ((p("p", 2), 2), (p("broken"), 3)):
            code, text = refusal(channel, *others, moved)
            assert code == "UNKNOWN"
            assert f"{{name: p version: {version}}} due to error: " in text
        assert states(server, "p")[1] == "AVAILABLE"
    assert set(traffic.versions) == {1}
    with Traffic(server, "p"):
        reload(channel, *others, p("n"))
        assert states(server, "p")[7] == "AVAILABLE"
    reload(channel, *others)
    assert refusal(channel, *others, p("broken"))[0] == "UNKNOWN"
    assert "AVAILABLE" not in states(server, "p").values()
    assert configured(server) == ["m", "n"]


@pytest.mark.parametrize(
    ("name", "text"), [("nowhere", "Could not find base path"), ("empty", "No versions of servable")]
)
def test_5_8_a_path_without_a_model_does_not_hang(
    folder: Path, server: Server, channel: grpc.Channel, name: str, text: str
) -> None:
    code, found = refusal(channel, all_of(folder), {"name": name, "base_path": str(folder / name)})
    assert code == "UNKNOWN"
    assert text in found
    assert configured(server) == ["m", "n"]


def test_5_8_11_17_what_is_wrong_with_a_config_is_said_before_anything_happens(
    folder: Path, server: Server, channel: grpc.Channel
) -> None:
    m, base = all_of(folder), str(folder / "n")
    for models, text in (
        ([m, m], "Illegal to list model m multiple times in config list"),
        (
            [m, {"name": "r", "base_path": "a/b"}],
            "Expected model r to have an absolute path or URI; got base_path()=a/b",
        ),
        (
            [m, {"name": "p", "base_path": base, "model_platform": ""}],
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
            "model name is p",
        ),
        ([m, {"name": "p", "base_path": base, "model_platform": "x"}], "Model p requests unsupported platform x"),
        (
            [{**m, "model_platform": "x"}],
            "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is x",
        ),
    ):
        assert refusal(channel, *models) == ("INVALID_ARGUMENT", text)
    assert configured(server) == ["m", "n"]


def test_5_7_labels_move_together_and_only_to_what_is_available(
    folder: Path, server: Server, channel: grpc.Channel
) -> None:
    reload(channel, all_of(folder, stable=1, canary=2), {"name": "n", "base_path": str(folder / "n")})
    assert (by_label(channel, "stable"), by_label(channel, "canary")) == (1, 2)
    with Traffic(server, "m"):
        assert ask_json(server, "labels", model="m", labels={"stable": 2}).code == Code.OK
    assert by_label(channel, "stable") == 2
    with pytest.raises(grpc.RpcError) as caught:
        by_label(channel, "canary")
    assert caught.value.details() == "Unrecognized servable version label: canary"
    text = "Request to assign label to version 9 of model m, which is not currently available for inference"
    assert refusal(channel, all_of(folder, stable=9)) == ("FAILED_PRECONDITION", text)
    told = ask_json(server, "labels", model="m", labels={"stable": 1, "other": 9})
    assert (told.code, told.text) == (Code.FAILED_PRECONDITION, text)
    assert by_label(channel, "stable") == 2


def test_5_7_a_label_may_name_a_version_that_the_same_change_brings(
    models: Path, folder: Path, server: Server, channel: grpc.Channel
) -> None:
    put(models, folder / "m", 3)
    n = {"name": "n", "base_path": str(folder / "n")}
    reload(channel, all_of(folder, stable=1, canary=3), n)
    assert by_label(channel, "canary") == 3


def test_models_are_added_and_removed_one_at_a_time(folder: Path, server: Server, channel: grpc.Channel) -> None:
    """tensorflow/serving #811: there, the whole list is replaced."""
    with Traffic(server, "m"):
        added = config({"name": "o", "base_path": str(folder / "n")}).model_config_list.config[0]
        told = ask(server, "add", added.SerializeToString())
        assert (told.code, json.loads(told.body)) == (Code.OK, {"models": {"o": "OK"}})
        assert configured(server) == ["m", "n", "o"]
        assert states(server, "o") == {7: "AVAILABLE"}
        assert ask(server, "remove", b"o").code == Code.OK
        assert configured(server) == ["m", "n"]
        wait_states(server, {7: "END"}, "o")
    assert ask(server, "remove", b"o") == (1, Code.NOT_FOUND, "Model o is not configured", b"")


def test_2008_batching_changes_at_once(server: Server) -> None:
    """tensorflow/serving #2008."""
    with Traffic(server, "m"):
        for batching in ({"policy": "none"}, {"policy": "adaptive", "batch_rows_max": 4}):
            assert ask_json(server, "batching", model="m", batching=batching).code == Code.OK
    told = ask_json(server, "batching", model="m", batching={"batch_rows": 4})
    assert told.code == Code.INVALID_ARGUMENT
    assert "did you mean" in told.text
    assert ask_json(server, "batching", model="nope", batching={}).code == Code.NOT_FOUND


def test_a_look_is_taken_when_it_is_asked_for(models: Path, folder: Path, server: Server) -> None:
    """file_system_poll_wait_seconds = 0: nobody looks by himself."""
    put(models, folder / "n", 8)
    assert ask(server, "rescan").code == Code.OK
    wait_states(server, {8: "AVAILABLE", 7: "END"}, "n")


def test_the_state_tells_of_generations_and_workers(server: Server) -> None:
    wait_until(lambda: len(state(server)["workers"]) == 2, "the old workers to leave")
    found = state(server)
    assert {worker["generation"] for worker in found["workers"]} == {found["generation"]}
    serving = {worker["pid"] for worker in found["workers"]}
    wait_until(lambda: {process.pid for process in server.members("worker")} == serving, "the old workers to end")
    assert all(["n", 8] in worker["loaded"] for worker in found["workers"])


def test_an_unknown_call_is_said_to_be_one(server: Server) -> None:
    assert ask(server, "dance").code == Code.UNIMPLEMENTED


def test_what_was_changed_outlives_the_broker(server: Server, channel: grpc.Channel) -> None:
    before = state(server)
    with Traffic(server, "m"), Traffic(server, "n"):
        (broker,) = server.members("broker")
        broker.kill()
        wait_until(lambda: server.members("broker") not in ([], [broker]), "another broker")
        wait_until(lambda: states(server, "n").get(8) == "AVAILABLE", "the models to be known")
    assert configured(server) == ["m", "n"]
    assert by_label(channel, "canary") == 3
    after = state(server)
    assert {worker["pid"] for worker in after["workers"]} == {worker["pid"] for worker in before["workers"]}
