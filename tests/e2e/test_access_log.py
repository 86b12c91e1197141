"""The access log of a whole server, as its operator and its clients see it: curl, the official gRPC client, a file.

Held here: ids come back over both protocols, with answers and refusals, and are found in the log; lines tell of batch
and run; a file that is rotated while calls come loses no line; the file is the server's alone; metrics count the lines.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.clients import make_request
from tests.e2e.server import Server, wait_until

PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "access.log"


@pytest.fixture(scope="module")
def server(models: Path, path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ["--model_name", "mlp", "--model_base_path", str(models / "mlp"), "--workers", "1", "--frontends", "2"]
    arguments += ["--access_log", str(path), "--log_format", "json", "--access_log_lines_per_s_max", "100000"]
    with Server(tmp_path_factory.mktemp("server"), *arguments) as server:
        server.wait_available("mlp")
        yield server


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def line_of(path: Path, request_id: str) -> dict[str, Any]:
    """The only line of this request."""
    found = wait_until(
        lambda: [line for line in lines_of(path) if line.get("request_id") == request_id], f"a line of {request_id}"
    )
    assert len(found) == 1
    line: dict[str, Any] = found[0]
    return line


def trailer(call: Any) -> str:
    """The id that a call was told."""
    return str(dict(call.trailing_metadata())["x-request-id"])


def curl(*arguments: str) -> tuple[int, dict[str, str], str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "-i", "--max-time", "60", *arguments]
    head, _, body = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n\n")
    first, *lines = head.replace("\r", "").splitlines()
    return int(first.split()[1]), dict(re.split(": ", line.lower(), maxsplit=1) for line in lines), body


def test_a_call_is_found_by_its_id(stub: Any, path: Path) -> None:
    request = make_request("mlp", x=np.zeros((3, 784), np.float32))
    _, call = stub.Predict.with_call(request, timeout=60, metadata=[("x-request-id", "grpc-1")])
    assert trailer(call) == "grpc-1"
    line = line_of(path, "grpc-1")
    assert re.fullmatch(r"frontend-\d", line["process"])
    told = (line["method"], line["status"], line["model"], line["version"], line["rows"], line["batch_rows"])
    assert told == (PREDICT, "OK", "mlp", 1, 3, 3)
    assert 0 < line["run_ms"] < line["duration_ms"]
    assert line["request_bytes"] == request.ByteSize()


def test_a_refused_call_is_found_by_the_id_that_it_was_given(stub: Any, path: Path) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(make_request("none", x=np.zeros((1, 784), np.float32)), timeout=60)
    line = line_of(path, trailer(caught.value))
    assert (line["status"], line["model"]) == ("NOT_FOUND", "none")
    assert line["error"].startswith("Servable not found")


def test_a_request_is_found_by_its_id(server: Server, path: Path) -> None:
    body = json.dumps({"instances": [[0.0] * 784]})
    url = f"{server.rest_url}/v1/models/mlp:predict"
    status, headers, _ = curl(url, "-d", body, "-H", "X-Request-Id: rest-1")
    assert (status, headers["x-request-id"]) == (200, "rest-1")
    line = line_of(path, "rest-1")
    assert (line["path"], line["status"], line["rows"]) == ("/v1/models/mlp:predict", 200, 1)
    status, headers, _ = curl(url, "-d", "{", "-H", "X-Request-Id: a\tb")
    assert (status, line_of(path, headers["x-request-id"])["status"]) == (400, 400)


def test_the_file_is_rotated_while_calls_come(server: Server, stub: Any, path: Path) -> None:
    request = make_request("mlp", x=np.zeros((1, 784), np.float32))
    old = path.with_suffix(".1")

    def call(number: int) -> None:
        if number == 150:
            path.rename(old)
        stub.Predict(request, timeout=60, metadata=[("x-request-id", f"many-{number}")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(300)))

    def found() -> list[str]:
        ids = [line.get("request_id", "") for line in lines_of(old, path)]
        return sorted(each for each in ids if each.startswith("many-"))

    wait_until(lambda: len(found()) >= 300, f"300 lines, not {len(found())}")
    assert found() == sorted(f"many-{number}" for number in range(300))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_metrics_count_the_lines(server: Server, path: Path) -> None:
    def count() -> float:
        with urllib.request.urlopen(f"{server.rest_url}/metrics", timeout=60) as response:
            text = response.read().decode()
        found = re.findall(r'ringserve_access_log_lines_total\{process="[^"]+",end="written"\} (\S+)', text)
        return sum(map(float, found))

    written = len(lines_of(path.with_suffix(".1"), path))
    assert written
    wait_until(lambda: count() >= written, f"{written} lines to be counted; there are {count()}")
