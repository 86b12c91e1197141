"""Models added, changed and removed over REST while the server runs, as docs/rest.md tells operators."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.config.tfrecord import read_records
from tests.e2e.server import Server, wait_until


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    arguments = ["--model_name", "half", "--model_base_path", str(models / "half"), "--workers", "2"]
    with Server(folder, *arguments, "--settle_ms", "0") as server:
        server.wait_available("half")
        yield server


def call(server: Server, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of one call below /ringserve/v1/."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.rest_url}/ringserve/v1/{path}", data, method=method)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def predict(server: Server, where: str) -> int:
    return server.post(f"/v1/models/{where}:predict", b'{"instances": [1.0]}')[0]


def test_a_model_comes_changes_and_goes(server: Server, models: Path, tmp_path: Path) -> None:
    base = tmp_path / "another"
    shutil.copytree(models / "half", base)
    assert predict(server, "another") == 404
    assert call(server, "PUT", "models/another", {"base_path": str(base), "version_labels": {"stable": 1}})[0] == 200
    # Answered when it serves, so no waiting here.
    assert predict(server, "another") == 200
    assert predict(server, "another/labels/stable") == 200
    assert predict(server, "half") == 200

    shutil.copytree(base / "1", base / "2")
    assert call(server, "POST", "rescan", {})[0] == 200
    wait_until(lambda: predict(server, "another/versions/2") == 200, "the new version")
    assert call(server, "PUT", "models/another/labels", {"stable": 2})[0] == 200
    assert predict(server, "another/labels/stable") == 200
    status, body = call(server, "GET", "models/another")
    assert (status, body["labels"], body["serving"]) == (200, {"stable": 2}, 2)

    status, body = call(server, "PUT", "models/another/labels", {"stable": 9})
    text = "Request to assign label to version 9 of model another, which is not currently available for inference"
    assert (status, body) == (400, {"error": text})
    assert call(server, "GET", "models/another")[1]["labels"] == {"stable": 2}

    status, body = call(server, "GET", "config")
    names = [model["name"] for model in body["model_config_list"]["config"]]
    assert (status, sorted(names)) == (200, ["another", "half"])
    assert call(server, "DELETE", "models/another")[0] == 200
    wait_until(lambda: predict(server, "another") == 404, "the model to be gone")
    assert predict(server, "half") == 200


def test_a_model_that_cannot_come_is_refused_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    before = call(server, "GET", "config")
    status, body = call(server, "PUT", "models/nothing", {"base_path": str(tmp_path / "nowhere")})
    assert status == 500
    assert "nowhere; No such file or directory" in body["error"]
    assert call(server, "PUT", "models/nothing", {"base_path": "relative"})[0] == 400
    assert call(server, "GET", "config") == before
    assert call(server, "DELETE", "models/nothing")[0] == 404


def test_the_state_names_every_worker(server: Server) -> None:
    _, state = call(server, "GET", "state")
    assert {worker["pid"] for worker in state["workers"]} == {process.pid for process in server.members("worker")}
    assert all(["half", 1] in worker["loaded"] for worker in state["workers"])


def test_a_recording_is_a_warm_up_file(server: Server) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            predict(server, "half")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        url = f"{server.rest_url}/ringserve/v1/models/half:record"
        request = urllib.request.Request(url, b'{"count": 3, "seconds": 60}', {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            records = list(read_records(response.read()))
    finally:
        done.set()
        asking.join()
    assert len(records) == 3
