"""deploy/haproxy/haproxy.cfg. Where HAProxy is installed: it takes the file, and the bytes of its health check are what
our health service answers SERVING to. With TEST_REAL=haproxy, as root (tests/deploy/real.py): two hosts in network
namespaces of their own behind a real HAProxy, called without a pause over gRPC and REST by clients that retry nothing:

* all processes of one host are killed: no call fails
* one host is stopped in order: no call fails, and it ends with status 0
* one host's cable is pulled: no call fails
* each comes back, and is called again
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.deploy.caller import Tally
from tests.deploy.networks import Network
from tests.deploy.real import asked_for, needs
from tests.e2e.server import wait_until

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy/haproxy/haproxy.cfg"
BALANCER, FIRST, SECOND = "10.0.0.2", "10.0.0.11", "10.0.0.12"


@needs("haproxy")
def test_haproxy_takes_the_file() -> None:
    done = subprocess.run(["haproxy", "-c", "-f", CONFIG], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def test_the_health_check_is_a_call_of_grpcs_health_service() -> None:
    head = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", b"health"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    block = b"".join(_literal(*each) for each in head)
    frames = _frame(4, 0, 0, b"") + _frame(1, 4, 1, block) + _frame(0, 1, 1, bytes(5))
    wanted = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames
    assert re.findall(r"tcp-check send-binary (\w+)", CONFIG.read_text()) == [wanted.hex()]


class Host:
    """A ringserve host. Its log and everything else it writes are in `folder`."""

    def __init__(self, network: Network, address: str, models: Path, folder: Path) -> None:
        self._command = [
            *network.inside(address), sys.executable, "-m", "ringserve", "serve",
            "--model_name=digits", f"--model_base_path={models / 'digits'}", "--port=8500", "--rest_api_port=8501",
            "--workers=1", "--lame_duck_ms=3000", f"--run_dir={folder / 'run'}",
        ]  # fmt: skip
        self._log: IO[bytes] = (folder / "log").open("ab")
        self._folder = folder
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self._process.pid:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found

    def crash(self) -> None:
        """Everything on the host ends at once."""
        for process in self._processes():
            process.kill()
        self._process.wait(60)
        wait_until(lambda: not self._processes(), "every process to be gone")

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def close(self) -> None:
        if self._process.poll() is None:
            self.crash()
        self._log.close()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")


class Balancer:
    """HAProxy with our file; only the place of its control socket is the test's."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._folder = folder
        self._socket_path = str(folder / "admin.sock")
        text = CONFIG.read_text().replace("/run/haproxy/admin.sock", self._socket_path)
        (folder / "haproxy.cfg").write_text(text)
        self._log = (folder / "log").open("wb")
        command = [*network.inside(BALANCER), "haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def _rows(self) -> list[dict[str, str]]:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(self._socket_path)
            control.sendall(b"show stat\n")
            text = b""
            while chunk := control.recv(65536):
                text += chunk
        return list(csv.DictReader(io.StringIO(text.decode().removeprefix("# "))))

    def servers(self) -> dict[str, dict[str, str]]:
        """HAProxy's numbers of each server, as `grpc/host1`; empty before it has started."""
        try:
            rows = self._rows()
        except OSError:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            return {}
        return {f"{row['pxname']}/{row['svname']}": row for row in rows if row["svname"].startswith("host")}

    def answered(self) -> dict[str, int]:
        """How many calls each has had."""
        return {name: int(row["stot"]) for name, row in self.servers().items()}

    def wait_state(self, host: str, up: bool) -> None:
        def there() -> bool:
            servers = self.servers()
            both = [servers.get(f"{backend}/{host}", {}).get("status") for backend in ("grpc", "rest")]
            return both == ["UP", "UP"] if up else None not in both and "UP" not in both

        wait_until(there, f"HAProxy to find {host} {'up' if up else 'down'}: {self.servers()}", 150)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


class Calls:
    """The clients, on the balancer's host."""

    def __init__(self, network: Network) -> None:
        command = [*network.inside(BALANCER), sys.executable, "-m", "tests.deploy.caller"]
        self._process = subprocess.Popen(
            [*command, f"{BALANCER}:8500", f"{BALANCER}:8501"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self.said: dict[str, Any] = json.loads(Tally().line())
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said = json.loads(line)

    def more(self, count: int) -> None:
        """Wait until that many calls more than now were answered, none of which failed."""
        wanted = self.said["answered"] + count

        def there() -> bool:
            assert not self.said["failed"], self.said
            assert self._process.poll() is None
            return bool(self.said["answered"] >= wanted)

        wait_until(there, f"{wanted} answers: {self.said}", 150)

    def finish(self) -> dict[str, Any]:
        """Stop calling. Returns what became of all calls."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(150)
        self._reader.join()
        return self.said

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._reader.join()


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    with Network(BALANCER, FIRST, SECOND) as made:
        yield made


@asked_for("haproxy")
@needs("haproxy", "ip")
@pytest.mark.timeout(900)
def test_hosts_come_and_go_and_no_call_fails(
    network: Network, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ExitStack() as stack:
        hosts: dict[str, Host] = {}
        for name, address in (("host1", FIRST), ("host2", SECOND)):
            hosts[name] = Host(network, address, models, tmp_path_factory.mktemp("h"))
            stack.callback(hosts[name].close)
        folder = tmp_path_factory.mktemp("b")
        balancer = Balancer(network, folder)
        stack.callback(balancer.close)
        for name in hosts:
            balancer.wait_state(name, up=True)
        calls = Calls(network)
        stack.callback(calls.close)
        calls.more(300)

        hosts["host1"].crash()
        balancer.wait_state("host1", up=False)
        calls.more(200)
        hosts["host1"].start()
        balancer.wait_state("host1", up=True)
        calls.more(200)

        assert hosts["host2"].stop() == 0, hosts["host2"].log
        calls.more(200)
        hosts["host2"].start()
        balancer.wait_state("host2", up=True)
        calls.more(200)

        network.plug(FIRST, pulled=True)
        balancer.wait_state("host1", up=False)
        calls.more(200)
        network.plug(FIRST, pulled=False)
        balancer.wait_state("host1", up=True)
        before = balancer.answered()

        def all_called() -> bool:
            return all(count > before[name] for name, count in balancer.answered().items())

        wait_until(all_called, "calls of each", 150)
        calls.more(200)

        said = calls.finish()
        assert not said["failed"], said
        print(said)
