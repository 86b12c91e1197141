"""Warm-up records, and versions to put them into."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from ringserve.broker.messages import Code, LoadOrder
from ringserve.config.schema import Batching, Lifecycle
from ringserve.config.tfrecord import write_record


def predict(tf: Any, signature: str = "", outputs: tuple[str, ...] = (), model: str = "any", **inputs: Any) -> bytes:
    """A serialized PredictionLog of a Predict; a value may be a TensorProto."""
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = model
    request.model_spec.version.value = 99
    request.model_spec.signature_name = signature
    request.output_filter.extend(outputs)
    for alias, value in inputs.items():
        proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        request.inputs[alias].CopyFrom(proto)
    return bytes(log.SerializeToString())


def examples(tf: Any, kind: str, signature: str, *values: float, context: float | None = None) -> bytes:
    """A serialized PredictionLog of a Classify or Regress with examples {x: value}."""
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    request = getattr(log, kind).request
    request.model_spec.name = "any"
    request.model_spec.signature_name = signature
    fill_examples(request.input, values, context)
    return bytes(log.SerializeToString())


def fill_examples(given: Any, values: tuple[float, ...], context: float | None = None) -> None:
    listed = given.example_list if context is None else given.example_list_with_context
    for value in values:
        listed.examples.add().features.feature["x2" if context is not None else "x"].float_list.value.append(value)
    if context is not None:
        listed.context.features.feature["x"].float_list.value.append(context)


def multi(tf: Any, *tasks: tuple[str, str, str]) -> bytes:
    """A serialized PredictionLog of a MultiInference. tasks: (model, signature, method)."""
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    request = log.multi_inference_log.request
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    fill_examples(request.input, (1.0, 2.0))
    return bytes(log.SerializeToString())


class Version:
    """A copy of a version's directory to put a warm-up file into, and to open."""

    def __init__(self, source: Path, directory: Path) -> None:
        self.path = Path(shutil.copytree(source, directory / "1"))
        self.file = self.path / "assets.extra" / "tf_serving_warmup_requests"

    def open(
        self, *records: bytes, raw: bytes | None = None, options: list[Any] | None = None, **lifecycle: Any
    ) -> Any:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_bytes(b"".join(map(write_record, records)) if raw is None else raw)
        return self.open_as_it_is(options, **lifecycle)

    def open_as_it_is(self, options: list[Any] | None = None, **lifecycle: Any) -> Any:
        from ringserve.workers.opening import Opener

        clock = itertools.count(0, 1000)  # time is no part of what is tested here
        settings = dataclasses.replace(Lifecycle(), **lifecycle)
        opener = Opener(("serve",), 1, Batching(batch_rows_max=8), settings, lambda: next(clock))
        return opener(LoadOrder("m", 1, str(self.path), False, options or []))

    def error(self, *records: bytes, raw: bytes | None = None) -> tuple[Code, str]:
        from ringserve.workers.failures import LoadError

        with pytest.raises(LoadError) as caught:
            self.open(*records, raw=raw)
        return caught.value.code, caught.value.text
