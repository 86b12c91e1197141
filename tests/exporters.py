"""Small SavedModels made on the spot, so that no test that matters needs a file from elsewhere.

Every exporter takes the version directory to write (`BASE/<name>/<version>`) and returns it. TensorFlow is imported by
the first call, not by importing this file: tests without a model stay quick.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Numeric dtypes that a feed and a fetch of a session carry, by TensorFlow's name.
IDENTITY_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128",
)  # fmt: skip

#: Types that few models have: quantized ones, and those that numpy knows from ml_dtypes.
RARE_DTYPES = ("qint8", "quint8", "qint16", "quint16", "qint32", "float8_e5m2", "float8_e4m3fn", "int4", "uint4")


def tensorflow() -> Any:
    """TensorFlow, quiet and with the settings of a worker."""
    from ringserve.workers import device

    device.prepare(threads=1)
    import tensorflow as tf

    return tf


def save(directory: Path, signatures: dict[str, Any], **tracked: Any) -> Path:
    """Write a TF 2 SavedModel whose signatures are these concrete functions; `tracked` is what they use."""
    tf = tensorflow()
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    tf.saved_model.save(module, str(directory), signatures=signatures)
    return directory


def concrete(function: Callable[..., Any], **inputs: tuple[list[int | None] | None, str]) -> Any:
    """A signature: `function` traced with inputs given as alias=(shape, dtype name)."""
    tf = tensorflow()
    specs = {alias: tf.TensorSpec(shape, tf.as_dtype(dtype), alias) for alias, (shape, dtype) in inputs.items()}
    return tf.function(function).get_concrete_function(**specs)


#: {signature: (inputs by alias, outputs by alias)}, tensors of a TF 1 graph.
GraphSignatures = dict[str, tuple[dict[str, Any], dict[str, Any]]]


@contextlib.contextmanager
def graph_export(directory: Path, variables: bool = True) -> Iterator[tuple[Any, GraphSignatures]]:
    """A TF 1 export: the body builds a graph in `tf.compat.v1` and fills its signatures."""
    tf = tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        signatures: GraphSignatures = {}
        yield v1, signatures
        if variables:
            session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                name: v1.saved_model.predict_signature_def(inputs, outputs)
                for name, (inputs, outputs) in signatures.items()
            },
        )
        builder.save()


# ------------------------------------------------------------------------------------------------- per-row networks


def mlp(directory: Path, sizes: tuple[int, ...] = (784, 512, 512, 10), seed: int = 1) -> Path:
    """float x [-1, sizes[0]] -> float probabilities [-1, sizes[-1]]: relu layers, softmax at the end."""
    tf = tensorflow()
    generator = tf.random.Generator.from_seed(seed)
    layers = [
        (tf.Variable(generator.normal([a, b], stddev=a**-0.5)), tf.Variable(generator.normal([b], stddev=0.1)))
        for a, b in itertools.pairwise(sizes)
    ]

    def forward(x: Any) -> dict[str, Any]:
        for weights, bias in layers[:-1]:
            x = tf.nn.relu(x @ weights + bias)
        return {"probabilities": tf.nn.softmax(x @ layers[-1][0] + layers[-1][1])}

    signature = concrete(forward, x=([None, sizes[0]], "float32"))
    return save(directory, {"serving_default": signature}, layers=layers)


def conv(directory: Path, side: int = 96, channels: int = 32, seed: int = 2) -> Path:
    """float image [-1, side, side, 3] -> float logits [-1, 10]: about 4 ms a row on one core at side 96."""
    tf = tensorflow()
    generator = tf.random.Generator.from_seed(seed)
    shapes = [[3, 3, 3, channels], [3, 3, channels, 2 * channels], [3, 3, 2 * channels, 4 * channels]]
    kernels = [tf.Variable(generator.normal(s, stddev=(s[0] * s[1] * s[2]) ** -0.5)) for s in shapes]
    head = tf.Variable(generator.normal([4 * channels, 10], stddev=0.1))

    def forward(image: Any) -> dict[str, Any]:
        for kernel, stride in zip(kernels, (1, 2, 2), strict=True):
            image = tf.nn.relu(tf.nn.conv2d(image, kernel, strides=stride, padding="SAME"))
        return {"logits": tf.reduce_mean(image, axis=[1, 2]) @ head}

    signature = concrete(forward, image=([None, side, side, 3], "float32"))
    return save(directory, {"serving_default": signature}, kernels=kernels, head=head)


def several(directory: Path) -> Path:
    """a float [-1, 3], b float [-1, 2] -> both float [-1, 5] (joined), sum float [-1], scaled int64 [-1, 2]."""
    tf = tensorflow()

    def forward(a: Any, b: Any) -> dict[str, Any]:
        both = tf.concat([a, b], axis=1)
        return {"both": both, "sum": tf.reduce_sum(both, axis=1), "scaled": tf.cast(b * 10.0, tf.int64)}

    return save(directory, {"serving_default": concrete(forward, a=([None, 3], "float32"), b=([None, 2], "float32"))})


def half(directory: Path) -> Path:
    """float x [-1] -> float y [-1]: y = 0.5 x + 2. Rows of 4 bytes, so that ring records are padded between them."""
    tf = tensorflow()
    w = tf.Variable(0.5)
    return save(directory, {"serving_default": concrete(lambda x: {"y": w * x + 2.0}, x=([None], "float32"))}, w=w)


def ranking(directory: Path) -> Path:
    """float x [-1] -> float p [-1], the softmax over all rows: each depends on the others. Signatures: last: int64
    place [-1], how many rows come later. own: float y [-1]: 2 x, and a place. noisy: x and a random number."""
    tf = tensorflow()

    def place(x: Any) -> Any:
        return tf.cast(tf.range(tf.shape(x)[0], 0, -1), tf.int64) * 10

    flat: tuple[list[int | None] | None, str] = ([None], "float32")
    signatures = {
        "serving_default": concrete(lambda x: {"p": tf.nn.softmax(x, axis=0)}, x=flat),
        "last": concrete(lambda x: {"place": place(x)}, x=flat),
        "own": concrete(lambda x: {"y": x * 2.0, "place": place(x)}, x=flat),
        "noisy": concrete(lambda x: {"y": x + 100.0 * tf.random.normal(tf.shape(x))}, x=flat),
    }
    return save(directory, signatures)


def ragged(directory: Path) -> Path:
    """Signatures with open inner axes, which tell what was put in with a row.

    serving_default: float x [-1, -1] -> sum [-1], and int32 [-1]: width (of a row), batch (rows of the whole run).
    cube: int64 x [-1, -1, 2, -1], float b [-1, 2] -> int64 sum [-1], float b [-1, 2]. words: string x [-1, -1] ->
    string joined [-1]. same: float x [-1, -1] -> the same. picky: as serving_default, and fails on negative values.
    """
    tf = tensorflow()

    def forward(x: Any) -> dict[str, Any]:
        rows, width = tf.shape(x)[0], tf.shape(x)[1]
        return {"sum": tf.reduce_sum(x, 1), "width": tf.fill([rows], width), "batch": tf.fill([rows], rows)}

    def picky(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "negative")]):
            return forward(tf.identity(x))

    flat: tuple[list[int | None] | None, str] = ([None, None], "float32")
    signatures = {
        "serving_default": concrete(forward, x=flat),
        "picky": concrete(picky, x=flat),
        "same": concrete(lambda x: {"y": tf.identity(x)}, x=flat),
        "cube": concrete(
            lambda x, b: {"sum": tf.reduce_sum(x, [1, 2, 3]), "b": tf.identity(b)},
            x=([None, None, 2, None], "int64"),
            b=([None, 2], "float32"),
        ),
        "words": concrete(
            lambda x: {"joined": tf.strings.reduce_join(x, 1, separator="|")}, x=([None, None], "string")
        ),
    }
    return save(directory, signatures)


def echo(directory: Path) -> Path:
    """float x [-1, -1] -> float y [-1, -1]: y = 2 x, of any size (64 MB and more)."""
    return save(directory, {"serving_default": concrete(lambda x: {"y": x * 2.0}, x=([None, None], "float32"))})


# ------------------------------------------------------------------------------------------- dtypes, strings, tables


def identities(directory: Path) -> Path:
    """One signature per dtype, named by it: x [...] -> y, the same values; `string` too. Shapes are unknown."""
    tf = tensorflow()
    signatures = {
        name: concrete(lambda x: {"y": tf.identity(x)}, x=(None, name)) for name in (*IDENTITY_DTYPES, "string")
    }
    return save(directory, signatures)


def rare_identities(directory: Path) -> Path:
    """As `identities`, of RARE_DTYPES."""
    tf = tensorflow()
    return save(
        directory, {name: concrete(lambda x: {"y": tf.identity(x)}, x=([None, 3], name)) for name in RARE_DTYPES}
    )


def strings(directory: Path) -> Path:
    """text string [-1] -> upper string [-1], length int32 [-1], pair string [-1, 2] (text twice)."""
    tf = tensorflow()

    def forward(text: Any) -> dict[str, Any]:
        return {
            "upper": tf.strings.upper(text),
            "length": tf.strings.length(text),
            "pair": tf.stack([text, text], axis=1),
        }

    return save(directory, {"serving_default": concrete(forward, text=([None], "string"))})


def scalar(directory: Path) -> Path:
    """float x [] and int32 n [] -> float y []: y = x * n. No axis to batch along."""
    tf = tensorflow()

    def forward(x: Any, n: Any) -> dict[str, Any]:
        return {"y": x * tf.cast(n, tf.float32)}

    return save(directory, {"serving_default": concrete(forward, x=([], "float32"), n=([], "int32"))})


def table(directory: Path) -> Path:
    """word string [-1] -> id int64 [-1]: the line number of the word in an asset file, -1 when it is not there."""
    tf = tensorflow()
    directory.parent.mkdir(parents=True, exist_ok=True)
    words = directory.parent / f"{directory.name}.words.txt"
    words.write_text("zero\none\ntwo\nthree\n")
    lookup = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        ),
        default_value=-1,
    )
    signature = concrete(lambda word: {"id": lookup.lookup(word)}, word=([None], "string"))
    save(directory, {"serving_default": signature}, lookup=lookup)
    words.unlink()  # the model must find its own copy, under assets/
    return directory


# ---------------------------------------------------------------------------------------------- awkward on purpose


def not_per_row(directory: Path) -> Path:
    """float x [-1, 2] -> total float [-1] of one element, pairs float [-1, 2] of rows^2 rows.

    The signature `mixed` gives a per-row output y = 2 x [-1, 2] beside a total [-1, 2] of one row.
    """
    tf = tensorflow()

    def whole(x: Any) -> dict[str, Any]:
        pairs = tf.reshape(x[:, tf.newaxis, :] + x[tf.newaxis, :, :], [-1, 2])
        total = tf.raw_ops.PlaceholderWithDefault(input=tf.reduce_sum(x)[tf.newaxis], shape=[None])
        return {"total": total, "pairs": pairs}

    def scalar_beside(x: Any) -> dict[str, Any]:
        total = tf.raw_ops.PlaceholderWithDefault(input=tf.reduce_sum(x, axis=0)[tf.newaxis], shape=[None, 2])
        return {"y": x * 2.0, "total": total}

    rows = ([None, 2], "float32")
    return save(directory, {"serving_default": concrete(whole, x=rows), "mixed": concrete(scalar_beside, x=rows)})


def counter(directory: Path) -> Path:
    """Signatures get (), add (delta float []), set (to float []) -> output float []: a variable, which two change."""
    tf = tensorflow()
    value = tf.Variable(0.0)
    signatures = {
        "get": concrete(lambda: {"output": tf.identity(value)}),
        "add": concrete(lambda delta: {"output": value.assign_add(delta)}, delta=([], "float32")),
        "set": concrete(lambda to: {"output": value.assign(to)}, to=([], "float32")),
    }
    return save(directory, signatures, value=value)


def picky(directory: Path) -> Path:
    """float x [-1] -> y = 2 x, z = x + 1; a batch with a negative x fails, INVALID_ARGUMENT `negative: x`."""
    tf = tensorflow()

    def forward(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x >= 0.0), ["negative:", x])]):
            return {"y": x * 2.0, "z": x + 1.0}

    return save(directory, {"serving_default": concrete(forward, x=([None], "float32"))})


def parsed(directory: Path) -> Path:
    """serialized Examples string [-1] -> y = 2 x, x being their feature of one float; no Example: INVALID_ARGUMENT."""
    tf = tensorflow()

    def forward(examples: Any) -> dict[str, Any]:
        return {"y": tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"] * 2.0}

    return save(directory, {"serving_default": concrete(forward, examples=([None], "string"))})


def fragile(directory: Path) -> Path:
    """float x [-1] -> y = 2 x; a negative x ends the process: the convolution is given a rank that it does not expect,
    which TensorFlow takes for a bug of its own (a failed CHECK), and the graph does not tell before it runs."""
    tf = tensorflow()
    kernel = tf.constant(2.0, shape=[1, 1, 1, 1])

    def forward(x: Any) -> dict[str, Any]:
        rows = tf.shape(x)[0]
        shape = tf.cond(
            tf.reduce_any(x < 0.0), lambda: tf.stack([rows, 1, 1]), lambda: tf.stack([rows, 1, 1, 1])
        )
        y = tf.raw_ops.Conv2D(input=tf.reshape(x, shape), filter=kernel, strides=[1, 1, 1, 1], padding="VALID")
        return {"y": tf.reshape(y, [-1])}

    return save(directory, {"serving_default": concrete(forward, x=([None], "float32"))})


def gather_rows(directory: Path) -> Path:
    """index int32 [-1] -> value float [-1] of a table with 10 rows; an index outside fails, INVALID_ARGUMENT."""
    tf = tensorflow()
    values = tf.Variable(tf.range(10, dtype=tf.float32))
    signature = concrete(lambda index: {"value": tf.gather(values, index)}, index=([None], "int32"))
    return save(directory, {"serving_default": signature}, values=values)


def slow(directory: Path) -> Path:
    """float x [-1], turns int32 [-1] -> float y [-1]: x after max(turns) turns of a while loop, 1 added in each.

    A turn costs some microseconds, so `turns` sets how long a run takes.
    """
    tf = tensorflow()

    def forward(x: Any, turns: Any) -> dict[str, Any]:
        limit = tf.reduce_max(turns)
        _, y = tf.while_loop(lambda i, y: i < limit, lambda i, y: (i + 1, y + 1.0), (tf.constant(0), x))
        return {"y": y}

    return save(directory, {"serving_default": concrete(forward, x=([None], "float32"), turns=([None], "int32"))})


def aliases(directory: Path) -> Path:
    """TF 1, float x [-1, 2] -> `same` (x itself), `y` and `again` (2 x, one tensor); `twice`: a and b are x."""
    with graph_export(directory, variables=False) as (v1, signatures):
        x = v1.placeholder("float32", [None, 2], name="x")
        y = v1.identity(x * 2.0, name="y")
        signatures["serving_default"] = ({"x": x}, {"same": x, "y": y, "again": y})
        signatures["twice"] = ({"a": x, "b": x}, {"y": y})
    return directory


def old_control_flow(directory: Path) -> Path:
    """TF 1 with Switch/Merge and a reference variable: float x [-1] -> y = 3 x when the sum is > 0, else -x."""
    with graph_export(directory) as (v1, signatures):
        v1.disable_control_flow_v2()
        x = v1.placeholder("float32", [None], name="x")
        three = v1.Variable(3.0, use_resource=False)
        y = v1.cond(v1.reduce_sum(x) > 0.0, lambda: three * x, lambda: -x)
        signatures["serving_default"] = ({"x": x}, {"y": y})
    return directory


def sparse(directory: Path) -> Path:
    """TF 1: a signature `sparse` whose input is a coo_sparse TensorInfo, and an ordinary serving_default beside it."""
    tf = tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder("float32", [None], name="x")
        cells = v1.sparse_placeholder("float32", [None, 4], name="cells")
        build = v1.saved_model.utils.build_tensor_info
        signature = v1.saved_model.build_signature_def
        method = "tensorflow/serving/predict"
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "sparse": signature({"cells": build(cells)}, {"y": build(tf.sparse.to_dense(cells))}, method),
                "serving_default": signature({"x": build(x)}, {"y": build(x + 1.0)}, method),
            },
        )
        builder.save()
    return directory
