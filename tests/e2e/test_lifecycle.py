"""Start, stop and death of the whole server: nothing stays behind, whatever way it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, wait_until


def start(models: Path, tmp_path: Path, *arguments: str) -> Server:
    return Server(tmp_path, "--model_name", "mlp", "--model_base_path", str(models / "mlp"), *arguments)


@pytest.fixture(scope="module")
def shared_memory() -> set[str]:
    """What has a name there before any server is started."""
    return set(os.listdir("/dev/shm"))


@pytest.fixture(scope="module")
def running(models: Path, shared_memory: set[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the tests that let it live, and the one that ends it."""
    with start(models, tmp_path_factory.mktemp("server")) as server:
        yield server


def test_a_port_in_use_is_said_before_anything_starts(running: Server, models: Path, tmp_path: Path) -> None:
    port = running.grpc_target.rpartition(":")[2]
    with start(models, tmp_path, "--port", port) as second:
        assert second.process.wait(30) != 0
        assert port in second.log
        assert "in use" in second.log
    running.wait_available("mlp")


def test_a_server_that_is_open_to_all_says_so_once(running: Server) -> None:
    running.wait_available("mlp")
    assert running.log.count("NO ACCESS CONTROL") == 1
    assert "warning supervisor: NO ACCESS CONTROL: whoever reaches this server may ask every model" in running.log


def test_sigterm_stops_it_and_leaves_nothing(running: Server, shared_memory: set[str]) -> None:
    assert running.stop(signal.SIGTERM) == 0
    assert set(os.listdir("/dev/shm")) <= shared_memory


def test_sigint_stops_it_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    with start(models, tmp_path) as server:
        server.wait_available("mlp")
        assert server.stop(signal.SIGINT) == 0
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
