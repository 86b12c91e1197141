"""Worker groups of a real server: a change in one leaves the others alone; they grow, shrink and are renewed, and no
call fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.operator import state
from tests.e2e.server import Server, wait_until
from tests.e2e.test_lifecycle_versions import put, wait_states
from tests.e2e.test_metrics import samples_of, value_of
from tests.e2e.traffic import Traffic

TWO_GROUPS = """
[workers]
workers = 2
[lifecycle]
settle_ms = 300
[[models]]
name = "a"
base_path = "{folder}/a"
[[models]]
name = "b-1"
base_path = "{folder}/b"
[[groups]]
name = "large"
models = ["b-*"]
workers = 1
replace = "{replace}"
"""

ELASTIC = """
[workers]
workers = 1
workers_max = 2
grow_ms = 400
shrink_ms = 1500
[[models]]
name = "slow"
base_path = "{folder}/slow"
"""

AGING = """
[workers]
workers = 1
worker_age_s_max = 3
[[models]]
name = "half"
base_path = "{folder}/half"
"""


def serve(tmp_path: Path, config: str, **fields: str) -> Server:
    (tmp_path / "server.toml").write_text(config.format(**fields))
    return Server(tmp_path, "--config", str(tmp_path / "server.toml"))


def pids(server: Server, group: str) -> set[int]:
    """Workers of this group that serve."""
    workers = state(server)["workers"]
    return {worker["pid"] for worker in workers if worker["group"] == group and worker["state"] == "ready"}


def about(server: Server, group: str) -> dict[str, Any]:
    (found,) = [each for each in state(server)["groups"] if each["name"] == group]
    return dict(found)


class Patient(Traffic):
    """A client that tries again what was UNAVAILABLE: a call that waited for a version that went."""

    def _call(self, x: np.ndarray[Any, Any]) -> tuple[str, int]:
        for _ in range(20):
            outcome, version = super()._call(x)
            if not outcome.startswith("UNAVAILABLE"):
                break
        return outcome, version


def two_groups(models: Path, tmp_path: Path, replace: str) -> Server:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        put(models, tmp_path / name, 1)
    return serve(tmp_path, TWO_GROUPS, folder=str(tmp_path), replace=replace)


def test_a_change_in_one_group_touches_no_worker_of_another(models: Path, tmp_path: Path) -> None:
    with two_groups(models, tmp_path, "start_first") as server:
        server.wait_available("a")
        server.wait_available("b-1")
        wait_until(lambda: len(pids(server, "default")) == 2, "two workers of the default group")
        default, large = pids(server, "default"), pids(server, "large")
        assert len(large) == 1
        assert not default & large
        with Traffic(server, "a", threads=2) as a, Traffic(server, "b-1", threads=2) as b:
            put(models, tmp_path / "b", 2)
            b.wait_for_version(2)
            wait_states(server, {1: "END", 2: "AVAILABLE"}, "b-1")
            assert pids(server, "default") == default
            assert not pids(server, "large") & large
            large = pids(server, "large")
            put(models, tmp_path / "a", 2)
            a.wait_for_version(2)
            wait_states(server, {1: "END", 2: "AVAILABLE"}, "a")
            assert pids(server, "large") == large
        wait_until(lambda: len(server.members("worker")) == 3, "the workers that went to be gone")
        assert len({process.name() for process in server.members("worker")}) == 3


def test_where_the_old_worker_stops_first_calls_wait_for_the_new_one(models: Path, tmp_path: Path) -> None:
    with two_groups(models, tmp_path, "stop_first") as server:
        server.wait_available("a")
        server.wait_available("b-1")
        wait_until(lambda: pids(server, "large"), "its worker to be told of as one that serves")
        (before,) = pids(server, "large")
        seen: set[frozenset[int]] = set()
        with Patient(server, "b-1", threads=3) as traffic:
            put(models, tmp_path / "b", 2)

            def changed() -> bool:
                workers = [worker for worker in state(server)["workers"] if worker["group"] == "large"]
                seen.add(frozenset(worker["pid"] for worker in workers))
                return bool(workers) and all(worker["loaded"] == [["b-1", 2]] for worker in workers)

            wait_until(changed, "version 2")
            traffic.wait_for_version(2)
        (after,) = pids(server, "large")
        assert after != before
        assert all(len(alive) <= 1 for alive in seen)  # never both


@contextmanager
def pressure(server: Server) -> Iterator[None]:
    """Calls that take long, from four threads, as many as there can be; each must be answered."""
    stop = threading.Event()
    channel = grpc.insecure_channel(server.grpc_target)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def call() -> int:
        count = 0
        while not stop.is_set():
            request = make_request("slow", x=np.zeros(1, np.float32), turns=np.full(1, 5_000, np.int32))
            response = stub.Predict(request, timeout=60)
            assert outputs_of(response)["y"] == [5_000]
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(call) for _ in range(4)]
        try:
            yield
        finally:
            stop.set()
        assert all(found.result() for found in calls)
    channel.close()


def test_a_group_grows_under_load_and_shrinks_after_it(models: Path, tmp_path: Path) -> None:
    with serve(tmp_path, ELASTIC, folder=str(models)) as server:
        server.wait_available("slow")
        wait_until(lambda: pids(server, "default"), "its worker to be told of as one that serves")
        (first,) = pids(server, "default")
        generation = state(server)["generation"]
        with pressure(server):
            wait_until(lambda: len(pids(server, "default")) == 2, "a second worker")
            assert about(server, "default")["workers_active"] == 2
        wait_until(lambda: len(server.members("worker")) == 1, "the second worker to leave")
        assert about(server, "default")["workers_wanted"] == 1
        assert len(pids(server, "default")) == 1
        assert state(server)["generation"] == generation
        assert first in {worker["pid"] for worker in state(server)["workers"]}


def test_workers_that_are_old_are_replaced_and_no_call_fails(models: Path, tmp_path: Path) -> None:
    with serve(tmp_path, AGING, folder=str(models)) as server:
        server.wait_available("half")
        seen: set[int] = set()

        def several() -> bool:
            seen.update(pids(server, "default"))
            return len(seen) >= 3

        with Traffic(server, "half", threads=3) as traffic:
            wait_until(several, "two renewals")
            traffic.wait_for_more(50)
        assert "replaced for their age" in server.log
        samples = samples_of(server)
        assert value_of(samples, "ringserve_group_generations_total", group="default", reason="age") >= 2
        assert value_of(samples, "ringserve_group_workers_wanted", group="default") == 1
