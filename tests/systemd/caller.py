"""`python -m tests.systemd.caller MODEL`: calls a server of this host without pause until its input ends.

One thread calls over gRPC on one connection, two over REST with a connection for each call. It then
writes a line of JSON: outcomes and how often they came, and the longest call.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable

import grpc

#: What is answered when no worker came for half a minute: TensorFlow's import may take longer.
NO_WORKER = "No worker has served"
_outcomes: Counter[str] = Counter()
_lock = threading.Lock()
_over = threading.Event()
_longest_s = 0.0


def _call(call: Callable[[], str]) -> None:
    global _longest_s
    while not _over.is_set():
        began = time.monotonic()
        try:
            outcome = call()
        except grpc.RpcError as error:
            text = error.details() or ""
            outcome = NO_WORKER if NO_WORKER in text else f"gRPC {error.code().name}: {text}"
        except (OSError, http.client.HTTPException) as error:
            outcome = f"REST {error!r}"
        with _lock:
            _outcomes[outcome] += 1
            _longest_s = max(_longest_s, time.monotonic() - began)
        time.sleep(0.002)  # the server and this share their cores


def _rest(model: str) -> str:
    body = json.dumps({"instances": [2.0, 4.0]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:8501/v1/models/{model}:predict", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return "REST ok" if json.load(response)["predictions"] == [3.0, 4.0] else "REST wrong"
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return NO_WORKER if NO_WORKER in text else f"REST {error.code}: {text}"


def main(model: str) -> None:
    """Call until standard input ends."""
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    channel = grpc.insecure_channel("127.0.0.1:8500")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(2.0)
    request.inputs["x"].tensor_shape.dim.add(size=1)

    def grpc_call() -> str:
        answer = stub.Predict(request, timeout=60).outputs["y"]
        return "gRPC ok" if list(answer.float_val) == [3.0] else "gRPC wrong"

    calls = [grpc_call, lambda: _rest(model), lambda: _rest(model)]
    threads = [threading.Thread(target=_call, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    sys.stderr.write("calling\n")
    sys.stderr.flush()
    sys.stdin.read()
    _over.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({"outcomes": _outcomes, "longest_s": round(_longest_s, 3)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
