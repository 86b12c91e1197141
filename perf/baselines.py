"""What the server is compared with: the server a team writes first, and TensorFlow without any server.

    python -m perf.baselines naive --model DIR --port N        a grpc.aio server that calls the signature per request
    python -m perf.baselines raw --model DIR --rows 1,8 --seconds 1 --cpu 0

`raw` runs the worker's execution path (`ringserve.workers.servable`) in a loop, pinned to one core, on one thread:
no server on that core can do better. It prints "ready", waits for a line, and prints the rows per second of each
batch size as JSON; so that several start together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

PREDICT = "/tensorflow.serving.PredictionService/Predict"


async def naive(model_path: Path, port: int) -> None:
    """The documented way, line by line: `tf.saved_model.load`, `sig(x=tf.constant(...))`, `make_tensor_proto`."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    model = tf.saved_model.load(str(model_path))
    signature = model.signatures["serving_default"]

    async def predict(request: Any, context: Any) -> Any:
        inputs = {alias: tf.constant(tf.make_ndarray(tensor)) for alias, tensor in request.inputs.items()}
        outputs = signature(**inputs)
        response = predict_pb2.PredictResponse()
        for alias, tensor in outputs.items():
            response.outputs[alias].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = int(model_path.name)
        response.model_spec.signature_name = "serving_default"
        return response

    service, method = PREDICT.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(
        predict,
        request_deserializer=predict_pb2.PredictRequest.FromString,
        response_serializer=predict_pb2.PredictResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


def raw(model_path: Path, rows_counts: list[int], seconds: float, cpu: int) -> None:
    # Pinned before TensorFlow is imported, as a worker is: its thread pools see one core.
    os.sched_setaffinity(0, {cpu})
    from ringserve.workers import device

    device.prepare(1)
    import numpy as np

    from ringserve.broker.messages import InputSpec, LaneSpec
    from ringserve.workers.servable import Servable

    servable = Servable.load(model_path, "raw", 1)
    signature = servable.signatures["serving_default"]
    alias, tensor_name = next(iter(signature.inputs.items()))
    shape = servable.shape(tensor_name)
    assert shape is not None
    inner = tuple(size or 1 for size in shape[1:])
    outputs = tuple(signature.outputs)
    plan = servable.plan(LaneSpec("raw", 1, "serving_default", (InputSpec(alias, 1, inner),), outputs, True))
    rng = np.random.default_rng(5)
    batches = {rows: rng.normal(size=(rows, *inner)).astype(np.float32) for rows in rows_counts}
    for batch in batches.values():
        plan.run([batch])
    print("ready", flush=True)
    while True:
        try:
            input()
        except EOFError:
            return
        rates = {}
        for rows, batch in batches.items():
            calls, start = 0, time.monotonic()
            while (elapsed := time.monotonic() - start) < seconds:
                plan.run([batch])
                calls += 1
            rates[str(rows)] = calls * rows / elapsed
        print(json.dumps(rates), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("naive", "raw"))
    parser.add_argument("--model", type=Path, required=True, help="a version's folder, named by its number")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rows", default="1,8,32,128")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each batch size")
    parser.add_argument("--cpu", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.which == "naive":
        asyncio.run(naive(arguments.model, arguments.port))
    else:
        raw(arguments.model, [int(rows) for rows in arguments.rows.split(",")], arguments.seconds, arguments.cpu)


if __name__ == "__main__":
    main()
