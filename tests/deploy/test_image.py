"""The image. Always: what it is made of exists, and its health check tells a server that is ready from one that is not.
With TEST_REAL=image (tests/deploy/real.py), a container of the built image, run as strictly as can be:

* read-only, without capabilities, not root, in 64 MB of /dev/shm: answers over gRPC and REST, large requests too
* the server is process 1, collects whatever ends, and replaces a worker that is killed
* SIGTERM ends it in time with status 0; after a kill -9 the same container starts again
"""

from __future__ import annotations

import json
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.deploy.real import asked_for, free_port, podman
from tests.e2e.clients import make_request
from tests.e2e.server import wait_until

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "deploy/healthcheck.py"


# ------------------------------------------------------------------------------------------------ without a container


def test_requirements_are_those_of_the_project() -> None:
    requirements = runpy.run_path(str(ROOT / "deploy/requirements.py"))["requirements"]
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    assert requirements(text, "") == project["dependencies"]
    assert requirements(text, " tflite,") == [*project["dependencies"], *project["optional-dependencies"]["tflite"]]
    with pytest.raises(KeyError):
        requirements(text, "nothing")


def test_what_the_image_copies_is_not_ignored() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", dockerfile, re.MULTILINE)
    copied = {path for line in lines for path in line.split()} - {"."}
    assert len(copied) >= 4
    assert copied <= kept
    assert all((ROOT / path).exists() for path in kept)
    # The package's folders are links to those at the root.
    links = {os.readlink(path).removeprefix("../") for path in (ROOT / "ringserve").iterdir() if path.is_symlink()}
    assert links <= kept


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = self.path == "/readyz"
        body = b"ready\n" if ready else b"no such model: nothing\n"
        self.send_response(200 if ready else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _OnSocket(HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()[0], ("localhost", 0)


def _check(run_dir: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-IS", CHECK, *arguments],
        env={"RINGSERVE_RUN_DIR": str(run_dir)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_health_check_tells_ready_from_not_ready_and_from_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    run_dir = tmp_path_factory.mktemp("r")
    status, said = _check(run_dir)
    assert status == 1
    assert said.startswith(f"no answer at {run_dir}/admin.sock: ")
    with _OnSocket(str(run_dir / "admin.sock"), _Ready) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert _check(run_dir) == (0, "ready\n")
            assert _check(run_dir, "/readyz/nothing") == (1, "no such model: nothing\n")
        finally:
            server.shutdown()
            thread.join()


# --------------------------------------------------------------------------------------------------- with a container


class Container:
    """A container of the image, with one model, as strictly kept as the documentation says."""

    def __init__(self, models: Path, name: str) -> None:
        self.name = name
        self.grpc_port, self.rest_port = free_port(), free_port()
        limits = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096"]
        strict = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        self._podman(
            "run", "-d", "--name", name, "--network", "host", *limits, *strict, "--memory", "2000m",
            "-v", f"{models}/digits:/models/digits:ro", "-e", "MODEL_NAME=digits", os.environ["TEST_IMAGE"],
            f"--port={self.grpc_port}", f"--rest_api_port={self.rest_port}",
        )  # fmt: skip

    def _podman(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run([*podman(), *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def inside(self, script: str) -> str:
        return self._podman("exec", self.name, "sh", "-c", script)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._podman("inspect", self.name))[0]
        return found

    def wait_healthy(self) -> None:
        def healthy() -> bool:
            command = [*podman(), "healthcheck", "run", self.name]
            return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

        wait_until(healthy, f"the container to be healthy:\n{self._podman('logs', self.name)}", 120)

    def predict(self, rows: int) -> int:
        """Sends that many rows of zeros over gRPC. Returns how many classes came back."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(make_request("digits", x=np.zeros((rows, 64), np.float32)), timeout=120)
            return int(answer.outputs["class"].tensor_shape.dim[0].size)

    def rest(self, path: str, body: bytes | None = None) -> str:
        url = f"http://127.0.0.1:{self.rest_port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as response:
            text: str = response.read().decode()
            return text

    def processes(self) -> dict[int, str]:
        """Names by process id, as the container sees them."""
        script = "cd /proc; for p in [0-9]*; do echo $p $(cat $p/comm 2>/dev/null); done"
        rows = [line.split() for line in self.inside(script).splitlines()]
        return {int(row[0]): row[1] for row in rows if len(row) == 2}

    def signal(self, name: str) -> None:
        self._podman("kill", "--signal", name, self.name)

    def wait_ended(self) -> int:
        return int(self._podman("wait", self.name))

    def start(self) -> None:
        self._podman("start", self.name)

    def remove(self) -> None:
        self._podman("rm", "-f", "-t", "0", self.name, check=False)


@pytest.fixture(scope="module")
def container(models: Path) -> Iterator[Container]:
    running = Container(models, f"ringserve-test-{os.getpid()}")
    try:
        running.wait_healthy()
        yield running
    finally:
        running.remove()


@asked_for("image")
def test_it_answers_on_both_ports(container: Container) -> None:
    assert container.predict(3) == 3
    body = json.dumps({"instances": [[0.0] * 64]}).encode()
    assert len(json.loads(container.rest("/v1/models/digits:predict", body))["predictions"]) == 1


@asked_for("image")
def test_it_is_nobody_who_can_write_nowhere(container: Container) -> None:
    assert container.inside("id -u; id -g").split() == ["10001", "10001"]
    assert container.inside("grep CapEff /proc/self/status").split()[1].strip("0") == ""
    assert "refused" in container.inside("touch /opt/x 2>/dev/null || echo refused")
    # A temporary file system of its own, not a file of the image, is what /tmp is.
    assert container.inside("stat -f -c %T /tmp").strip() == "tmpfs"
    config = container.state()["Config"]
    assert config["User"] == "10001:10001"  # a number: Kubernetes cannot tell who a name is
    assert config["Labels"]["org.opencontainers.image.title"] == "ringserve"


@asked_for("image")
def test_tensors_do_not_lie_in_dev_shm(container: Container) -> None:
    rows = 400_000  # 102 MB
    assert container.predict(rows) == rows
    size_kb, used_kb = map(int, container.inside("df -k /dev/shm | tail -1").split()[1:3])
    assert size_kb <= 65_536  # what docker gives
    assert used_kb < 1_000


@asked_for("image")
def test_the_containers_memory_limit_is_the_servers(container: Container) -> None:
    told = re.search(r"^ringserve_memory_limit_bytes (\S+)$", container.rest("/metrics"), re.MULTILINE)
    assert told is not None
    assert float(told[1]) == 2_000 * 2**20


@asked_for("image")
def test_process_1_replaces_and_collects_what_ends(container: Container) -> None:
    before = container.processes()
    assert before[1] == "rs-supervisor"
    workers = [pid for pid, name in before.items() if name.startswith("rs-worker")]
    container.inside(f"kill -9 {workers[0]}")
    # An orphan that nobody of the server started: `exec`'s process leaves its child behind.
    container.inside("sleep 0.2 & exit 0")

    def replaced() -> bool:
        now = container.processes()
        others = set(now) - set(before)
        names = [now[pid] for pid in others]
        return workers[0] not in now and any(name.startswith("rs-worker") for name in names) and "sleep" not in names

    wait_until(replaced, "another worker, and no sleep")
    assert container.predict(2) == 2
    states = container.inside("cat /proc/[0-9]*/stat 2>/dev/null")
    assert not re.findall(r"\) Z ", states)


@asked_for("image")
def test_sigterm_ends_it_and_a_crash_does_not_keep_it_from_starting(container: Container) -> None:
    container.signal("KILL")
    assert container.wait_ended() == 137
    container.start()
    container.wait_healthy()
    assert container.predict(1) == 1
    container.signal("TERM")
    assert container.wait_ended() == 0
