"""One version's directory, read without TensorFlow: what is in it, how big, and what will keep it from serving."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from ringserve.broker.aspired import names_of_versions, version_of_name
from ringserve.broker.stability import FileInfo, missing
from ringserve.commands.bundle import Bundle, BundleError, read_bundle
from ringserve.commands.findings import Finding, Level
from ringserve.config.protos import SavedModel, SignatureDefMap
from ringserve.config.tfrecord import WARMUP_FILE, WARMUP_RECORDS_MAX, scan_records
from ringserve.frontend.catalog import DEFAULT_SIGNATURE, SignatureView, servable_view
from ringserve.shm.dtype import DTYPES, name_of

#: In TF 2 exports a signature of this name says what to run after loading; nobody can call it.
INIT_SIGNATURE: Final = "__saved_model_init_op"
_SUFFIX: Final = "/.ATTRIBUTES/VARIABLE_VALUE"
_OBJECT_GRAPH: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VARIABLE_OPS: Final = frozenset(("VarHandleOp", "VariableV2", "Variable"))
#: Ops that run Python code of the process that made the graph, or need hardware that we never have.
_FOREIGN_OPS: Final = {
    "PyFunc": "it calls Python code of the program that exported the model",
    "PyFuncStateless": "it calls Python code of the program that exported the model",
    "EagerPyFunc": "it calls Python code of the program that exported the model",
    "TPUPartitionedCall": "it needs a TPU",
    "TPUReplicatedInput": "it needs a TPU",
}
_LFS: Final = b"version https://git-lfs"


@dataclass
class ModelFiles:
    """What was read of a version's directory. sizes in bytes; variables without the checkpoint's own bookkeeping."""

    path: Path
    files: list[FileInfo] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    tensorflow_version: str = ""
    signatures: dict[str, SignatureView] = field(default_factory=dict)
    ops: Counter[str] = field(default_factory=Counter)
    functions: int = 0
    bundle: Bundle | None = None
    warmup_records: int | None = None
    is_tflite: bool = False
    findings: list[Finding] = field(default_factory=list)

    def bytes_of(self, prefix: str) -> int:
        """Bytes of all files whose path begins so."""
        return sum(max(file.size_bytes, 0) for file in self.files if file.path.startswith(prefix))

    @property
    def variables(self) -> list[tuple[str, int, tuple[int, ...], int]]:
        """(name, DataType, shape, bytes) of the model's variables, the largest first."""
        entries = self.bundle.variables if self.bundle is not None else ()
        found = [
            (entry.name.removesuffix(_SUFFIX), entry.dtype, entry.shape, entry.size_bytes)
            for entry in entries
            if entry.name != _OBJECT_GRAPH
        ]
        return sorted(found, key=lambda variable: (-variable[3], variable[0]))

    @property
    def parameters(self) -> int:
        """Numbers in all variables."""
        return sum(prod(shape) for _, dtype, shape, _ in self.variables if dtype in DTYPES and DTYPES[dtype].numpy)

    def add(self, level: Level, what: str, why: str = "", fix: str = "") -> None:
        """Note a finding about this directory."""
        self.findings.append(Finding(level, str(self.path), what, why, fix))


def read_version(
    path: Path, tags: frozenset[str] = frozenset({"serve"}), *, judge_access: bool = True
) -> ModelFiles:
    """Read a version's directory; whatever is wrong with it is among its findings. judge_access: also what this process
    may not read, which somebody else may look at better."""
    model = ModelFiles(path)
    _list(model, judge_access)
    lacks = missing(model.files)
    if lacks:
        nested = [file.path for file in model.files if file.path.endswith(("/saved_model.pb", "/saved_model.pbtxt"))]
        fix = ""
        if nested and "no saved_model" in lacks:
            fix = f"mv {_q(path / os.path.dirname(nested[0]))}/* {_q(path)}/"
        model.add(Level.ERROR, lacks, "The server waits for the rest before it tries to load the version.", fix)
    names = {file.path for file in model.files}
    if "saved_model.pb" in names or "saved_model.pbtxt" in names:
        _read_graph(model, "saved_model.pb" in names, tags)
    elif "model.tflite" in names:
        model.is_tflite = True
        text = "it holds a TFLite model only, which serves with prefer_tflite_model and the extra 'tflite'"
        model.add(Level.NOTE, text)
    _read_variables(model, names)
    _read_warmup(model, names)
    return model


