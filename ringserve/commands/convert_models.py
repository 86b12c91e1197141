"""What `ringserve convert` does, with TensorFlow: read a model, write it as a version, make a TFLite model of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ringserve.broker.aspired import version_of_name
from ringserve.workers import device
from ringserve.workers.quiet import quiet

_SERVING: Final = "serving_default"
_PREDICT: Final = "tensorflow/serving/predict"
#: Random rows that two models are compared on.
_ROWS: Final = 8
_TFLITE: Final = "model.tflite"


class ConvertError(Exception):
    """It cannot be done, in words."""


class Converted(NamedTuple):
    """A version that was written. differences: output -> (largest difference, largest value): TFLite, SavedModel."""

    path: str
    saved_model_bytes: int
    tflite_bytes: int
    differences: dict[str, tuple[float, float]]


def kind_of(source: Path) -> str:
    """`graph`, `keras` or `saved_model`. Raises ConvertError."""
    if source.is_dir():
        if (source / "saved_model.pb").is_file():
            return "saved_model"
        raise ConvertError(f"{source} holds no saved_model.pb: give a version's folder")
    if source.suffix in (".keras", ".h5", ".hdf5"):
        return "keras"
    if source.suffix == ".pb":
        if source.name == "saved_model.pb":
            raise ConvertError(f"{source} is part of a SavedModel: give its folder, {source.parent}")
        return "graph"
    raise ConvertError(f"{source} is none of .pb, .keras, .h5, and no folder of a SavedModel")


def convert(
    source: Path,
    base: Path,
    inputs: dict[str, str],
    outputs: dict[str, str],
    *,
    version: int | None,
    free_rows: bool,
    tflite: str,
    calibrate: Path | None,
    say: Callable[[str], None],
) -> Converted:
    """Write `source` as a version below `base`. Raises ConvertError.

    inputs, outputs: name -> alias; empty: all there are. tflite: float32, float16, int8, or empty for none.
    """
    kind = kind_of(source)
    rows = _calibration(calibrate) if calibrate is not None else None
    base.mkdir(parents=True, exist_ok=True)
    taken = {number for child in base.iterdir() if (number := version_of_name(child.name)) is not None}
    number = version if version is not None else max(taken, default=0) + 1
    if number in taken:
        raise ConvertError(f"{base} has a version {number} already")
    say("loading TensorFlow")
    device.prepare(threads=os.cpu_count() or 1)
    # (Where TensorFlow is loaded already it has threads, beside which nothing may fork, and has said its say.)
    silence = quiet("info") if "tensorflow" not in sys.modules else contextlib.nullcontext()
    with silence:
        return _converted(source, base / str(number), kind, inputs, outputs, free_rows, tflite, rows, say)


def _converted(
    source: Path,
    path: Path,
    kind: str,
    inputs: dict[str, str],
    outputs: dict[str, str],
    free_rows: bool,
    tflite: str,
    rows: dict[str, Any] | None,
    say: Callable[[str], None],
) -> Converted:
    """The version at `path`, which appears when it is whole."""
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        say(f"converting {source}")
        if kind == "graph":
            _write_graph(_read_graph(source), unfinished, inputs, outputs, free_rows)
        elif kind == "keras":
            _write_keras(source, unfinished, inputs, outputs)
        else:
            shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns(_TFLITE))
        whole = sum(file.stat().st_size for file in unfinished.rglob("*") if file.is_file())
        differences: dict[str, tuple[float, float]] = {}
        small = b""
        if tflite:
            say(f"making {_TFLITE}")
            small = _tflite(unfinished, tflite, rows)
            (unfinished / _TFLITE).write_bytes(small)
            say("comparing the two")
            differences = _differences(unfinished, small, rows)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Converted(str(path), whole, len(small), differences)


# -------------------------------------------------------------------------------------------------------- frozen graph


def _read_graph(source: Path) -> Any:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(source.read_bytes())
    except (OSError, DecodeError) as error:
        raise ConvertError(f"{source} is no frozen GraphDef: {error}") from error
    if not graph_def.node:
        raise ConvertError(f"{source} is no frozen GraphDef: it has no nodes")
    loose = [node.name for node in graph_def.node if node.op in ("VariableV2", "VarHandleOp", "Variable")]
    if loose:
        raise ConvertError(f"{source} is not frozen: it has variables ({loose[0]}), whose values are not in it")
    return graph_def


def _write_graph(
    graph_def: Any, path: Path, inputs: dict[str, str], outputs: dict[str, str], free_rows: bool
) -> None:
    import tensorflow as tf

    used = {name.lstrip("^").partition(":")[0] for node in graph_def.node for name in node.input}
    placeholders = [node for node in graph_def.node if node.op in ("Placeholder", "PlaceholderWithDefault")]
    if not inputs:
        inputs = {f"{node.name}:0": node.name.rpartition("/")[2] for node in placeholders if node.op == "Placeholder"}
    if not outputs:
        ends = [node for node in graph_def.node if node.name not in used and node.op not in ("NoOp", "Assert", "Const")]
        ends = [node for node in ends if node.op != "Placeholder"]
        outputs = {f"{node.name}:0": node.name.rpartition("/")[2] for node in ends}
    if free_rows:
        for node in placeholders:
            dims = node.attr["shape"].shape.dim
            if dims and f"{node.name}:0" in {_tensor(name) for name in inputs}:
                dims[0].size = -1
    if len(set(inputs.values())) < len(inputs) or len(set(outputs.values())) < len(outputs):
        raise ConvertError("names of inputs or outputs are not unique: name them as --input ALIAS=NAME")
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(graph_def, name="")
        except ValueError as error:
            raise ConvertError(f"TensorFlow cannot import the graph: {error}") from error
        signature = tf.compat.v1.saved_model.build_signature_def(
            {alias: _info(graph, name, "input") for name, alias in inputs.items()},
            {alias: _info(graph, name, "output") for name, alias in outputs.items()},
            _PREDICT,
        )
        builder = tf.compat.v1.saved_model.Builder(str(path))
        with tf.compat.v1.Session(graph=graph) as session:
            tables = tf.compat.v1.tables_initializer()
            builder.add_meta_graph_and_variables(
                session, ["serve"], signature_def_map={_SERVING: signature}, main_op=tables, strip_default_attrs=True
            )
        builder.save()


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _info(graph: Any, name: str, what: str) -> Any:
    import tensorflow as tf

    try:
        return tf.compat.v1.saved_model.build_tensor_info(graph.get_tensor_by_name(_tensor(name)))
    except (KeyError, ValueError) as error:
        raise ConvertError(f"the graph has no {what} {name}") from error


# --------------------------------------------------------------------------------------------------------------- Keras


def _write_keras(source: Path, path: Path, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    import keras
    import tensorflow as tf

    try:
        model = keras.saving.load_model(source, compile=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ConvertError(f"Keras cannot read {source}: {error}") from error
    if isinstance(model, keras.Sequential) and model.inputs:
        struct, out_names = model.inputs[0], [model.layers[-1].name]
    elif isinstance(model, keras.Model) and getattr(model, "output_names", None):
        struct, out_names = model.input, list(model.output_names)
    else:
        text = "the model is no functional or sequential one: export it where it is defined, with model.export(path)"
        raise ConvertError(text)
    ins = keras.tree.flatten(struct)
    in_names = [each.name for each in ins]
    in_aliases = _aliases(in_names, inputs, "input")
    out_aliases = _aliases(out_names, outputs, "output")
    specs = {
        alias: tf.TensorSpec(each.shape, each.dtype, alias) for alias, each in zip(in_aliases, ins, strict=True)
    }

    def call(**tensors: Any) -> dict[str, Any]:
        packed = keras.tree.pack_sequence_as(struct, [tensors[alias] for alias in in_aliases])
        found = keras.tree.flatten(model(packed, training=False))
        kept = zip(out_aliases, found, strict=True)
        return {alias: tensor for alias, tensor in kept if alias}

    module = tf.Module()
    # Not the model itself: with it come its own traces and a second set of handles to the variables, by which the
    # TFLite converter reads weights that are not set.
    module.weights = [variable.value for variable in model.variables]
    module.tables = [layer.lookup_table for layer in _layers(model) if hasattr(layer, "lookup_table")]
    signature = tf.function(call, autograph=False).get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures={_SERVING: signature})


def _layers(model: Any) -> Iterator[Any]:
    """All layers, those inside of others, too."""
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from _layers(layer)


def _aliases(names: list[str], wanted: dict[str, str], what: str) -> list[str]:
    """The aliases of all of a model's inputs or outputs, in order; "" for an output that is not wanted."""
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConvertError(f"the model has no {what} {unknown[0]}; it has {', '.join(names)}")
    if what == "output":
        return [wanted.get(name, "") for name in names] if wanted else names
    return [wanted.get(name, name) for name in names]


