"""The models that performance is measured with, and requests for them with the answers plain TensorFlow gives.

    python -m perf.models DIRECTORY MODEL...    exports these with their exchanges; `prepared()` does so once for all

`mlp`: 784-512-512-10, float32, some 50 µs a call: what a server costs. `mlp_other`: the same under the same name with
other weights, so that two versions of one model can be told apart. `conv`: 96x96x3 images, some 4 ms a row on one
core: whether all cores are used. `pixels`: 224x224x3 images, of which it answers the first pixel, and `mirror`, which
answers the whole: what the way of large tensors costs. `dense-300`: 300 MB of weights, and `dense-8` for tests: loads
and memory. Weights and requests come from fixed seeds. Only the exporting process imports TensorFlow; requests are
what the official Python client sends for a numpy array (`tensor_content`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.loadgen import PERF, Exchange, LoadError, fresh_folder

INPUT, OUTPUT = "x", "probabilities"


@dataclass(frozen=True)
class PerfModel:
    """An exported model: `base_path` is what a server is given, `version_path` what TensorFlow loads."""

    name: str
    base_path: Path
    version_path: Path
    exchanges: tuple[Exchange, ...]
    rest_exchanges: tuple[Exchange, ...]


def prepared(*names: str) -> dict[str, PerfModel]:
    """These models, `mlp` and `conv` when none is named; those that are not there yet, or are of another state of this
    file, are exported by a process of its own. Raises LoadError."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    names = names or ("mlp", "conv")
    folders = {name: PERF / "build" / f"models-{digest}" / name for name in names}
    missing = [name for name, folder in folders.items() if not folder.exists()]
    if missing:
        with fresh_folder(folders[missing[0]].parent) as fresh:
            command = [sys.executable, "-m", "perf.models", str(fresh), *missing]
            ended = subprocess.run(command, cwd=PERF.parent, check=False, stdout=subprocess.DEVNULL).returncode
            if ended:
                raise LoadError(f"the models {', '.join(missing)} were not exported: that process ended with {ended}")
            for name in missing:
                try:
                    os.rename(fresh / name, folders[name])
                except OSError:
                    if not folders[name].exists():  # else another process was faster
                        raise
    return {name: _read(folder, name) for name, folder in folders.items()}


def served_name(name: str) -> str:
    """What clients call the model: `mlp_other` is other weights for `mlp`."""
    return name.partition("_")[0].partition("-")[0]


def _read(folder: Path, name: str) -> PerfModel:
    exchanges = {}
    for kind in ("grpc", "rest"):
        paths = sorted((folder / "exchanges" / kind).glob("*.request"))
        exchanges[kind] = tuple(Exchange(p.read_bytes(), p.with_suffix(".expected").read_bytes()) for p in paths)
    base_path = folder / served_name(name)
    return PerfModel(served_name(name), base_path, base_path / "1", exchanges["grpc"], exchanges["rest"])


# ---------------------------------------------------------------------------------- in the exporting process only


def _dense(tf: Any, seed: int, widths: Sequence[int]) -> Any:
    rng = tf.random.Generator.from_seed(seed)
    module = tf.Module()
    module.layers = [
        (tf.Variable(rng.normal((a, b)) * (2.0 / a) ** 0.5), tf.Variable(rng.normal((b,)) * 0.1))
        for a, b in itertools.pairwise(widths)
    ]

    def serve(x: Any) -> dict[str, Any]:
        for weight, bias in module.layers[:-1]:
            x = tf.nn.relu(x @ weight + bias)
        weight, bias = module.layers[-1]
        return {OUTPUT: tf.nn.softmax(x @ weight + bias)}

    module.serve = serve
    return module


#: (filters, stride) of each 3x3 convolution.
CONVOLUTIONS = ((32, 2), (64, 2), *((64, 1),) * 6, (128, 2), *((128, 1),) * 13)