def _list(model: ModelFiles, judge_access: bool) -> None:
    def complain(error: OSError) -> None:
        if not judge_access and isinstance(error, PermissionError):
            return
        where = str(error.filename)
        fix = f"chmod a+rx {_q(where)}" if isinstance(error, PermissionError) else ""
        model.add(Level.ERROR, f"{where} cannot be listed: {error.strerror}", fix=fix)

    for folder, folders, names in os.walk(model.path, onerror=complain, followlinks=True):
        inner = os.path.relpath(folder, model.path)
        for name in sorted(names):
            whole = os.path.join(folder, name)
            try:
                about = os.stat(whole)
            except OSError as error:
                model.add(Level.ERROR, f"{whole} leads nowhere: {error.strerror}", "It is a broken link.")
                continue
            if judge_access and not os.access(whole, os.R_OK):
                why = "The server cannot load what it cannot read."
                model.add(Level.ERROR, f"{whole} cannot be read", why, f"chmod a+r {_q(whole)}")
            elif about.st_size < 1024 and _starts_with(whole, _LFS):
                why = "The file itself was never fetched from git's large file storage."
                model.add(Level.ERROR, f"{whole} is a pointer, not a file", why, "git lfs pull")
            model.files.append(FileInfo(name if inner == "." else f"{inner}/{name}", about.st_size, about.st_mtime_ns))
        folders.sort()
    model.files.sort()


