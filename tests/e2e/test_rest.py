"""The REST API of a whole server: real sockets, processes and TensorFlow, asked by Python's HTTP client and curl."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.e2e.conftest import SHARED_MODELS
from tests.e2e.server import Server, wait_until

CONFIG = """
[server]
rest_api_enable_cors_support = true
rest_body_bytes_max = "64MiB"
connections_max = 200
[workers]
workers = 2
{models}
"""
NAMES = ("half", "identities", "mlp", "echo", "slow", "strings", "several")


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    tables = [f'[[models]]\nname = "{name}"\nbase_path = "{models / name}"\n' for name in NAMES]
    if SHARED_MODELS.is_dir():
        half_plus_two = SHARED_MODELS / "saved_model_half_plus_two_cpu"
        tables.append(f'[[models]]\nname = "m"\nbase_path = "{half_plus_two}"\n')
    tables.append(f'[[models]]\nname = "absent"\nbase_path = "{folder / "nowhere"}"\n')
    (folder / "server.toml").write_text(CONFIG.format(models="\n".join(tables)))
    with Server(folder, "--config", str(folder / "server.toml")) as server:
        for name in (*NAMES, *(["m"] if SHARED_MODELS.is_dir() else [])):
            server.wait_available(name)
        yield server


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(server.rest_url).netloc, timeout=60)


def ask(
    server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    connection = connect(server)
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, data, headers or {})
    response = connection.getresponse()
    answer = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def predict(server: Server, model: str, **body: Any) -> Any:
    status, _, answer = ask(server, "POST", f"/v1/models/{model}:predict", body)
    assert status == 200, answer
    return json.loads(answer)


def test_the_checklist_of_the_specification(server: Server) -> None:
    """Spec 11, numbers 1 to 10, 21 and 22, as far as one model shows them."""
    half = "/v1/models/half"
    facts: list[tuple[str, str, bytes, int, str]] = [
        ("POST", ":predict", b'{"instances":[1.0,2.0,5.0]}zzz', 200, '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'),
        ("POST", ":predict", b'{"inputs":{"x":[3],"extra":1}}', 200,
         '{\n    "outputs": [\n        3.5\n    ]\n}'),
        ("POST", ":predict", b'{"instances":[{"x":3,"extra":1}]}', 400, "does not have named input: extra"),
        ("POST", ":predict", b'{"instances":[1,[1]]}', 400, "Expecting shape [] but got: [1]"),
        ("POST", ":predict", b'{"instances":[[1,2],[3,4],[5,6,7]]}', 400, "Expecting tensor size: 2 but got: 3"),
        ("POST", ":predict?a=1", b"{}", 400, f"Malformed request: POST {half}:predict?a=1"),
        ("POST", ":PREDICT", b"{}", 400, f"Malformed request: POST {half}:PREDICT"),
        ("GET", "?x", b"", 404, "Could not find any versions of model half?x"),
        ("POST", "/versions/18446744073709551615:predict", b"{}", 400, ""),
        ("POST", "/versions/abc:predict", b"{}", 400, "Malformed request"),
        ("POST", "/labels/L:predict", b'{"instances":[1]}', 400, "Unrecognized servable version label: L"),
        ("GET", "/labels/L", b"", 200, '"version": "1"'),
        ("POST", ":predict", b'{"signature_name":"s"}', 400,
         'Serving signature name: \\"s\\" not found in signature def'),
        ("POST", ":predict", b'{"instances":[1e10,0.3333333,NaN,-Infinity]}', 200,
         '{\n    "predictions": [5e+09, 2.16666675, NaN, -Infinity\n    ]\n}'),
        ("OPTIONS", "", b"", 400, ""),
    ]  # fmt: skip
    for method, end, body, status, text in facts:
        got_status, headers, got = ask(server, method, half + end, body)
        assert got_status == status, (method, end, got)
        assert (text in got.decode()) if text else not got, (method, end, got)
        assert headers["access-control-allow-origin"] == "*"
    status, _, body = ask(server, "POST", "/v1/models/nope:predict", b"{")
    assert (status, b"JSON Parse error" in body) == (400, True)
    status, _, _ = ask(server, "OPTIONS", half, None, {"Origin": "http://a"})
    assert status == 200
    status, _, body = ask(
        server, "POST", f"{half}:predict", gzip.compress(b'{"instances":[1]}'), {"Content-Encoding": "gzip"}
    )
    assert (status, json.loads(body)) == (200, {"predictions": [2.5]})


def test_every_dtype_comes_back(server: Server) -> None:
    values: dict[str, list[Any]] = {
        "float32": [0.5, -1.0], "float64": [0.1, 1e300], "float16": [0.5, 65504.0], "bfloat16": [0.5, 256.0],
        "int8": [-128, 127], "int16": [-32768, 32767], "int32": [-(2**31), 2**31 - 1], "int64": [-(2**63), 2**63 - 1],
        "uint8": [0, 255], "uint16": [0, 65535], "uint32": [0, 2**32 - 1], "uint64": [0, 2**64 - 1],
        "bool": [True, False], "string": ["a", "é"],
    }  # fmt: skip
    for name, value in values.items():
        answer = predict(server, "identities", signature_name=name, instances=[value, value])
        assert answer == {"predictions": [value, value]}, name
        assert predict(server, "identities", signature_name=name, inputs=value[0]) == {"outputs": value[0]}, name


def test_several_inputs_and_outputs(server: Server) -> None:
    rows = [{"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0]}, {"b": [0.5, 0.25], "a": [0.0, 0.0, 1.0]}]
    answer = predict(server, "several", instances=rows)["predictions"]
    assert [row["both"] for row in answer] == [[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 1.0, 0.5, 0.25]]
    columns = predict(server, "several", inputs={key: [row[key] for row in rows] for key in ("a", "b")})["outputs"]
    assert columns == {key: [row[key] for row in answer] for key in ("both", "sum", "scaled")}


def test_40_mb_there_and_back(server: Server) -> None:
    x = np.random.default_rng(3).random((2, 1_000_000), np.float32)
    body = json.dumps({"instances": x.tolist()}).encode()
    assert len(body) > 35_000_000
    status, _, answer = ask(server, "POST", "/v1/models/echo:predict", body)
    assert status == 200
    assert np.array_equal(np.array(json.loads(answer)["predictions"], np.float32), 2 * x)


def test_a_body_above_the_limit(server: Server) -> None:
    connection = connect(server)
    connection.putrequest("POST", "/v1/models/half:predict")
    connection.putheader("Content-Length", str(65 * 2**20))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert b"rest_body_bytes_max" in response.read()
    connection.close()


def test_arrays_as_npy_files(server: Server) -> None:
    x = np.random.default_rng(4).random((3, 1_000_000), np.float32)
    for rows in (x[:1], x, x[:0:-1]):
        file = io.BytesIO()
        np.save(file, rows)
        status, headers, answer = ask(
            server, "POST", "/v1/models/echo:predict", file.getvalue(), {"Content-Type": "application/x-npy"}
        )
        assert (status, headers["content-type"]) == (200, "application/x-npy")
        assert np.array_equal(np.load(io.BytesIO(answer)), 2 * rows)


def test_binary_tensors_of_the_open_inference_protocol(server: Server) -> None:
    a, b = np.array([[1, 2, 3]], np.float32), np.array([[4, 5]], np.float32)
    inputs = [
        {"name": name, "datatype": "FP32", "shape": rows.shape, "parameters": {"binary_data_size": rows.nbytes}}
        for name, rows in (("b", b), ("a", a))
    ]
    outputs = [{"name": "sum"}, {"name": "both", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    for turn in range(3):
        body = head + (turn * b).tobytes() + (turn * a).tobytes()
        status, headers, answer = ask(
            server, "POST", "/v2/models/several/infer", body, {"Inference-Header-Content-Length": str(len(head))}
        )
        size = int(headers["inference-header-content-length"])
        total, both = json.loads(answer[:size])["outputs"]
        assert (status, total["data"], both["shape"]) == (200, [15.0 * turn], [1, 5])
        assert np.frombuffer(answer[size:], np.float32).tolist() == [turn * value for value in (1, 2, 3, 4, 5)]


def test_every_dtype_of_the_open_inference_protocol(server: Server) -> None:
    named = {"float32": "FP32", "float64": "FP64", "float16": "FP16", "bool": "BOOL"}
    named |= {f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)}
    for name, datatype in named.items():
        one = {"name": "x", "datatype": datatype, "shape": [2], "data": [True, False] if name == "bool" else [1, 0]}
        body = {"inputs": [one], "parameters": {"signature_name": name}}
        status, _, answer = ask(server, "POST", "/v2/models/identities/versions/1/infer", body)
        assert status == 200, answer
        (output,) = json.loads(answer)["outputs"]
        assert (output["datatype"], output["shape"], output["data"]) == (datatype, [2], one["data"])
    text = {"name": "x", "datatype": "BYTES", "shape": [2], "data": ["a", "é"]}
    body = {"inputs": [text], "parameters": {"signature_name": "string"}}
    assert json.loads(ask(server, "POST", "/v2/models/identities/infer", body)[2])["outputs"][0]["data"] == ["a", "é"]
    assert ask(server, "GET", "/v2/models/half/ready")[0] == 200
    assert ask(server, "GET", "/v2/models/absent/ready")[0] == 503


def test_many_clients_on_kept_connections(server: Server) -> None:
    def work(number: int) -> None:
        connection = connect(server)
        for turn in range(30):
            x = number + turn / 64
            connection.request("POST", "/v1/models/half:predict", json.dumps({"instances": [x, x + 1]}))
            response = connection.getresponse()
            assert json.loads(response.read()) == {"predictions": [x / 2 + 2, (x + 1) / 2 + 2]}
        connection.close()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(48)))


def test_a_timeout_is_504(server: Server) -> None:
    body = {"instances": [{"x": 1.0, "turns": 200_000}]}
    status, _, answer = ask(server, "POST", "/v1/models/slow:predict", body, {"X-Request-Timeout": "0.05"})
    assert status == 504
    assert json.loads(answer)["error"].startswith("Timed out waiting for notification")
    assert predict(server, "slow", instances=[{"x": 1.0, "turns": 3}]) == {"predictions": [4.0]}


def test_metadata_and_status(server: Server) -> None:
    status, _, answer = ask(server, "GET", "/v1/models/half/metadata")
    signature = json.loads(answer)["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert status == 200
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    status, _, answer = ask(server, "GET", "/ringserve/v1/models/half")
    summary = json.loads(answer)
    assert (status, summary["serving"], summary["ready"]) == (200, 1, True)
    assert summary["signatures"]["serving_default"]["inputs"] == {"x": {"dtype": "float", "shape": [-1]}}


def test_readiness(server: Server) -> None:
    assert ask(server, "GET", "/healthz")[0] == 200
    assert ask(server, "GET", "/readyz/half")[0] == 200
    for path in ("/readyz", "/readyz/absent"):
        status, _, body = ask(server, "GET", path)
        assert status == 503
        assert b"absent" in body


def test_the_metrics_pages(server: Server) -> None:
    predict(server, "half", instances=[1])

    def page(path: str) -> str:
        status, headers, body = ask(server, "GET", path)
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        assert "access-control-allow-origin" not in headers
        return body.decode()

    tfs = page("/monitoring/prometheus/metrics")
    assert "# TYPE :tensorflow:serving:request_count counter\n" in tfs
    assert ':tensorflow:serving:request_count{model_name="half",status="OK"} ' in tfs
    latency = ':tensorflow:serving:request_latency_count{model_name="half",API="predict",entrypoint="REST"} '
    assert latency in tfs
    assert ':tensorflow:serving:runtime_latency_count{model_name="half",API="Predict",runtime="TF1"} ' in tfs
    page("/metrics")
    assert ask(server, "GET", "/monitoring/prometheus/metrics?a")[0] == 400


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
@pytest.mark.parametrize("options", [[], ["--http1.0"], ["--http2"], ["-H", "Transfer-Encoding: chunked"]])
def test_curl(server: Server, options: list[str]) -> None:
    command = ["curl", "-sS", "-m", "60", "-d", '{"instances": [1.0]}', *options]
    run = subprocess.run([*command, f"{server.rest_url}/v1/models/half:predict"], capture_output=True, check=True)
    assert run.stdout == b'{\n    "predictions": [2.5\n    ]\n}'


def test_classify_and_regress(server: Server, shared_models: Path) -> None:
    """By one of TensorFlow Serving's test models."""
    body: dict[str, Any] = {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}, {"x": [5.0]}]}
    status, _, answer = ask(server, "POST", "/v1/models/m:regress", body)
    assert (status, answer) == (200, b'{\n    "results": [3.0, 4.5]\n}')
    body = {"signature_name": "classify_x_to_y", "context": {"x": 7.0}, "examples": [{"x": 2.0}, {}]}
    status, _, answer = ask(server, "POST", "/v1/models/m:classify", body)
    assert (status, answer) == (200, b'{\n    "results": [[["", 3.0]], [["", 5.5]]\n    ]\n}')
    # an integer makes an integer feature, which the model's parser refuses
    body = {"signature_name": "regress_x_to_y", "examples": [{"x": 8}]}
    status, _, answer = ask(server, "POST", "/v1/models/m:regress", body)
    assert status == 400
    assert "error" in json.loads(answer)


