"""Predict from outside: the official client over gRPC and curl over REST, through both gRPC engines."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc, predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

from tests import exporters
from tests.e2e.clients import make_request, outputs_of
from tests.e2e.export_models import NAMES
from tests.e2e.server import Server, wait_until

_LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

CONFIG = """
[server]
grpc_engine = "{engine}"
[workers]
workers = 2
[batching]
batch_rows_max = 16
split = true
{models}
"""


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All test models behind one server, once for each gRPC engine."""
    folder = tmp_path_factory.mktemp("server")
    tables = [f'[[models]]\nname = "{name}"\nbase_path = "{models / name}"\n' for name in NAMES]
    tables.append(f'[[models]]\nname = "absent"\nbase_path = "{folder / "nowhere"}"\n')
    (folder / "broken" / "5").mkdir(parents=True)
    tables.append(f'[[models]]\nname = "broken"\nbase_path = "{folder / "broken"}"\n')
    (folder / "server.toml").write_text(CONFIG.format(engine=request.param, models="\n".join(tables)))
    with Server(folder, "--config", str(folder / "server.toml"), "--incomplete_ms_max", "1000") as server:
        for name in NAMES:
            server.wait_available(name)
        wait_until(lambda: server.status("broken")[0]["state"] == "END", "the broken model to be given up")
        yield server


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_target, options=_LARGE) as channel:
        yield prediction_grpc.PredictionServiceStub(channel)


def predict(stub: Any, model: str, signature: str = "", outputs: tuple[str, ...] = (), **inputs: Any) -> dict[str, Any]:
    return outputs_of(stub.Predict(make_request(model, signature, None, outputs, **inputs), timeout=60))


def refusal(stub: Any, request: predict_pb2.PredictRequest) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=60)
    return caught.value.code(), caught.value.details()


# ------------------------------------------------------------------------------------------------------------- gRPC


def test_answers_are_the_models(stub: Any) -> None:
    assert predict(stub, "half", x=np.array([1.0, 2.0, 5.0], np.float32))["y"].tolist() == [2.5, 3.0, 4.5]


def test_the_answer_says_what_ran(stub: Any) -> None:
    response = stub.Predict(make_request("half", x=np.array([1.0], np.float32)), timeout=60)
    assert (response.model_spec.name, response.model_spec.version.value) == ("half", 1)
    assert response.model_spec.signature_name == "serving_default"


def test_many_callers_at_once_get_their_own_answers(stub: Any) -> None:
    def call(number: int) -> bool:
        x = np.full(1 + number % 5, number, np.float32)
        return bool(np.array_equal(predict(stub, "half", x=x)["y"], x / 2 + 2))

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(400)))


def test_a_request_larger_than_a_batch_is_split_and_joined(stub: Any) -> None:
    x = np.arange(1000, dtype=np.float32)
    assert np.array_equal(predict(stub, "half", x=x)["y"], x / 2 + 2)


def test_64_mb_there_and_back(stub: Any) -> None:
    x = np.random.default_rng(3).random((1, 16 * 1024 * 1024), np.float32)
    assert np.array_equal(predict(stub, "echo", x=x)["y"], 2 * x)


def test_string_tensors(stub: Any) -> None:
    got = predict(stub, "strings", text=np.array([b"a", b"", b"\xff\x00z"], object))
    assert got["upper"].tolist() == [b"A", b"", b"\xff\x00Z"]
    assert got["length"].tolist() == [1, 0, 3]
    assert got["pair"].tolist() == [[b"a", b"a"], [b"", b""], [b"\xff\x00z"] * 2]


def test_tables_and_assets(stub: Any) -> None:
    assert predict(stub, "table", word=np.array([b"two", b"none", b"zero"], object))["id"].tolist() == [2, -1, 0]


def test_several_inputs_and_outputs_and_a_filter(stub: Any) -> None:
    a, b = np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
    everything = predict(stub, "several", a=a, b=b)
    assert len(everything) > 1
    for alias, value in everything.items():
        only = predict(stub, "several", outputs=(alias,), a=a, b=b)
        assert list(only) == [alias]
        assert np.array_equal(only[alias], value)


def test_scalars_run_alone(stub: Any) -> None:
    assert predict(stub, "scalar", x=np.float32(2.5), n=np.int32(4))["y"] == 10.0


def test_every_dtype_comes_back_as_it_went(stub: Any) -> None:
    for name in exporters.IDENTITY_DTYPES:
        dtype = tf.as_dtype(name)
        values = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype.as_numpy_dtype)
        got = predict(stub, "identities", name, x=tf.constant(values, dtype))
        ((_, back),) = got.items()
        assert back.dtype == values.dtype, name
        assert np.array_equal(back, values), name


def test_empty_tensors(stub: Any) -> None:
    assert predict(stub, "half", x=np.zeros(0, np.float32))["y"].shape == (0,)


