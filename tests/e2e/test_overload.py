"""Overload of a real server with one worker: a slow model with a small queue, and one whose queue is bounded in time.

Who is refused gets TensorFlow Serving's code and text, and is told when to come again; every call is answered; then all
is as before: the next call is answered, and nothing of those before is left in any queue, ring or list.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until

LONG_S = 60
QUEUE_MAX = 4
FULL = "The batch scheduling queue to which this task was submitted is full; "
CODES = (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE,
         grpc.StatusCode.DEADLINE_EXCEEDED)  # fmt: skip


def config(models: Path) -> str:
    lines = ["[workers]", "workers = 1"]
    limits = {
        "full": {"queue_requests_max": QUEUE_MAX},
        "timed": {"queue_ms_max": 100},
        "bytes": {"queue_bytes_max": 32},  # rows of a float and an int: four
    }
    for name, batching in limits.items():
        lines += ["[[models]]", f'name = "{name}"', f'base_path = "{models / "slow"}"', "[models.batching]"]
        lines += [f"{key} = {value}" for key, value in {"batch_rows_max": 4, **batching}.items()]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("overload")
    (folder / "server.toml").write_text(config(models))
    with Server(folder, "--config", str(folder / "server.toml")) as server:
        for name in ("full", "timed", "bytes"):
            server.wait_available(name)
        yield server


def start(stub: Any, model: str, x: float, turns: int, timeout: float = LONG_S) -> Any:
    request = make_request(model, x=np.full(1, x, np.float32), turns=np.full(1, turns, np.int32))
    return stub.Predict.future(request, timeout=timeout)


def gauge(server: Server, name: str, **labels: str) -> float:
    """The sum of those samples."""
    with urllib.request.urlopen(f"{server.rest_url}/metrics", timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(one.value for one in found if labels.items() <= one.labels.items())


def nothing_is_left(server: Server) -> bool:
    names = ("ringserve_requests_pending", "ringserve_ring_used_bytes", "ringserve_queue_requests")
    return not any(gauge(server, name) for name in names)


@pytest.fixture
def blocked(server: Server, stub: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """A model whose only worker runs something long, and in whose queue a request more would be one too many."""
    model: str = request.param
    running = start(stub, model, 0.0, 600_000)
    # While it runs unlearned nothing is sent behind it: what comes now waits in the queue.
    wait_until(lambda: gauge(server, "ringserve_batches_running", model=model) == 1, "the long request to run")
    waiting = [start(stub, model, float(i), 3) for i in range(QUEUE_MAX)]
    wait_until(lambda: gauge(server, "ringserve_queue_requests", model=model) == QUEUE_MAX, "the queue to fill")
    assert not running.done()
    yield model
    assert outputs_of(running.result())["y"] == 600_000.0
    for number, call in enumerate(waiting):
        assert outputs_of(call.result())["y"] == number + 3.0
    wait_until(lambda: nothing_is_left(server), "queue, ring and list of requests to be empty")


@pytest.mark.parametrize(
    ("blocked", "text"),
    [
        ("full", f"currently 4 requests with 4 rows enqueued and the limits are {QUEUE_MAX} requests and 100000 rows"),
        ("bytes", "currently 4 requests with 4 rows enqueued and the limits are 10000 requests and 4 rows"),
    ],
    indirect=["blocked"],
)
def test_a_full_queue_refuses_with_code_and_text_and_when_to_come_again(
    server: Server, stub: Any, blocked: str, text: str
) -> None:
    refused = start(stub, blocked, 9.0, 3)
    assert (refused.code(), refused.details()) == (grpc.StatusCode.UNAVAILABLE, FULL + text)
    body = json.dumps({"instances": [{"x": 9.0, "turns": 3}]}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.rest_url}/v1/models/{blocked}:predict", body, timeout=LONG_S)
    assert caught.value.code == 503
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert json.load(caught.value) == {"error": FULL + text}


@pytest.mark.parametrize("model", ["full", "timed"])
def test_a_storm_is_answered_to_the_last_call_and_leaves_nothing(server: Server, stub: Any, model: str) -> None:
    for number in range(30):  # so that it is known what a run takes
        assert outputs_of(start(stub, model, float(number), 2_000).result())["y"] == number + 2_000.0
    calls = [start(stub, model, float(number), 2_000, timeout=0.25 if number % 2 else LONG_S) for number in range(600)]
    codes = Counter(call.code() for call in calls)
    assert set(codes) <= set(CODES), [call.details() for call in calls if call.code() not in CODES]
    assert codes[grpc.StatusCode.OK] > 0
    assert codes[grpc.StatusCode.UNAVAILABLE] > 0  # those without a hurry found the queue full
    for number, call in enumerate(calls):
        if call.code() is grpc.StatusCode.OK:
            assert outputs_of(call.result())["y"] == number + 2_000.0
    assert not [pushback_ms for pushback_ms in _told(calls) if pushback_ms < 10]
    assert outputs_of(start(stub, model, 5.0, 3).result())["y"] == 8.0
    wait_until(lambda: nothing_is_left(server), "queue, ring and list of requests to be empty")


def _told(calls: list[Any]) -> list[int]:
    refused = [call for call in calls if call.code() is grpc.StatusCode.UNAVAILABLE]
    trailers = [dict(call.trailing_metadata()) for call in refused]
    return [int(each["grpc-retry-pushback-ms"]) for each in trailers if "grpc-retry-pushback-ms" in each]


@pytest.mark.parametrize("model", ["full", "timed"])
def test_who_is_refused_is_told_when_to_come_again(server: Server, stub: Any, model: str) -> None:
    """Once the server knows how long a run takes. On a machine where runs of one kind take now this and now that long
    it does not, and says nothing: the client's own policy knows no less."""

    def are_told() -> bool:
        for number in range(30):
            start(stub, model, float(number), 20_000).result()
        calls = [start(stub, model, float(number), 20_000) for number in range(60)]
        refused = [call for call in calls if call.code() is grpc.StatusCode.UNAVAILABLE]
        return len(refused) > 0 and len(_told(calls)) == len(refused)

    wait_until(are_told, "a storm of which everybody who is refused is told")


def test_a_client_with_a_retry_policy_comes_again_when_it_is_told(server: Server, stub: Any) -> None:
    """Thrice as many as fit into the queue, each answered rightly: the refused ones were sent again in time."""
    policy = {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "0.2s", "backoffMultiplier": 1,
              "retryableStatusCodes": ["UNAVAILABLE"]}  # fmt: skip
    options = [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]}))]
    for number in range(30):
        start(stub, "full", float(number), 5_000).result()
    with grpc.insecure_channel(server.grpc_target, options=options) as channel:
        calls = [start(prediction_grpc.PredictionServiceStub(channel), "full", float(n), 5_000) for n in range(12)]
        answered = [outputs_of(call.result())["y"] == number + 5_000.0 for number, call in enumerate(calls)]
    assert all(answered)
