"""Processes are killed in the middle of a change: it still comes to its end, and no call fails."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.operator import state
from tests.e2e.server import Server, wait_until
from tests.e2e.story import Story
from tests.e2e.test_lifecycle_versions import serve, states, wait_states
from tests.e2e.traffic import Traffic


@pytest.fixture(scope="module")
def story(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The tests of this module go on from each other."""
    story = Story(tmp_path_factory.mktemp("story"), models, serve)
    with story.server as server:
        server.wait_available("m")
        wait_until(functools.partial(_settled, server), "both workers")
        yield story


@pytest.mark.parametrize("role", ["scout", "worker", "pool", "broker"])
def test_a_death_during_a_change_costs_no_call(story: Story, role: str) -> None:
    server = story.server
    before = states(server)
    with Traffic(server, "m") as traffic:
        old = {process.pid for process in server.members("worker")}
        version = story.put()
        scout = wait_until(functools.partial(_another, server, old), "the scout")
        victims = {
            "scout": [scout],
            "worker": [process for process in server.members("worker") if process.pid in old],
            "pool": server.members("pool"),
            "broker": server.members("broker"),
        }
        for victim in victims[role][:1]:
            victim.kill()
        traffic.wait_for_version(version)
        wait_until(functools.partial(_settled, server), "one generation of two workers")
    # Another broker knows nothing of versions that went before it.
    if role != "broker":
        wait_states(server, dict.fromkeys(before, "END") | {version: "AVAILABLE"})
    else:
        wait_until(lambda: server.status("m")[0]["state"] == "AVAILABLE", f"version {version}")


def test_a_version_that_ends_its_worker_is_given_up_and_the_others_serve(
    story: Story, models: Path, tmp_path: Path
) -> None:
    """The scout is killed each time it loads the next version."""
    server, good = story.server, story.version
    before = dict.fromkeys(states(server), "END")
    wait_until(functools.partial(_settled, server), "the generation before to be gone")
    with Traffic(server, "m") as traffic:
        old = {process.pid for process in server.members("worker")}
        # A named pipe among the variables: whoever opens it waits for ever.
        shutil.copytree(models / "mlp" / "1", tmp_path / "next")
        data = tmp_path / "next" / "variables" / "variables.data-00000-of-00001"
        data.unlink()
        os.mkfifo(data)
        story.move_in(tmp_path / "next")
        killed: set[int] = set()
        for _ in range(2):
            scout = wait_until(functools.partial(_loading, server, good + 1, killed), "the scout to load", 60)
            assert scout not in old
            killed.add(scout)
            psutil.Process(scout).kill()
            wait_until(functools.partial(_gone, scout), "the scout to be gone")
        wait_states(server, before | {good + 1: "END", good: "AVAILABLE"})
        traffic.wait_for_version(good)
    broken = server.status("m")[0]
    assert broken["status"]["error_code"] == "INTERNAL"
    assert "SIGKILL" in broken["status"]["error_message"]
    assert {process.pid for process in server.members("worker")} == old


def _another(server: Server, known: set[int]) -> psutil.Process | None:
    return next((process for process in server.members("worker") if process.pid not in known), None)


def _loading(server: Server, version: int, killed: set[int]) -> int:
    """The process that loads it now, by the broker's own word, which may not know yet of one that was killed."""
    for worker in state(server)["workers"]:
        if worker["loading"] == ["m", version] and worker["pid"] not in killed:
            pid: int = worker["pid"]
            return pid
    return 0


def _gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _settled(server: Server) -> bool:
    found = state(server)
    workers = found["workers"]
    return len(workers) == 2 and all(
        worker["generation"] == found["generation"] and worker["state"] == "ready" for worker in workers
    )