# -------------------------------------------------------------------------------------------------------------- TFLite


def _calibration(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise ConvertError(f"cannot read {path}: {error}") from error
    if not rows or len({len(values) for values in rows.values()}) != 1:
        raise ConvertError(f"{path} must hold an array for each input, all of as many rows")
    return rows


def _tflite(path: Path, kind: str, rows: dict[str, Any] | None) -> bytes:
    """The SavedModel as a TFLite model of that kind."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=[_SERVING])
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if rows is not None:

        def representative() -> Iterator[Any]:
            count = len(next(iter(rows.values())))
            for row in range(min(count, 500)):
                yield _SERVING, {alias: values[row : row + 1].astype(np.float32) for alias, values in rows.items()}

        converter.representative_dataset = representative
    try:
        return bytes(converter.convert())
    except Exception as error:  # the converter raises whatever its passes do
        text = str(error).strip().splitlines()
        raise ConvertError(f"TensorFlow makes no TFLite model of it: {text[0] if text else type(error)}") from error


def _differences(path: Path, small: bytes, rows: dict[str, Any] | None) -> dict[str, tuple[float, float]]:
    """How far the answers of the two are apart, on random rows or those given; of outputs of numbers."""
    import tensorflow as tf

    whole = tf.saved_model.load(str(path)).signatures[_SERVING]
    dice = np.random.default_rng(1)
    fed = {}
    for alias, spec in whole.structured_input_signature[1].items():
        shape = [_ROWS if size is None and axis == 0 else size or 1 for axis, size in enumerate(spec.shape or ())]
        if rows is not None and alias in rows:
            values = rows[alias][:_ROWS]
        else:
            values = dice.random(shape) if spec.dtype.is_floating else np.zeros(shape)
        fed[alias] = values.astype(spec.dtype.as_numpy_dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this interpreter is to move elsewhere
            interpreter = tf.lite.Interpreter(model_content=small)
        got = interpreter.get_signature_runner(_SERVING)(**fed)
    except (RuntimeError, ValueError) as error:
        raise ConvertError(f"the TFLite model does not run: {error}") from error
    found = {}
    for alias, tensor in whole(**{alias: tf.constant(values) for alias, values in fed.items()}).items():
        expected = np.asarray(tensor)
        if expected.dtype.kind in "fiu" and got[alias].shape == expected.shape and expected.size:
            off = np.abs(got[alias].astype(np.float64) - expected.astype(np.float64)).max()
            found[alias] = (float(off), float(np.abs(expected).max()))
            if not off <= 2 * found[alias][1]:
                raise ConvertError(f"the TFLite model is wrong: its {alias} is off by {off:.2g}")
    return found
