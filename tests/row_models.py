"""SavedModels about rows: those whose outputs depend on the other rows of their batch, and those that only look so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.exporters import concrete, save, tensorflow

#: Signatures of `depending` by what finds them out: the probe at load, or a trial.
AT_LOAD = ("rank", "best", "label", "group", "cplx", "words", "mixed")
ON_TRIAL = ("open", "loop")


def depending(directory: Path) -> Path:
    """Signatures whose rows depend on each other, in outputs of many types: see AT_LOAD and ON_TRIAL.

    upper: string text [-1] -> string y [-1], and wide: float x [-1, -1] -> float y [-1], do not.
    """
    tf = tensorflow()
    floats: tuple[list[int | None] | None, str] = ([None], "float32")
    texts: tuple[list[int | None] | None, str] = ([None], "string")

    def lengths(text: Any) -> Any:
        return tf.cast(tf.strings.length(text), tf.float32)

    def loop(x: Any) -> dict[str, Any]:
        _, y = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 1.1), [tf.constant(0), x])
        return {"y": tf.nn.softmax(y, axis=0)}

    signatures = {
        "rank": concrete(lambda x: {"y": tf.argsort(tf.argsort(x, direction="DESCENDING"))}, x=floats),
        "best": concrete(lambda x: {"y": x >= tf.reduce_max(x)}, x=floats),
        "label": concrete(lambda x: {"y": tf.where(x >= tf.reduce_max(x), "winner", "loser")}, x=floats),
        "group": concrete(lambda x: {"y": tf.unique(x).idx}, x=([None], "int64")),
        "cplx": concrete(lambda x: {"y": x - tf.reduce_mean(x)}, x=([None], "complex64")),
        "words": concrete(lambda text: {"y": tf.nn.softmax(lengths(text))}, text=texts),
        "mixed": concrete(lambda x, text: {"y": tf.nn.softmax(x + lengths(text))}, x=floats, text=texts),
        "open": concrete(lambda x: {"y": tf.nn.softmax(tf.reduce_sum(x, 1))}, x=([None, None], "float32")),
        "loop": concrete(loop, x=floats),
        "upper": concrete(lambda text: {"y": tf.strings.upper(text)}, text=texts),
        "wide": concrete(lambda x: {"y": tf.reduce_sum(x, 1)}, x=([None, None], "float32")),
    }
    return save(directory, signatures)


def long_ranking(directory: Path) -> Path:
    """float x [-1, 64] -> float scores, int32 ids [-1, 4000]: all of them by their scores, of which many are nearly the
    same, so that they change places when sums are added up in another order."""
    tf = tensorflow()
    weights = tf.Variable(tf.random.stateless_normal([64, 4000], seed=[1, 2]))

    def rank(x: Any) -> dict[str, Any]:
        scores, ids = tf.math.top_k(x @ weights, 4000)
        return {"scores": scores, "ids": ids}

    return save(directory, {"serving_default": concrete(rank, x=([None, 64], "float32"))}, weights=weights)


def in_place(directory: Path) -> Path:
    """float x [-1, 2] -> y [-1, 2]: x, but the first row of a run is 7."""
    tf = tensorflow()

    def forward(x: Any) -> dict[str, Any]:
        return {"y": tf.raw_ops.InplaceUpdate(x=x, i=tf.constant([0]), v=tf.fill([1, 2], 7.0)) + 0.0}

    return save(directory, {"serving_default": concrete(forward, x=([None, 2], "float32"))})
