"""Requests and answers of the official TensorFlow Serving client, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2


def make_request(
    model: str, signature: str = "", version: int | None = None, outputs: tuple[str, ...] = (), **inputs: Any
) -> predict_pb2.PredictRequest:
    """A PredictRequest of these inputs, made as users make it: by tf.make_tensor_proto."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    request.output_filter.extend(outputs)
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return request


def outputs_of(response: predict_pb2.PredictResponse) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs as arrays, by alias."""
    return {alias: tf.make_ndarray(proto) for alias, proto in response.outputs.items()}
