"""SavedModels whose variables are awkward to share. Exporters as in tests/exporters.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ringserve.shm import dtype as dtypes
from ringserve.workers.assigning import feed_dtype
from tests.exporters import concrete, graph_export, save, tensorflow

#: DataTypes of variables that a checkpoint holds, by TensorFlow's name.
VARIABLE_DTYPES = (
    "float", "double", "half", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool", "complex64", "complex128", "qint8", "quint8", "qint32",
)  # fmt: skip


def values_of(number: int) -> Any:
    """[2, 3] values of a DataType, 0 to 5; of bool every other."""
    numpy = dtypes.dtype_of(number).numpy
    wanted = feed_dtype(number)
    assert numpy is not None
    assert wanted is not None
    return (np.arange(6) % (2 if number == dtypes.BOOL else 6)).astype(numpy).view(wanted).reshape(2, 3)


def every_dtype(directory: Path) -> Path:
    """A variable of each of VARIABLE_DTYPES, [2, 3]; float unused [], an output of that name for each."""
    numbers = {kind.name: number for number, kind in dtypes.DTYPES.items()}
    with graph_export(directory) as (v1, signatures):
        outputs = {}
        for name in VARIABLE_DTYPES:
            initial = v1.constant(values_of(numbers[name]))
            variable = v1.Variable(initial, name=f"v_{name}", use_resource=True)
            outputs[name] = v1.identity(variable)
        signatures["serving_default"] = ({"unused": v1.placeholder("float32", [], name="unused")}, outputs)
    return directory


def two_nodes(directory: Path) -> Path:
    """float x [-1] -> y = (w + w) x and z = u x: two handles of one variable, which is 3, and another one beside, 5."""
    with graph_export(directory) as (v1, signatures):
        raw = tensorflow().raw_ops
        x = v1.placeholder("float32", [None], name="x")
        v1.Variable(3.0, name="w", use_resource=True)
        u = v1.Variable(5.0, name="u", use_resource=True)
        first = raw.VarHandleOp(dtype="float32", shape=[], shared_name="w", name="first")
        second = raw.VarHandleOp(dtype="float32", shape=[], shared_name="w", name="second")
        w = raw.ReadVariableOp(resource=first, dtype="float32") + raw.ReadVariableOp(resource=second, dtype="float32")
        signatures["serving_default"] = ({"x": x}, {"y": w * x, "z": u * x})
    return directory


def found_by_name(directory: Path) -> Path:
    """float x [-1] -> y = w x: the variable w, 3, is looked up by its name inside a function."""
    with graph_export(directory) as (v1, signatures):
        tf = tensorflow()

        @tf.function  # type: ignore[untyped-decorator]
        def times_w(x: Any) -> Any:
            handle = tf.raw_ops.VarHandleOp(dtype="float32", shape=[], shared_name="w")
            return x * tf.raw_ops.ReadVariableOp(resource=handle, dtype="float32")

        x = v1.placeholder("float32", [None], name="x")
        v1.Variable(3.0, name="w", use_resource=True)
        signatures["serving_default"] = ({"x": x}, {"y": times_w(x)})
    return directory


def partitioned(directory: Path, use_resource: bool = True) -> Path:
    """float x [-1, 6] -> y = x w [-1, 4]: w in three pieces."""
    with graph_export(directory) as (v1, signatures):
        x = v1.placeholder("float32", [None, 6], name="x")
        w = v1.get_variable(
            "w",
            [6, 4],
            initializer=v1.random_uniform_initializer(seed=3),
            partitioner=v1.fixed_size_partitioner(3),
            use_resource=use_resource,
        )
        signatures["serving_default"] = ({"x": x}, {"y": v1.matmul(x, v1.convert_to_tensor(w))})
    return directory


def partitioned_references(directory: Path) -> Path:
    """As `partitioned`, of references."""
    return partitioned(directory, use_resource=False)


def references(directory: Path) -> Path:
    """TF 1, float x [-1, 6] -> y = relu(x w + b) [-1, 4]; trained variables that an optimizer could go on with."""
    with graph_export(directory) as (v1, signatures):
        tf = tensorflow()
        x = v1.placeholder("float32", [None, 6], name="x")
        w = v1.get_variable("w", [6, 4], initializer=v1.random_uniform_initializer(seed=5), use_resource=False)
        b = v1.get_variable("b", [4], initializer=v1.random_uniform_initializer(seed=6), use_resource=False)
        y = tf.nn.relu(v1.matmul(x, w) + b)
        v1.train.MomentumOptimizer(0.1, 0.9).minimize(v1.reduce_sum(y), var_list=[w, b])
        signatures["serving_default"] = ({"x": x}, {"y": y})
    return directory


def reference_named(directory: Path) -> Path:
    """TF 1, float x [-1] -> y = w x and w itself, a reference; u, another one, is only read: z = u x."""
    with graph_export(directory) as (v1, signatures):
        x = v1.placeholder("float32", [None], name="x")
        w = v1.Variable(3.0, name="w", use_resource=False)
        u = v1.Variable(4.0, name="u", use_resource=False)
        node = v1.get_default_graph().get_tensor_by_name("w:0")
        signatures["serving_default"] = ({"x": x}, {"y": w * x, "w": node, "z": u * x})
    return directory


def tables(directory: Path) -> Path:
    """word string [-1] -> id int64 [-1] of a MutableHashTable that the checkpoint holds, + w [4] of that id (float)."""
    tf = tensorflow()
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, default_value=0)
    table.insert(tf.constant(["one", "two", "three"]), tf.constant([1, 2, 3], tf.int64))
    w = tf.Variable([10.0, 11.0, 12.0, 13.0])

    def forward(word: Any) -> dict[str, Any]:
        found = table.lookup(word)
        return {"id": found, "value": tf.gather(w, found)}

    return save(directory, {"serving_default": concrete(forward, word=([None], "string"))}, table=table, w=w)


def table_and_weight(directory: Path) -> Path:
    """word string [-1] -> value float [-1] of a variable, by the word's line in an asset that the init op reads."""
    tf = tensorflow()
    directory.parent.mkdir(parents=True, exist_ok=True)
    words = directory.parent / f"{directory.name}.words.txt"
    words.write_text("zero\none\ntwo\n")
    whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    lines = tf.lookup.TextFileInitializer(str(words), tf.string, whole, tf.int64, number)
    table = tf.lookup.StaticHashTable(lines, default_value=0)
    w = tf.Variable([10.0, 11.0, 12.0])
    signature = concrete(lambda word: {"value": tf.gather(w, table.lookup(word))}, word=([None], "string"))
    save(directory, {"serving_default": signature}, table=table, w=w)
    words.unlink()
    return directory


