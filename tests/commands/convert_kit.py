"""Models of the kinds that `ringserve convert` reads, written by a process of its own: `python -m ... FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

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


if __name__ == "__main__":
    write(Path(sys.argv[1]))
