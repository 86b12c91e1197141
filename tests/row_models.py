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


#: Signatures of `hiding` by what becomes of them: refuted at load, not to be told of, or on trial.
HIDING_AT_LOAD = ("above_one", "largest", "pixels", "beside_text")
HIDING_FROM_ALL = ("mask", "tokens")
HIDING_IN_BRANCHES = ("branch", "below_zero")


def hiding(directory: Path) -> Path:
    """Signatures whose rows depend on each other, but not for floats below one and whole numbers below three; and those
    whose rows do not, sizes and branch: float x [-1, 2] -> y."""
    tf = tensorflow()
    floats: tuple[list[int | None] | None, str] = ([None, 2], "float32")
    texts: tuple[list[int | None] | None, str] = ([None], "string")

    def scaled(x: Any) -> Any:
        return x / tf.maximum(tf.reduce_max(tf.abs(x)), 1.0)

    def beside(x: Any, text: Any) -> dict[str, Any]:
        return {"y": scaled(x) + tf.cast(tf.strings.length(text), tf.float32)[:, None]}

    def pixels(x: Any) -> dict[str, Any]:
        return {"y": scaled(tf.cast(x, tf.float32) / 64.0)}

    def mask(x: Any) -> dict[str, Any]:
        return {"y": tf.sequence_mask(x, tf.maximum(tf.reduce_max(x), 5))}

    signatures = {
        "below_zero": concrete(lambda x: {"y": tf.cond(tf.reduce_min(x) < 0, lambda: x * 0 - 1, lambda: x)}, x=floats),
        "above_one": concrete(lambda x: {"y": tf.cond(tf.reduce_max(x) > 1, lambda: x / 255, lambda: x)}, x=floats),
        "largest": concrete(lambda x: {"y": scaled(x)}, x=floats),
        "pixels": concrete(pixels, x=([None, 2], "uint8")),
        "beside_text": concrete(beside, x=floats, text=texts),
        "mask": concrete(mask, x=([None], "int32")),
        "tokens": concrete(lambda text: {"y": tf.strings.split(text).to_tensor()}, text=texts),
        "branch": concrete(
            lambda x: {"y": x * tf.cond(tf.shape(x)[0] > 1000, lambda: 2.0, lambda: 1.0)}, x=floats
        ),
        "sizes": concrete(lambda x: {"y": tf.reshape(tf.concat([x, x], 1), [tf.shape(x)[0], -1])}, x=floats),
        "open": concrete(lambda x: {"y": x - tf.reduce_mean(x, 0)}, x=([None, None], "float32")),
    }
    return save(directory, signatures)
