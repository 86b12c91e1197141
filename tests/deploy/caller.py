"""Calls a server through a balancer without a pause until it is asked to stop, as ordinary clients do: the official
grpcio client, and HTTP keep-alive connections. No client retries anything here.

    python -m tests.deploy.caller GRPC_HOST:PORT REST_HOST:PORT

Prints a line of JSON four times a second, and a last one when its standard input ends: answered (calls), failed (what
the first ones of those said), slowest_s.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable

import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

_GRPC_THREADS = 4
_REST_THREADS = 2
_PAUSE_S = 0.01
_TIMEOUT_S = 60.0
_ROW = [0.0] * 64


class Tally:
    """What became of the calls of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answered = 0
        self.failed: list[str] = []
        self.slowest_s = 0.0

    def call(self, make: Callable[[], None]) -> None:
        """One call, counted."""
        began_s = time.monotonic()
        try:
            make()
            error = ""
        except Exception as failure:  # whatever it is, it is what a client would have seen
            error = " ".join(repr(failure).split())
        with self._lock:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            if error:
                self.failed.append(f"after {self.answered}: {error[:600]}")
            else:
                self.answered += 1

    def line(self) -> str:
        """The counts as JSON."""
        with self._lock:
            return json.dumps(
                {"answered": self.answered, "failed": self.failed[:10], "slowest_s": round(self.slowest_s, 2)}
            )


def _request() -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    tensor = request.inputs["x"]
    tensor.dtype = 1  # DT_FLOAT
    for size in (1, len(_ROW)):
        tensor.tensor_shape.dim.add().size = size
    tensor.float_val.extend(_ROW)
    return request


def _grpc(target: str, tally: Tally, stop: threading.Event) -> None:
    request = _request()
    # A connection of its own, as if each thread were a client.
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        while not stop.wait(_PAUSE_S):
            tally.call(lambda: stub.Predict(request, timeout=_TIMEOUT_S))


def _rest(address: str, tally: Tally, stop: threading.Event) -> None:
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    body = json.dumps({"instances": [_ROW]})

    def ask() -> None:
        connection.request("POST", "/v1/models/digits:predict", body)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {text[:300]!r}")

    while not stop.wait(_PAUSE_S):
        tally.call(ask)


def _stop_at_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main(grpc_target: str, rest_address: str) -> None:
    """Call until standard input ends."""
    tally, stop = Tally(), threading.Event()
    threads = [threading.Thread(target=_grpc, args=(grpc_target, tally, stop)) for _ in range(_GRPC_THREADS)]
    threads += [threading.Thread(target=_rest, args=(rest_address, tally, stop)) for _ in range(_REST_THREADS)]
    threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    for thread in threads:
        thread.start()
    while not stop.wait(0.25):
        print(tally.line(), flush=True)
    for thread in threads:
        thread.join()
    print(tally.line(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
