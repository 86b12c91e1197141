"""The servers that a user would choose instead: what is installed, how each is started, which tuning that is.

Versions are pinned. Each is tuned as its own documentation says for two cores and a model that computes: two processes
with a model, one thread of TensorFlow in each, access logs off, batching where the server has it, but for BentoML: its
entry is plain `@bentoml.api`, as its first examples are, without `batchable=True`.
"""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perf import processes
from perf.loadgen import Exchange
from perf.servers import Child, free_ports


@dataclass(frozen=True)
class Contestant:
    """arguments: of `python -m`; {port} is filled in. tuning: for the table, in words."""

    name: str
    requirements: Sequence[str]
    arguments: Sequence[str]
    tuning: str
    path: str = "/predict"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """As one would type it."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join((*variables, "python -m", *self.arguments)).replace("{port}", "PORT")

    @property
    def packages(self) -> list[str]:
        return [each.partition("==")[0].partition("[")[0] for each in self.requirements]


CONTESTANTS = (
    Contestant(
        "Flask + gunicorn", ("flask==3.1.3", "gunicorn==27.0.1"),
        ("gunicorn", "--workers=2", "--worker-class=gthread", "--threads=4", "--keep-alive=75", "--backlog=2048",
         "--log-level=warning", "--bind=127.0.0.1:{port}", "perf.peers.flask_app:app"),
        "2 workers of 4 threads (gthread, keep-alive)",
    ),
    Contestant(
        "FastAPI + uvicorn", ("fastapi==0.165.0", "uvicorn==0.54.0"),
        ("uvicorn", "--host=127.0.0.1", "--port={port}", "--workers=2", "--loop=uvloop", "--http=httptools",
         "--no-access-log", "--log-level=warning", "perf.peers.fastapi_app:app"),
        "2 workers, uvloop, httptools, orjson, no pydantic model",
    ),
    Contestant(
        "Robyn", ("robyn==0.88.0",),
        ("perf.peers.robyn_app", "--processes=2", "--workers=1", "--log-level=WARN", "--fast"),
        "2 processes, 1 worker each, orjson",
    ),
    Contestant(
        "mosec", ("mosec==0.9.8",),
        ("perf.peers.mosec_app", "--address=127.0.0.1", "--port={port}", "--timeout=60000", "--log-level=error"),
        "2 workers, batches of up to 32 within 1 ms, orjson", "/inference",
    ),
    Contestant(
        "LitServe", ("litserve==0.2.19",), ("perf.peers.litserve_app", "--port={port}"),
        "2 workers, 1 API server, batches of up to 32 within 1 ms, fast queue",
    ),
    Contestant(
        "BentoML", ("bentoml==1.4.30",),
        ("bentoml", "serve", "perf.peers.bentoml_app:Predict", "--host=127.0.0.1", "--port={port}"),
        "2 workers, access log and metrics off, without its batching", environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Contestant(
        "Ray Serve", ("ray[serve]==2.60.0",), ("perf.peers.ray_app", "--port={port}"),
        "2 replicas, 1 proxy, batches of up to 32 within 1 ms",
        # It listens on this host only; a key would be left in the user's home.
        environment={"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_AUTH_MODE": "disabled"},
    ),
)  # fmt: skip


class PeerServer(Child):
    """One of them on a free port; its processes are those of its session and all that descend from it."""

    leader = "server"

    def __init__(self, contestant: Contestant, python: Path, model_path: Path) -> None:
        (self.port,) = free_ports(1)
        self.path = contestant.path
        # The environment's own `bin` comes first: some servers start their workers by a command's name.
        path = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))
        environment = {"PEER_MODEL": str(model_path), "PEER_PORT": str(self.port), "TF_CPP_MIN_LOG_LEVEL": "2",
                       "OMP_NUM_THREADS": "1", "PATH": path, **contestant.environment}  # fmt: skip
        arguments = [each.format(port=self.port) for each in contestant.arguments]
        super().__init__(arguments, python=str(python), environment=environment)

    def usages(self) -> list[processes.Usage]:
        found = processes.family(self.session)
        # What each process is called differs; its cost is that of the whole.
        return [processes.Usage(one.pid, self.leader, one.start_ticks, one.cpu_s) for one in found]

    def answers(self, exchange: Exchange) -> bool:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.path}", exchange.request, method="POST")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return "predictions" in json.loads(answer.read())
        except (OSError, ValueError, urllib.error.HTTPError):
            return False

    def wait_ready(self, exchange: Exchange) -> None:
        try:
            self.wait_until(lambda: self.answers(exchange), "its first answer", pause_s=0.1)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        seen = {usage.pid: usage.start_ticks for usage in processes.family(self.session)}
        super().stop()
        # Some put their helpers into sessions of their own, where they outlive the first process.
        for usage in processes.everyone():
            if seen.get(usage.pid) == usage.start_ticks:
                try:
                    os.kill(usage.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
