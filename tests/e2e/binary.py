"""A `tensorflow_model_server` under test, started and asked as scripts that know only TF Serving do it.

They start the binary with flags in `--flag=value` form, take the answer "Servable not found" for the sign that it is
ready, feed models with ranks that differ from the signature's, and read answers from typed fields.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.e2e.server import wait_until

HALF_PLUS_TWO = "saved_model_half_plus_two_cpu"
HALF_PLUS_THREE = "saved_model_half_plus_three"
VERSION = 123


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Binary:
    """One running tensorflow_model_server, as a script that knows only TF Serving starts it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.port, self.rest_port = free_port(), free_port()
        self.socket_path = folder / "grpc.sock"
        self.stderr_path = folder / "stderr"
        command = [
            str(Path(sys.executable).with_name("tensorflow_model_server")),
            f"--port={self.port}",
            f"--rest_api_port={self.rest_port}",
            "--rest_api_timeout_in_ms=5000",
            f"--grpc_socket_path={self.socket_path}",
            *flags,
        ]
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Ask for a model that is missing on purpose until the answer is that it is missing."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "intentionally_missing_model"

        def says_that_it_is_missing() -> bool:
            assert self.process.poll() is None, self.stderr
            with grpc.insecure_channel(f"localhost:{self.port}") as channel:
                try:
                    prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=5)
                except grpc.RpcError as error:
                    return "Servable" in str(error.details())
            raise AssertionError("a missing model answered")

        wait_until(says_that_it_is_missing, f"the server:\n{self.stderr}")

    def rest(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://localhost:{self.rest_port}{path}", data, timeout=10) as response:
            return json.load(response)


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[Binary]:
    binary = Binary(folder, *flags)
    try:
        binary.wait_ready()
        yield binary
    finally:
        binary.process.terminate()
        binary.process.wait(30)


def single(shared_models: Path, name: str = HALF_PLUS_TWO) -> list[str]:
    return ["--model_name=default", f"--model_base_path={shared_models / name}"]


def predict_request(model: str = "default", value: Any = (2.0,)) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    # Rank 1, where the signature says [-1, 1].
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=len(value))
    request.inputs["x"].float_val.extend(value)
    return request


def check_predict(target: str, model: str, expected: float, version: int = VERSION) -> None:
    with grpc.insecure_channel(target) as opened:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
        result = stub.Predict(predict_request(model), timeout=5, wait_for_ready=True)
    assert "y" in result.outputs
    assert result.outputs["y"].dtype == 1
    assert len(result.outputs["y"].float_val) == 1
    assert result.outputs["y"].float_val[0] == expected
    assert result.model_spec.name == model
    assert result.model_spec.signature_name == "serving_default"
    assert result.model_spec.version.value == version


