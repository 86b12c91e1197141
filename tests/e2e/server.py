"""A real server for tests: `python -m ringserve serve` in a process group of its own, with its children in sight."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil

from tests.e2e.ordinary_user import command_as

_GRPC_LINE = re.compile(r"listening: .*gRPC at \S*?:(\d+)\b")
_REST_LINE = re.compile(r"listening: .*REST at \S*?:(\d+)\b")
_PATIENCE_S = 60.0


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = _PATIENCE_S) -> Any:
    """The first true value of `condition`. The limit is there for broken code, not to time anything."""
    limit = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > limit:
            raise AssertionError(f"waited {patience_s:.0f} s in vain for {what}")
        time.sleep(0.02)  # polling a condition of another process, bounded above


class Server:
    """One server under test. Use it as a context manager; leaving it asserts that it stops cleanly."""

    running: ClassVar[set[Server]] = set()

    def __init__(
        self, directory: Path, *arguments: str, environment: dict[str, str] | None = None, uid: int | None = None
    ) -> None:
        """uid: of the user that it runs as, where the tests run as root."""
        self.directory = directory
        # Not under pytest's folder, whose path is too long for the sockets' names.
        self._short_dir = tempfile.TemporaryDirectory(prefix="rs-")
        self.run_dir = Path(self._short_dir.name) / "run"
        self.log_path = directory / "server.log"
        self._log = self.log_path.open("wb")
        self._ports: dict[str, int] = {}
        # The ports are the server's choice, so that tests never collide.
        command = [sys.executable, "-m", "ringserve", "serve", "--port", "0", "--rest_api_port", "-1"]
        command += ["--rest_admin", "local"]
        command += ["--run_dir", str(self.run_dir), *arguments]
        if uid is not None:
            os.chown(self._short_dir.name, uid, uid)
            command = command_as(uid, command)
        self.process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self.running.add(self)

    # ------------------------------------------------------------------------------------------------ looking

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self._port(_GRPC_LINE, 'the gRPC port')}"

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self._port(_REST_LINE, 'the REST port')}"

    def _port(self, line: re.Pattern[str], what: str) -> int:
        def look() -> int:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with status {self.process.returncode}:\n{self.log}")
            match = None if what in self._ports else line.search(self.log)  # its log grows, and this is asked often
            return int(match.group(1)) if match else self._ports.get(what, 0)

        port: int = wait_until(look, what)
        self._ports[what] = port
        return port

    def status(self, model: str) -> list[dict[str, Any]]:
        """What GET /v1/models/MODEL says; empty while it is unknown."""
        try:
            with urllib.request.urlopen(f"{self.rest_url}/v1/models/{model}", timeout=10) as response:
                versions: list[dict[str, Any]] = json.load(response)["model_version_status"]
                return versions
        except urllib.error.HTTPError:
            return []
        except (TimeoutError, urllib.error.URLError, ConnectionError):
            return []

    def wait_available(self, model: str) -> None:
        wait_until(
            lambda: any(version["state"] == "AVAILABLE" for version in self.status(model)),
            f"model {model} to be AVAILABLE; the log:\n{self.log}",
        )

    def family(self) -> list[psutil.Process]:
        """Every process of this server that is alive, the supervisor included."""
        members = []
        for name in os.listdir("/proc"):
            try:
                # Tests poll this: only its own are looked at any closer.
                if name.isdigit() and os.getsid(int(name)) == self.process.pid:
                    process = psutil.Process(int(name))
                    if process.status() != psutil.STATUS_ZOMBIE:
                        members.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return members

    def members(self, role: str) -> list[psutil.Process]:
        """Its processes of that role, by the title they give themselves (`rs-broker`, `rs-worker-0` ...)."""
        found = []
        for process in self.family():
            try:
                if process.name().startswith(f"rs-{role}"):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    # ------------------------------------------------------------------------------------------------- acting

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(f"{self.rest_url}{path}", data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait for the end, and check that nothing is left behind. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        self.assert_nothing_left()
        return status

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not self.family(), f"processes to leave; alive: {self.family()}", 30)
        assert not self.run_dir.exists(), f"left in the run directory: {list(self.run_dir.rglob('*'))}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None and self.process.poll() is None:
                assert self.stop() == 0, self.log
            elif exception[0] is None:
                self.assert_nothing_left()
            else:
                print(self.log)
        finally:
            self.running.discard(self)
            for process in self.family():
                process.kill()
            self.process.wait(10)
            self._log.close()
            self._short_dir.cleanup()
