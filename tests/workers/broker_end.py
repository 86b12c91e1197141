"""The other ends of a worker: a broker's registration socket, a frontend's ring, the cables to both, all real."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ringserve.broker import wire
from ringserve.broker.cable import Cable, pair
from ringserve.broker.control import ControlChannel, ControlMessage
from ringserve.broker.messages import (
    Ask,
    Execute,
    Hello,
    LaneSpec,
    LoadOrder,
    PeerJoined,
    PeerLeft,
    Release,
    Result,
    Role,
    Told,
    Welcome,
)
from ringserve.shm.segment import Segment
from ringserve.workers.execute import Executor
from ringserve.workers.handover import Handover
from ringserve.workers.link import Link, PoolGone, StopOrdered
from ringserve.workers.loading import Loader, Open
from ringserve.workers.serve import Answer, Worker, make_result_ring
from tests.workers.desk import Ring

M = TypeVar("M")

_PATIENCE_S = 60.0
#: Of a frontend's requests, none of which gives its place back.
_RING_BYTES = 8 << 20
_ROOM_NS_MAX = 24_000_000_000


def wait_for(condition: Callable[[], M | None], what: str) -> M:
    """The first value of `condition` that is not None. The limit is there for broken code, not to time anything."""
    limit = time.monotonic() + _PATIENCE_S
    while True:
        value = condition()
        if value is not None:
            return value
        if time.monotonic() > limit:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.002)  # polling another thread or process, bounded above


class BrokerEnd:
    """Takes one registration at a time and keeps what it is told."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(_PATIENCE_S)
        self.messages: list[ControlMessage] = []
        self.channel: ControlChannel
        self.results: Segment

    def accept(self, worker_id: int) -> Hello:
        """Let a worker register."""
        connection, _ = self.listener.accept()
        self.channel = ControlChannel(connection)
        hello = self._next(Hello)
        self.messages.clear()
        ours, theirs = pair()
        with theirs:
            self.channel.send(Welcome(worker_id), (theirs.fileno(),))
        self.worker = Cable(ours)
        return hello

    def _next(self, kind: type[M]) -> M:
        def look() -> M | None:
            for received in self.channel.receive():
                self.messages.append(received.message)
                for fd in received.fds:
                    self.results = Segment.attach(fd)
            return next((message for message in self.messages if isinstance(message, kind)), None)

        return wait_for(look, f"a {kind.__name__}")

    def until(self, last: ControlMessage) -> list[ControlMessage]:
        """All that came up to this very message, since the last call."""

        def look() -> list[ControlMessage] | None:
            self.messages += [received.message for received in self.channel.receive()]
            if last not in self.messages:
                return None
            end = self.messages.index(last) + 1
            taken, self.messages[:end] = self.messages[:end], []
            return taken

        try:
            return wait_for(look, f"{last}")
        except AssertionError as error:
            raise AssertionError(f"{error}; there came {self.messages}") from None

    def ask(self, verb: str, body: bytes = b"") -> Told:
        """Ask the worker and wait for the answer."""
        self.channel.send(Ask(7, verb, body))
        told = self._next(Told)
        self.messages.remove(told)
        assert told.ask_id == 7
        return told

    def lose(self) -> None:
        """Be gone, as far as this worker can see."""
        self.channel.close()
        self.worker.close()

    def close(self) -> None:
        self.listener.close()


class FrontendEnd:
    """A frontend that sends requests through the broker's end and reads the results."""

    def __init__(self, broker: BrokerEnd, peer_id: int = 1) -> None:
        self.broker = broker
        self.peer_id = peer_id
        self.ring = Ring(_RING_BYTES)
        self.batches = 0
        self.join()

    def join(self) -> None:
        """Be introduced to the worker."""
        ours, theirs = pair()
        with theirs:
            joined = PeerJoined(self.peer_id, int(Role.FRONTEND), _RING_BYTES)
            self.broker.channel.send(joined, (self.ring.segment.fd, theirs.fileno()))
        self.cable = Cable(ours)

    def leave(self) -> None:
        """Hang up, and be gone for the worker."""
        self.cable.close()
        self.broker.channel.send(PeerLeft(self.peer_id))

    def ask(self, spec: LaneSpec, **inputs: Any) -> Result:
        """One batch of one request of these arrays; its Result."""
        offsets = [self.ring.put(array) for array in inputs.values()]
        rows = len(next(iter(inputs.values()))) if spec.batchable else 1
        self.batches += 1
        execute = Execute(self.batches, wire.pack_lane(spec), [[self.peer_id, self.batches, rows, 0, *offsets]])
        self.broker.worker.send(wire.pack(execute))
        (data,) = wait_for(lambda: self.cable.receive() or None, "a Result")
        result = wire.unpack(data)
        assert isinstance(result, Result)
        return result

    def give_back(self, result: Result) -> None:
        """Its record has been read."""
        self.cable.send(wire.pack(Release(self.peer_id, [result.record_id])))

    def floats(self, spec: LaneSpec, **inputs: Any) -> list[float]:
        """As `ask`; the first output, which is of floats."""
        result = self.ask(spec, **inputs)
        assert not result.failures
        _, shape, offset = result.outputs[0]
        return list(np.ndarray(shape, np.float32, self.broker.results.data, offset).reshape(-1).tolist())


class WorkerEnd:
    """A worker's loop in a thread of this process."""

    def __init__(
        self,
        directory: Path,
        orders: list[LoadOrder],
        open_model: Open,
        *,
        niceness: int = 0,
        answer: Answer = lambda ask: Told(ask.ask_id, 0, "", b""),
        told: Handover[Told] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.outcome: object = None
        loader = Loader(orders, open_model, niceness=niceness)
        told = told or Handover()
        segment, ring = make_result_ring("test-worker", 1 << 20)
        self._pool: tuple[socket.socket, socket.socket] = socket.socketpair()
        link = Link(
            str(directory / "b"),
            segment,
            worker_index=0,
            generation=0,
            pool_fd=self._pool[0].fileno(),
            wake_fds=(loader.events.fd, told.fd),
        )

        def run() -> None:
            try:
                link.register()
                models: dict[Any, Any] = {}
                executor = Executor(models, link.rings, ring, segment.data, link.worker_id, awaits=link.awaits)
                Worker(
                    link,
                    executor,
                    segment,
                    ring,
                    models,
                    loader,
                    answer=answer,
                    told=told,
                    stopping=lambda: False,
                    clock=clock,
                    room_ns_max=_ROOM_NS_MAX,
                ).serve()
            except BaseException as error:
                self.outcome = error
            link.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def join(self) -> object:
        """Wait for its end; what ended it."""
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive()
        return self.outcome

    def close(self) -> None:
        """End it as the pool's death does."""
        self._pool[1].close()
        assert isinstance(self.join(), PoolGone | StopOrdered), self.outcome


def short_directory() -> tempfile.TemporaryDirectory[str]:
    """Not under pytest's folder, whose path is too long for a socket's name."""
    return tempfile.TemporaryDirectory(prefix="rs-")
