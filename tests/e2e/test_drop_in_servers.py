"""`tensorflow_model_server` replaced, nothing else changed: flags and files, each with a server of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    prediction_service_pb2_grpc,
)

from tests.e2e.binary import (
    HALF_PLUS_THREE,
    HALF_PLUS_TWO,
    Binary,
    check_predict,
    free_port,
    predict_request,
    running,
    single,
)
from tests.e2e.server import wait_until

# -------------------------------------------------------------------------------------------- servers of their own


def test_batching_parameters_and_channel_arguments_of_grpc(shared_models: Path, tmp_path: Path) -> None:
    parameters = tmp_path / "batching"
    parameters.write_text(
        "max_batch_size { value: 16 }\nbatch_timeout_micros { value: 0 }\nmax_enqueued_batches { value: 100 }\n"
        "num_batch_threads { value: 8 }\n"
    )
    flags = ["--enable_batching", f"--batching_parameters_file={parameters}"]
    flags += ["--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb"]
    with running(tmp_path, *single(shared_models), *flags) as binary:
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
        if error.code() is grpc.StatusCode.NOT_FOUND and "Servable not found" in str(error.details()):
            return False
        raise
    return True


def config_text(models: dict[str, Path]) -> str:
    entries = (
        f'config: {{ name: "{name}", base_path: "{path}", model_platform: "tensorflow" }}'
        for name, path in models.items()
    )
    return f"model_config_list: {{ {', '.join(entries)} }}"


def test_a_bad_model_config_ends_it(tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text("improper model config list: {}")
    binary = Binary(tmp_path, f"--model_config_file={config}")
    stdout, _ = binary.process.communicate(timeout=60)
    assert binary.process.returncode == 255
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in binary.stderr
    text = f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{config}'"
    assert stdout.decode().startswith(text)


TF2 = "saved_model_half_plus_two_tf2_cpu"


@pytest.mark.parametrize("poll_wait_s", [1, 0])
def test_a_model_config_of_two_models_and_whether_it_is_read_again(
    shared_models: Path, tmp_path: Path, poll_wait_s: int
) -> None:
    """One of the models was exported by TensorFlow 2."""
    config = tmp_path / "models.config"
    config.write_text(config_text({"half_plus_two": shared_models / HALF_PLUS_TWO, "two": shared_models / TF2}))
    flags = [f"--model_config_file={config}", f"--model_config_file_poll_wait_seconds={poll_wait_s}"]
    with running(tmp_path, *flags) as binary:
        target = f"localhost:{binary.port}"
        check_predict(target, "half_plus_two", 3.0)
        check_predict(target, "two", 3.0)
        assert binary.rest("/v1/models/two:predict", {"instances": [2.0]}) == {"predictions": [3.0]}
        temporary = tmp_path / "next.config"
        temporary.write_text(config_text({"half_plus_three": shared_models / HALF_PLUS_THREE}))
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