def _starts_with(path: str, mark: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False


def _read_graph(model: ModelFiles, binary: bool, tags: frozenset[str]) -> None:
    saved_model = SavedModel()
    path = model.path / ("saved_model.pb" if binary else "saved_model.pbtxt")
    try:
        if binary:
            saved_model.ParseFromString(path.read_bytes())
        else:
            text_format.Parse(path.read_text(), saved_model, allow_unknown_field=True)
    except (OSError, DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        model.add(Level.ERROR, f"{path.name} is no SavedModel: {error}", "It is damaged, truncated or something else.")
        return
    model.tags = [sorted(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    chosen = [graph for graph in saved_model.meta_graphs if frozenset(graph.meta_info_def.tags) == tags]
    if not chosen:
        known = "; ".join(",".join(each) or "(none)" for each in model.tags) or "no graph at all"
        model.add(
            Level.ERROR,
            f"no graph has the tags {','.join(sorted(tags))}; it has {known}",
            "The server looks for the graph with exactly these tags.",
            f"ringserve serve --saved_model_tags={','.join(model.tags[0])} ..." if model.tags and model.tags[0] else "",
        )
        return
    graph = chosen[0]
    model.tensorflow_version = graph.meta_info_def.tensorflow_version
    model.ops = Counter(node.op for node in graph.graph_def.node)
    for function in graph.graph_def.library.function:
        model.ops.update(node.op for node in function.node_def)
    model.functions = len(graph.graph_def.library.function)
    _read_signatures(model, graph)
    for op, why in _FOREIGN_OPS.items():
        if model.ops[op]:
            model.add(Level.ERROR, f"its graph uses the op {op}", f"It cannot run in a server: {why}.")
    names = {file.path for file in model.files}
    for asset in graph.asset_file_def:
        if f"assets/{asset.filename}" not in names:
            model.add(Level.ERROR, f"assets/{asset.filename} is missing", "The graph reads it when it is loaded.")
    if model.ops.keys() & _VARIABLE_OPS and not any(name.startswith("variables/") for name in names):
        model.add(Level.ERROR, "the graph has variables, and there is no variables/ folder", "It has no values.")


def _read_signatures(model: ModelFiles, graph: Any) -> None:
    found = SignatureDefMap()
    for name, signature in graph.signature_def.items():
        if name != INIT_SIGNATURE:
            found.signature_def[name].CopyFrom(signature)
    model.signatures = servable_view("model", 0, found.SerializeToString()).signatures
    if not model.signatures:
        why = "Clients can call signatures only; a model that was saved without any cannot be asked anything."
        fix = "tf.saved_model.save(model, path, signatures=model.call.get_concrete_function(...))"
        model.add(Level.ERROR, "it has no signature that can be called", why, fix)
    elif DEFAULT_SIGNATURE not in model.signatures:
        why = f"Clients must name one in every request: {', '.join(model.signatures)}."
        model.add(Level.NOTE, f"it has no signature {DEFAULT_SIGNATURE}", why)
    for name, signature in model.signatures.items():
        for spec in (*signature.inputs.values(), *signature.outputs.values()):
            # An output of several tensors (sparse, composite) has no name, and its call is refused.
            if spec.dtype not in DTYPES:
                why = "Only tensors of plain types travel between client and server: calls of it are refused."
                model.add(Level.WARNING, f"{name}: {spec.alias} is of type {name_of(spec.dtype)}", why)
    alone = [name for name, signature in model.signatures.items() if not signature.rows_joinable]
    if alone:
        why = "Axis 0 of every input must be free (None) for requests to be joined into batches."
        model.add(Level.NOTE, f"requests of {', '.join(alone)} run one by one, for the shapes of their inputs", why)


def _read_variables(model: ModelFiles, names: set[str]) -> None:
    index = "variables/variables.index"
    if index not in names:
        return
    try:
        model.bundle = read_bundle(model.path / index)
    except (OSError, BundleError) as error:
        model.add(Level.ERROR, f"{index} cannot be read: {error}", "Without it the variables' values cannot be found.")
        return
    sizes = {file.path: file.size_bytes for file in model.files}
    count = model.bundle.shards
    for shard in range(count):
        name = f"variables/variables.data-{shard:05d}-of-{count:05d}"
        needed, there = model.bundle.shard_bytes(shard), sizes.get(name)
        if there is None:
            model.add(Level.ERROR, f"{name} is missing", "The index names it: variables' values lie in it.")
        elif there < needed:
            text = f"{name} has {there} bytes where the index names {needed}"
            model.add(Level.ERROR, text, "It is truncated: copy it again.")


def _read_warmup(model: ModelFiles, names: set[str]) -> None:
    if WARMUP_FILE not in names:
        return
    try:
        with (model.path / WARMUP_FILE).open("rb") as file:
            model.warmup_records = sum(1 for _ in scan_records(file))
    except (OSError, ValueError) as error:
        why = "A version whose warm-up file cannot be read does not load."
        fix = f"ringserve warmup make {_q(model.path)} --overwrite"
        model.add(Level.ERROR, f"the warm-up file cannot be read: {error}", why, fix)
        return
    if model.warmup_records > WARMUP_RECORDS_MAX:
        text = f"the warm-up file has {model.warmup_records} records"
        model.add(Level.ERROR, text, f"A version with more than {WARMUP_RECORDS_MAX} does not load.")


# ---------------------------------------------------------------------------------------------------------- base path


def _q(path: object) -> str:
    """A path for a shell: names of files are whatever somebody gave them."""
    return shlex.quote(str(path))


def is_version_directory(path: Path) -> bool:
    """Whether it holds a model itself, in place of versions."""
    return any((path / name).exists() for name in ("saved_model.pb", "saved_model.pbtxt", "model.tflite"))


def versions_of(base: Path) -> dict[int, Path]:
    """Its versions, ascending, as the server sees them. Raises OSError."""
    return {version: base / name for version, name in names_of_versions(os.listdir(base)).items()}


def base_findings(base: Path) -> list[Finding]:
    """What is wrong with the names below a base path. Raises OSError."""
    found: list[Finding] = []
    names = sorted(os.listdir(base))
    subject = str(base)
    versions = names_of_versions(names)
    if is_version_directory(base):
        kind = next(name for name in ("saved_model.pb", "saved_model.pbtxt", "model.tflite") if name in names)
        parts = [part for part in names if version_of_name(part) is None]
        moved = " ".join(_q(base / part) for part in parts)
        fix = f"mkdir {_q(base / '1')} && mv {moved} {_q(base / '1')}/"
        why = "The server looks for models in folders below, one of a number for each version."
        found.append(Finding(Level.ERROR, subject, f"it holds {kind} itself, without a version's folder", why, fix))
    for name in names:
        path = base / name
        number = version_of_name(name)
        if number is None:
            if path.is_dir() and is_version_directory(path):
                why = "Versions are folders whose name is a number; this one is not seen."
                fix = f"mv {_q(path)} {_q(base / str(max(versions, default=0) + 1))}"
                text = f"{name}/ holds a model, and its name is no number"
                found.append(Finding(Level.WARNING, subject, text, why, fix))
        elif versions[number] != name:
            text = f"{name}/ and {versions[number]}/ are the same version {number}; only the second is used"
            fix = f"mv {_q(path)} {_q(base / str(max(versions) + 1))}"
            found.append(Finding(Level.WARNING, subject, text, fix=fix))
        elif not path.is_dir():
            found.append(Finding(Level.WARNING, subject, f"{name} is no folder", "It is taken for a version."))
    if not versions:
        why = "Nothing can be served from here until there is a folder such as 1/."
        found.append(Finding(Level.ERROR, subject, "it has no version", why))
    return found
