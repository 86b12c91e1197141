"""Start, stop and death of the whole server: nothing stays behind, whatever way it ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.server import Server, wait_until


def start(models: Path, tmp_path: Path, *arguments: str) -> Server:
    return Server(tmp_path, "--model_name", "mlp", "--model_base_path", str(models / "mlp"), *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_leaves_nothing(models: Path, tmp_path: Path, number: int) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    with start(models, tmp_path) as server:
        server.wait_available("mlp")
        assert server.stop(number) == 0
    assert set(os.listdir("/dev/shm")) <= shared_memory


def test_a_stop_while_starting_is_a_stop(models: Path, tmp_path: Path) -> None:
    with start(models, tmp_path) as server:
        wait_until(lambda: server.members("broker"), "the broker to start")
        assert server.stop(signal.SIGTERM) == 0


def test_the_second_signal_does_not_wait(models: Path, tmp_path: Path) -> None:
    with start(models, tmp_path, "--drain_ms_max", "60000") as server:
        server.wait_available("mlp")
        # A frontend that cannot run cannot drain: only the second signal ends this.
        (frontend,) = server.members("frontend")
        frontend.suspend()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stop" in server.log.lower(), "the supervisor to take the first signal")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        server.assert_nothing_left()


def test_children_leave_when_the_supervisor_is_killed(models: Path, tmp_path: Path) -> None:
    with start(models, tmp_path) as server:
        server.wait_available("mlp")
        server.process.kill()
        server.process.wait(10)
        server.assert_nothing_left()


def test_children_leave_when_the_supervisor_is_killed_during_the_start(models: Path, tmp_path: Path) -> None:
    with start(models, tmp_path) as server:
        wait_until(lambda: server.members("broker"), "the broker to start")
        server.process.kill()
        server.process.wait(10)
        server.assert_nothing_left()


def test_a_port_in_use_is_said_before_anything_starts(models: Path, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with start(models, tmp_path / "first") as server:
        port = server.grpc_target.rpartition(":")[2]
        with start(models, tmp_path / "second", "--port", port) as second:
            assert second.process.wait(30) != 0
            assert port in second.log
            assert "in use" in second.log
        server.wait_available("mlp")


def test_a_missing_base_path_does_not_stop_the_server(tmp_path: Path) -> None:
    with Server(tmp_path, "--model_name", "m", "--model_base_path", str(tmp_path / "nowhere")) as server:
        assert server.post("/v1/models/m:predict", b'{"instances": [1]}')[0] == 404
