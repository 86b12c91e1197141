"""From a version directory to a graph in a session with its variables, tables and assets: what TF Serving's C++ loads.

The steps are those of TensorFlow's `LoadSavedModel` in C++ and not those of `tf.saved_model.load`, which refuses
models that TF Serving serves (reference variables among outputs, odd shapes): import the graph, run the restore op,
feed the asset paths and run the init op. A model is data: nothing of it is executed before `restore`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from ringserve.broker.messages import Code
from ringserve.workers.failures import LoadError, clean, failure_of
from ringserve.workers.graph import GraphIndex
from ringserve.workers.session import run_here

_INIT_SIGNATURE = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
_ASSETS_COLLECTION = "saved_model_assets"
#: Protobuf's limit.
_GRAPH_BYTES_MAX = 2**31 - 1


def read_meta_graph(path: str | os.PathLike[str], tags: Sequence[str]) -> Any:
    """The MetaGraphDef with exactly these tags. Raises LoadError."""
    saved_model = _read_saved_model(Path(path))
    wanted = set(tags)
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == wanted:
            return meta_graph
    there = "; ".join("{ " + ", ".join(sorted(m.meta_info_def.tags)) + " }" for m in saved_model.meta_graphs)
    raise LoadError(
        Code.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. "
        f"The SavedModel in {path} has {there or 'no meta graph at all'}; "
        "export it with that tag, or name the tags that it has with saved_model_tags.",
    )


def _refuse_what_is_no_file(path: Path) -> None:
    """Raises LoadError for pipes, sockets and devices, which could be waited for without an end, and for a graph that
    is larger than one can be. Links count as what they lead to. Variables are TensorFlow's to open: a pipe there keeps
    its own version from being loaded and nobody else."""
    for folder in (path, path / "assets", path / "assets.extra"):
        if not folder.is_dir():
            continue
        with os.scandir(folder) as children:
            for child in children:
                try:
                    about = os.stat(child.path)
                except OSError:
                    continue
                if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
                    raise LoadError(Code.INVALID_ARGUMENT, f"{child.path!r} is no file: it is a pipe, socket or device")
                if child.name in ("saved_model.pb", "saved_model.pbtxt") and about.st_size > _GRAPH_BYTES_MAX:
                    raise LoadError(
                        Code.DATA_LOSS, f"{child.path} has {about.st_size} bytes: no SavedModel is larger than 2 GiB"
                    )


def _read_saved_model(path: Path) -> Any:
    saved_model = saved_model_pb2.SavedModel()
    binary, text = path / "saved_model.pb", path / "saved_model.pbtxt"
    try:
        _refuse_what_is_no_file(path)
        if binary.is_file():
            saved_model.ParseFromString(binary.read_bytes())
        elif text.is_file():
            text_format.Parse(text.read_text(), saved_model)
        else:
            raise _no_saved_model(path)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise LoadError(
            Code.DATA_LOSS,
            f"Cannot parse {binary if binary.is_file() else text}: it is truncated or no SavedModel ({error}). "
            "Copy the model again; make it appear under its version name only when it is complete (rename).",
        ) from error
    except OSError as error:
        code = Code.PERMISSION_DENIED if isinstance(error, PermissionError) else Code.UNAVAILABLE
        raise LoadError(code, f"Cannot read the SavedModel in {path}: {error}") from error
    if not saved_model.meta_graphs:
        # An empty file parses as an empty message.
        raise LoadError(
            Code.DATA_LOSS, f"The SavedModel in {path} holds no meta graph: it is empty or truncated. Copy it again."
        )
    return saved_model


def _no_saved_model(path: Path) -> LoadError:
    # TF Serving's words first: operators search for them.
    lead = (
        "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
        f"`saved_model.pb`)\nSpecified file path: {path}"
    )
    if not path.exists():
        hint = "The directory does not exist."
    elif not path.is_dir():
        hint = "It is a file; a model version is a directory."
    elif (path / "export.meta").exists() or any(path.glob("export-*-of-*")):
        hint = "It holds a pre-SavedModel export (session bundle of TensorFlow < 1.0): export it again as a SavedModel."
    elif (path / "saved_model.cpb").exists():
        hint = "It holds a chunked SavedModel (saved_model.cpb), which cannot be served: export it without chunking."
    elif (path / "model.tflite").exists():
        hint = "It holds a TFLite model: serve it with prefer_tflite_model."
    elif (path / "keras_metadata.pb").exists() or any(path.glob("*.keras")) or any(path.glob("*.h5")):
        hint = "It holds a Keras file: export the model with `model.export(directory)`."
    elif versions := sorted(child.name for child in path.iterdir() if (child / "saved_model.pb").is_file()):
        hint = f"It is not a version directory but holds some ({', '.join(versions)}): give the path of one of those."
    else:
        there = sorted(child.name for child in path.iterdir())
        hint = f"The directory holds {', '.join(there[:10]) or 'nothing'}."
    return LoadError(Code.NOT_FOUND, f"{lead}\n{hint}")


def import_graph(meta_graph: Any, name: str) -> Any:
    """A tf.Graph of the meta graph. Raises LoadError, naming an unknown op."""
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(
                meta_graph.graph_def, name="", producer_op_list=meta_graph.meta_info_def.stripped_op_list or None
            )
    except (tf.errors.OpError, ValueError, KeyError, TypeError) as error:
        text = clean(str(getattr(error, "message", None) or error))
        unknown = re.search(r"Op type not registered '([^']+)'|No op named (\S+) in", text)
        if unknown:
            op = unknown.group(1) or unknown.group(2)
            raise LoadError(
                Code.NOT_FOUND,
                f"Op type not registered '{op}': model {name} uses it, TensorFlow {tf.__version__} does not have it. "
                "It comes from a newer TensorFlow or from a library of custom ops, which must be loaded before.",
            ) from error
        raise LoadError(Code.INVALID_ARGUMENT, f"The graph of model {name} cannot be imported: {text}") from error
    return graph


def restore(session: Any, meta_graph: Any, index: GraphIndex, path: str | os.PathLike[str]) -> None:
    """Read the variables from `path`/variables. Raises LoadError when they are missing, incomplete or unreadable."""
    saver = meta_graph.saver_def
    prefix = Path(path) / "variables" / "variables"
    if not saver.restore_op_name:
        return
    if not Path(f"{prefix}.index").is_file():
        if not index.has_variables():
            return
        raise LoadError(
            Code.NOT_FOUND,
            f"The model has variables, but {prefix}.index is missing, so they have no values. "
            "The copy is incomplete: copy the whole version directory, with variables/.",
        )
    try:
        run_here(session, saver.restore_op_name, {saver.filename_tensor_name: str(prefix)})
    except tf.errors.OpError as error:
        if is_executor_refusal(error):
            raise
        failure = failure_of(error)
        raise LoadError(
            failure.code,
            f"Cannot restore the variables from {prefix}.*: {failure.text} "
            "(files missing or truncated? Copy the whole version directory again.)",
        ) from error


def initialise(session: Any, meta_graph: Any, path: str | os.PathLike[str]) -> None:
    """Run the model's init op (tables, resources) with its assets' paths fed. Raises LoadError."""
    op = init_op_name(meta_graph)
    if not op:
        return
    try:
        run_here(session, op, _asset_feeds(meta_graph, Path(path)))
    except tf.errors.OpError as error:
        if is_executor_refusal(error):
            raise
        failure = failure_of(error)
        raise LoadError(failure.code, f"The model's init op {op} failed: {failure.text}") from error


def init_op_name(meta_graph: Any) -> str:
    """Where TF 2, TF 1 and the oldest exports say what to run after restoring; empty when there is nothing."""
    if _INIT_SIGNATURE in meta_graph.signature_def:
        return str(meta_graph.signature_def[_INIT_SIGNATURE].outputs[_INIT_SIGNATURE].name)
    for collection in _INIT_COLLECTIONS:
        names = meta_graph.collection_def[collection].node_list.value if collection in meta_graph.collection_def else ()
        if len(names) > 1:
            text = f"Expected exactly one main op in: {collection}, found {len(names)}"
            raise LoadError(Code.FAILED_PRECONDITION, text)
        if names:
            return str(names[0])
    return ""


def _asset_feeds(meta_graph: Any, path: Path) -> dict[str, str]:
    assets = list(meta_graph.asset_file_def)
    if not assets and _ASSETS_COLLECTION in meta_graph.collection_def:
        for packed in meta_graph.collection_def[_ASSETS_COLLECTION].any_list.value:
            asset = meta_graph_pb2.AssetFileDef()
            packed.Unpack(asset)
            assets.append(asset)
    return {asset.tensor_info.name: str(path / "assets" / asset.filename) for asset in assets}


def fed_tensors(meta_graph: Any) -> list[str]:
    """Names of the tensors that loading feeds."""
    return [name for name in (meta_graph.saver_def.filename_tensor_name, *_asset_feeds(meta_graph, Path())) if name]


def load_targets(meta_graph: Any) -> list[str]:
    """Names of the nodes that loading runs."""
    return [name for name in (meta_graph.saver_def.restore_op_name, init_op_name(meta_graph)) if name]


def is_executor_refusal(error: Any) -> bool:
    """Whether the single-threaded executor refused this graph; the ordinary one would not."""
    return error.error_code == Code.UNIMPLEMENTED and "executor does not support" in str(error.message)


def missing_tensors(graph: Any, names: Collection[str]) -> list[str]:
    """Which of the tensor names a signature gives are not in the graph."""
    missing = []
    for name in names:
        try:
            graph.get_tensor_by_name(name)
        except (KeyError, ValueError):
            missing.append(name)
    return missing
