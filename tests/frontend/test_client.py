"""The client against a broker and a worker played by the test, over real sockets and real rings."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ringserve.broker import wire
from ringserve.broker.cable import Cable
from ringserve.broker.control import ControlChannel
from ringserve.broker.mailbox import Mail, Outbox
from ringserve.broker.messages import (
    PROTOCOL_VERSION,
    Catalog,
    Code,
    Failed,
    Hello,
    InputSpec,
    LaneSpec,
    PeerJoined,
    Release,
    Result,
    Role,
    Submit,
    VersionInfo,
)
from ringserve.broker.registry import Arrivals, Registry
from ringserve.frontend import client as client_module
from ringserve.frontend.client import Client
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output
from ringserve.shm import dtype as dtypes
from ringserve.shm.segment import Segment

MIB = 1 << 20
LANE = Lane(LaneSpec("m", 1, "s", (InputSpec("x", dtypes.FLOAT, (4,)),), ("y",), True))
STRINGS = Lane(LaneSpec("m", 1, "s", (InputSpec("t", dtypes.STRING, ()),), ("u",), True))
ROW = np.arange(4, dtype=np.float32).tobytes()


class Stage:
    """The other side: a broker's registry and cable, and a worker with a result ring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "broker.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen()
        self.mail = Mail()
        self.ring = Segment.create("results", MIB)
        self.brokers = 0
        self.frontend_ids: list[int] = []
        self.start_broker()

    def start_broker(self) -> None:
        self.brokers += 1
        self.selector = selectors.DefaultSelector()
        self.registry = Registry(self.listener, self.selector, first_peer_id=1000 * self.brokers)
        self.cable: Cable | None = None
        self.to_frontend: Outbox | None = None
        self.worker: ControlChannel | None = None

    def stop_broker(self) -> None:
        self.registry.close()
        self.selector.close()
        if self.cable is not None:
            self.cable.close()
        if self.worker is not None:
            self.worker.close()
            self.worker_cable.close()

    async def frontend_joins(self) -> None:
        arrivals = await self.arrivals(lambda arrivals: bool(arrivals.joined))
        self.frontend_ids.append(arrivals.joined[0].peer_id)
        self.to_frontend = self.mail.outbox(arrivals.joined[0].hello.inbox)
        (self.frontend,) = arrivals.joined
        self.cable = self.frontend.cable

    async def worker_joins(self) -> int:
        self.worker = ControlChannel.connect(self.path)
        self.worker.send(Hello(PROTOCOL_VERSION, Role.WORKER, 1, "", self.ring.data_bytes, 0, 0), (self.ring.fd,))
        arrivals = await self.arrivals(lambda arrivals: bool(arrivals.joined))
        (welcome, joined) = self.worker.receive()
        assert isinstance(joined.message, PeerJoined)
        ring_fd, cable_fd = joined.fds
        for fd in (*welcome.fds, ring_fd):
            os.close(fd)
        self.worker_cable = Cable.of_fd(cable_fd)
        return arrivals.joined[0].peer_id

    async def worker_dies(self) -> None:
        assert self.worker is not None
        self.worker.close()
        await self.arrivals(lambda arrivals: bool(arrivals.left))

    async def arrivals(self, enough: Callable[[Arrivals], bool]) -> Arrivals:
        total = Arrivals()

        def look() -> bool:
            for key, _ in self.selector.select(0):
                key.data(total)
            return enough(total)

        await until(look)
        return total

    async def broker_mail(self, kind: type) -> Any:
        assert self.cable is not None
        return await self._next(self.cable.receive, kind)

    async def worker_mail(self, kind: type) -> Any:
        return await self._next(self.worker_cable.receive, kind)

    async def _next(self, receive: Callable[[], list[bytes]], kind: type) -> Any:
        found: list[Any] = []

        def look() -> bool:
            found.extend(message for message in map(wire.unpack, receive()) if isinstance(message, kind))
            return bool(found)

        await until(look)
        assert len(found) == 1
        return found[0]

    def answer(
        self, worker_id: int, values: np.ndarray[Any, Any], answers: list[list[int]], offset: int = 0, batch_id: int = 1
    ) -> None:
        """Write float rows at `offset` of the result ring and send them as answers."""
        raw = values.astype(np.float32).tobytes()
        self.ring.data[offset : offset + len(raw)] = raw
        outputs: list[list[Any]] = [[dtypes.FLOAT, list(values.shape), offset]]
        self.send(Result(worker_id, batch_id, LANE.key, offset, outputs, answers, []))

    def fail(self, worker_id: int, *failures: list[Any], batch_id: int = 1) -> None:
        self.send(Result(worker_id, batch_id, LANE.key, -1, [], [], list(failures)))

    def send(self, message: Result | Failed) -> None:
        """As the worker does, or, of what has failed, the broker."""
        if isinstance(message, Result):
            self.worker_cable.send(wire.pack(message))
            return
        assert self.to_frontend is not None
        self.to_frontend.send(wire.pack(message))

    def close(self) -> None:
        self.stop_broker()
        self.ring.close()
        self.mail.close()
        self.listener.close()


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop run until the condition holds; the limit is for broken code only."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)  # other sides of real sockets need a turn


