"""Models of the kinds that `ringserve convert` reads, and its command run on them, all in one process of its own.

    python -m tests.commands.convert_kit FOLDER     commands as JSON on standard input, what became of each on output

TensorFlow and Keras take seconds to load, once here; and the command sets them up for itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from ringserve.workers import device


def write(folder: Path) -> None:
    """m.keras, m.h5 (Dense layers), two.keras (two inputs and outputs, one of strings), frozen.pb, loose.pb."""
    device.prepare(threads=1)
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,), name="x"), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3, name="y")]
    model = keras.Sequential(layers)
    model.save(folder / "m.keras")
    model.save(folder / "m.h5")
    np.savez(folder / "rows.npz", x=np.random.default_rng(1).random((50, 4), np.float32))
    np.save(folder / "expected.npy", model.predict(np.ones((2, 4), np.float32), verbose=0))

    word, number = keras.Input((), dtype="string", name="word"), keras.Input((1,), name="number")
    index = keras.layers.StringLookup(vocabulary=["a", "b", "c"], name="index")(word)
    half = keras.layers.Rescaling(0.5, name="half")(number)
    keras.Model([word, number], [index, half]).save(folder / "two.keras")

    v1 = tf.compat.v1
    for name in ("frozen", "loose"):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [1, 2], "scope/x")
            weights = v1.get_variable("w", [2, 2]) if name == "loose" else tf.constant([[1.0, 2.0], [3.0, 4.0]])
            tf.matmul(x, weights, name="scope/y")
        (folder / f"{name}.pb").write_bytes(graph.as_graph_def().SerializeToString())


def run(commands: list[list[str]]) -> list[tuple[int, Any]]:
    """Exit status and JSON, or the last line, of each command."""
    from ringserve.cli import main

    found: list[tuple[int, Any]] = []
    for command in commands:
        done = CliRunner().invoke(main, ["convert", *command, "--json"])
        found.append((done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else done.output.splitlines()[-1]))
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    json.dump(run(json.load(sys.stdin)), sys.stdout)
