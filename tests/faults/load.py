"""Clients of a server under faults: threads with a connection each that call Predict and note when and how each ended.

Half of what a fault does to clients can be seen only by those that do not try again, so there are both: plain ones, and
*retrying* ones with the retry policy that gRPC users configure.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import wait_until

_RETRY_POLICY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_TIMEOUT_S = 60.0
#: How long a client whose call has failed waits for a connection: a server that is gone is not asked without end.
_CONNECT_S_MAX = 0.5
#: Of a client, from an answer to its next call: the cores are for the processes that fail and are started again.
_PAUSE_S = 0.01


def channel_to(target: str, *, retrying: bool = False) -> grpc.Channel:
    """A channel with a connection of its own."""
    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    if retrying:
        options.append(("grpc.service_config", json.dumps(_RETRY_POLICY)))
    else:
        options.append(("grpc.enable_retries", 0))
    return grpc.insecure_channel(target, options=options)


@dataclass
class Client:
    """One thread's book. answered_ns, waited_ns: when each right answer came, and how long it took; failures: what the
    other calls ended with."""

    retrying: bool
    answered_ns: list[int] = field(default_factory=list)
    waited_ns: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Load:
    """Clients of the model `half` (y = x / 2 + 2) under the name `m`. Use it as a context manager."""

    def __init__(self, target: str, *, plain: int = 5, retrying: int = 1) -> None:
        self.clients = [Client(number >= plain) for number in range(plain + retrying)]
        self._target = target
        self._running = threading.Event()
        self._ended = threading.Event()
        self._busy = [threading.Lock() for _ in self.clients]
        self._threads = [
            threading.Thread(target=self._run, args=(client, number)) for number, client in enumerate(self.clients)
        ]

    def __enter__(self) -> Load:
        self._running.set()
        for thread in self._threads:
            thread.start()
        self.wait_for_more(3)
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._running.set()
        for thread in self._threads:
            thread.join()

    def pause(self) -> None:
        """No call is in flight, and none begins."""
        self._running.clear()
        for lock in self._busy:
            with lock:  # held during a call
                pass

    def resume(self) -> None:
        self._running.set()

    def all_in_calls(self) -> bool:
        """Whether every client has a call in flight, at this moment."""
        return all(lock.locked() for lock in self._busy)

    def forget(self) -> None:
        """Of what has been, for the next fault."""
        for client in self.clients:
            client.answered_ns.clear()
            client.waited_ns.clear()
            client.failures.clear()

    def wait_for_more(self, each: int) -> None:
        """Until every client has got so many more answers."""
        wanted = [len(client.answered_ns) + each for client in self.clients]
        wait_until(
            lambda: all(len(c.answered_ns) >= count for c, count in zip(self.clients, wanted, strict=True)),
            f"{each} more answers for each client; failures so far: {self.failures()}",
        )

    def failures(self, *, retrying: bool | None = None) -> Counter[str]:
        """How calls failed: the code, or WRONG."""
        return Counter(
            failure
            for client in self.clients
            if retrying in (None, client.retrying)
            for failure in client.failures
        )

    def longest_gap_s(self, since_ns: int) -> float:
        """The longest time without any answer, from `since_ns` on to the last answer."""
        times = sorted({since_ns, *(at for c in self.clients for at in list(c.answered_ns) if at > since_ns)})
        return max((b - a for a, b in itertools.pairwise(times)), default=0) / 1e9

    def slowest_s(self) -> float:
        """The longest time that any call took."""
        return max((waited for client in self.clients for waited in list(client.waited_ns)), default=0) / 1e9

    def _run(self, client: Client, number: int) -> None:
        with channel_to(self._target, retrying=client.retrying) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            inputs = [np.full(1 + n % 3, 10 * number + n, np.float32) for n in range(8)]
            calls = [(make_request("m", x=x), x / 2 + 2) for x in inputs]
            count = 0
            while not self._ended.is_set():
                self._running.wait()
                with self._busy[number]:
                    if self._running.is_set() and not self._ended.is_set():
                        count += 1
                        before = len(client.failures)
                        _call(stub, client, *calls[count % len(calls)])
                        if len(client.failures) > before:
                            _wait_for_connection(channel)
                self._ended.wait(_PAUSE_S)


def _wait_for_connection(channel: grpc.Channel) -> None:
    """A channel without a connection fails calls at once: that would be the same break, told once more."""
    try:
        grpc.channel_ready_future(channel).result(timeout=_CONNECT_S_MAX)
    except grpc.FutureTimeoutError:
        pass


def _call(stub: Any, client: Client, request: predict_pb2.PredictRequest, expected: np.ndarray[Any, Any]) -> None:
    begun_ns = time.monotonic_ns()
    try:
        response = stub.Predict(request, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        client.failures.append(error.code().name)
        return
    if np.array_equal(outputs_of(response)["y"], expected):
        now_ns = time.monotonic_ns()
        client.waited_ns.append(now_ns - begun_ns)
        client.answered_ns.append(now_ns)
    else:
        client.failures.append("WRONG")
