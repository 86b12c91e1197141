"""The run directory of a server that runs is removed: it goes on, and so does who takes a dead process's place."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import Server, wait_until
from tests.e2e.traffic import Traffic
from tests.folders import removed


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its run directory has been cleaned, after an operator had added a model."""
    folder = tmp_path_factory.mktemp("server")
    arguments = ["--model_name", "half", "--model_base_path", str(models / "half"), "--workers", "2"]
    with Server(folder, *arguments, "--frontends", "2") as server:
        server.wait_available("half")
        body = json.dumps({"base_path": str(models / "half")}).encode()
        added = urllib.request.Request(f"{server.rest_url}/ringserve/v1/models/added", body, method="PUT")
        added.add_header("Content-Type", "application/json")
        urllib.request.urlopen(added, timeout=60).close()
        server.wait_available("added")
        wait_until(lambda: _counted(server) > 0, "the warm-up to be counted")
        wait_until(lambda: removed(server.run_dir), "files not to be made anew while they are removed")
        wait_until((server.run_dir / "models.json").exists, "the broker to notice")
        yield server


def _counted(server: Server) -> float:
    with urllib.request.urlopen(f"{server.rest_url}/monitoring/prometheus/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    name = ':tensorflow:serving:request_count{model_name="half",status="OK"} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_what_was_counted_before_is_still_told(server: Server) -> None:
    """Nobody has called since."""
    wait_until(lambda: _counted(server) > 0, "the metrics")


def test_operators_find_the_server(server: Server) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(server.run_dir / "admin.sock"))
        client.sendall(b"GET /ringserve/v1/models HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("role", ["broker", "worker", "pool", "frontend"])
def test_who_dies_is_replaced_with_all_models(server: Server, role: str) -> None:
    victim: psutil.Process = server.members(role)[0]
    before = {process.pid for process in server.members(role)}
    if role == "frontend":  # which takes its connections with it
        victim.kill()
    else:
        with Traffic(server, "added") as traffic:
            victim.kill()
            traffic.wait_for_more(200)
    wait_until(lambda: {process.pid for process in server.members(role)} - before, f"another {role}")
    wait_until(lambda: len(server.members("worker")) == 2, "two workers")
    assert {version["state"] for version in server.status("added")} == {"AVAILABLE"}


def test_a_stop_leaves_nothing(server: Server) -> None:
    assert server.stop(signal.SIGTERM) == 0
