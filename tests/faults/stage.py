"""One server with hooks for faults, and what it consists of when it is whole: processes, memory, descriptors, files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil

from ringserve.broker.control import ControlClosed
from tests.e2e.operator import state
from tests.e2e.server import Server, wait_until
from tests.faults.orders import Orders

_CONFIG = """
[server]
frontends = 2
drain_ms_max = 3000
hang_ms_max = 2000
[workers]
workers = 2
lease_ms_max = 2000
restart_wait_ms_max = 100
[batching]
spread_us = 0
[lifecycle]
settle_ms = 100
[memory]
weight_sharing_bytes_min = 1
[[models]]
name = "m"
base_path = "{m}"
[[models]]
name = "w"
base_path = "{w}"
[[models]]
name = "fragile"
base_path = "{fragile}"
"""
WHOLE = Counter({"supervisor": 1, "broker": 1, "pool": 1, "frontend": 2, "worker": 2})
_NUMBERS = re.compile(r"\d+")
MODELS = ("half", "mlp", "fragile")


def export_models(folder: Path) -> None:
    """Write the models that a `Stage` serves, each as FOLDER/NAME/1."""
    subprocess.run([sys.executable, "-m", "tests.e2e.export_models", str(folder), *MODELS], check=True, timeout=170)


class Stage(Server):
    """A server of two workers, two frontends, the models `m` (half) and `fragile`, and the versions of `w` (MLP).

    A worker that runs a batch for 2 s is taken to hang, a broker or pool that is silent for 2 s, a frontend for 6 s. A
    drain lasts 3 s at most; weights are shared however small; a process that dies again and again, as they do here, is
    started again after 100 ms every time.
    """

    def __init__(self, folder: Path, models: Path, orders: Orders | None = None, **flags: str) -> None:
        folder.mkdir(exist_ok=True)
        self.orders = orders or Orders(folder / "orders")
        self._models = models
        self._base = folder / "w"
        self._base.mkdir()
        self.version = 0  # the last that was put
        self.serving = self.put()
        config = folder / "server.toml"
        config.write_text(_CONFIG.format(m=models / "half", w=self._base, fragile=models / "fragile"))
        more = [word for name, value in flags.items() for word in (f"--{name}", value)]
        self._whole = Counter({**WHOLE, "frontend": int(flags.get("frontends", WHOLE["frontend"]))})
        super().__init__(folder, "--config", str(config), *more, environment=self.orders.environment)

    def put(self) -> int:
        """Another version of `w`, whole at once. Returns its number."""
        self.version += 1
        copy = self._base / f"copying-{self.version}"
        shutil.copytree(self._models / "mlp" / "1", copy)
        copy.rename(self._base / str(self.version))
        return self.version

    def drop(self, version: int) -> None:
        shutil.rmtree(self._base / str(version))

    def wait_ready(self) -> None:
        for model in ("m", "w", "fragile"):
            self.wait_available(model)
        self.wait_whole()

    def busiest(self, role: str) -> psutil.Process:
        """Its process of a role with the most clients."""
        return max(self.members(role), key=lambda process: len(clients_of(process)))

    def stopped(self) -> list[psutil.Process]:
        """Processes that a SIGSTOP holds."""
        found = []
        for process in self.family():
            try:
                if process.status() == psutil.STATUS_STOPPED:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    # ------------------------------------------------------------------------------------------------ whole again

    def wait_whole(self) -> None:
        """Until every place is filled, by a process that does its work, and nobody else is there."""
        wait_until(self._is_whole, f"the server to be whole; there are {self.processes()}", 90)

    def processes(self) -> Counter[str]:
        """How many there are of each role."""
        found: Counter[str] = Counter()
        for process in self.family():
            try:
                found[process.name().removeprefix("rs-").split("-")[0]] += 1
            except psutil.NoSuchProcess:
                continue
        return found

    def _is_whole(self) -> bool:
        if self.processes() != self._whole:
            return False
        try:
            found = state(self)
        except (ControlClosed, OSError):
            return False  # the broker left in the middle of it
        workers = found["workers"]
        return len(workers) == 2 and all(
            worker["generation"] == found["generation"] and worker["state"] == "ready" for worker in workers
        )

    # ---------------------------------------------------------------------------------------------- what it has

    def strange_files(self) -> list[str]:
        """Files in the run directory that belong to a process which is gone."""
        alive = {process.pid for process in self.family()}
        return [
            path.name
            for path in self.run_dir.iterdir()
            if (match := re.search(r"-(\d+)\.(inbox|grpcio)$", path.name)) and int(match[1]) not in alive
        ]

    def memory(self) -> Counter[str]:
        """The pieces of memory that its processes share, by name without numbers: each inode once."""
        inodes: set[tuple[str, int]] = set()
        for process in self.family():
            inodes |= _mapped(process.pid) | _open(process.pid)
        return Counter(_NUMBERS.sub("N", name) for name, _ in inodes)

    def named_memory(self) -> list[str]:
        """What of it has a name in the file system: nothing should."""
        found = []
        for process in self.family():
            try:
                lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [line for line in lines if "/dev/shm/" in line]
        return found

    def descriptors(self) -> Counter[str]:
        """How many descriptors a process of each name has at most; connections of clients and the files of metrics,
        which are opened when there is something to count, do not count."""
        found: Counter[str] = Counter()
        for process in self.family():
            try:
                name = _NUMBERS.sub("N", process.name())
                count = sum(not link.endswith(".db") for link, _ in _links(process.pid))
                found[name] = max(found[name], count - len(process.net_connections("tcp")))
            except psutil.NoSuchProcess:
                continue
        return found


def clients_of(process: psutil.Process) -> list[int]:
    """The ports of those who are connected to it."""
    connections = process.net_connections("tcp")
    return [connection.raddr.port for connection in connections if connection.status == psutil.CONN_ESTABLISHED]


def _mapped(pid: int) -> set[tuple[str, int]]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    found = set()
    for line in lines:
        _, _, _, _, inode, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/memfd:"):
            found.add((path[0].split()[0], int(inode)))
    return found


def _open(pid: int) -> set[tuple[str, int]]:
    return {(link.split()[0], inode) for link, inode in _links(pid) if link.startswith("/memfd:")}


def _links(pid: int) -> list[tuple[str, int]]:
    """What each of its descriptors is, and the inode."""
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            found.append((os.readlink(path), os.stat(path).st_ino))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended, or closed this one, meanwhile
    return found
