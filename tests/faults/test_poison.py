"""A request that ends the worker which runs it is answered with an error after two workers, and harms nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.operator import state
from tests.e2e.server import wait_until
from tests.faults.load import channel_to
from tests.faults.stage import Stage

_INNOCENT = 6


@pytest.fixture(scope="module")
def stage(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    # A broker that got no time for two seconds, on a loaded host, would be taken to hang: nothing here is about that.
    # A model with branches is on trial at first: the poison would run with three mates, one by one.
    folder = tmp_path_factory.mktemp("stage")
    with Stage(folder, models, hang_ms_max="30000", batching_row_independence="assumed") as stage:
        stage.wait_ready()
        yield stage
    assert stage.log.count("supervisor: started ") == 4  # the pool replaced workers, and nobody else was ever replaced


def test_poison_ends_two_workers_and_its_batch_mates_are_answered(stage: Stage) -> None:
    """TensorFlow really aborts on this one. Both workers are held in a batch of another model until the poison and
    its mates wait in one lane, so that they run together."""
    with channel_to(stage.grpc_target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        stage.orders.give("worker.batch", "hold", 2)
        holding = []
        for number in (1, 2):  # one after the other, or both would be one batch
            holding.append(stub.Predict.future(make_request("m", x=np.ones(1, np.float32)), timeout=60))
            stage.orders.wait_taken("worker.batch", number)
        before = state(stage)["requests"]
        inputs = [np.full(2, n, np.float32) for n in range(_INNOCENT)]
        mates = [stub.Predict.future(make_request("fragile", x=x), timeout=60) for x in inputs]
        poison = stub.Predict.future(make_request("fragile", x=np.array([1, -1], np.float32)), timeout=60)
        submitted = before["submitted"] + _INNOCENT + 1
        wait_until(lambda: state(stage)["requests"]["submitted"] == submitted, "all of them to wait")
        stage.orders.release()
        for x, mate in zip(inputs, mates, strict=True):
            np.testing.assert_array_equal(outputs_of(mate.result())["y"], 2 * x)
        assert all(outputs_of(call.result())["y"] == 2.5 for call in holding)
        with pytest.raises(grpc.RpcError) as failed:
            poison.result()
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "ended" in str(failed.value.details())
        stage.wait_whole()
        # They shared a batch: the first abort took all of them back.
        requests = state(stage)["requests"]
        assert requests["retried"] - before["retried"] == _INNOCENT + 1
        assert requests["failed"] - before["failed"] == 1
        assert stage.log.count("ended: -6") == 2


def test_poison_without_mates_costs_no_more(stage: Stage) -> None:
    with channel_to(stage.grpc_target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        aborts = stage.log.count("ended: -6")
        with pytest.raises(grpc.RpcError) as failed:
            stub.Predict(make_request("fragile", x=np.array([-1], np.float32)), timeout=60)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        stage.wait_whole()
        assert stage.log.count("ended: -6") == aborts + 2
        answer = stub.Predict(make_request("fragile", x=np.array([3], np.float32)), timeout=60)
        assert outputs_of(answer)["y"] == 6
