"""What `ringserve warmup` does, without its command line: records of a model made up, of JSON requests, described.

Nothing here needs TensorFlow: a SavedModel's signatures are read with its message classes, and JSON requests mean
what the REST API takes them to mean, because its own parser reads them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from ringserve.broker.messages import Failure
from ringserve.config.protos import PredictionLog, SavedModel, SignatureDefMap, TensorProto
from ringserve.config.tfrecord import WARMUP_FILE, WARMUP_RECORDS_MAX, read_records, write_record
from ringserve.frontend.catalog import ServableView, SignatureView, servable_view
from ringserve.frontend.json_predict import find_signature, read_body, read_inputs
from ringserve.frontend.tensor_proto import encode
from ringserve.shm.dtype import STRING, name_of

#: In TF 2 exports a signature of this name says what to run after loading; nobody can call it.
_INIT_SIGNATURE: Final = "__saved_model_init_op"
_EXAMPLE_METHODS: Final = {"tensorflow/serving/classify": "classify_log", "tensorflow/serving/regress": "regress_log"}
#: dtypes that random values are made for, by struct's letter; all others get zeros, as do integers: a random index
#: would be outside of most tables.
_RANDOM: Final = {1: "f", 2: "d", 19: "e"}


T = TypeVar("T")


class WarmupError(Exception):
    """What cannot be done, in words for the operator."""


# -------------------------------------------------------------------------------------------------------- reading


def signatures_of(directory: Path, tags: frozenset[str]) -> ServableView:
    """The signatures of the SavedModel in a version's directory. Raises WarmupError."""
    saved_model = SavedModel()
    binary, text = directory / "saved_model.pb", directory / "saved_model.pbtxt"
    try:
        if binary.is_file():
            saved_model.ParseFromString(binary.read_bytes())
        elif text.is_file():
            # The graph's nodes may be of types that are not known here; only signatures matter.
            text_format.Parse(text.read_text(), saved_model, allow_unknown_field=True)
        else:
            raise WarmupError(f"{directory} holds no SavedModel: give a version's directory, such as /models/m/1")
    except (OSError, DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise WarmupError(f"cannot read the SavedModel in {directory}: {error}") from error
    for meta_graph in saved_model.meta_graphs:
        if frozenset(meta_graph.meta_info_def.tags) == tags:
            found = SignatureDefMap()
            for name, signature in meta_graph.signature_def.items():
                if name != _INIT_SIGNATURE:
                    found.signature_def[name].CopyFrom(signature)
            return servable_view("model", 0, found.SerializeToString())
    raise WarmupError(f"the SavedModel in {directory} has no graph with the tags {','.join(sorted(tags))}")


def describe(data: bytes) -> Iterator[str]:
    """A line for each record of a warm-up file. Raises WarmupError."""
    try:
        for number, record in enumerate(read_records(data), start=1):
            yield f"{number}: {_described(record)} ({len(record)} bytes)"
    except ValueError as error:
        raise WarmupError(f"{error}: this is no TFRecord file") from error


def _described(record: bytes) -> str:
    try:
        log = PredictionLog.FromString(record)
    except DecodeError:
        return "no PredictionLog"
    kind = log.WhichOneof("log_type")
    if kind is None:
        return "an empty PredictionLog, which is skipped"
    request = getattr(log, kind).request
    if kind == "predict_log":
        inputs = ", ".join(
            f"{alias} {name_of(tensor.dtype)} [{','.join(str(dim.size) for dim in tensor.tensor_shape.dim)}]"
            for alias, tensor in sorted(request.inputs.items())
        )
        return f"Predict {_spec(request.model_spec)}: {inputs or 'no inputs'}"
    if kind in ("classify_log", "regress_log"):
        word = "Classify" if kind == "classify_log" else "Regress"
        return f"{word} {_spec(request.model_spec)}: {_examples(request.input)}"
    if kind == "multi_inference_log":
        tasks = ", ".join(_spec(task.model_spec) for task in request.tasks)
        return f"MultiInference {tasks}: {_examples(request.input)}"
    return f"{kind}, which fails the load"


def _spec(spec: Any) -> str:
    return f"{spec.name or '(no model)'} {spec.signature_name or 'serving_default'}"


def _examples(given: Any) -> str:
    kind = given.WhichOneof("kind")
    count = len(getattr(given, kind).examples) if kind else 0
    return f"{count} example{'' if count == 1 else 's'}" + (
        " with context" if kind == "example_list_with_context" else ""
    )


# --------------------------------------------------------------------------------------------------------- making


def made_up(servable: ServableView, names: tuple[str, ...], rows: int, seed: int | None) -> list[bytes]:
    """A record for each of these signatures (all that can be called, when none is named). Raises WarmupError.

    rows: size of axis 0 where it is free; other free axes get 1. seed: random floats; None: zeros throughout.
    """
    unknown = [name for name in names if name not in servable.signatures]
    if unknown:
        known = ", ".join(servable.signatures) or "none"
        raise WarmupError(f"the model has no signature {', '.join(unknown)}; it has {known}")
    dice = random.Random(seed) if seed is not None else None
    wanted = names or tuple(name for name, signature in servable.signatures.items() if _is_dense(signature))
    return [_made_up(servable.signatures[name], rows, dice) for name in wanted]


def _is_dense(signature: SignatureView) -> bool:
    tensors = (*signature.inputs.values(), *signature.outputs.values())
    return all(spec.tensor_name for spec in tensors)


def _made_up(signature: SignatureView, rows: int, dice: random.Random | None) -> bytes:
    log = PredictionLog()
    kind = _EXAMPLE_METHODS.get(signature.method_name)
    if kind is not None and list(signature.inputs) == ["inputs"]:
        request = getattr(log, kind).request
        request.model_spec.signature_name = signature.name
        for _ in range(rows):
            request.input.example_list.examples.add()
        return bytes(log.SerializeToString())
    request = log.predict_log.request
    request.model_spec.signature_name = signature.name
    for alias, spec in signature.inputs.items():
        tensor = request.inputs[alias]
        tensor.dtype = spec.dtype
        count = 1
        for position, size in enumerate(spec.shape if spec.shape is not None else (-1,)):
            fed = size if size >= 0 else rows if position == 0 else 1
            tensor.tensor_shape.dim.add(size=fed)
            count *= fed
        # A tensor without values means zeros, or empty strings.
        if dice is not None and spec.dtype in _RANDOM:
            values = [dice.random() for _ in range(count)]
            tensor.tensor_content = struct.pack(f"<{count}{_RANDOM[spec.dtype]}", *values)
        elif spec.dtype == STRING and count:
            tensor.string_val.append(b"")
    return bytes(log.SerializeToString())


def of_requests(servable: ServableView, bodies: list[bytes]) -> list[bytes]:
    """A record for each body of a REST predict. Raises WarmupError, with the words of the REST API."""
    records = []
    for number, text in enumerate(bodies, start=1):
        body = _right(read_body(text), number)
        signature = _right(find_signature(servable, body.signature_name), number)
        inputs = _right(read_inputs(body, signature), number)
        log = PredictionLog()
        log.predict_log.request.model_spec.signature_name = signature.name
        for alias, tensor in inputs.tensors.items():
            proto = TensorProto.FromString(encode(tensor, tensor_content=True))
            log.predict_log.request.inputs[alias].CopyFrom(proto)
        records.append(bytes(log.SerializeToString()))
    return records


def _right(outcome: T | Failure | None, number: int) -> T:
    if isinstance(outcome, Failure):
        raise WarmupError(f"request {number}: {outcome.text}")
    assert outcome is not None, "only a hurried reader gives up"
    return outcome


def split_requests(data: bytes) -> list[bytes]:
    """The bodies in a file: one JSON object, or one a line."""
    try:
        json.loads(data)
    except ValueError:
        return [line for line in data.splitlines() if line.strip()]
    return [data]


# -------------------------------------------------------------------------------------------------------- writing


def write(records: list[bytes], path: Path, overwrite: bool) -> None:
    """Write a warm-up file; it appears whole or not at all. Raises WarmupError."""
    if len(records) > WARMUP_RECORDS_MAX:
        raise WarmupError(f"{len(records)} records, and a version with more than {WARMUP_RECORDS_MAX} does not load")
    write_file(b"".join(map(write_record, records)), path, overwrite)


def write_file(data: bytes, path: Path, overwrite: bool) -> None:
    """Likewise, of a whole file's bytes."""
    if not data:
        # A version that has a file runs that and nothing else: no records would be no warm-up, and nobody would know.
        raise WarmupError(f"there is no request to write: {path} would leave its version without any warm-up")
    if path.exists() and not overwrite:
        raise WarmupError(f"{path} is there already; --overwrite replaces it")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.rename(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise WarmupError(f"cannot write {path}: {error}") from error


# ------------------------------------------------------------------------------------------------------- recording


def record(server: str, model: str, count: int, seconds: float) -> bytes:
    """A warm-up file of the next requests that the server gets for `model`. Raises WarmupError."""
    body = json.dumps({"count": count, "seconds": seconds}).encode()
    data = _call(server, f"/ringserve/v1/models/{quote(model, safe='')}:record", body, seconds + 30)
    try:
        for _ in read_records(data):
            pass
    except ValueError as error:
        raise WarmupError(f"what the server sent is no warm-up file: {error}") from error
    return data


def version_directory(server: str, model: str) -> Path:
    """The directory of the version that serves now, as the server knows it. Raises WarmupError."""
    config = json.loads(_call(server, "/ringserve/v1/config", None, 30))
    summary = json.loads(_call(server, f"/ringserve/v1/models/{quote(model, safe='')}", None, 30))
    version = summary.get("serving")
    for entry in config.get("model_config_list", {}).get("config", ()):
        if entry.get("name") == model and version is not None:
            for child in sorted(_children(Path(entry["base_path"]))):
                if child.name.strip().lstrip("+").isdecimal() and int(child.name) == version:
                    return child
    raise WarmupError(
        f"the directory of model {model} is not on this machine, or no version of it serves: use --output"
    )


def _children(base: Path) -> list[Path]:
    try:
        return [child for child in base.iterdir() if child.is_dir()]
    except OSError:
        return []


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _call_unix(socket_path: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    with contextlib.closing(_UnixConnection(socket_path, timeout_s)) as connection:
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise WarmupError(f"{socket_path}: {error}") from error
    if response.status != 200:
        raise WarmupError(f"{socket_path}: {path}: {response.status} {_error_text(answer)}")
    return answer


def _call(server: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
    if server.startswith("unix:"):
        return _call_unix(server.removeprefix("unix:"), path, body, timeout_s)
    url = (server if "://" in server else f"http://{server}").rstrip("/") + path
    if not url.startswith(("http://", "https://")):
        raise WarmupError(f"{server} is no address of a server, such as http://localhost:8501")
    headers = {"Content-Type": "application/json"} if body is not None else {}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        raise WarmupError(f"{url}: {error.code} {_error_text(error.read())}") from error
    except (OSError, ValueError) as error:
        raise WarmupError(f"{url}: {error}") from error


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


def count_of(data: bytes) -> int:
    """Records in the bytes of a warm-up file."""
    return sum(1 for _ in read_records(data))


def warmup_file(given: Path) -> Path:
    """The warm-up file meant: the file itself, or that of a version's directory."""
    return given / WARMUP_FILE if given.is_dir() else given
