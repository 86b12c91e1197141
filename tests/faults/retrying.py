"""Clients that retry as clients usually do: official gRPC ones with a retry policy, and urllib3's for REST."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import grpc
import numpy as np
import urllib3
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until

#: As gRPC's documentation of service configs shows it.
RETRY_POLICY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
#: Of a client, from an answer to its next call: the cores are for the processes that fail and are started again.
_PAUSE_S = 0.01


def channel(target: str, *, retries: bool = True) -> grpc.Channel:
    """A channel with a connection of its own."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if retries:
        options.append(("grpc.service_config", json.dumps(RETRY_POLICY)))
    return grpc.insecure_channel(target, options)


class Clients:
    """Threads that ask the model `half` (y = x / 2 + 2) all the time, each over a connection of its own, and count
    what comes back. Use it as a context manager; leaving it asserts that every call was answered rightly."""

    def __init__(self, server: Server, grpc_count: int, rest_count: int = 0) -> None:
        self.outcomes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._target, self._url = server.grpc_target, f"{server.rest_url}/v1/models/half:predict"
        self._threads = [threading.Thread(target=self._call_grpc, args=(n,)) for n in range(grpc_count)]
        self._threads += [threading.Thread(target=self._call_rest, args=(n,)) for n in range(rest_count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        self.wait_for_more(50)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if exception[0] is None:
            assert set(self.outcomes) == {"ok"}, self.outcomes

    def wait_for_more(self, count: int) -> None:
        """Until so many more calls were answered."""
        seen = self.outcomes["ok"]
        wait_until(lambda: self.outcomes["ok"] >= seen + count, f"{count} more answers; so far {self.outcomes}")

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def _call_grpc(self, seed: int) -> None:
        with channel(self._target) as own:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(own)
            number = seed
            while not self._stop.is_set():
                number += 1
                x = np.full(1 + number % 3, number % 100, np.float32)
                try:
                    y = outputs_of(stub.Predict(make_request("half", x=x), timeout=60))["y"]
                except grpc.RpcError as error:
                    self._count(f"{error.code().name}: {error.details()}")
                else:
                    self._count("ok" if np.array_equal(y, x / 2 + 2) else "wrong")
                self._stop.wait(_PAUSE_S)

    def _call_rest(self, seed: int) -> None:
        retry = urllib3.Retry(4, backoff_factor=0.1, allowed_methods=None, status_forcelist=[503])
        number = seed
        with urllib3.PoolManager(maxsize=1, retries=retry, timeout=60) as pool:
            while not self._stop.is_set():
                number += 1
                x = [number % 100] * (1 + number % 3)
                try:
                    response = pool.request("POST", self._url, json={"instances": x})
                except urllib3.exceptions.HTTPError as error:
                    self._count(repr(error))
                    continue
                right = response.status == 200 and response.json() == {"predictions": [each / 2 + 2 for each in x]}
                self._count("ok" if right else f"{response.status}: {response.data!r}")
                self._stop.wait(_PAUSE_S)