def _conv(tf: Any) -> Any:
    rng = tf.random.Generator.from_seed(2)
    module = tf.Module()
    module.kernels, channels = [], 3
    for filters, _ in CONVOLUTIONS:
        module.kernels.append(tf.Variable(rng.normal((3, 3, channels, filters)) * (2.0 / (9 * channels)) ** 0.5))
        channels = filters
    module.head = tf.Variable(rng.normal((channels, 10)))

    def serve(x: Any) -> dict[str, Any]:
        for kernel, (_, stride) in zip(module.kernels, CONVOLUTIONS, strict=True):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, stride, "SAME"))
        return {OUTPUT: tf.nn.softmax(tf.reduce_mean(x, (1, 2)) @ module.head)}

    module.serve = serve
    return module


def _images(tf: Any, whole: bool) -> Any:
    module = tf.Module()

    def serve(x: Any) -> dict[str, Any]:
        return {OUTPUT: tf.identity(x) if whole else x[:, 0, 0, :]}

    module.serve = serve
    return module


def _make(tf: Any, name: str) -> tuple[Any, tuple[int, ...], int]:
    """(module, shape of a row, how many exchanges)"""
    if name == "conv":
        return _conv(tf), (96, 96, 3), 32
    if name in ("pixels", "mirror"):
        return _images(tf, whole=name == "mirror"), (224, 224, 3), 4
    if name.startswith("dense-"):
        megabytes = int(name.partition("-")[2])
        width = 2048 if megabytes >= 100 else 512
        hidden = max(math.ceil((megabytes * 1e6 / 4 - 784 * width) / width**2), 1)
        return _dense(tf, 21, (784, *(width,) * (hidden + 1), 10)), (784,), 16
    return _dense(tf, {"mlp": 1, "mlp_other": 11}[name], (784, 512, 512, 10)), (784,), 64


def _write_exchanges(folder: Path, name: str, tf: Any, model: Any, row_shape: Sequence[int], count: int) -> None:
    import numpy as np
    from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

    rng = np.random.default_rng(3)
    signature = model.signatures["serving_default"]
    for kind in ("grpc", "rest"):
        (folder / "exchanges" / kind).mkdir(parents=True)
    for index in range(count):
        rows = rng.normal(size=(1, *row_shape)).astype(np.float32)
        answer = signature(**{INPUT: tf.constant(rows)})[OUTPUT].numpy()
        request, response = PredictRequest(), PredictResponse()
        request.model_spec.name = response.model_spec.name = served_name(name)
        request.inputs[INPUT].CopyFrom(tf.make_tensor_proto(rows))
        response.model_spec.version.value = 1
        response.model_spec.signature_name = "serving_default"
        response.outputs[OUTPUT].CopyFrom(tf.make_tensor_proto(answer))
        bodies = {
            "grpc": (request.SerializeToString(), response.SerializeToString()),
            "rest": (
                json.dumps({"instances": rows.tolist()}).encode(),
                json.dumps({"predictions": answer.tolist()}).encode(),
            ),
        }
        for kind, (sent, expected) in bodies.items():
            path = folder / "exchanges" / kind / f"{index:03}"
            path.with_suffix(".request").write_bytes(sent)
            path.with_suffix(".expected").write_bytes(expected)


def export(folder: Path, name: str) -> None:
    """Writes the model's base path with version 1, and FOLDER/exchanges."""
    import tensorflow as tf

    module, row_shape, count = _make(tf, name)
    spec = tf.TensorSpec((None, *row_shape), tf.float32, name=INPUT)
    module.serve = tf.function(module.serve, input_signature=[spec])
    version_path = str(folder / served_name(name) / "1")
    tf.saved_model.save(module, version_path, signatures=module.serve)
    _write_exchanges(folder, name, tf, tf.saved_model.load(version_path), row_shape, count)


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        export(Path(sys.argv[1]) / chosen, chosen)
