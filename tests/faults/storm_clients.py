"""`python -m tests.faults.storm_clients TARGET CALLS`: so many calls in flight all the time, until standard input ends.

The official asyncio client over several channels. Prints one JSON object at the end: what calls ended with, and every
time longer than `GAP_NS` in which no right answer came, as [begin, length] in ns of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.e2e.clients import make_request

GAP_NS = 20_000_000
_CHANNELS = 10


class Book:
    """What has been counted. `ready` once as many calls have ended as are in flight."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.gaps: list[tuple[int, int]] = []
        self._last_ns = time.monotonic_ns()

    def answered(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._last_ns > GAP_NS:
            self.gaps.append((self._last_ns, now_ns - self._last_ns))
        self._last_ns = now_ns
        self.ends["ok"] += 1


async def _caller(stub: Any, number: int, book: Book, stop: asyncio.Event) -> None:
    calls = []
    for n in range(4):
        x = np.full(1 + n % 3, 10 * (number % 1000) + n, np.float32)
        calls.append((make_request("m", x=x), (x / 2 + 2).tolist()))
    count = 0
    while not stop.is_set():
        request, expected = calls[count % len(calls)]
        count += 1
        await _call(stub, request, expected, book)


async def _call(stub: Any, request: predict_pb2.PredictRequest, expected: list[float], book: Book) -> None:
    try:
        response = await stub.Predict(request, timeout=60)
    except grpc.RpcError as error:
        book.ends[f"{error.code().name}: {error.details()}"] += 1
        return
    if list(response.outputs["y"].float_val) == expected:
        book.answered()
    else:
        book.ends["WRONG"] += 1


async def main(target: str, calls_count: int) -> None:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channels = [grpc.aio.insecure_channel(target, options) for _ in range(_CHANNELS)]
    stubs = [prediction_service_pb2_grpc.PredictionServiceStub(channel) for channel in channels]
    book, stop = Book(), asyncio.Event()
    callers = [asyncio.create_task(_caller(stubs[n % _CHANNELS], n, book, stop)) for n in range(calls_count)]
    while book.ends.total() < 2 * calls_count:
        await asyncio.sleep(0.02)  # polls what the callers count
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    stop.set()
    await asyncio.gather(*callers)
    print(json.dumps({"ends": book.ends, "gaps": book.gaps}), flush=True)
    for channel in channels:
        await channel.close(None)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
