"""A stop with lame_duck_ms: health checks of every kind say not to come, while whoever comes is served; then it drains.

The supervisor waits for both.
"""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request
from tests.e2e.server import Server, wait_until

REQUEST = make_request("default", x=np.array([1, 2, 5], np.float32))


def readiness(server: Server) -> int:
    try:
        with urllib.request.urlopen(f"{server.rest_url}/readyz", timeout=60) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def predicts(server: Server) -> bool:
    """Over a connection of its own."""
    with grpc.insecure_channel(server.grpc_target) as channel:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(REQUEST, timeout=60)
        return True


@pytest.mark.parametrize("engine", ["native", "grpcio"])
def test_new_connections_are_served_until_balancers_have_noticed(models: Path, tmp_path: Path, engine: str) -> None:
    flags = ["--model_name=default", f"--model_base_path={models / 'half'}", f"--grpc_engine={engine}", "--workers=1"]
    # Longer than this test takes: the second signal ends it.
    with Server(tmp_path, *flags, "--lame_duck_ms=600000") as server:
        server.wait_available("default")
        assert readiness(server) == 200
        with grpc.insecure_channel(server.grpc_target) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=120)
            assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert readiness(server) == 503
            assert predicts(server)
            body = b'{"instances": [1.0]}'
            assert server.post("/v1/models/default:predict", body)[0] == 200
            checking = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert checking.status == health_pb2.HealthCheckResponse.NOT_SERVING
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


def test_then_it_drains_and_is_given_the_time_for_both(models: Path, tmp_path: Path) -> None:
    flags = ["--model_name=default", f"--model_base_path={models / 'half'}", "--workers=1"]
    # Longer than the supervisor waits for a frontend with nothing to drain.
    flags += ["--lame_duck_ms=3000", "--drain_ms_max=0"]
    with Server(tmp_path, *flags) as server:
        server.wait_available("default")
        target = server.grpc_target
        with grpc.insecure_channel(target) as channel:
            assert predicts(server)
            assert server.stop() == 0
            assert "did not stop in time" not in server.log
            with pytest.raises(grpc.RpcError) as refused:
                prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(REQUEST, timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: not server.family(), "all processes to end")
