"""Open-loop load: requests go out at times drawn beforehand, whatever the server does, over REST or gRPC.

A request's latency counts from the moment it was due, not from when it could be sent: a server that stalls, and a
client that waits for a connection, are charged for all requests that became due meanwhile (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, Protocol

PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0)
_RECENT: Final = 2000


class Caller(Protocol):
    """Sends the one request again and again. call: "" when it was answered well, else what went wrong."""

    async def call(self) -> str:
        """One request."""

    async def close(self) -> None:
        """Let all connections go."""


@dataclass
class Measured:
    """What one rate came to. latencies_ns: of requests answered well, from when they were due. late_ns: how long after
    it was due each was begun, which is this program's own doing."""

    rate: float
    duration_s: float
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    late_ns: array[int] = field(default_factory=lambda: array("q"))
    failures: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    cpu_share: float = 0.0
    elapsed_s: float = 0.0

    @property
    def good(self) -> int:
        """Requests answered well."""
        return len(self.latencies_ns)

    def recent_p99_ns(self) -> float:
        """Of the last requests."""
        return percentile(sorted(self.latencies_ns[-_RECENT:]), 99.0)

    def quantiles_ns(self) -> dict[float, float]:
        """Latency by percentile; 100 is the longest."""
        ordered = sorted(self.latencies_ns)
        return {each: percentile(ordered, each) for each in PERCENTILES}


def percentile(ordered: list[int], percent: float) -> float:
    """The value that `percent` of these ascending ones do not exceed; not a number for none."""
    if not ordered:
        return float("nan")
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def due_times(rate: float, duration_s: float, *, steady: bool, seed: int) -> Iterator[float]:
    """When requests are due, in seconds from the start: at random (Poisson), as many clients' are, or even."""
    dice = random.Random(seed)
    at = 0.0
    while True:
        at += 1 / rate if steady else dice.expovariate(rate)
        if at >= duration_s:
            return
        yield at


async def run_load(
    caller: Caller,
    rate: float,
    duration_s: float,
    *,
    steady: bool = False,
    seed: int = 1,
    tick: Callable[[Measured], None] = lambda _: None,
) -> Measured:
    """Offer `rate` requests a second for so long, and wait for the last answers. tick: called about twice a second."""
    found = Measured(rate, duration_s)
    tasks: set[asyncio.Task[None]] = set()
    cpu = time.process_time()
    start_ns = time.monotonic_ns()

    async def one(due_ns: int) -> None:
        found.late_ns.append(time.monotonic_ns() - due_ns)
        wrong = await caller.call()
        if wrong:
            found.failures[wrong] += 1
        else:
            found.latencies_ns.append(time.monotonic_ns() - due_ns)

    next_tick_ns = start_ns
    for due_s in due_times(rate, duration_s, steady=steady, seed=seed):
        due_ns = start_ns + int(due_s * 1e9)
        wait_s = (due_ns - time.monotonic_ns()) / 1e9
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        elif found.sent % 32 == 0:
            await asyncio.sleep(0)  # behind: the answers want their turn, too
        found.sent += 1
        task = asyncio.create_task(one(due_ns))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if time.monotonic_ns() >= next_tick_ns:
            next_tick_ns = time.monotonic_ns() + 500_000_000
            tick(found)
    found.cpu_share = (time.process_time() - cpu) / max(1e-9, (time.monotonic_ns() - start_ns) / 1e9)
    if tasks:
        await asyncio.gather(*tasks)
    found.elapsed_s = (time.monotonic_ns() - start_ns) / 1e9
    tick(found)
    return found


# --------------------------------------------------------------------------------------------------------------- REST


class RestCaller:
    """POSTs one body over HTTP/1.1, one request a connection at a time; waits when all connections are busy."""

    def __init__(self, host: str, port: int, path: str, body: bytes, *, connections_max: int, timeout_s: float) -> None:
        self._host, self._port, self._timeout_s = host, port, timeout_s
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._free: deque[_Connection] = deque()
        self._room = asyncio.Semaphore(connections_max)

    async def call(self) -> str:
        """One request."""
        try:
            async with asyncio.timeout(self._timeout_s), self._room:
                return await self._exchange()
        except TimeoutError:
            return "timeout"
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            return f"connection: {error}"

    async def _exchange(self) -> str:
        connection = self._free.popleft() if self._free else None
        if connection is not None and connection.is_closing():
            connection.close()
            connection = None
        connection = connection or _Connection(*await asyncio.open_connection(self._host, self._port, limit=2**20))
        kept = False
        try:
            status, kept = await connection.exchange(self._request)
        finally:
            if kept:
                self._free.append(connection)
            else:
                connection.close()
        return "" if status == 200 else f"HTTP {status}"

    async def close(self) -> None:
        """Let all connections go."""
        for connection in self._free:
            connection.close()
        self._free.clear()


class _Connection:
    """One HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def is_closing(self) -> bool:
        """The other side has ended it."""
        return self._reader.at_eof() or self._writer.is_closing()

    def close(self) -> None:
        """End it."""
        self._writer.close()

    async def exchange(self, request: bytes) -> tuple[int, bool]:
        """Send a request, read its whole answer. Returns the status, and whether the connection can be used again."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if "content-length" in fields:
            await self._reader.readexactly(int(fields["content-length"]))
        elif fields.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._reader.readline()).split(b";")[0], 16):
                await self._reader.readexactly(size + 2)
            await self._reader.readline()
        else:
            await self._reader.read()
            return int(lines[0].split()[1]), False
        return int(lines[0].split()[1]), fields.get("connection", "").lower() != "close"


# --------------------------------------------------------------------------------------------------------------- gRPC


class GrpcCaller:
    """Calls Predict with one serialized request, over several connections in turn."""

    def __init__(self, target: str, request: bytes, *, connections: int, timeout_s: float) -> None:
        import grpc.aio

        from ringserve.commands.grpc_calls import OPTIONS, PREDICT

        self._error: Any = grpc.aio.AioRpcError
        self._request, self._timeout_s = request, timeout_s
        options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(connections)]
        self._methods: list[Callable[..., Awaitable[bytes]]] = [
            channel.unary_unary(PREDICT, request_serializer=None, response_deserializer=None)
            for channel in self._channels
        ]
        self._turn = 0

    async def call(self) -> str:
        """One request."""
        self._turn = (self._turn + 1) % len(self._methods)
        try:
            await self._methods[self._turn](self._request, timeout=self._timeout_s)
        except self._error as error:
            return str(error.code().name)
        return ""

    async def close(self) -> None:
        """Let all connections go."""
        for channel in self._channels:
            await channel.close(None)
