"""Frontends are killed, and leave in order, while clients that retry as clients do ask: they see nothing of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import Server, wait_until
from tests.faults.retrying import Clients

_KILLS = 10


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ["--model_name", "half", "--model_base_path", str(models / "half"), "--workers", "2"]
    with Server(tmp_path_factory.mktemp("server"), *arguments, "--frontends", "2") as server:
        server.wait_available("half")
        yield server


def _frontends(server: Server) -> list[psutil.Process]:
    """Both of them, once they are ready."""
    ready = server.log.count("is ready")
    return server.members("frontend") if ready >= _starts(server) else []


def _starts(server: Server) -> int:
    return server.log.count("supervisor: started ")


def test_killed_frontends(server: Server) -> None:
    """At most one at a time: one that serves is left for the clients to go to."""
    choice = random.Random(5)
    with Clients(server, 8, 4) as clients:
        for _ in range(_KILLS):
            frontends = wait_until(lambda: len(found := _frontends(server)) == 2 and found, "both frontends to serve")
            clients.wait_for_more(choice.randrange(1, 200))
            victim = choice.choice(frontends)
            victim.kill()
            victim.wait(60)


def test_frontends_that_leave_in_order(server: Server) -> None:
    """They answer what they have, say GOAWAY, and take nothing new."""
    with Clients(server, 8, 4) as clients:
        for _ in range(2):
            frontends = wait_until(lambda: len(found := _frontends(server)) == 2 and found, "both frontends to serve")
            frontends[0].terminate()
            frontends[0].wait(60)
            clients.wait_for_more(200)
