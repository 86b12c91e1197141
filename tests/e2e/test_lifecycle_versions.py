"""5.2 - 5.6, 11.15, 11.16: versions come and go under load, and no call fails."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.server import Server, wait_until
from tests.e2e.traffic import Traffic

CONFIG = """
[workers]
workers = 2
[lifecycle]
settle_ms = {settle}
incomplete_ms_max = 20000
[[models]]
name = "m"
base_path = "{base}"
"""


def put(models: Path, base: Path, version: int | str) -> None:
    """The model `half` as a version, all at once, as a careful operator does it."""
    shutil.copytree(models / "half" / "1", base / f"copying-{version}")
    os.rename(base / f"copying-{version}", base / str(version))


def states(server: Server, model: str = "m") -> dict[int, str]:
    return {int(version["version"]): version["state"] for version in server.status(model)}


def wait_states(server: Server, expected: dict[int, str], model: str = "m") -> None:
    wait_until(lambda: states(server, model) == expected, f"{expected}; now {states(server, model)}", 40)


def serve(folder: Path, base: Path, *, settle: str = "300") -> Server:
    (folder / "server.toml").write_text(CONFIG.format(base=base, settle=settle))
    return Server(folder, "--config", str(folder / "server.toml"))


@pytest.fixture(scope="module")
def base(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("base")
    put(models, base, "00000123")
    return base


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole story below: the tests of this module that use it go on from each other."""
    with serve(tmp_path_factory.mktemp("server"), base) as server:
        server.wait_available("m")
        yield server


def test_11_15_a_new_version_takes_over(models: Path, base: Path, server: Server) -> None:
    with Traffic(server, "m") as traffic:
        put(models, base, 124)
        traffic.wait_for_version(124)
        wait_states(server, {124: "AVAILABLE", 123: "END"})
    assert list(states(server)) == [124, 123]
    wait_until(lambda: len(server.members("worker")) == 2, "the old workers to leave")


def test_11_15_a_broken_version_ends_with_its_error_and_the_old_one_serves(base: Path, server: Server) -> None:
    workers = {process.pid for process in server.members("worker")}
    with Traffic(server, "m") as traffic:
        (base / "125").mkdir()
        (base / "125" / "saved_model.pb").write_bytes(b"no model at all")
        wait_states(server, {125: "END", 124: "AVAILABLE", 123: "END"})
        traffic.wait_for_version(124)
    (broken, *_) = server.status("m")
    assert broken["status"]["error_code"] != "OK"
    assert broken["status"]["error_message"]
    wait_until(lambda: {process.pid for process in server.members("worker")} == workers, "the scout to be gone")


def test_a_broken_version_that_is_repaired_is_loaded_by_itself(models: Path, base: Path, server: Server) -> None:
    with Traffic(server, "m") as traffic:
        shutil.copytree(models / "half" / "1", base / "125", dirs_exist_ok=True)
        traffic.wait_for_version(125)
        wait_states(server, {125: "AVAILABLE", 124: "END", 123: "END"})


def test_a_version_copied_slowly_is_loaded_when_it_is_complete(models: Path, base: Path, server: Server) -> None:
    """tensorflow/serving #1086: there, what is there is tried. The pauses of this copy are longer than the settling."""
    source = models / "half" / "1"
    files = [path for path in source.rglob("*") if path.is_file()]
    # The model file first and the data last: each state but the last looks like a model to somebody in a hurry.
    files.sort(key=lambda path: (path.name != "saved_model.pb", "data" in path.name))
    assert "data" in files[-1].name
    with Traffic(server, "m") as traffic:
        (base / "126" / "variables").mkdir(parents=True)
        for path in files:
            assert states(server).get(126, "START") == "START"
            (base / "126" / path.relative_to(source)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, base / "126" / path.relative_to(source))
            if path.parent.name == "variables" and path is not files[-1]:
                time.sleep(1.5)  # what is tested is that time alone, here several times settle_ms, changes nothing
        traffic.wait_for_version(126)
    assert all(version["status"]["error_code"] == "OK" for version in server.status("m"))


def test_11_16_removed_versions_go_on_serving_and_come_again(models: Path, base: Path, server: Server) -> None:
    """With unload_when_empty, which is off here, they would be unloaded, as by TF Serving."""
    workers = {process.pid for process in server.members("worker")}
    with Traffic(server, "m") as traffic:
        for version in base.iterdir():
            shutil.rmtree(version)
        traffic.wait_for_more(200)
        assert states(server)[126] == "AVAILABLE"
        put(models, base, 126)
        wait_until(
            lambda: not workers & {process.pid for process in server.members("worker")}, "the new files to be loaded"
        )
        traffic.wait_for_version(126)


def test_1_3_with_require_all_models_a_model_that_does_not_load_ends_the_server(models: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "3").mkdir(parents=True)
    (base / "3" / "saved_model.pb").write_bytes(b"no model at all")
    with serve(tmp_path, base, settle="0\nrequire_all_models = true") as server:
        assert server.process.wait(60) == 69
        server.assert_nothing_left()
        assert "UNKNOWN: 1 servable(s) did not become available: {{{name: m version: 3} due to error: " in server.log


def test_a_missing_base_path_is_served_when_it_comes(models: Path, tmp_path: Path) -> None:
    """tensorflow/serving #1693: there, the ports stay closed."""
    base = tmp_path / "base"
    with serve(tmp_path, base) as server:
        ask = partial(server.post, "/v1/models/m:predict", b'{"instances": [1.0]}')
        wait_until(lambda: ask()[0] != 503, "the frontend to have heard of the models")
        assert ask()[0] == 404
        base.mkdir()
        put(models, base, 1)
        server.wait_available("m")
        status, body = ask()
        assert (status, json.loads(body)) == (200, {"predictions": [2.5]})
