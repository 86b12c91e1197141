"""`python -m tests.faults.storm_clients TARGET CALLS`: so many calls in flight all the time, until standard input ends.

The official asyncio client over several channels, with message classes that need no TensorFlow. Prints one JSON object
at the end: what calls ended with, and every time longer than `GAP_NS` in which no right answer came, as [begin, length]
in ns of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import grpc

from ringserve.config.protos import PredictRequest, PredictResponse

GAP_NS = 20_000_000
_CHANNELS = 10
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_FLOAT = 1


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


def _request(values: list[float]) -> Any:
    request = PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].dtype = _FLOAT
    request.inputs["x"].tensor_shape.dim.add(size=len(values))
    request.inputs["x"].float_val.extend(values)
    return request


async def _caller(predict: Any, number: int, book: Book, stop: asyncio.Event) -> None:
    calls = []
    for n in range(4):
        x = [float(10 * (number % 1000) + n)] * (1 + n % 3)
        calls.append((_request(x), [each / 2 + 2 for each in x]))
    count = 0
    while not stop.is_set():
        request, expected = calls[count % len(calls)]
        count += 1
        await _call(predict, request, expected, book)


async def _call(predict: Any, request: Any, expected: list[float], book: Book) -> None:
    try:
        response = await predict(request, timeout=60)
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
    ways = [
        channel.unary_unary(_PREDICT, PredictRequest.SerializeToString, PredictResponse.FromString)
        for channel in channels
    ]
    book, stop = Book(), asyncio.Event()
    callers = [asyncio.create_task(_caller(ways[n % _CHANNELS], n, book, stop)) for n in range(calls_count)]
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
