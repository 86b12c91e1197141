"""The real pool in a process of its own, and this process as the broker that orders it about."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from ringserve.broker.control import ControlChannel, ControlMessage
from ringserve.broker.messages import (
    Author,
    Authored,
    Exited,
    Forget,
    Fork,
    Hello,
    Loaded,
    LoadOrder,
    PoolState,
    Ready,
    Role,
    Stop,
)
from tests.workers.broker_end import BrokerEnd, wait_for

M = TypeVar("M")

ROOT = Path(__file__).parents[2]

_PROGRAM = """
import sys
from ringserve.config.schema import Server, Settings, Workers
from ringserve.workers.main import run
settings = Settings(server=Server(hang_ms_max=0), workers=Workers(workers=2, threads_per_worker=1))
sys.exit(run(settings, name="pool", death_fd=int(sys.argv[1]), broker_path=sys.argv[2]))
"""


class PoolEnd:
    """A pool, started anew. Use it in a `with`: it and its workers end there, however the test does."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="rs-")
        broker_path = Path(self._directory.name) / "broker.sock"
        self.broker = BrokerEnd(broker_path)
        read_fd, self._death_fd = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(read_fd), str(broker_path)], cwd=ROOT, pass_fds=[read_fd]
        )
        os.close(read_fd)
        #: Connections of the workers by their process ids, kept so that none is taken for lost.
        self.workers: dict[int, ControlChannel] = {}
        self._messages: list[ControlMessage] = []
        #: Of the latest author.
        self.weights_id = 0
        #: What the pool holds, as far as it has told.
        self.held: list[Authored] = []
        self.state = self.accept()

    def accept(self) -> PoolState:
        """Let the pool register; what it has."""
        connection, _ = self.broker.listener.accept()
        self.channel = ControlChannel(connection)
        hello = self.next(Hello)
        assert hello.role == Role.POOL
        return self.next(PoolState)

    def next(self, kind: type[M]) -> M:
        """The next message of this kind from the pool; others are kept."""

        def look() -> M | None:
            self._messages += [received.message for received in self.channel.receive()]
            found = next((message for message in self._messages if isinstance(message, kind)), None)
            if found is not None:
                self._messages.remove(found)
            return found

        return wait_for(look, f"a {kind.__name__} from the pool")

    def begin_author(self, name: str, path: Path, version: int = 1) -> int:
        """Order an author; the weights' id."""
        self.weights_id += 1
        order = LoadOrder(name, version, str(path), False, [], self.weights_id)
        self.channel.send(Author(self.weights_id, True, [], 1, order))
        return self.weights_id

    def author(self, name: str, path: Path) -> Authored:
        """Have the weights of a version written."""
        weights_id = self.begin_author(name, path)
        authored = self.authored()
        assert authored.weights_id == weights_id
        return authored

    def authored(self) -> Authored:
        """The next answer for an author."""
        authored = self.next(Authored)
        if authored.bytes_shared:
            self.held.append(authored)
        return authored

    def fork(self, *orders: LoadOrder, index: int = 0) -> tuple[int, list[Loaded]]:
        """A worker that has carried these orders out: its process id, and how the loads went."""
        self.channel.send(Fork(index, 0, [], 1, list(orders)))
        hello = self.broker.accept(1000 + index)
        self.workers[hello.pid] = self.broker.channel

        def complete() -> bool | None:
            self.broker.messages += [received.message for received in self.broker.channel.receive()]
            return any(isinstance(message, Ready) and message.complete for message in self.broker.messages) or None

        wait_for(complete, "a worker that has loaded")
        return hello.pid, [message for message in self.broker.messages if isinstance(message, Loaded)]

    def forget(self, *weights_ids: int) -> None:
        """Have these weights given up."""
        self.channel.send(Forget(list(weights_ids)))
        self.held = [authored for authored in self.held if authored.weights_id not in weights_ids]

    def ended(self, pid: int) -> Exited:
        """Wait for this worker's end."""
        while True:
            exited = self.next(Exited)
            self.workers.pop(exited.pid).close()
            if exited.pid == pid:
                return exited

    def clear(self) -> None:
        """End all workers and give up all weights."""
        for channel in self.workers.values():
            channel.send(Stop("the test is over"))
        for pid in list(self.workers):
            if pid in self.workers:
                self.ended(pid)
        self.forget(*(authored.weights_id for authored in self.held))

    def __enter__(self) -> PoolEnd:
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self._death_fd)
        self.process.kill() if self.process.poll() is None and not self._ends() else None
        self.process.wait()
        self.channel.close()
        for channel in self.workers.values():
            channel.close()
        self.broker.close()
        self._directory.cleanup()

    def _ends(self) -> bool:
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            return False
        return True


def order_of(name: str, path: Path, weights_id: int, version: int = 1, fallback: bool = False) -> LoadOrder:
    return LoadOrder(name, version, str(path), fallback, [], weights_id)


def memory_of(pid: int) -> dict[str, int]:
    """Of a process, in bytes: RssAnon (its own), RssFile, RssShmem (mapped shared memory that it has touched)."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Rss"):
            name, _, value = line.partition(":")
            found[name] = int(value.split()[0]) * 1024
    return found


def users_of(name: str) -> set[int]:
    """Processes that hold or map the weights of the model `name`: while there is none, there is no such memory."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = any(f"memfd:weights-{name}-" in os.readlink(fd) for fd in (process / "fd").iterdir())
            if held or f"memfd:weights-{name}-" in (process / "maps").read_text():
                found.add(int(process.name))
        except OSError:
            continue  # it has ended meanwhile
    return found
