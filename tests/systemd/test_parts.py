"""A server in parts, without a supervisor: each process may be restarted, or killed, while clients call.

Held here: nobody is refused and no call fails while broker or frontends are restarted one by one, or the broker is
killed; calls wait for workers that are restarted or killed; connections that come while no frontend is there wait for
the next one; operators' changes outlive the broker; of two releases whose processes do not understand each other the
newer one comes to serve; a process without sockets, or a configuration that cannot work in parts, ends with status 78.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import wait_until
from tests.e2e.traffic import Traffic
from tests.systemd.kit import NEWER, Manager, Parts

_CONFIG = """
[server]
run_dir = "RUN_DIR"
port = 8500
rest_api_port = 8501
drain_ms_max = 20000
[workers]
workers = 2
pin = false
[[models]]
name = "half"
base_path = "{base}"
"""


@pytest.fixture(scope="module")
def parts(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with Parts(tmp_path_factory.mktemp("parts"), _CONFIG.format(base=half)) as manager:
        manager.start()
        yield manager


class Callers:
    """Threads that call over REST, each call on a connection of its own: who is refused notices."""

    def __init__(self, parts: Manager, threads: int = 3, allowed: frozenset[str] = frozenset(("ok",))) -> None:
        self._allowed = allowed
        self.outcomes: Counter[str] = Counter()
        self._url = f"{parts.rest_url}/v1/models/half:predict"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        self.wait_for_more(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if exception[0] is None:
            assert set(self.outcomes) <= self._allowed, self.outcomes

    def wait_for_more(self, count: int) -> None:
        seen = self.outcomes["ok"]
        wait_until(lambda: self.outcomes["ok"] >= seen + count, f"{count} more answers; so far {self.outcomes}")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                outcome = "ok" if ask(self._url) == [3.0, 4.0] else "wrong"
            except urllib.error.HTTPError as error:
                outcome = "no worker" if b"No worker has served" in error.read() else repr(error)
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
            with self._lock:
                self.outcomes[outcome] += 1
            self._stop.wait(0.01)  # as Traffic


def ask(url: str) -> Any:
    body = json.dumps({"instances": [2.0, 4.0]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
        return json.load(response)["predictions"]


def test_each_part_says_when_it_is_ready_and_serves(parts: Parts) -> None:
    with Traffic(parts, "half"), Callers(parts):
        pass
    assert (parts.run_dir / "admin.sock").exists()


def test_frontends_one_after_the_other_are_restarted_without_a_failed_call(parts: Parts) -> None:
    with Traffic(parts, "half") as traffic, Callers(parts) as callers:
        for frontend in parts.frontends:
            frontend.restart()
            traffic.wait_for_more(50)
            callers.wait_for_more(5)


def test_the_broker_is_restarted_or_killed_without_a_failed_call(parts: Parts) -> None:
    workers = _workers(parts)
    with Traffic(parts, "half") as traffic, Callers(parts) as callers:
        parts.broker.restart()
        traffic.wait_for_more(50)
        callers.wait_for_more(5)
        parts.broker.kill()
        parts.broker.start().wait_ready()
        traffic.wait_for_more(50)
        callers.wait_for_more(5)
    assert _workers(parts) == workers, "the workers went on"


def test_calls_wait_for_workers_that_are_restarted_or_killed(parts: Parts) -> None:
    """For half a minute; on a host where TensorFlow's import takes longer they are told."""
    with Callers(parts, allowed=frozenset(("ok", "no worker"))) as callers:
        parts.workers.restart()
        callers.wait_for_more(20)
        parts.workers.kill()
        parts.workers.start().wait_ready()
        callers.wait_for_more(20)


