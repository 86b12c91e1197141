"""`tensorflow_model_server` replaced, nothing else changed: what scripts and test suites written for TF Serving do.

They start the binary with flags in `--flag=value` form, take the answer "Servable not found" for the sign that it is
ready, feed models with ranks that differ from the signature's, and read answers from typed fields.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
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
                    return "Servable" in error.details()
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
        "thread = threading.Thread(target=load); thread.start()\n"
        "try: tf.profiler.experimental.client.trace(sys.argv[1], sys.argv[3], 1000)\n"
        "finally: stop.set(); thread.join()\n"
    )
    url = f"http://localhost:{half_plus_two.rest_port}/v1/models/default:predict"
    arguments = [f"grpc://localhost:{half_plus_two.port}", url, str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    assert list(tmp_path.rglob("*.xplane.pb"))


# -------------------------------------------------------------------------------------------- servers of their own


def test_a_model_exported_by_tensorflow_2(shared_models: Path, tmp_path: Path) -> None:
    with running(tmp_path, *single(shared_models, "saved_model_half_plus_two_tf2_cpu")) as binary:
        check_predict(f"localhost:{binary.port}", "default", 3.0)
        answer = binary.rest("/v1/models/default:predict", {"instances": [2.0]})
        assert answer == {"predictions": [3.0]}


def test_batching_parameters(shared_models: Path, tmp_path: Path) -> None:
    parameters = tmp_path / "batching"
    parameters.write_text(
        "max_batch_size { value: 16 }\nbatch_timeout_micros { value: 0 }\nmax_enqueued_batches { value: 100 }\n"
        "num_batch_threads { value: 8 }\n"
    )
    flags = ["--enable_batching", f"--batching_parameters_file={parameters}"]
    with running(tmp_path, *single(shared_models), *flags) as binary:
        check_predict(f"localhost:{binary.port}", "default", 3.0)


def test_channel_arguments_of_grpc(shared_models: Path, tmp_path: Path) -> None:
    argument = "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb"
    with running(tmp_path, *single(shared_models), argument) as binary:
        check_predict(f"localhost:{binary.port}", "default", 3.0)


def test_tflite_models(shared_models: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    flags = [*single(shared_models, "saved_model_half_plus_two_tflite"), "--prefer_tflite_model=true"]
    with running(tmp_path, *flags) as binary:
        check_predict(f"localhost:{binary.port}", "default", 3.0)


def serves(target: str, model: str, expected: float) -> bool:
    """False for a model that is not found; any other failure is an error."""
    try:
        check_predict(target, model, expected)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND and "Servable not found" in error.details():
            return False
        raise
    return True


def config_text(name: str, path: Path) -> str:
    return (
        f'model_config_list: {{ config: {{ name: "{name}", base_path: "{path}", model_platform: "tensorflow" }} }}'
    )


def test_a_good_model_config(shared_models: Path, tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text(
        config_text("half_plus_two", shared_models / HALF_PLUS_TWO)
        + config_text("half_plus_three", shared_models / HALF_PLUS_THREE)
    )
    with running(tmp_path, f"--model_config_file={config}") as binary:
        check_predict(f"localhost:{binary.port}", "half_plus_two", 3.0)
        check_predict(f"localhost:{binary.port}", "half_plus_three", 4.0)


def test_a_bad_model_config_ends_it(tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text("improper model config list: {}")
    binary = Binary(tmp_path, f"--model_config_file={config}")
    stdout, _ = binary.process.communicate(timeout=60)
    assert binary.process.returncode == 255
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in binary.stderr
    text = f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{config}'"
    assert stdout.decode().startswith(text)


@pytest.mark.parametrize("poll_wait_s", [1, 0])
def test_the_model_config_is_read_again(shared_models: Path, tmp_path: Path, poll_wait_s: int) -> None:
    config = tmp_path / "models.config"
    config.write_text(config_text("half_plus_two", shared_models / HALF_PLUS_TWO))
    flags = [f"--model_config_file={config}", f"--model_config_file_poll_wait_seconds={poll_wait_s}"]
    with running(tmp_path, *flags) as binary:
        target = f"localhost:{binary.port}"
        check_predict(target, "half_plus_two", 3.0)
        temporary = tmp_path / "next.config"
        temporary.write_text(config_text("half_plus_three", shared_models / HALF_PLUS_THREE))
        os.rename(temporary, config)
        if poll_wait_s == 0:
            # Nothing tells when nothing happens; the file is older than several polls of the other case here.
            time.sleep(3)  # see above
            check_predict(target, "half_plus_two", 3.0)
            return
        wait_until(lambda: serves(target, "half_plus_three", 4.0), "the new model")
        wait_until(lambda: not serves(target, "half_plus_two", 3.0), "the old model to go")


def test_flags_in_the_space_form_are_no_flags(shared_models: Path, tmp_path: Path) -> None:
    """1.1: both words are unknown arguments, the first is named on stdout, and the server runs."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("tensorflow_model_server")),
        f"--port={port}",
        *single(shared_models),
        "--rest_api_port",
        str(free_port()),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), "an answer")
    finally:
        process.terminate()
        stdout, _ = process.communicate(timeout=30)
    assert stdout.decode().startswith("unknown argument: --rest_api_port\nusage: ")


def answers(port: int) -> bool:
    """Whether the default model answers on this port."""
    try:
        check_predict(f"localhost:{port}", "default", 3.0)
    except grpc.RpcError:
        return False
    return True


def test_typed_fields_by_default_and_content_on_request(shared_models: Path, tmp_path: Path) -> None:
    """2.6"""
    with running(tmp_path, *single(shared_models), "--enable_serialization_as_tensor_content=true") as binary:
        with grpc.insecure_channel(f"localhost:{binary.port}") as opened:
            result = prediction_service_pb2_grpc.PredictionServiceStub(opened).Predict(predict_request(), timeout=5)
        assert not result.outputs["y"].float_val
        assert tf.make_ndarray(result.outputs["y"]).tolist() == [3.0]
        answer = binary.rest("/v1/models/default:predict", {"instances": [2.0]})
        assert answer == {"predictions": [3.0]}
