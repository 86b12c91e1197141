"""Threads that call Predict on one model all the time while a test changes things, and count what comes back."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from typing import Any, Protocol

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import wait_until

#: Of a thread, from an answer to its next call, once all is well: some calls are in flight nearly all the time, and the
#: cores are left to the processes that the test is about.
_PAUSE_S = 0.01


class Target(Protocol):
    """A server, however it was started."""

    @property
    def grpc_target(self) -> str: ...


class Traffic:
    """Calls of the model `half` (y = x / 2 + 2) under some name. Use it as a context manager; leaving it asserts that
    every call was answered rightly. versions: which versions answered, and how often."""

    def __init__(self, server: Target, model: str, threads: int = 6) -> None:
        self.outcomes: Counter[str] = Counter()
        self.versions: Counter[int] = Counter()
        self._model = model
        self._pause_s = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(server.grpc_target)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        self.wait_for_more(50)
        self._pause_s = _PAUSE_S
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()
        if exception[0] is None:
            assert set(self.outcomes) == {"ok"}, self.outcomes

    def wait_for_more(self, count: int) -> None:
        """Until so many more calls were answered."""
        seen = self.outcomes["ok"]
        wait_until(lambda: self.outcomes["ok"] >= seen + count, f"{count} more answers; so far {self.outcomes}")

    def wait_for_version(self, version: int) -> None:
        """Until that version, and no other, answers."""

        def only_that() -> bool:
            with self._lock:
                self.versions.clear()
            self.wait_for_more(50)
            return set(self.versions) == {version}

        wait_until(only_that, f"version {version} to answer")

    def _run(self, seed: int) -> None:
        number = seed
        while not self._stop.is_set():
            number += 1
            x = np.full(1 + number % 3, number % 100, np.float32)
            outcome, version = self._call(x)
            with self._lock:
                self.outcomes[outcome] += 1
                self.versions[version] += 1
            self._stop.wait(self._pause_s)

    def _call(self, x: np.ndarray[Any, Any]) -> tuple[str, int]:
        try:
            response = self._stub.Predict(_request(self._model, len(x), int(x[0])), timeout=60)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}", -1
        right = np.array_equal(outputs_of(response)["y"], x / 2 + 2)
        return "ok" if right else "wrong", response.model_spec.version.value


@functools.cache
def _request(model: str, rows: int, value: int) -> predict_pb2.PredictRequest:
    """Making one takes as long as the call."""
    return make_request(model, x=np.full(rows, value, np.float32))