def test_who_connects_while_no_frontend_is_there_waits_for_the_next(parts: Parts) -> None:
    assert [frontend.stop() for frontend in parts.frontends] == [0, 0]
    answers: list[Any] = []
    url = f"{parts.rest_url}/v1/models/half:predict"
    threads = [threading.Thread(target=lambda: answers.append(ask(url))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for frontend in parts.frontends:
        frontend.start()
    for thread in threads:
        thread.join(60)
    assert answers == [[3.0, 4.0]] * 5
    for frontend in parts.frontends:
        frontend.wait_ready()


def test_what_operators_changed_outlives_the_broker(parts: Parts, half: Path) -> None:
    _admin(parts, "PUT", "models/added", {"base_path": str(half)})
    wait_until(lambda: _settled_workers(parts, ["added", 1]), "the added model in both workers, and no others")
    parts.broker.restart()
    url = f"{parts.rest_url}/v1/models/added:predict"
    wait_until(lambda: _serves(parts, "added"), "the added model")
    assert ask(url) == [3.0, 4.0]
    _admin(parts, "DELETE", "models/added")


def test_the_metrics_name_every_process(parts: Parts) -> None:
    def named() -> list[str]:
        with urllib.request.urlopen(f"{parts.rest_url}/metrics", timeout=60) as response:
            text = response.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("ringserve_process_resident_bytes{")]
        return sorted(line.split('"')[1].rstrip("0123456789") for line in lines)

    # Workers that tests before this one have replaced may still be leaving.
    wanted = ["broker", "frontend-", "frontend-", "pool", "worker-", "worker-"]
    wait_until(lambda: named() == wanted, f"the processes that there are to be named, of {named()}")


def test_processes_of_two_releases_find_to_one(parts: Parts) -> None:
    """As when the installation is upgraded and then processes die, before anybody has restarted the server."""
    first, second = parts.frontends
    assert second.stop() == 0
    second.start(**NEWER)
    wait_until(lambda: "does not take this process" in second.log, "the newer frontend to be refused")
    with Traffic(parts, "half"), Callers(parts) as callers:
        callers.wait_for_more(20)
    # Nobody can be served without workers, so that the broker gives way to a newer one.
    parts.workers.kill()
    parts.workers.start(**NEWER)
    assert parts.broker.wait_end() == 0
    parts.broker.start(**NEWER).wait_ready()
    assert first.wait_end() == 0, "it is the only one left of the older release"
    first.start(**NEWER)
    for unit in parts.units.values():
        unit.wait_ready()
    with Traffic(parts, "half"), Callers(parts) as callers:
        callers.wait_for_more(20)
    assert sum("does not take this process" in line for line in second.log.splitlines()) == 1
    assert sum("refused a registration" in line for line in parts.broker.log.splitlines()) <= 4


def test_all_stop_with_status_0_and_leave_only_what_is_shared(parts: Parts) -> None:
    """The end of the server of the tests before this one."""
    assert ask(f"{parts.rest_url}/v1/models/half:predict") == [3.0, 4.0]
    assert [unit.stop() for unit in (*parts.frontends, parts.workers, parts.broker)] == [0, 0, 0, 0]
    left = {path.name for path in parts.run_dir.iterdir() if path.suffix != ".db"}
    assert left == {"broker.sock", "admin.sock", "models.json"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('run_dir = "RUN_DIR"', "", "run_dir"),
        ('run_dir = "RUN_DIR"', 'run_dir = "RUN_DIR/nowhere"', "is not there"),
        ("drain_ms_max = 20000", "metrics_port = -1", "picks a free port"),
        ("drain_ms_max = 20000", 'grpc_engine = "grpcio"', "grpc_engine"),
        ("drain_ms_max = 20000", 'grpc_socket_path = "/tmp/x"', "grpc_socket_path"),
        ("workers = 2", "workers = -2", "workers"),
    ],
)
def test_a_configuration_that_cannot_work_in_parts_ends_with_78(tmp_path: Path, old: str, new: str, says: str) -> None:
    config = _CONFIG.format(base=tmp_path)
    assert old in config
    with Parts(tmp_path, config.replace(old, new), frontends=1) as parts:
        frontend = parts.frontends[0].start()
        assert frontend.wait_end() == 78
        assert says in frontend.log


def test_a_run_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    with Parts(tmp_path, _CONFIG.format(base=tmp_path), frontends=1) as parts:
        parts.run_dir.chmod(0o770)
        frontend = parts.frontends[0].start()
        assert frontend.wait_end() == 78
        assert "that no others may write to" in frontend.log


def test_a_broker_without_its_socket_ends_with_78(tmp_path: Path) -> None:
    with Parts(tmp_path, _CONFIG.format(base=tmp_path), frontends=0) as parts:
        broker = parts.unit("alone", "broker", "--config", str(parts.config_path)).start()
        assert broker.wait_end() == 78
        assert "socket named 'broker'" in broker.log


def test_a_socket_of_another_name_ends_with_78(tmp_path: Path) -> None:
    with Parts(tmp_path, _CONFIG.format(base=tmp_path), frontends=0) as parts:
        parts.listen("http")
        broker = parts.unit("alone", "broker", "--config", str(parts.config_path), sockets=["http"]).start()
        assert broker.wait_end() == 78
        assert "FileDescriptorName=grpc" in broker.log


def _workers(parts: Parts) -> set[int]:
    state = _admin(parts, "GET", "state")
    return {worker["pid"] for worker in state["workers"] if worker["state"] == "ready"}


def _settled_workers(parts: Parts, key: list[Any]) -> bool:
    state = _admin(parts, "GET", "state")
    workers = state["workers"]
    return not state["following"] and len(workers) == 2 and all(key in worker["loaded"] for worker in workers)


def _serves(parts: Parts, model: str) -> bool:
    return any(each["name"] == model and each["ready"] for each in _admin(parts, "GET", "models")["models"])


def _admin(parts: Parts, method: str, path: str, body: Any = None) -> Any:
    """An operator's question, asked again as long as the answer is that there is no broker just now."""

    def answered() -> tuple[int, bytes] | None:
        answer = _asked(parts, method, path, body)
        return None if answer[0] == 503 else answer

    status, text = wait_until(answered, "an answer other than 503")
    assert status == 200, text
    return json.loads(text or b"null")


def _asked(parts: Parts, method: str, path: str, body: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(parts.run_dir / "admin.sock"))
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body)
    connection.request(method, f"/ringserve/v1/{path}", data, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, text
