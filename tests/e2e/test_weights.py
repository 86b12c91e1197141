"""A version's weights are once in memory, mapped by every worker, and gone with the last; whoever is killed."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.operator import state
from tests.e2e.server import Server, wait_until
from tests.e2e.story import Story
from tests.e2e.test_lifecycle_versions import put, states, wait_states
from tests.e2e.traffic import Traffic

MIB = 1 << 20


def serve(folder: Path, base: Path, *arguments: str) -> Server:
    """A server of `base` as model m with two workers, whose weights are shared however small they are."""
    flags = ["--model_name", "m", "--model_base_path", str(base), "--workers", "2", "--settle_ms", "300"]
    return Server(folder, *flags, "--weight_sharing_bytes_min", "1", *arguments)


def weights(server: Server) -> dict[int, int]:
    """Bytes that are shared, by version, as the broker has them."""
    return {each["version"]: each["bytes_shared"] for each in state(server)["weights"] if each["bytes_shared"]}


def mapped(process: psutil.Process, name: str = "m") -> set[str]:
    """Inodes of the weights that it maps."""
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {line.split()[4] for line in lines if f"memfd:weights-{name}-" in line}


def held(server: Server) -> int:
    """How many weights the pool has in memory."""
    (pool,) = server.members("pool")
    folder = Path(f"/proc/{pool.pid}/fd")
    links = []
    for fd in list(folder.iterdir()):
        try:
            links.append(os.readlink(fd))
        except FileNotFoundError:
            continue
    return sum("memfd:weights-" in link for link in links)


def settled(server: Server) -> bool:
    """One generation of two workers, and nobody else."""
    found = state(server)
    workers = found["workers"]
    return len(workers) == 2 and all(
        worker["generation"] == found["generation"] and worker["state"] == "ready" for worker in workers
    )


def settle(server: Server) -> None:
    wait_until(functools.partial(settled, server), "one generation of two workers")


@pytest.fixture(scope="module")
def story(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The tests that use it go on from each other."""
    story = Story(tmp_path_factory.mktemp("story"), models, serve)
    with story.server as server:
        server.wait_available("m")
        settle(server)
        yield story


def test_workers_map_one_copy_and_answer_as_without_it(models: Path, tmp_path: Path) -> None:
    checkpoint = (models / "mlp" / "1" / "variables" / "variables.data-00000-of-00001").stat().st_size
    rows = np.random.default_rng(1).random((3, 784), np.float32)
    answers = []
    for sharing in ("on", "off"):
        folder = tmp_path / sharing
        folder.mkdir()
        with serve(folder, models / "mlp", "--weight_sharing", sharing) as server:
            server.wait_available("m")
            settle(server)
            inodes = [mapped(worker) for worker in server.members("worker")]
            if sharing == "on":
                assert weights(server)[1] >= checkpoint * 0.9
                assert inodes[0] == inodes[1]
                assert len(inodes[0]) == 1
                assert held(server) == 1
                assert server.log.count("are in shared memory") == 1
            else:
                assert weights(server) == {}
                assert inodes == [set(), set()]
            with grpc.insecure_channel(server.grpc_target) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                answers.append(outputs_of(stub.Predict(make_request("m", x=rows), timeout=30)))
    assert answers[0].keys() == answers[1].keys()
    for alias, values in answers[0].items():
        np.testing.assert_array_equal(values, answers[1][alias])


def test_old_weights_are_given_up_when_their_workers_are_gone(story: Story) -> None:
    server = story.server
    with Traffic(server, "m") as traffic:
        for _ in range(3):
            version = story.put()
            traffic.wait_for_version(version)
            settle(server)
            wait_until(lambda: held(server) == 1, "the old weights to be given up")
            assert list(weights(server)) == [version]
    assert "are given up" in server.log


def _author(server: Server, killed: frozenset[int] = frozenset()) -> psutil.Process | None:
    """One that lives, and not a process of its own making, which has its name."""
    pool = server.members("pool")[0].pid
    try:
        return next(
            (each for each in server.members("author") if each.ppid() == pool and each.pid not in killed), None
        )
    except psutil.NoSuchProcess:
        return None