def test_outputs_that_do_not_follow_the_rows(stub: Any) -> None:
    got = predict(stub, "not_per_row", x=np.array([[1, 2], [3, 4]], np.float32))
    assert got["total"].tolist() == [10.0]
    assert got["pairs"].shape == (4, 2)


def test_every_shared_model_answers_as_its_table_says(shared_models: Path, tmp_path: Path) -> None:
    names = [
        "half_plus_three", "half_plus_two_2_versions", "half_plus_two_cpu", "half_plus_two_gpu",
        "half_plus_two_gpu_trt", "half_plus_two_mkl", "half_plus_two_mlmd", "half_plus_two_tf2_cpu",
    ]  # fmt: skip
    tables = [f'[[models]]\nname = "{name}"\nbase_path = "{shared_models / f"saved_model_{name}"}"\n' for name in names]
    tables.append(f'[[models]]\nname = "matrix"\nbase_path = "{shared_models / "matrix_half_plus_two"}"\n')
    tables.append(f'[[models]]\nname = "counter"\nbase_path = "{shared_models / "saved_model_counter"}"\n')
    tables.append(f'[[models]]\nname = "bad"\nbase_path = "{shared_models / "bad_half_plus_two"}"\n')
    (tmp_path / "server.toml").write_text("[workers]\nworkers = 1\n" + "\n".join(tables))
    with Server(tmp_path, "--config", str(tmp_path / "server.toml")) as server:
        for name in [*names, "matrix", "counter"]:
            server.wait_available(name)
        with grpc.insecure_channel(server.grpc_target) as channel:
            stub = prediction_grpc.PredictionServiceStub(channel)
            x = np.array([2.0, 3.0, 4.0], np.float32)
            for name in names:
                expected = [4.0, 4.5, 5.0] if name == "half_plus_three" else [3.0, 3.5, 4.0]
                assert predict(stub, name, x=x)["y"].tolist() == expected, name
            matrix = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3)
            assert np.array_equal(predict(stub, "matrix", x=matrix)["y"], matrix / 2 + 2)
            steps = [("get_counter", {}, 0.0), ("incr_counter", {}, 1.0), ("incr_counter_by", {"delta": 3.0}, 4.0)]
            for signature, inputs, value in [*steps, ("get_counter", {}, 4.0), ("reset_counter", {}, 0.0)]:
                assert predict(stub, "counter", signature, **inputs)["output"] == value, signature  # type: ignore[arg-type]
        status, body = server.post("/v1/models/half_plus_two_cpu:predict", b'{"instances": [1.0, 2.0, 5.0]}')
        assert (status, json.loads(body)) == (200, {"predictions": [2.5, 3.0, 4.5]})
        (bad,) = wait_until(
            lambda: [version for version in server.status("bad") if version["state"] == "END"], "the bad model's end"
        )
        assert "saved_model.pb" in bad["status"]["error_message"]


def test_one_bad_request_among_good_ones_fails_alone(stub: Any) -> None:
    def call(number: int) -> str:
        try:
            x = -1.0 if number % 7 == 0 else float(number)
            return "ok" if predict(stub, "picky", x=np.array([x], np.float32))["y"] == 2 * x else "wrong"
        except grpc.RpcError as error:
            return str(error.code().name)

    with ThreadPoolExecutor(16) as threads:
        outcomes = list(threads.map(call, range(210)))
    assert {outcome for number, outcome in enumerate(outcomes) if number % 7} == {"ok"}
    assert {outcome for number, outcome in enumerate(outcomes) if number % 7 == 0} == {"INVALID_ARGUMENT"}