def test_a_recorded_warm_up_file_warms_up(server: Server, models: Path, tmp_path: Path) -> None:
    """Requests of a running server, recorded, and replayed by the next one before its model serves."""
    rows = [{"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0]}]
    recorded: list[tuple[int, dict[str, str], bytes]] = []

    def record() -> None:
        path = "/ringserve/v1/models/several:record"
        headers = {"Content-Type": "application/json"}
        recorded.append(ask(server, "POST", path, {"count": 3, "seconds": 60}, headers))

    thread = threading.Thread(target=record)
    thread.start()
    limit = time.monotonic() + 60
    while thread.is_alive() and time.monotonic() < limit:
        predict(server, "several", instances=rows)
    thread.join()
    ((status, headers, file),) = recorded
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    shutil.copytree(models / "several", tmp_path / "several")
    extra = tmp_path / "several" / "1" / "assets.extra"
    extra.mkdir()
    (extra / "tf_serving_warmup_requests").write_bytes(file)
    arguments = ["--model_name", "several", "--model_base_path", str(tmp_path / "several"), "--workers", "1"]
    with Server(tmp_path, *arguments) as other:
        other.wait_available("several")
        summary = json.loads(ask(other, "GET", "/ringserve/v1/models/several")[2])
        assert any("3" in note for note in summary["versions"][0]["notes"]), summary
        wait_until(lambda: predict(other, "several", instances=rows), "the model to answer")
