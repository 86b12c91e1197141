"""Servers and baselines as child processes that never outlive the measurement.

Each child leads a session of its own, so that its whole family can be found and ended; and the kernel ends it when this
process dies without a word (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from perf import processes
from perf.loadgen import PERF, Exchange

ROOT = PERF.parent
PREDICT = "/tensorflow.serving.PredictionService/Predict"
STOP_S_MAX = 20.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # before any fork


class ServerError(Exception):
    """A server did not come up, or did not answer; the text ends with its log."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, different ones."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


def die_with_parent() -> None:
    """In a child, before it runs its program: the kernel asks it to end when its parent has ended."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def model_config(path: Path, base_paths: Mapping[str, Path]) -> Path:
    """Writes a ModelServerConfig with these models into `path`, and returns it."""
    models = [f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" }}\n'
              for name, base in base_paths.items()]  # fmt: skip
    path.write_text(f"model_config_list {{\n{''.join(models)}}}\n")
    return path


class Child:
    """`python -m ...` in a session of its own; its output goes to a log that error texts quote.

    folder: a checkout, this one or another revision's. environment: variables beside this process's own.
    """

    leader = "supervisor"  #: role of the first process in tables

    def __init__(
        self, arguments: Sequence[str], *, piped: bool = False, folder: Path = ROOT, python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.log = tempfile.NamedTemporaryFile("w+", prefix="perf-", suffix=".log")  # noqa: SIM115 - closed by stop()
        self.name = arguments[0]
        # The folder's own code, whatever is installed: also in processes that the child starts.
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [python, "-m", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else self.log,
            stderr=self.log,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.session = self.process.pid

    def failure(self, what: str) -> ServerError:
        lines = Path(self.log.name).read_text(errors="replace").splitlines()[-30:]
        return ServerError("\n".join([what, "its log ends:", *lines]))

    def usages(self) -> list[processes.Usage]:
        """Of every process that belongs to it."""
        return processes.usages(self.session, self.leader)

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise self.failure(f"{self.name} ended with {self.process.returncode}")

    def wait_until(
        self, condition: Callable[[], Any], what: str, patience_s: float = 90.0, pause_s: float = 0.005
    ) -> Any:
        limit = time.monotonic() + patience_s
        while not (value := condition()):
            self.check_alive()
            if time.monotonic() > limit:
                raise self.failure(f"waited {patience_s:.0f} s in vain for {what}")
            time.sleep(pause_s)
        return value

    def stop(self) -> None:
        """Asks politely, waits, then ends whoever is left of its session. Safe to call twice."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                print(f"{self.session} did not stop within {STOP_S_MAX:.0f} s: killed", file=sys.stderr)
        limit_s = time.monotonic() + STOP_S_MAX
        while (left := processes.usages(self.session)) and time.monotonic() < limit_s:
            for usage in left:
                try:
                    os.kill(usage.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()  # so that it does not stay as a zombie
            time.sleep(0.005)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class PredictServer(Child):
    """A child that answers Predict on `port`. `first_answer_s`: from its start to its first good answer."""

    def __init__(self, arguments: Sequence[str], port: int, folder: Path = ROOT) -> None:
        super().__init__(arguments, folder=folder)
        self.port = port
        self.first_answer_s = 0.0

    def ask(self, exchange: Exchange, timeout_s: float = 5.0) -> bytes:
        """The answer to one Predict through the official client, on a fresh connection. Raises grpc.RpcError."""
        with grpc.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            answer: bytes = channel.unary_unary(PREDICT, None, None)(exchange.request, timeout=timeout_s)
            return answer

    def predict_once(self, exchange: Exchange, timeout_s: float = 5.0) -> bool:
        """Whether one Predict is answered well."""
        try:
            self.ask(exchange, timeout_s)
        except grpc.RpcError:
            return False
        return True

    def wait_ready(self, exchange: Exchange) -> None:
        try:
            self.wait_until(lambda: self.predict_once(exchange), "its first answer", pause_s=0.02)
        except BaseException:
            self.stop()
            raise
        self.first_answer_s = time.monotonic() - self.started_s


class Ringserve(PredictServer):
    """The server itself, with its defaults: the numbers of processes are not chosen for the test.

    base_path: the model's folder, or a file with a ModelServerConfig (`model_config`) that names this and other models.
    folder: the checkout whose code is served.
    """

    def __init__(self, model_name: str, base_path: Path, extra: Sequence[str] = (), *, folder: Path = ROOT) -> None:
        port, self.rest_port = free_ports(2)
        options: dict[str, object] = {"port": port, "rest_api_port": self.rest_port}
        if base_path.is_file():
            options["model_config_file"] = base_path
        else:
            options |= {"model_name": model_name, "model_base_path": base_path}
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self.model_name = model_name
        super().__init__(["ringserve", "serve", "--host", "127.0.0.1", *flags, *extra], port, folder)

    def state(self) -> str:
        """What GET /v1/models/NAME says of the model's version; empty while nobody answers."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.rest_port}/v1/models/{self.model_name}", timeout=5
            ) as answer:
                return str(json.load(answer)["model_version_status"][0]["state"])
        except (OSError, ValueError, LookupError):
            return ""

    def all_available(self) -> bool:
        """Whether every model that it was told of has an AVAILABLE version."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = 120.0) -> Any:
        """The JSON that REST answers, as an operator asks: PUT /ringserve/v1/models/NAME and the like.

        Raises ServerError with the server's words when it refuses, OSError when nobody answers.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace")
            raise self.failure(f"{method} {path} was answered {error.code}: {words}") from None

    def worker_states(self) -> list[dict[str, Any]]:
        """Of every worker that the broker knows: pid, state, loaded and more."""
        found: list[dict[str, Any]] = self.call("GET", "/ringserve/v1/state")["workers"]
        return found

    def versions(self, model: str) -> dict[int, str]:
        """Version -> state, of all that the server knows of that model; empty when it knows no such model."""
        try:
            summary = self.call("GET", f"/ringserve/v1/models/{model}")
        except ServerError as error:
            if " was answered 404: " in str(error):
                return {}
            raise
        return {int(one["version"]): str(one["state"]) for one in summary["versions"]}

    def settle(self, patience_s: float = 60.0) -> None:
        """Waits until every worker is ready and none is coming or going: the processes that there are, are those.

        The broker forgets a worker when it has said good-bye, but its memory is there until its process has ended.
        """

        def settled() -> bool:
            states = self.worker_states()
            ready = {worker["pid"] for worker in states if worker["state"] == "ready"}
            loading = [usage for usage in processes.usages(self.session) if usage.role == "author"]
            return bool(states) and len(ready) == len(states) and ready == set(self.workers()) and not loading

        self.wait_until(settled, "all workers to be ready, none coming or going", patience_s, pause_s=0.05)

    def workers(self) -> list[int]:
        return [usage.pid for usage in processes.usages(self.session) if usage.role == "worker"]

    def kill_workers(self, exchange: Exchange) -> float:
        """Kills every worker at once; seconds until the next good answer. Raises ServerError when none comes."""
        pids = self.workers()
        if not pids:
            raise self.failure("no process of the server has a worker's name (rs-worker-N)")
        start_s = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.wait_until(lambda: not set(pids) & set(self.workers()), "killed workers to leave", 10.0)
        self.wait_until(lambda: self.predict_once(exchange), "an answer after all workers were killed", 30.0)
        return time.monotonic() - start_s


class Naive(PredictServer):
    """The grpc.aio server of `baselines.py`."""

    leader = "server"

    def __init__(self, version_path: Path) -> None:
        (port,) = free_ports(1)
        super().__init__(["perf.baselines", "naive", "--model", str(version_path), "--port", str(port)], port)


class RawLoops:
    """Raw loops of `baselines.py`, one pinned to each of `cpus`, that measure at the same time."""

    def __init__(self, version_path: Path, rows: Sequence[int], seconds: float, cpus: Sequence[int]) -> None:
        common = ["perf.baselines", "raw", "--model", str(version_path), "--seconds", str(seconds)]
        rows_text = ",".join(map(str, rows))
        self.children: list[Child] = []
        try:
            for cpu in cpus:
                self.children.append(Child([*common, "--rows", rows_text, "--cpu", str(cpu)], piped=True))
            for child in self.children:
                if self._line(child) != "ready":
                    raise child.failure("the raw loop did not start")
        except BaseException:
            self.stop()
            raise

    @staticmethod
    def _line(child: Child) -> str:
        assert child.process.stdout is not None
        return child.process.stdout.readline().strip()

    def measure(self) -> dict[int, float]:
        """Rows per second of all loops together, by batch size."""
        for child in self.children:
            assert child.process.stdin is not None
            child.process.stdin.write("\n")
            child.process.stdin.flush()
        total: dict[int, float] = {}
        for child in self.children:
            line = self._line(child)
            if not line:
                raise child.failure("the raw loop ended")
            for rows, rate in json.loads(line).items():
                total[int(rows)] = total.get(int(rows), 0.0) + rate
        return total

    def stop(self) -> None:
        for child in self.children:
            child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
