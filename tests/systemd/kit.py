"""Plays systemd for a server in parts: holds its sockets, starts each process as its unit does, hears what it notifies.

`tests/systemd/real.py` does the same with the real one, where there is one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.e2e.server import wait_until

#: Becomes the command, with its sockets where sd_listen_fds(3) says, as only the process itself can.
_BECOME = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",") if fd]
os.closerange(3, 100)
for at, fd in enumerate(fds):
    os.dup2(fd, 3 + at)
    os.close(fd)
if fds:
    os.environ["LISTEN_PID"] = str(os.getpid())
words = ["-m", "ringserve"]
if "RS_TEST_NEWER" in os.environ:
    words = ["-c", "from ringserve.broker import messages; messages.PROTOCOL_VERSION += 1; "
             "from ringserve.cli import main; main()"]
os.execv(sys.executable, [sys.executable, *words, *sys.argv[2:]])
"""
#: The environment of a process of a later release, whose protocol is another one.
NEWER = {"RS_TEST_NEWER": "1"}


class Unit:
    """One service: a command, the sockets that it gets, and its process of the moment."""

    def __init__(
        self, manager: Manager, name: str, arguments: Sequence[str], sockets: Sequence[tuple[str, int]]
    ) -> None:
        self.manager = manager
        self.name = name
        self._arguments = list(arguments)
        self._sockets = list(sockets)
        self.process: subprocess.Popen[bytes] | None = None
        self._notices: socket.socket | None = None
        self.told: list[str] = []
        self.log_path = manager.directory / f"{name}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, **environment: str) -> Unit:
        """Start the process; `wait_ready` waits until it says so."""
        self.told.clear()
        path = self.manager.directory / f"{self.name}.notify"
        path.unlink(missing_ok=True)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notices.bind(str(path))
        fds = [fd for _, fd in self._sockets]
        given = {
            **os.environ,
            **self.manager.environment,
            "NOTIFY_SOCKET": str(path),
            "INVOCATION_ID": "5" * 32,
            **environment,
        }
        if fds:
            given |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(name for name, _ in self._sockets)}
        command = [sys.executable, "-c", _BECOME, ",".join(map(str, fds)), *self._arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, env=given, pass_fds=fds, stdout=log, stderr=log, process_group=0)
        return self

    def _listen(self) -> None:
        assert self._notices is not None
        while True:
            try:
                self.told += self._notices.recv(4096).decode().split("\n")
            except BlockingIOError:
                return

    def _said(self, what: str) -> bool:
        assert self.process is not None
        self._listen()
        if what in self.told:
            return True
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.log}"
        return False

    def wait_ready(self) -> Unit:
        wait_until(lambda: self._said("READY=1"), f"{self.name} to be ready:\n{self.log}")
        return self

    def stop(self) -> int:
        """As `systemctl stop` does. Returns the exit status."""
        return self.kill(signal.SIGTERM)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def wait_end(self) -> int:
        assert self.process is not None
        return self.process.wait(60)

    def restart(self) -> Unit:
        assert self.stop() == 0, self.log
        return self.start().wait_ready()


class Manager:
    """The sockets, and the services. environment: of all of them."""

    def __init__(self, directory: Path, config: str, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.environment = environment or {}
        # Not under pytest's folder, whose path is too long for the sockets' names.
        self._short_dir = tempfile.TemporaryDirectory(prefix="rs-")
        self.run_dir = Path(self._short_dir.name) / "run"
        self.run_dir.mkdir(mode=0o700)
        self.config_path = directory / "server.toml"
        self.config_path.write_text(config.replace("RUN_DIR", str(self.run_dir)))
        self._sockets: dict[str, socket.socket] = {}
        self.units: dict[str, Unit] = {}

    def listen(self, name: str, path: Path | None = None) -> socket.socket:
        """A socket unit, of TCP or at that path."""
        if path is None:
            made = socket.create_server(("127.0.0.1", 0), backlog=512)
        else:
            made = socket.socket(socket.AF_UNIX)
            made.bind(str(path))
            made.listen(512)
        self._sockets[name] = made
        return made

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self._port('grpc')}"

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self._port('rest')}"

    def _port(self, name: str) -> int:
        return int(self._sockets[name].getsockname()[1])

    def unit(self, name: str, *arguments: str, sockets: Sequence[str] = ()) -> Unit:
        fds = [(each, self._sockets[each].fileno()) for each in sockets]
        self.units[name] = Unit(self, name, arguments, fds)
        return self.units[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        for unit in self.units.values():
            if exception[0] is not None:
                print(f"---- {unit.name}\n{unit.log}")
            if unit.process is not None and unit.process.poll() is None:
                unit.process.kill()
                unit.process.wait(10)
        for each in self._sockets.values():
            each.close()
        self._short_dir.cleanup()


class Parts(Manager):
    """A server in parts: broker, workers, and so many frontends."""

    def __init__(self, directory: Path, config: str, frontends: int = 2) -> None:
        super().__init__(directory, config)
        for name in ("grpc", "rest"):
            self.listen(name)
        self.listen("broker", self.run_dir / "broker.sock")
        self.listen("admin", self.run_dir / "admin.sock")
        config_path = str(self.config_path)
        self.broker = self.unit("broker", "broker", "--config", config_path, sockets=["broker"])
        self.workers = self.unit("workers", "pool", "--config", config_path)
        self.frontends = [
            self.unit(
                f"frontend-{index}",
                *("frontend", "--config", config_path, "--index", str(index)),
                sockets=["grpc", "rest", "admin"],
            )
            for index in range(frontends)
        ]

    def start(self) -> Parts:
        """As the target does: all at once."""
        for unit in self.units.values():
            unit.start()
        for unit in self.units.values():
            unit.wait_ready()
        return self