class Seen:
    """A reply that notes what it gets, as plain values."""

    def __init__(self) -> None:
        self.answers: list[list[list[float]]] = []
        self.strings: list[list[bytes]] = []
        self.failures: list[tuple[int, str]] = []

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        for output in outputs:
            if output.dtype == dtypes.STRING:
                self.strings.append(output.strings(row_first, rows))
            else:
                values = np.frombuffer(output.raw(row_first, rows), np.float32)
                self.answers.append(values.reshape(output.shape_of(rows)).tolist())

    def fail(self, code: int, text: str) -> None:
        self.failures.append((code, text))


@asynccontextmanager
async def staged(
    folder: Path, ring_bytes: int = MIB, timeout_ns_max: int = 0
) -> AsyncIterator[tuple[Stage, Client, Segment]]:
    stage = Stage(folder)
    segment = Segment.create("requests", ring_bytes)
    inbox_path = str(folder / "frontend.inbox")
    client = Client(segment, registration_path=stage.path, inbox_path=inbox_path, timeout_ns_max=timeout_ns_max)
    try:
        await stage.frontend_joins()
        await until(lambda: client.connected)
        yield stage, client, segment
    finally:
        client.close()
        segment.close()
        stage.close()


def rows_in_ring(segment: Segment, request: list[int]) -> bytes:
    return bytes(segment.data[request[3] : request[3] + 16 * request[1]])


async def test_a_request_goes_out_whole_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, segment):
        worker_id = await stage.worker_joins()
        seen = [Seen(), Seen()]
        ids = [client.infer(LANE, 1, [ROW], 0, reply) for reply in seen]
        submit = await stage.broker_mail(Submit)
        assert submit.frontend_id == stage.frontend_ids[0]
        ((key, requests),) = submit.groups
        assert key == LANE.key
        assert [request[:3] for request in requests] == [[ids[0], 1, 0], [ids[1], 1, 0]]
        assert rows_in_ring(segment, requests[0]) == ROW
        stage.answer(worker_id, np.array([[1, 2], [3, 4]]), [[ids[1], 0, 1, 0], [ids[0], 1, 1, 0]])
        await until(lambda: seen[0].answers)
        assert seen[0].answers == [[[3.0, 4.0]]]
        assert seen[1].answers == [[[1.0, 2.0]]]
        assert client.pending_count == 0
        assert (await stage.worker_mail(Release)).record_ids == [0]


async def test_string_inputs_travel_too(tmp_path: Path) -> None:
    from ringserve.shm.tensor import read_strings

    async with staged(tmp_path) as (stage, client, segment):
        values = [b"", b"one", b"\x00\xff" * 100]
        client.infer(STRINGS, 3, [values], 0, Seen())
        ((_, ((_, rows, _, offset),)),) = (await stage.broker_mail(Submit)).groups
        assert rows == 3
        assert read_strings(segment.data, offset, 0, 3) == values


async def test_a_failure_of_the_broker_reaches_the_reply_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        seen = Seen()
        request_id = client.infer(LANE, 1, [ROW], 0, seen)
        stage.send(Failed([[request_id, Code.UNAVAILABLE, "no"]]))
        stage.send(Failed([[request_id, Code.UNAVAILABLE, "again"], [999, Code.UNKNOWN, "stranger"]]))
        other = Seen()
        last = client.infer(LANE, 1, [ROW], 0, other)
        stage.send(Failed([[last, Code.ABORTED, "end"]]))
        await until(lambda: other.failures)
        assert seen.failures == [(Code.UNAVAILABLE, "no")]