def string_variable(directory: Path) -> Path:
    """index int32 [-1] -> word string [-1] of a variable of strings, and value float [-1] of one of floats."""
    tf = tensorflow()
    words = tf.Variable([b"", b"a\0b\0", b"word" * 1000])
    values = tf.Variable([1.0, 2.0, 3.0])

    def forward(index: Any) -> dict[str, Any]:
        return {"word": tf.gather(words, index), "value": tf.gather(values, index)}

    signature = concrete(forward, index=([None], "int32"))
    return save(directory, {"serving_default": signature}, words=words, values=values)


def with_slots(directory: Path) -> Path:
    """float x [-1, 8] -> y [-1, 4]: a checkpoint with an optimizer's slots, which nothing that serves uses."""
    tf = tensorflow()
    w = tf.Variable(tf.random.Generator.from_seed(4).normal([8, 4]))
    slots = [tf.Variable(tf.zeros([8, 4])) for _ in range(2)]
    signature = concrete(lambda x: {"y": x @ w}, x=([None, 8], "float32"))
    return save(directory, {"serving_default": signature}, w=w, slots=slots)


def constants(directory: Path) -> Path:
    """TF 1 without variables, int32 index [-1], float x [-1, 512]: rows of one large constant, products with another.

    The first, 2 MB, may be lifted; the second may not, nor the third, which is read whole as well.
    """
    with graph_export(directory, variables=False) as (v1, signatures):
        generator = np.random.default_rng(8)
        index = v1.placeholder("int32", [None], name="index")
        x = v1.placeholder("float32", [None, 512], name="x")
        rows, factors, both = (v1.constant(generator.random((1024, 512), dtype=np.float32)) for _ in range(3))
        taken = v1.gather(v1.identity(rows), index)
        y = v1.matmul(x, factors, transpose_b=True)
        z = v1.gather(both, index) + v1.reduce_sum(both)
        signatures["serving_default"] = ({"index": index, "x": x}, {"taken": taken, "y": y, "z": z})
    return directory


def dense(directory: Path, side: int = 1280, layers: int = 10) -> Path:
    """float x [-1, side] -> y [-1]: `layers` matrices of side x side, 4 side^2 bytes each (64 MB in all by default)."""
    tf = tensorflow()
    generator = tf.random.Generator.from_seed(7)
    weights = [tf.Variable(generator.normal([side, side], stddev=side**-0.5)) for _ in range(layers)]

    def forward(x: Any) -> dict[str, Any]:
        for each in weights:
            x = tf.nn.relu(x @ each)
        return {"y": tf.reduce_sum(x, 1)}

    return save(directory, {"serving_default": concrete(forward, x=([None, side], "float32"))}, weights=weights)
