"""Answers of the Open Inference protocol over REST: JSON, and behind it the bytes of those outputs that are binary."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from ringserve.broker.messages import Failure
from ringserve.frontend.catalog import ServableView, SignatureView, TensorSpec
from ringserve.frontend.handler import Buffer
from ringserve.frontend.json_numbers import number_texts
from ringserve.frontend.json_text import string_text
from ringserve.frontend.json_write import NamedOutput
from ringserve.frontend.open_inference import NAMES, Wanted, invalid
from ringserve.shm.dtype import STRING, dtype_of, name_of

_HEADS_MAX: Final = 64
_LENGTH: Final = struct.Struct("<I")


class Form:
    """What an answer is to look like.

    places: of each output in its order, where it stands among the lane's. binary: which of them go behind the JSON.
    """

    __slots__ = ("_heads", "binary", "id", "model", "places", "version")

    def __init__(
        self, model: str, version: int, request_id: str | None, wanted: Sequence[Wanted], is_binary: bool,
        computed: Sequence[str],
    ) -> None:  # fmt: skip
        """wanted: none for all of those that are `computed`, which is the lane's order."""
        wanted = wanted or [Wanted(name, None) for name in computed]
        self.model = model
        self.version = version
        self.id = request_id
        self.places = [computed.index(each.name) for each in wanted]
        self.binary = [is_binary if each.is_binary is None else each.is_binary for each in wanted]
        #: The JSON of answers that are all bytes of a size that their shapes tell.
        self._heads: dict[tuple[tuple[int, ...], ...], bytes] = {}

    def head_known(self, outputs: Sequence[NamedOutput]) -> bytes | None:
        """The JSON before outputs that are all of raw bytes; None where it depends on more than their shapes."""
        key = tuple([output.shape for output in outputs])
        head = self._heads.get(key)
        if head is None and all(self.binary) and not any(output.dtype == STRING for output in outputs):
            if any(output.dtype not in NAMES for output in outputs):
                return None  # the long way says so
            tensors = [_tensor(output, output.dtype, len(output.data)) for output in outputs]
            head = _message(self, tensors, [b""] * len(tensors))
            if len(self._heads) >= _HEADS_MAX:
                self._heads.clear()
            self._heads[key] = head
        return head


class Answer(NamedTuple):
    """json_bytes: how much of the body is JSON, where something may follow it; else -1."""

    body: bytes
    json_bytes: int


def write(form: Form, outputs: Sequence[NamedOutput], gently: bool = False) -> Answer | Failure:
    """outputs: in the answer's order. gently: let other threads run now and then."""
    head = form.head_known(outputs)
    if head is not None:
        return Answer(b"".join([head, *[output.data for output in outputs]]), len(head))  # type: ignore[list-item]
    tensors, texts = [], []
    tail: list[Buffer] = []
    for output, is_binary in zip(outputs, form.binary, strict=True):
        if output.dtype not in NAMES:
            return invalid(f"output '{output.alias}' is of type {name_of(output.dtype)}, which the Open Inference "
                           "protocol has no name for")  # fmt: skip
        if is_binary:
            pieces = _bytes(output)
            tensors.append(_tensor(output, output.dtype, sum(map(len, pieces))))
            texts.append(b"")
            tail += pieces
        else:
            text = _text(output, gently)
            if isinstance(text, Failure):
                return text
            tensors.append(_tensor(output, output.dtype, None))
            texts.append(text)
    head = _message(form, tensors, texts)
    return Answer(b"".join([head, *tail]), len(head) if any(form.binary) else -1)


def _tensor(output: NamedOutput, dtype: int, size: int | None) -> dict[str, Any]:
    about: dict[str, Any] = {"name": output.alias, "datatype": NAMES[dtype], "shape": output.shape}
    if size is not None:
        about["parameters"] = {"binary_data_size": size}
    return about


def _message(form: Form, tensors: Sequence[dict[str, Any]], texts: Sequence[bytes]) -> bytes:
    """texts: each tensor's `data`, written already; empty for none."""
    about: dict[str, Any] = {"model_name": form.model, "model_version": str(form.version)}
    if form.id is not None:
        about["id"] = form.id
    pieces = []
    for tensor, text in zip(tensors, texts, strict=True):
        written = _json(tensor)
        pieces.append(written[:-1] + b',"data":[' + text + b"]}" if text or "parameters" not in tensor else written)
    return _json(about)[:-1] + b',"outputs":[' + b",".join(pieces) + b"]}"


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate of a name or an id that was no UTF-8
        pairs = [f"{string_text(key)}:{_loose(each)}" for key, each in value.items()]
        return f"{{{','.join(pairs)}}}".encode("utf-8", "surrogateescape")


def _loose(value: Any) -> str:
    return string_text(value) if isinstance(value, str) else orjson.dumps(value).decode()


def _bytes(output: NamedOutput) -> list[Buffer]:
    if not isinstance(output.data, list):
        return [output.data]
    return [piece for value in output.data for piece in (_LENGTH.pack(len(value)), value)]


def _text(output: NamedOutput, gently: bool) -> bytes | Failure:
    """The elements, one behind the other, whatever the shape."""
    if not isinstance(output.data, list):
        if 0 in output.shape:
            return b""
        return ",".join(number_texts(np.frombuffer(output.data, dtype_of(output.dtype).numpy), gently=gently)).encode()
    try:
        return ",".join([string_text(value.decode()) for value in output.data]).encode()
    except UnicodeDecodeError:
        return invalid(f"output '{output.alias}' has an element that is no UTF-8; ask for it with 'binary_data': true")


# ----------------------------------------------------------------------------------------------------------- metadata

#: TensorFlow's own, which every SavedModel of Keras has and nobody can ask for.
_INIT_SIGNATURE: Final = "__saved_model_init_op"


def server_body(version: str) -> bytes:
    """What `GET /v2` says."""
    return orjson.dumps({"name": "ringserve", "version": version, "extensions": ["binary_tensor_data", "parameters"]})


def model_body(servable: ServableView, signature: SignatureView, versions: Sequence[int]) -> bytes | Failure:
    """What `GET /v2/models/MODEL` says. versions: those that can be asked."""
    found: dict[str, list[dict[str, Any]]] = {}
    sides: Mapping[str, Mapping[str, TensorSpec]] = {"inputs": signature.inputs, "outputs": signature.outputs}
    for side, specs in sides.items():
        for spec in specs.values():
            if spec.dtype not in NAMES:
                text = f"{spec.alias} of signature {signature.name} is of type {name_of(spec.dtype)}"
                return invalid(f"{text}, which the Open Inference protocol has no name for")
        found[side] = [
            {"name": spec.alias, "datatype": NAMES[spec.dtype], "shape": [-1] if spec.shape is None else spec.shape}
            for spec in specs.values()
        ]
    return orjson.dumps(
        {
            "name": servable.name,
            "versions": [str(version) for version in versions],
            "platform": "tensorflow_savedmodel",
            **found,
            "properties": {"signatures": ",".join(name for name in servable.signatures if name != _INIT_SIGNATURE)},
        }
    )
