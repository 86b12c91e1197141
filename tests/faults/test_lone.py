"""Lone requests go straight to a worker that was lent: what happens to them when somebody dies, hangs or leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.operator import state
from tests.e2e.server import wait_until
from tests.faults.load import channel_to
from tests.faults.stage import Stage

_HALF = make_request("m", x=np.ones(1, np.float32))


@pytest.fixture(scope="module")
def stage(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage"), models) as stage:
        stage.wait_ready()
        yield stage
        assert "Traceback" not in stage.log


class LoneClient:
    """One client with one call at a time."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.channel = channel_to(stage.grpc_target)
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def get_lent(self, request: predict_pb2.PredictRequest = _HALF) -> None:
        """Until a call goes straight to a worker."""

        def handed() -> int:
            return int(state(self.stage)["requests"]["handed"])

        def call() -> bool:
            before = handed()
            for _ in range(6):
                self.stub.Predict(request, timeout=60)
            return handed() > before

        wait_until(call, "a call to go straight to a worker")

    def hold(self) -> tuple[Any, int]:
        """A call that a worker is held in, which it was handed: (the call, the worker's process id)."""
        self.get_lent()
        self.stage.orders.give("worker.batch", "hold")
        call = self.stub.Predict.future(_HALF, timeout=60)
        return call, self.stage.orders.wait_taken("worker.batch")


@pytest.fixture
def client(stage: Stage) -> Iterator[LoneClient]:
    client = LoneClient(stage)
    with client.channel:
        yield client
    stage.orders.release()
    stage.wait_whole()


def _sums_up(stage: Stage) -> bool:
    counted = state(stage)["requests"]
    ends = sum(counted[end] for end in ("done", "refused", "expired", "cancelled", "failed", "dropped"))
    return bool(counted["submitted"] == ends and not counted["leases"])


def _is_right(answer: Any) -> bool:
    return bool(outputs_of(answer)["y"] == 2.5)


def test_all_that_is_handed_over_is_in_the_books(stage: Stage, client: LoneClient) -> None:
    client.get_lent()
    before = state(stage)["requests"]
    for _ in range(200):
        assert _is_right(client.stub.Predict(_HALF, timeout=60))
    wait_until(lambda: state(stage)["requests"]["done"] == before["done"] + 200, "the books to say so")
    after = state(stage)["requests"]
    assert after["handed"] > before["handed"] + 100  # an operator's call between two may end the row
    assert _sums_up(stage)


def test_a_worker_that_is_killed_with_it(stage: Stage, client: LoneClient) -> None:
    call, pid = client.hold()
    os.kill(pid, signal.SIGKILL)
    assert _is_right(call.result())
    wait_until(lambda: _sums_up(stage), "the books to sum up")
    assert state(stage)["requests"]["retried"] == 1


def test_a_worker_that_hangs_with_it(stage: Stage, client: LoneClient) -> None:
    call, pid = client.hold()  # and nobody lets it go
    assert _is_right(call.result())
    wait_until(lambda: pid not in [process.pid for process in stage.members("worker")], f"{pid} to be ended")
    assert f"(process {pid}) let its lease run out" in stage.log


def test_a_broker_that_is_killed_meanwhile(stage: Stage, client: LoneClient) -> None:
    call, _ = client.hold()
    (broker,) = stage.members("broker")
    broker.kill()
    stage.wait_whole()
    stage.orders.release()
    assert _is_right(call.result())
    client.get_lent()
    wait_until(lambda: _sums_up(stage), "the books to sum up")


def test_a_client_that_goes_meanwhile(stage: Stage, client: LoneClient) -> None:
    call, _ = client.hold()
    before = state(stage)["requests"]
    call.cancel()
    wait_until(lambda: state(stage)["requests"]["leased"] == 1, "the broker to hear of it")
    stage.orders.release()
    wait_until(lambda: state(stage)["requests"]["done"] > before["done"], "the batch to end")
    assert _sums_up(stage)


def test_one_that_ends_its_worker_is_told_after_two(stage: Stage, client: LoneClient) -> None:
    client.get_lent(make_request("fragile", x=np.array([3], np.float32)))
    aborts = stage.log.count("ended: -6")
    with pytest.raises(grpc.RpcError) as failed:
        client.stub.Predict(make_request("fragile", x=np.array([-1], np.float32)), timeout=60)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    stage.wait_whole()
    assert stage.log.count("ended: -6") == aborts + 2


def test_a_version_that_takes_over_meanwhile(stage: Stage, client: LoneClient) -> None:
    """The worker that is lent goes, and no call of a client that never pauses fails."""
    request = make_request("w", x=np.zeros((1, 784), np.float32))
    client.get_lent(request)
    new = stage.put()

    def call() -> bool:
        return bool(client.stub.Predict(request, timeout=60).model_spec.version.value == new)

    wait_until(call, f"version {new} to answer")
    stage.wait_whole()
    assert _sums_up(stage)
