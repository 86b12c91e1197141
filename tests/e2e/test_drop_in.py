"""`tensorflow_model_server` replaced, nothing else changed: what test suites written for TF Serving ask of a server."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.e2e.binary import (
    VERSION,
    Binary,
    check_predict,
    predict_request,
    running,
    single,
)


@pytest.fixture(scope="module")
def half_plus_two(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Binary]:
    folder = tmp_path_factory.mktemp("b")
    monitoring = folder / "monitoring"
    monitoring.write_text('prometheus_config: { enable: true, path: "/test/prometheus/metrics" }')
    with running(folder, *single(shared_models), f"--monitoring_config_file={monitoring}") as binary:
        yield binary


@pytest.fixture
def channel(half_plus_two: Binary) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"localhost:{half_plus_two.port}") as opened:
        yield opened


def examples(request: Any) -> Any:
    for features in ({"x": 2.0}, {"x": 3.0, "x2": 5.0}):
        example = request.input.example_list.examples.add()
        for name, value in features.items():
            example.features.feature[name].float_list.value.append(value)
    return request


def test_predict(half_plus_two: Binary) -> None:
    check_predict(f"localhost:{half_plus_two.port}", "default", 3.0)


def test_predict_over_the_unix_socket(half_plus_two: Binary) -> None:
    check_predict(f"unix:{half_plus_two.socket_path}", "default", 3.0)


def test_predict_with_output_filter(channel: grpc.Channel) -> None:
    request = predict_request()
    request.output_filter.append("y")
    result = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=5)
    assert list(result.outputs) == ["y"]


def test_model_status(channel: grpc.Channel) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "default"
    result = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=5)
    (status,) = result.model_version_status
    assert (status.version, status.state) == (VERSION, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert (status.status.error_code, status.status.error_message) == (0, "")


def test_model_metadata(channel: grpc.Channel) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "default"
    result = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(request, timeout=5)
    assert result.model_spec.name == "default"
    assert result.model_spec.version.value == VERSION
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert result.metadata["signature_def"].Unpack(signatures)
    assert "regress_x_to_y" in signatures.signature_def


def test_classify(channel: grpc.Channel) -> None:
    request = examples(classification_pb2.ClassificationRequest())
    request.model_spec.name = "default"
    request.model_spec.signature_name = "classify_x_to_y"
    result = prediction_service_pb2_grpc.PredictionServiceStub(channel).Classify(request, timeout=5)
    scores = [classes.classes[0].score for classes in result.result.classifications]
    assert scores == [3.0, 3.5]
    assert [len(classes.classes) for classes in result.result.classifications] == [1, 1]
    assert result.model_spec.version.value == VERSION
    assert result.model_spec.signature_name == "classify_x_to_y"


def test_regress(channel: grpc.Channel) -> None:
    request = examples(regression_pb2.RegressionRequest())
    request.model_spec.name = "default"
    request.model_spec.signature_name = "regress_x_to_y"
    result = prediction_service_pb2_grpc.PredictionServiceStub(channel).Regress(request, timeout=5)
    assert [regression.value for regression in result.result.regressions] == [3.0, 3.5]
    assert result.model_spec.version.value == VERSION
    assert result.model_spec.signature_name == "regress_x_to_y"


def test_multi_inference(channel: grpc.Channel) -> None:
    request = examples(inference_pb2.MultiInferenceRequest())
    for signature, method in (("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "default"
        task.model_spec.signature_name = signature
    result = prediction_service_pb2_grpc.PredictionServiceStub(channel).MultiInference(request, timeout=5)
    assert len(result.results) == 2
    assert [r.value for r in result.results[0].regression_result.regressions] == [3.0, 3.5]
    assert [c.classes[0].score for c in result.results[1].classification_result.classifications] == [3.0, 3.5]
    assert [one.model_spec.signature_name for one in result.results] == ["regress_x_to_y", "classify_x_to_y"]
    assert {one.model_spec.version.value for one in result.results} == {VERSION}


def test_rest_predict(half_plus_two: Binary) -> None:
    answer = half_plus_two.rest("/v1/models/default:predict", {"instances": [2.0, 3.0, 4.0]})
    assert answer == {"predictions": [3.0, 3.5, 4.0]}


def test_rest_predict_columns(half_plus_two: Binary) -> None:
    answer = half_plus_two.rest("/v1/models/default:predict", {"inputs": [2.0, 3.0, 4.0]})
    assert answer == {"outputs": [3.0, 3.5, 4.0]}


def test_rest_classify_and_regress(half_plus_two: Binary) -> None:
    body = {"examples": [{"x": 2.0}, {"x": 3.0}]}
    answer = half_plus_two.rest("/v1/models/default:classify", {"signature_name": "classify_x_to_y", **body})
    assert answer == {"results": [[["", 3.0]], [["", 3.5]]]}
    answer = half_plus_two.rest("/v1/models/default:regress", {"signature_name": "regress_x_to_y", **body})
    assert answer == {"results": [3.0, 3.5]}


def test_rest_status_and_metadata(half_plus_two: Binary) -> None:
    status = {"error_code": "OK", "error_message": ""}
    expected = {"model_version_status": [{"version": str(VERSION), "state": "AVAILABLE", "status": status}]}
    assert half_plus_two.rest("/v1/models/default") == expected
    metadata = half_plus_two.rest("/v1/models/default/metadata")
    assert metadata["model_spec"] == {"name": "default", "signature_name": "", "version": str(VERSION)}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"


def test_prometheus_endpoint(half_plus_two: Binary) -> None:
    url = f"http://localhost:{half_plus_two.rest_port}/test/prometheus/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        page = response.read().decode()
    assert "# TYPE :tensorflow:serving:request_count counter" in page


@pytest.mark.parametrize(
    "line",
    [
        "Building single TensorFlow model file config:  model_name: default model_base_path: ",
        "Running gRPC ModelServer at 0.0.0.0:",
        "Running gRPC ModelServer at UNIX socket ",
        "Exporting HTTP/REST API at:localhost:",
        "Successfully loaded servable version {name: default version: 123}",
        "Using InsecureServerCredentials",
        "Adding/updating models.",
        " (Re-)adding model: default",
    ],
)
def test_lines_that_scripts_wait_for(half_plus_two: Binary, line: str) -> None:
    assert line in half_plus_two.stderr


def test_a_trace_by_tensorflows_profiler_client(half_plus_two: Binary, tmp_path: Path) -> None:
    """In a process of its own: the client wants TensorFlow whole, and the load goes on meanwhile."""
    code = (
        "import sys, threading, urllib.request, tensorflow as tf\n"
        "stop = threading.Event()\n"
        "def load():\n"
        "    while not stop.is_set():\n"
        "        urllib.request.urlopen(sys.argv[2], b'{\"instances\": [2.0]}').read()\n"
        "        stop.wait(0.01)\n"
        "thread = threading.Thread(target=load); thread.start()\n"
        "try: tf.profiler.experimental.client.trace(sys.argv[1], sys.argv[3], 1000)\n"
        "finally: stop.set(); thread.join()\n"
    )
    url = f"http://localhost:{half_plus_two.rest_port}/v1/models/default:predict"
    arguments = [f"grpc://localhost:{half_plus_two.port}", url, str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    assert list(tmp_path.rglob("*.xplane.pb"))


