"""The models that performance is measured with, and requests for them with the answers plain TensorFlow gives.

    python -m perf.models DIRECTORY        exports both, with their exchanges; `prepared()` does so once and keeps it

`mlp`: 784-512-512-10, float32, some 50 µs a call: what a server costs. `conv`: 96x96x3 images, some 4 ms a row on one
core: whether all cores are used. Weights and requests come from fixed seeds. Only the exporting process imports
TensorFlow; requests are what the official Python client sends for a numpy array (`tensor_content`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.loadgen import PERF, Exchange

EXCHANGES_COUNT = {"mlp": 64, "conv": 32}
ROW_SHAPE = {"mlp": (784,), "conv": (96, 96, 3)}
INPUT, OUTPUT = "x", "probabilities"


@dataclass(frozen=True)
class PerfModel:
    """An exported model: `base_path` is what a server is given, `version_path` what TensorFlow loads."""

    name: str
    base_path: Path
    version_path: Path
    exchanges: tuple[Exchange, ...]
    rest_exchanges: tuple[Exchange, ...]


def prepared() -> dict[str, PerfModel]:
    """Both models; exported by a process of its own the first time, or after this file changed."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = PERF / "build" / f"models-{digest}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            command = [sys.executable, "-m", "perf.models", f"{fresh}/models"]
            subprocess.run(command, cwd=PERF.parent, check=True, stdout=subprocess.DEVNULL)
            shutil.move(f"{fresh}/models", folder)
    return {name: _read(folder, name) for name in EXCHANGES_COUNT}


def _read(folder: Path, name: str) -> PerfModel:
    exchanges = {}
    for kind in ("grpc", "rest"):
        paths = sorted((folder / "exchanges" / name / kind).glob("*.request"))
        exchanges[kind] = tuple(Exchange(p.read_bytes(), p.with_suffix(".expected").read_bytes()) for p in paths)
    base_path = folder / name
    return PerfModel(name, base_path, base_path / "1", exchanges["grpc"], exchanges["rest"])


# ---------------------------------------------------------------------------------- in the exporting process only


def _mlp(tf: Any) -> Any:
    rng = tf.random.Generator.from_seed(1)
    widths = (784, 512, 512, 10)
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


def _write_exchanges(folder: Path, name: str, tf: Any, model: Any) -> None:
    import numpy as np
    from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

    rng = np.random.default_rng(3)
    signature = model.signatures["serving_default"]
    for kind in ("grpc", "rest"):
        (folder / "exchanges" / name / kind).mkdir(parents=True)
    for index in range(EXCHANGES_COUNT[name]):
        rows = rng.normal(size=(1, *ROW_SHAPE[name])).astype(np.float32)
        answer = signature(**{INPUT: tf.constant(rows)})[OUTPUT].numpy()
        request, response = PredictRequest(), PredictResponse()
        request.model_spec.name = response.model_spec.name = name
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
            path = folder / "exchanges" / name / kind / f"{index:03}"
            path.with_suffix(".request").write_bytes(sent)
            path.with_suffix(".expected").write_bytes(expected)


def export(folder: Path) -> None:
    """Writes FOLDER/mlp/1, FOLDER/conv/1 and FOLDER/exchanges."""
    import tensorflow as tf

    for name, make in (("mlp", _mlp), ("conv", _conv)):
        module = make(tf)
        spec = tf.TensorSpec((None, *ROW_SHAPE[name]), tf.float32, name=INPUT)
        module.serve = tf.function(module.serve, input_signature=[spec])
        tf.saved_model.save(module, str(folder / name / "1"), signatures=module.serve)
        _write_exchanges(folder, name, tf, tf.saved_model.load(str(folder / name / "1")))


if __name__ == "__main__":
    export(Path(sys.argv[1]))
