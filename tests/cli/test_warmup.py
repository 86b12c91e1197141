"""`ringserve warmup`: the files it makes load and run, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ringserve.config.protos import PredictionLog
from ringserve.config.tfrecord import WARMUP_FILE, read_records, write_record

Invoke = Callable[..., Result]


@pytest.fixture
def invoke() -> Invoke:
    from ringserve.cli import main

    return lambda *arguments: CliRunner().invoke(main, ["warmup", *map(str, arguments)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from tests import exporters

    base = tmp_path_factory.mktemp("models")
    return lambda name: (
        base / name / "1" if (base / name / "1").exists() else getattr(exporters, name)(base / name / "1")
    )


def logs(path: Path) -> list[Any]:
    return [PredictionLog.FromString(record) for record in read_records(path.read_bytes())]


def load(directory: Path) -> Any:
    """Open the version as a worker does, with its warm-up file."""
    import itertools

    from ringserve.broker.messages import LoadOrder
    from ringserve.config.schema import Batching, Lifecycle
    from ringserve.workers.opening import Opener

    opener = Opener(("serve",), 1, Batching(batch_rows_max=2), Lifecycle(), itertools.count().__next__)
    return opener(LoadOrder("m", 1, str(directory), False, []))


@pytest.mark.parametrize(
    ("name", "records"), [("mlp", 1), ("several", 1), ("strings", 1), ("scalar", 1), ("not_per_row", 2), ("sparse", 1)]
)
@pytest.mark.parametrize("how", [[], ["--random", "7"], ["--rows", "3"]])
def test_what_is_made_up_loads(
    invoke: Invoke, exported: Callable[[str], Path], name: str, records: int, how: list[str]
) -> None:
    directory = exported(name)
    done = invoke("make", directory, "--overwrite", *how)
    assert done.exit_code == 0, done.output
    assert done.output == f"{records} records in {directory / WARMUP_FILE}\n"
    assert load(directory).warmup_records == records


def test_zeros_take_no_room_and_random_values_differ(
    invoke: Invoke, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    zeros, dice = tmp_path / "zeros", tmp_path / "dice"
    assert invoke("make", exported("mlp"), "--output", zeros, "--rows", 100).exit_code == 0
    assert zeros.stat().st_size < 200
    assert invoke("make", exported("mlp"), "--output", dice, "--random", 1).exit_code == 0
    content = logs(dice)[0].predict_log.request.inputs["x"].tensor_content
    assert len(content) == 784 * 4
    assert len(set(content)) > 100


def test_requests_in_json_mean_what_the_rest_api_takes_them_for(
    invoke: Invoke, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    bodies = tmp_path / "bodies"
    bodies.write_text('{"instances": [1, 2.5]}\n\n{"inputs": {"x": [3.0]}, "signature_name": "serving_default"}\n')
    output = tmp_path / "file"
    done = invoke("make", exported("half"), "--requests", bodies, "--output", output)
    assert done.exit_code == 0, done.output
    import numpy as np

    found = [log.predict_log.request.inputs["x"] for log in logs(output)]
    assert [np.frombuffer(x.tensor_content, np.float32).tolist() for x in found] == [[1.0, 2.5], [3.0]]
    # One object over many lines is one request.
    bodies.write_text(json.dumps({"instances": [[1, 2], [3, 4]]}, indent=1))
    assert invoke("make", exported("echo"), "--requests", bodies, "--output", output, "--overwrite").exit_code == 0
    (log,) = logs(output)
    assert [dim.size for dim in log.predict_log.request.inputs["x"].tensor_shape.dim] == [2, 2]


def test_show_lists_every_kind_of_record(invoke: Invoke, tmp_path: Path) -> None:
    predict, classify, multi, other = (PredictionLog() for _ in range(4))
    predict.predict_log.request.model_spec.name = "m"
    predict.predict_log.request.inputs["x"].dtype = 1
    predict.predict_log.request.inputs["x"].tensor_shape.dim.add(size=2)
    classify.classify_log.request.model_spec.signature_name = "c"
    classify.classify_log.request.input.example_list_with_context.examples.add()
    for signature in ("a", "b"):
        multi.multi_inference_log.request.tasks.add().model_spec.signature_name = signature
    other.session_run_log.SetInParent()
    records = [log.SerializeToString() for log in (predict, classify, multi, other)]
    file = tmp_path / "file"
    file.write_bytes(b"".join(map(write_record, [*records, b"", b"\xff"])))
    sizes = [len(record) for record in records]
    assert invoke("show", file).output.splitlines() == [
        f"1: Predict m serving_default: x float [2] ({sizes[0]} bytes)",
        f"2: Classify (no model) c: 1 example with context ({sizes[1]} bytes)",
        f"3: MultiInference (no model) a, (no model) b: 0 examples ({sizes[2]} bytes)",
        f"4: session_run_log, which fails the load ({sizes[3]} bytes)",
        "5: an empty PredictionLog, which is skipped (0 bytes)",
        "6: no PredictionLog (1 bytes)",
    ]
    assert json.loads(invoke("show", file, "--json").stdout)[-1] == "no PredictionLog (1 bytes)"


def test_what_cannot_be_done_is_said_in_one_line(
    invoke: Invoke, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    bodies, no_file = tmp_path / "bodies", tmp_path / "no_file"
    bodies.write_text('{"instances": ["a"]}')
    no_file.write_text("text")
    half = exported("half")
    (half / "assets.extra").mkdir(exist_ok=True)
    (half / WARMUP_FILE).write_bytes(b"")
    for arguments, text in (
        (("make", tmp_path), "holds no SavedModel"),
        (("make", half, "--saved_model_tags", "gpu"), "has no graph with the tags gpu"),
        (("make", half, "--signature", "nope"), "has no signature nope; it has serving_default"),
        (("make", half), "is there already; --overwrite replaces it"),
        (("make", half, "--requests", bodies), "request 1: Failed to process element: 0 of 'instances' list."),
        (("show", no_file), "this is no TFRecord file"),
        (("record", "--model", "m", "--server", "ftp://x"), "is no address of a server"),
    ):
        done = invoke(*arguments)
        assert done.exit_code == 1
        assert text in done.output
        assert len(done.output.splitlines()) == 1


def test_a_file_without_records_is_not_written(
    invoke: Invoke, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "file"
    for nothing in (b"", b"\n \n"):
        (tmp_path / "bodies").write_bytes(nothing)
        done = invoke("make", exported("half"), "--requests", tmp_path / "bodies", "--output", output)
        assert done.exit_code == 1
        assert "there is no request to write" in done.output
        assert not output.exists()
    output.write_bytes(b"as it was")
    assert invoke("make", exported("half"), "--requests", os.devnull, "--output", output, "--overwrite").exit_code == 1
    assert output.read_bytes() == b"as it was"


# -------------------------------------------------------------------------------------------------------- recording

RECORDS = b"".join(map(write_record, [b"one", b"two"]))


class Operated(BaseHTTPRequestHandler):
    """The endpoints that the command uses, as the REST API answers them."""

    base_path = Path()
    asked: dict[str, Any] = {}  # noqa: RUF012  (of the one test at a time)

    def do_GET(self) -> None:
        if self.path == "/ringserve/v1/config":
            entry = {"name": "a b", "base_path": str(self.base_path), "model_platform": "tensorflow"}
            self._answer(200, json.dumps({"model_config_list": {"config": [entry]}}).encode())
        else:
            self._answer(200, json.dumps({"name": "a b", "serving": 7}).encode())

    def do_POST(self) -> None:
        Operated.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json"
        if self.path == "/ringserve/v1/models/a%20b:record":
            self._answer(200, RECORDS)
        else:
            self._answer(404, b'{"error": "no such model"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class UnixHTTPServer(HTTPServer):
    """A server on a UNIX socket."""

    address_family = socket.AF_UNIX

    def __init__(self, path: str, handler: Any) -> None:
        super().__init__(path, handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        self.socket.bind(str(self.server_address))

    def get_request(self) -> tuple[Any, Any]:
        return self.socket.accept()[0], ("unix", 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Operated.base_path = tmp_path / "base"
    (Operated.base_path / "00007").mkdir(parents=True)
    with HTTPServer(("127.0.0.1", 0), Operated) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_record_writes_into_the_version_that_serves(invoke: Invoke, server: str) -> None:
    path = Operated.base_path / "00007" / WARMUP_FILE
    done = invoke("record", "--server", server, "--model", "a b", "--count", 5, "--seconds", 2)
    assert done.exit_code == 0, done.output
    assert done.output == f"2 records in {path}\n"
    assert path.read_bytes() == RECORDS
    assert Operated.asked == {"count": 5, "seconds": 2.0}
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    again = invoke("record", "--server", server, "--model", "a b")
    assert (again.exit_code, "is there already" in again.output) == (1, True)


def test_record_over_the_operators_socket(invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = os.path.relpath(tmp_path_factory.mktemp("u") / "s")
    output = tmp_path_factory.mktemp("o") / "file"
    with UnixHTTPServer(path, Operated) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        done = invoke("record", "--server", f"unix:{path}", "--model", "a b", "--output", output)
        refused = invoke("record", "--server", f"unix:{path}", "--model", "c", "--output", output, "--overwrite")
        http.shutdown()
        thread.join()
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == RECORDS
    assert (refused.exit_code, "404 no such model" in refused.output) == (1, True)
    gone = invoke("record", "--server", "unix:/nowhere", "--model", "a b", "--output", output, "--overwrite")
    assert (gone.exit_code, "/nowhere: " in gone.output) == (1, True)


def test_record_into_a_file_and_what_the_server_refuses(invoke: Invoke, server: str, tmp_path: Path) -> None:
    output = tmp_path / "somewhere" / "file"
    assert invoke("record", "--server", f"http://{server}/", "--model", "a b", "--output", output).exit_code == 0
    assert output.read_bytes() == RECORDS
    done = invoke("record", "--server", server, "--model", "c", "--output", tmp_path / "other")
    assert (done.exit_code, "404 no such model" in done.output) == (1, True)
    assert not (tmp_path / "other").exists()