REFUSALS = [
    (make_request("nope", x=[1.0]), "NOT_FOUND", "Servable not found for request: Latest(nope)"),
    (make_request("absent", x=[1.0]), "NOT_FOUND", "Servable not found for request: Latest(absent)"),
    (make_request("broken", x=[1.0]), "NOT_FOUND", "Servable not found for request: Latest(broken)"),
    (make_request("half", version=7, x=[1.0]), "NOT_FOUND", "Servable not found for request: Specific(half, 7)"),
    (make_request("", x=[1.0]), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    (make_request("half", "s", x=[1.0]), "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
    (
        make_request("half", z=[1.0]),
        "INVALID_ARGUMENT",
        "input size does not match signature: 1!=1 len({z}) != len({x}). Sent extra: {z}. Missing but required: {x}.",
    ),
    (
        make_request("half", outputs=("y", "y"), x=[1.0]),
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: y",
    ),
    (
        make_request("half", outputs=("q",), x=[1.0]),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: q Outputs expected to be in the set {y}.",
    ),
    (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
]


@pytest.mark.parametrize(("request_", "code", "text"), REFUSALS, ids=[text[:40] for _, _, text in REFUSALS])
def test_refusals_have_the_codes_and_texts_of_tensorflow_serving(
    stub: Any, request_: predict_pb2.PredictRequest, code: str, text: str
) -> None:
    got = refusal(stub, request_)
    if "input size" in text:
        # By TF Serving's order a wrong name in the right number is reported by the next check.
        assert got[0].name == code
        assert "z" in str(got[1])
    else:
        assert (got[0].name, got[1]) == (code, text)


def test_a_truncated_tensor_is_a_parsing_error(stub: Any) -> None:
    request = make_request("half", x=np.array([1.0, 2.0, 3.0], np.float32))
    request.inputs["x"].tensor_content = b"12345678"
    assert refusal(stub, request) == (grpc.StatusCode.INVALID_ARGUMENT, "tensor parsing error: x")


def test_model_status_over_grpc(server: Server) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "broken"
    with grpc.insecure_channel(server.grpc_target) as channel:
        response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=60)
    (status,) = response.model_version_status
    assert (status.version, status.state) == (5, get_model_status_pb2.ModelVersionStatus.END)
    assert "saved_model.pb" in status.status.error_message


def test_a_deadline_that_passes_is_told_and_the_server_goes_on(stub: Any) -> None:
    x = np.array([1.0], np.float32)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(make_request("slow", x=x, turns=np.array([200_000], np.int32)), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert predict(stub, "slow", x=x, turns=np.array([3], np.int32))["y"] == 4.0


def test_the_frontend_has_not_imported_tensorflow(server: Server) -> None:
    for role in ("frontend", "broker", "superviso"):
        for process in server.members(role):
            mapped = {Path(mapping.path).name for mapping in process.memory_maps()}
            assert not any(name.startswith("libtensorflow") for name in mapped), role


# ------------------------------------------------------------------------------------------------------------- REST


def curl(server: Server, path: str, *arguments: str) -> tuple[int, str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    command = ["curl", "-sS", "-m", "60", "-w", "\n%{http_code}", *arguments, f"{server.rest_url}{path}"]
    body, _, status = subprocess.run(command, check=True, capture_output=True, text=True).stdout.rpartition("\n")
    return int(status), body


def test_rows_and_columns(server: Server) -> None:
    status, body = curl(server, "/v1/models/half:predict", "-d", '{"instances": [1.0, 2.0, 5.0]}')
    assert (status, body) == (200, '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}')
    status, body = curl(server, "/v1/models/half/versions/1:predict", "-d", '{"inputs": [3.0, 4.0]}')
    assert (status, json.loads(body)) == (200, {"outputs": [3.5, 4.0]})


def test_rest_status(server: Server) -> None:
    status, body = curl(server, "/v1/models/half")
    ok = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert (status, json.loads(body)) == (200, {"model_version_status": [ok]})


@pytest.mark.parametrize(
    ("path", "data", "status", "text"),
    [
        ("/v1/models/nope:predict", '{"instances": [1]}', 404, "Servable not found for request: Latest(nope)"),
        ("/v1/models/nope:predict", "{", 400, "JSON Parse error"),
        ("/v1/models/half:predict?a=1", "{}", 400, "Malformed request: POST /v1/models/half:predict?a=1"),
        ("/v1/models/half:predict", '{"instances": [1, [1]]}', 400, "Expecting shape [] but got: [1]"),
        (
            "/v1/models/half:predict",
            '{"signature_name": "s", "instances": [1]}',
            400,
            'Serving signature name: \\"s\\" not found in signature def',
        ),
    ],
)
def test_rest_refusals(server: Server, path: str, data: str, status: int, text: str) -> None:
    got_status, body = curl(server, path, "-d", data)
    assert got_status == status
    assert text in body


def test_both_protocols_give_the_same_answer(server: Server, stub: Any) -> None:
    x = np.random.default_rng(5).random((3, 784), np.float32)
    ((alias, over_grpc),) = predict(stub, "mlp", x=x).items()
    status, body = server.post("/v1/models/mlp:predict", json.dumps({"instances": x.tolist()}).encode())
    assert status == 200
    np.testing.assert_allclose(json.loads(body)["predictions"], over_grpc, rtol=1e-5, atol=1e-7, err_msg=alias)


def test_a_stateful_model_keeps_one_state_whichever_worker_is_free(stub: Any) -> None:
    start = float(predict(stub, "counter", "get")["output"])

    def call(number: int) -> None:
        if number % 3:
            predict(stub, "counter", "add", delta=np.float32(1))
        else:
            assert predict(stub, "counter", "get")["output"] >= start

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(call, range(240)))
    assert predict(stub, "counter", "get")["output"] == start + 160


def test_health(server: Server) -> None:
    assert curl(server, "/healthz")[0] == 200
    status, body = curl(server, "/readyz")
    assert status == 503
    assert "broken" in body
