"""The metrics of a whole server (spec 8, acceptance 20): those of all its processes, and after any of them died."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request
from tests.e2e.server import Server, wait_until

TFS_PAGE = "/monitoring/prometheus/metrics"
BODY = json.dumps({"instances": [1.0, 2.0, 5.0]}).encode()

#: (sample name, its labels sorted) -> value
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def page_of(server: Server, path: str = TFS_PAGE) -> str:
    """A page, over a connection of its own, so that any frontend may answer."""
    with urllib.request.urlopen(f"{server.rest_url}{path}", timeout=60) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        page: str = response.read().decode()
        return page


def samples_of(server: Server, path: str = "/metrics") -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page_of(server, path))
        for sample in family.samples
    }


def value_of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def grpc_predict(server: Server, model: str = "default") -> grpc.StatusCode:
    """A Predict over a new connection; how it ended."""
    with grpc.insecure_channel(server.grpc_target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            stub.Predict(make_request(model, x=np.array([1, 2, 5], np.float32)), timeout=60)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """half_plus_two behind two frontends and two workers."""
    arguments = ["--model_name", "default", "--model_base_path", str(models / "half")]
    with Server(tmp_path_factory.mktemp("server"), *arguments, "--workers", "2", "--frontends", "2") as server:
        server.wait_available("default")
        # Available is what the first worker has loaded.
        wait_until(lambda: loads_of(server) == 2, "the other worker's load")
        yield server


def loads_of(server: Server) -> float:
    samples, name = samples_of(server, TFS_PAGE), ":tensorflow:cc:saved_model:load_attempt_count_total"
    return sum(value for (each, labels), value in samples.items() if each == name and ("status", "success") in labels)


def test_8_acceptance_20_requests_of_both_entry_points(server: Server) -> None:
    before = samples_of(server, TFS_PAGE)
    for _ in range(8):  # enough for both frontends to get some
        assert server.post("/v1/models/default:predict", BODY)[0] == 200
        assert grpc_predict(server) is grpc.StatusCode.OK
    assert server.post("/v1/models/default:predict", b"{")[0] == 400
    assert server.post("/v1/models/nope:predict", BODY)[0] == 404
    assert grpc_predict(server, "nope2") is grpc.StatusCode.NOT_FOUND
    assert server.post("/v1/models/default:PREDICT", b"")[0] == 400

    def growth() -> dict[str, float]:
        after = samples_of(server, TFS_PAGE)

        def grown(name: str, **labels: str) -> float:
            return value_of(after, name, **labels) - value_of(before, name, **labels)

        count, latency = ":tensorflow:serving:request_count_total", ":tensorflow:serving:request_latency_count"
        runtime = ":tensorflow:serving:runtime_latency_count"
        return {
            "bad": grown(count, model_name="default", status="INVALID_ARGUMENT"),
            "malformed": grown(count, model_name="", status="INVALID_ARGUMENT"),
            "unknown": grown(count, model_name="(unknown)", status="NOT_FOUND"),
            "rest": grown(latency, model_name="default", API="predict", entrypoint="REST"),
            "grpc": grown(latency, model_name="default", API="Predict", entrypoint="GRPC"),
            "runs": grown(runtime, model_name="default", API="Predict", runtime="TF1"),
        }

    expected = {"bad": 1, "malformed": 1, "unknown": 2, "rest": 8, "grpc": 8, "runs": 16}
    # What the other frontend counted may be a tenth of a second late.
    wait_until(lambda: growth() == expected, f"{expected}; there is {growth()}", 10)
    page = page_of(server)
    assert "# TYPE :tensorflow:serving:request_count counter\n" in page
    total = ":tensorflow:serving:request_count_total"
    ok = int(value_of(samples_of(server, TFS_PAGE), total, model_name="default", status="OK"))
    assert f':tensorflow:serving:request_count{{model_name="default",status="OK"}} {ok}\n' in page_of(server)


def test_8_1_a_query_is_refused_and_any_method_will_do(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        page_of(server, f"{TFS_PAGE}?a=1")
    assert refused.value.code == 400
    assert refused.value.read() == f"Unexpected path: {TFS_PAGE}?a=1. Should be {TFS_PAGE}".encode()
    status, body = server.post(TFS_PAGE, b"")
    assert status == 200
    assert body.startswith(b"# TYPE :tensorflow:cc:saved_model:load_attempt_count counter\n")


def test_8_3_loads_and_batches(server: Server, models: Path) -> None:
    samples = samples_of(server, TFS_PAGE)
    (path,) = (dict(labels)["model_path"] for name, labels in samples if "load_attempt_count" in name)
    assert Path(path).parent == models / "half"
    prefix = ":tensorflow:cc:saved_model:"
    assert value_of(samples, f"{prefix}load_attempt_count_total", model_path=path, status="success") == 2
    assert value_of(samples, f"{prefix}load_latency_total", model_path=path) > 0
    grpc_predict(server)

    def batches() -> Samples:
        found = samples_of(server, TFS_PAGE)
        prefix = ":tensorflow:serving:batching_session:"
        counted = value_of(found, f"{prefix}wrapped_run_count_total")
        return found if counted and counted == value_of(found, f"{prefix}processed_batch_size_count") else {}

    found: Samples = wait_until(batches, "batches to be counted", 10)
    assert value_of(found, ":tensorflow:serving:batching_session:queuing_latency_count", thread_pool_name="") > 0
    assert value_of(found, ":tensorflow:serving:batching_session:input_batch_size_bucket", le="4") > 0


def test_the_whole_page(server: Server) -> None:
    assert server.post("/v1/models/default:predict", BODY)[0] == 200
    grpc_predict(server)
    (version,) = (str(status["version"]) for status in server.status("default"))
    lane = {"model": "default", "version": version, "signature": "serving_default"}

    def look() -> Samples:
        samples = samples_of(server)
        return samples if value_of(samples, "ringserve_run_duration_seconds_count", **lane) else {}

    samples: Samples = wait_until(look, "the broker's counts", 10)
    for entrypoint in ("REST", "GRPC"):
        labels = {**lane, "api": "predict", "entrypoint": entrypoint}
        assert value_of(samples, "ringserve_requests_total", **labels, code="OK") >= 1
        assert value_of(samples, "ringserve_request_duration_seconds_count", **labels) >= 1
    assert value_of(samples, "ringserve_queue_duration_seconds_count", **lane) >= 1
    assert value_of(samples, "ringserve_batch_rows_sum", **lane) >= 3
    assert value_of(samples, "ringserve_broker_up") == 1
    assert value_of(samples, "ringserve_workers", state="ready") == 2
    assert value_of(samples, "ringserve_model_ready", model="default") == 1
    assert value_of(samples, "ringserve_model_version_state", model="default", version=version, state="AVAILABLE") == 1
    processes = {"supervisor", "broker", "pool", "frontend-0", "frontend-1", "worker-0", "worker-1"}
    for family in ("resident_bytes", "proportional_bytes", "cpu_seconds_total", "start_time_seconds"):
        found = {dict(labels)["process"] for name, labels in samples if name == f"ringserve_process_{family}"}
        assert found == processes
    for index in range(2):
        process = f"frontend-{index}"
        assert value_of(samples, "ringserve_ring_capacity_bytes", ring=process) == 256 * 2**20
        assert value_of(samples, "ringserve_process_starts_total", process=process) == 1
        assert value_of(samples, "ringserve_process_starts_total", process=f"worker-{index}") == 1
    connections = [value for (name, _), value in samples.items() if name == "ringserve_connections"]
    assert len(connections) == 6  # gRPC, REST and operators, of two frontends
    assert sum(connections) >= 1  # this scrape's own


def test_counts_outlive_the_processes_that_counted(server: Server) -> None:
    for _ in range(8):
        assert grpc_predict(server) is grpc.StatusCode.OK
    name, labels = ":tensorflow:serving:request_count_total", {"model_name": "default", "status": "OK"}
    starts = "ringserve_process_starts_total"

    def settled() -> Any:
        first, second = samples_of(server), samples_of(server)
        calm = value_of(first, name, **labels) == value_of(second, name, **labels)
        return second if calm and value_of(second, "ringserve_broker_requests_total", end="done") else None

    before: Samples = wait_until(settled, "counts that stand still", 10)
    for role in ("frontend-0", "frontend-1", "broker"):
        (process,) = server.members(role)
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: not process.is_running(), f"{role} to die")  # noqa: B023  (called at once)
    wait_until(lambda: len(server.members("frontend")) == 2, "new frontends")
    server.wait_available("default")
    after = samples_of(server)
    assert value_of(after, name, **labels) >= value_of(before, name, **labels)
    for process in ("frontend-0", "frontend-1", "broker"):
        assert value_of(after, starts, process=process) == 2
    done = "ringserve_broker_requests_total"
    assert value_of(after, done, end="done") >= value_of(before, done, end="done") > 0
    assert grpc_predict(server) is grpc.StatusCode.OK
    grown = value_of(after, name, **labels) + 1
    wait_until(lambda: value_of(samples_of(server), name, **labels) >= grown, "one more request", 10)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say_about_our_own_families(server: Server) -> None:
    assert server.post("/v1/models/default:predict", BODY)[0] == 200
    said = subprocess.run(
        ["promtool", "check", "metrics"], input=page_of(server, "/metrics"), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert said.returncode in (0, 3)  # 3: matters of taste; 1: no exposition at all
    lines = (said.stdout + said.stderr).splitlines()
    # TensorFlow Serving's names are what they are.
    assert not [line for line in lines if not line.startswith(":tensorflow:")]