@pytest.mark.parametrize("role", ["author", "worker", "broker"])
def test_a_death_while_weights_are_loaded_costs_no_call(story: Story, role: str) -> None:
    server = story.server
    with Traffic(server, "m") as traffic:
        version = story.put()
        author = wait_until(functools.partial(_author, server), "the author")
        victim = author if role == "author" else server.members(role)[0]
        victim.kill()
        traffic.wait_for_version(version)
        settle(server)
    wait_until(lambda: held(server) == 1, f"only the weights of version {version} to be left")
    # The last of the old workers lets go of the weights before it ends.
    workers = wait_until(lambda: len(found := server.members("worker")) == 2 and found, "the old workers to be gone")
    inodes = [mapped(worker) for worker in workers]
    assert len(set.union(*inodes)) == 1
    assert all(inodes)


@pytest.mark.parametrize("moment", ["at rest", "while an author loads"])
def test_after_the_pool_was_killed_every_worker_maps_the_same_weights(story: Story, moment: str) -> None:
    server = story.server
    before = mapped(server.members("worker")[0])
    others = dict.fromkeys(states(server), "END")
    version = story.version
    if moment != "at rest":
        version = story.put()
        wait_until(functools.partial(_author, server), "the author")
    pool = server.members("pool")[0]
    pool.kill()
    wait_until(lambda: not pool.is_running(), "the pool to be gone")
    wait_states(server, others | {version: "AVAILABLE"})
    settle(server)
    with Traffic(server, "m") as traffic:
        traffic.wait_for_version(version)
    wait_until(lambda: held(server) == 1, "one version's weights to be left")
    inodes = [mapped(worker) for worker in server.members("worker")]
    assert inodes[0] == inodes[1]
    assert len(inodes[0]) == 1
    assert not inodes[0] & before


def test_a_version_that_ends_its_authors_is_given_up_and_the_old_one_serves(
    story: Story, models: Path, tmp_path: Path
) -> None:
    server, good = story.server, story.version
    others = dict.fromkeys(states(server), "END")
    with Traffic(server, "m") as traffic:
        old = {process.pid for process in server.members("worker")}
        # A named pipe in place of the checkpoint: whoever opens it waits for ever. The others give it a size.
        shutil.copytree(models / "mlp" / "1", tmp_path / "next")
        data = tmp_path / "next" / "variables" / "variables.data-00000-of-00001"
        for shard in (0, 1):
            shutil.copy(data, data.with_name(f"variables.data-0000{shard}-of-00002"))
        data.unlink()
        os.mkfifo(data)
        version = story.move_in(tmp_path / "next")
        killed: frozenset[int] = frozenset()
        for _ in range(2):
            author = wait_until(functools.partial(_author, server, killed), "an author")
            killed |= {author.pid}
            author.kill()
        wait_states(server, others | {version: "END", good: "AVAILABLE"})
        traffic.wait_for_version(good)
    broken = server.status("m")[0]
    assert broken["status"]["error_code"] == "INTERNAL"
    assert broken["status"]["error_message"].endswith("ended 2 worker processes, the last by signal SIGKILL")
    assert {process.pid for process in server.members("worker")} == old
    assert held(server) == 1


def test_a_load_beyond_the_memory_limit_is_refused_and_the_old_version_stays(models: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    put(models, base, 1)
    arguments = ("--memory_bytes_max", f"{900 * MIB}", "--frontends", "1")
    with serve(tmp_path, base, *arguments) as server:
        server.wait_available("m")
        settle(server)
        shutil.copytree(models / "half" / "1", tmp_path / "2")
        shard = tmp_path / "2" / "variables" / "variables.data-00000-of-00001"
        with shard.open("r+b") as file:
            file.truncate(2_000 * MIB)  # it takes no room on the disk
        os.rename(tmp_path / "2", base / "2")
        wait_states(server, {2: "END", 1: "AVAILABLE"})
        refused = server.status("m")[0]["status"]
        assert refused["error_code"] == "RESOURCE_EXHAUSTED"
        assert "900 MiB" in refused["error_message"]
        assert "memory_bytes_max" in refused["error_message"]
        memory: dict[str, Any] = state(server)["memory"]
        assert 0 < memory["budgeted_bytes"] < memory["limit_bytes"] == 900 * MIB