async def test_while_a_lane_is_full_who_would_come_too_late_is_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = Lane(LANE.spec)
    async with staged(tmp_path) as (stage, client, _):
        worker_id = await stage.worker_joins()
        # What the broker said fades within milliseconds, which a busy machine may take between two lines of this.
        now_ns = time.monotonic_ns()
        monkeypatch.setattr(client_module, "time", SimpleNamespace(monotonic_ns=lambda: now_ns))
        taken, refused, late = Seen(), Seen(), Seen()
        second_ns = 1_000_000_000
        ids = [client.infer(lane, 1, [ROW], 60 * second_ns, reply) for reply in (taken, refused, late)]
        stage.send(Failed([[ids[1], Code.RESOURCE_EXHAUSTED, "full"]], [[lane.key, 50 * second_ns]]))
        await until(lambda: refused.failures)
        # Of three rows the broker has taken one; the third came later, and nobody knows what becomes of it.
        here = Seen()
        assert client.infer(lane, 1, [ROW], 50 * second_ns, here) == -1
        assert here.failures == [(Code.RESOURCE_EXHAUSTED, lane.pressure.text)]
        assert client.infer(lane, 1, [ROW], 0, Seen()) > 0  # who has time is not asked
        assert client.infer(lane, 1, [ROW], 100 * second_ns, Seen()) > 0
        large = Seen()
        assert client.infer(lane, 9, [ROW * 9], 100 * second_ns, large) > 0  # however many rows it has itself
        assert lane.pressure.rows == 13
        stage.answer(worker_id, np.array([[4.0]]), [[ids[0], 0, 1, 0]])
        await until(lambda: taken.answers)
        assert lane.pressure.rows == 12
    assert lane.pressure.rows == 0


async def test_full_is_an_answer_and_room_comes_back(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        seen = [Seen() for _ in range(4)]
        big = bytes(MIB // 4)
        ids = [client.infer(LANE, MIB // 64, [big], 0, reply) for reply in seen]
        assert all(request_id > 0 for request_id in ids)
        refused = Seen()
        assert client.infer(LANE, MIB // 64, [big], 0, refused) == -1
        ((code, text),) = refused.failures
        assert code == Code.RESOURCE_EXHAUSTED
        assert "request_ring_bytes" in text
        stage.send(Failed([[ids[2], Code.UNAVAILABLE, "no"]]))
        await until(lambda: seen[2].failures)
        assert client.infer(LANE, MIB // 64, [big], 0, Seen()) > 0


async def test_what_can_never_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    async with staged(tmp_path) as (_, client, _):
        refused = Seen()
        assert client.infer(LANE, 1, [bytes(MIB + 1)], 0, refused) == -1
        ((code, text),) = refused.failures
        assert code == Code.RESOURCE_EXHAUSTED
        assert str(MIB + 1) in text
        assert str(MIB) in text
        assert client.pending_count == 0


async def test_a_refused_request_of_several_inputs_gives_its_records_back(tmp_path: Path) -> None:
    two = Lane(
        LaneSpec("m", 1, "s", (InputSpec("a", dtypes.FLOAT, (4,)), InputSpec("b", dtypes.FLOAT, (4,))), ("y",), True)
    )
    async with staged(tmp_path) as (_, client, _):
        for _ in range(5):
            assert client.infer(two, 1, [bytes(MIB // 2), bytes(MIB)], 0, Seen()) == -1
        assert client.infer(LANE, MIB // 16, [bytes(MIB)], 0, Seen()) > 0


async def test_a_dead_workers_requests_are_submitted_again(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        worker_id = await stage.worker_joins()
        seen = Seen()
        request_id = client.infer(LANE, 1, [ROW], 0, seen)
        first = await stage.broker_mail(Submit)
        assert not first.again
        await stage.worker_dies()
        again = await stage.broker_mail(Submit)
        assert again.again
        assert again.groups == first.groups
        # A Result that the dead worker had sent arrives late, and still counts.
        stage.answer(worker_id, np.array([[1.0]]), [[request_id, 0, 1, 0]])
        await until(lambda: seen.answers)


async def test_a_new_broker_gets_what_the_old_one_held(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        seen = Seen()
        request_id = client.infer(LANE, 1, [ROW], 0, seen)
        await stage.broker_mail(Submit)
        stage.stop_broker()
        await until(lambda: not client.connected)
        during = client.infer(LANE, 1, [ROW], 0, Seen())
        stage.start_broker()
        await stage.frontend_joins()
        again = await stage.broker_mail(Submit)
        assert again.frontend_id == stage.frontend_ids[1] != stage.frontend_ids[0]
        assert again.again
        ((key, requests),) = again.groups
        assert key == LANE.key
        assert [request[0] for request in requests] == [request_id, during]


async def test_the_catalog_follows_the_broker(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, client, _):
        stage.registry.send(stage.frontend, Catalog([VersionInfo("m", 3, 20, 0, "", b"", [])], ["m"], {}, []))
        await until(lambda: client.catalog.statuses("m", None))


async def test_closing_fails_what_is_pending_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    seen = Seen()
    async with staged(tmp_path) as (stage, client, _):
        await stage.worker_joins()
        client.infer(LANE, 1, [ROW], 0, seen)
    ((code, _),) = seen.failures
    assert code == Code.UNAVAILABLE
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> None:
    """Keeps the socket paths short enough for UNIX sockets (107 bytes)."""
    assert len(str(tmp_path)) < 80, tmp_path
