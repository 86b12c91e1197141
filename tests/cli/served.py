"""A supervisor over stand-in children, as a process of its own: its diary, its log, and what to wait for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ringserve.config.schema import Server, Settings, Workers

_ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0


def wait_for_it(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """For broken code there is a limit; working code is only waited for."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, what()
        time.sleep(0.01)  # polls another process's file


class Served:
    """A supervisor over stand-ins, its diary and its log."""

    def __init__(
        self,
        folder: Path,
        server: Server,
        behaviours: dict[str, str],
        watchdog_s: float = 0,
        stderr: int = -1,
        pool_stop_ms: int = 12_000,
    ) -> None:
        self.diary_path = folder / "diary"
        self.diary_path.touch()
        self.run_dir = folder / "run"
        self.log_path = folder / "log"
        self.installed_path = folder / "installed"
        self.installed_path.touch()
        workers = Workers(workers=1, restart_wait_ms_min=1, restart_wait_ms_max=50, start_failures_max=3)
        settings = Settings(server=replace(server, run_dir=str(self.run_dir)), workers=workers)
        settings_path = folder / "settings.json"
        settings_path.write_text(settings.to_json())
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(folder / "systemd.sock"))
        self.notices.settimeout(PATIENCE_S)
        environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "STAND_IN": json.dumps(behaviours),
            "STAND_IN_DIARY": str(self.diary_path),
            "STAND_IN_FOR_FILES": str(self.installed_path),
            "STAND_IN_POOL_STOP_MS": str(pool_stop_ms),
            "NOTIFY_SOCKET": str(folder / "systemd.sock"),
            "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("serve_stand_ins.py")), str(settings_path)],
                env=environment,
                stderr=log if stderr < 0 else stderr,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def diary(self) -> list[tuple[str, str]]:
        """(event, name), in order."""
        return [(line.split()[0], line.split()[1]) for line in self.diary_path.read_text().splitlines()]

    def pids(self, event: str, name: str) -> list[int]:
        lines = map(str.split, self.diary_path.read_text().splitlines())
        return [int(words[2]) for words in lines if words[:2] == [event, name]]

    def wait_ready(self) -> None:
        assert self.notices.recv(100) == b"READY=1"

    def wait_for(self, event: str, name: str, count: int = 1) -> None:
        wait_for_it(lambda: self.diary.count((event, name)) >= count, lambda: f"no {event} of {name}\n{self.log}")

    def wait_log(self, text: str) -> None:
        wait_for_it(lambda: text in self.log, lambda: f"no {text!r} in\n{self.log}")

    def end(self) -> int:
        """The exit status, once it has ended by itself; nothing of it may be left."""
        status = self.process.wait(PATIENCE_S)
        assert not self.run_dir.exists()
        assert not any(alive(pid) for pid in self.all_pids()), self.log
        return status

    def all_pids(self) -> set[int]:
        return {int(line.split()[2]) for line in self.diary_path.read_text().splitlines()}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
