"""Models and servers shared by the end-to-end tests: real processes, sockets, TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.export_models import NAMES
from tests.e2e.server import Server
from tests.exported import exported

SHARED_MODELS = Path(__file__).resolve().parents[3] / "shared" / "models" / "tfs"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exported models, one base path each (see tests/exporters.py), made once per test run."""
    return exported(tmp_path_factory, *NAMES)


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """TensorFlow Serving's own test models, where this checkout has them beside it."""
    if not SHARED_MODELS.is_dir():
        pytest.skip("TensorFlow Serving's test models are not here")
    return SHARED_MODELS


@pytest.fixture(scope="module")
def mlp_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the MLP with two workers and one frontend, shared by a module's tests."""
    arguments = ["--model_name", "mlp", "--model_base_path", str(models / "mlp"), "--workers", "2"]
    with Server(tmp_path_factory.mktemp("server"), *arguments) as server:
        server.wait_available("mlp")
        yield server


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    """A client of the module's own `server`."""
    with grpc.insecure_channel(server.grpc_target) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)
