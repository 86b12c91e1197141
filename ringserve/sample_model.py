"""A small real model to try a server with: a classifier of hand-drawn-like 8x8 digits, made and trained on the spot.

`ringserve sample-model DIR` writes DIR/digits/1 and prints how to ask it. Training is plain numpy and takes about a
second; TensorFlow is imported only to write the SavedModel.
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIDE = 8
CLASSES_COUNT = 10
_HIDDEN_COUNT = 48

_Array = np.ndarray[Any, np.dtype[np.float32]]

#: Ten digits, 5 x 7 each; "#" is ink.
_GLYPHS = """
.###. ..#.. .###. .###. ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# #...# ..##. #.... #.... ....# #...# #...#
#...# ..#.. ....# ....# .#.#. #.... #.... ...#. #...# #...#
#...# ..#.. ...#. ..##. #..#. ####. ####. ..#.. .###. .####
#...# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ....#
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .###.
"""


class Sample(NamedTuple):
    """A model written by `export_sample`. `path`: its version directory; `example`: an input row of class `label`."""

    name: str
    path: Path
    example: list[float]
    label: int
    accuracy: float


def export_sample(directory: str | os.PathLike[str], name: str = "digits", seed: int = 7) -> Sample:
    """Train the classifier and write it as the next version of `directory`/`name` (1 when there is none).

    Signature serving_default: x float [-1, 64], ink from 0 to 1, row by row -> probabilities float [-1, 10] and
    class int64 [-1]. The version appears under its number only when it is complete, as a watching server needs it.
    """
    random = np.random.default_rng(seed)
    weights = _train(random)
    images, labels = _draw(random, 2000)
    accuracy = float((_forward(images, weights)[1].argmax(axis=1) == labels).mean())
    base = Path(directory) / name
    base.mkdir(parents=True, exist_ok=True)
    version = max((int(child.name) for child in base.iterdir() if child.name.isdecimal()), default=0) + 1
    unfinished = base / f".{version}.unfinished-{os.getpid()}"
    _save(unfinished, weights)
    path = base / str(version)
    unfinished.rename(path)
    return Sample(name, path, _clean_digits()[4].reshape(-1).tolist(), 4, accuracy)


def describe(sample: Sample, host: str = "localhost", rest_port: int = 8501, grpc_port: int = 8500) -> str:
    """What to type next: the curl line and a Python client for this model."""
    row = ",".join(f"{value:g}" for value in sample.example)
    client = f"""\
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel("{host}:{grpc_port}"))
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "{sample.name}"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto([[{row}]], dtype=tf.float32))
        answer = stub.Predict(request, timeout=5)
        print(tf.make_ndarray(answer.outputs["class"]), tf.make_ndarray(answer.outputs["probabilities"]).round(3))
    """
    return "\n".join(
        [
            f"{sample.path}: a classifier of 8x8 digits, right for {sample.accuracy:.1%} of digits new to it.",
            "",
            f'Ask it over REST (the answer\'s "class" is {sample.label}):',
            "",
            f"  curl -d '{{\"instances\": [[{row}]]}}' http://{host}:{rest_port}/v1/models/{sample.name}:predict",
            "",
            "or over gRPC, in Python:",
            "",
            textwrap.indent(textwrap.dedent(client), "  "),
        ]
    )


def _clean_digits() -> _Array:
    """The ten digits [10, 8, 8] without noise."""
    digits = np.zeros((CLASSES_COUNT, SIDE, SIDE), np.float32)
    for y, line in enumerate(_GLYPHS.split("\n")[1:-1]):
        for digit, cells in enumerate(line.split()):
            digits[digit, y, 1:6] = [cell == "#" for cell in cells]
    return digits


def _draw(random: np.random.Generator, count: int) -> tuple[_Array, np.ndarray[Any, np.dtype[np.int64]]]:
    """`count` digits [count, 64], each shifted by up to one pixel, faded and noisy, and what they are [count]."""
    labels = random.integers(0, CLASSES_COUNT, count)
    images = _clean_digits()[labels]
    for axis in (1, 2):
        shifts = random.integers(-1, 2, count)
        for shift in (-1, 1):
            images[shifts == shift] = np.roll(images[shifts == shift], shift, axis=axis)
    images *= random.uniform(0.6, 1.0, (count, 1, 1)).astype(np.float32)
    images += random.normal(0.0, 0.15, images.shape).astype(np.float32)
    return images.clip(0.0, 1.0).reshape(count, SIDE * SIDE), labels


def _forward(images: _Array, weights: list[_Array]) -> tuple[_Array, _Array]:
    """The hidden layer's and the output layer's values."""
    hidden = np.maximum(images @ weights[0] + weights[1], 0.0)
    logits = hidden @ weights[2] + weights[3]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, exponents / exponents.sum(axis=1, keepdims=True)


def _train(random: np.random.Generator) -> list[_Array]:
    """Weights and biases of two layers, by gradient descent with momentum."""
    shapes = [(SIDE * SIDE, _HIDDEN_COUNT), (_HIDDEN_COUNT,), (_HIDDEN_COUNT, CLASSES_COUNT), (CLASSES_COUNT,)]
    weights = [(random.normal(0.0, s[0] ** -0.5, s) if len(s) == 2 else np.zeros(s)).astype(np.float32) for s in shapes]
    momenta = [np.zeros_like(w) for w in weights]
    steps_count, rows_count = 600, 128
    for step in range(steps_count):
        images, labels = _draw(random, rows_count)
        hidden, probabilities = _forward(images, weights)
        error = probabilities
        error[np.arange(rows_count), labels] -= 1.0
        error /= rows_count
        back = (error @ weights[2].T) * (hidden > 0.0)
        gradients = [images.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        rate = 0.3 * (1.0 - step / steps_count)
        for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
            momentum *= 0.9
            momentum -= rate * gradient
            weight += momentum
    return weights


def _save(path: Path, weights: list[_Array]) -> None:
    from ringserve.workers import device
    from ringserve.workers.quiet import quiet

    device.prepare(threads=1)
    device.settle([])  # no GPU: a busy one would have no room for this
    with quiet("info") if "tensorflow" not in sys.modules else contextlib.nullcontext():
        _write(path, weights)


def _write(path: Path, weights: list[_Array]) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.weights = [tf.Variable(weight) for weight in weights]

    def classify(x: Any) -> dict[str, Any]:
        hidden = tf.nn.relu(x @ module.weights[0] + module.weights[1])
        logits = hidden @ module.weights[2] + module.weights[3]
        return {"probabilities": tf.nn.softmax(logits), "class": tf.argmax(logits, axis=1)}

    rows = tf.TensorSpec([None, SIDE * SIDE], tf.float32, "x")
    signature = tf.function(classify, autograph=False).get_concrete_function(x=rows)
    tf.saved_model.save(module, str(path), signatures={"serving_default": signature})
