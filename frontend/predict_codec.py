"""Predict's hot path: request bytes -> (lane, rows, payloads), and a result record -> response bytes.

Requests. A client that calls in a loop sends messages that differ in their payload bytes only. A *template* keeps
everything else of such a message: its length, and all bytes outside of the payloads. A message of that length with
those very bytes has the same structure, because every tag and every length of it was compared; so its payloads lie
where the template says and it means the same lane, without parsing. Only complete raw payloads qualify (tensor_content,
or packed floats): any value of their bytes is valid, but for bool, whose bytes are checked every time.
Everything else takes the long way through the official classes. (The table of them is `predict_templates.py`.)

Responses. TensorProto's packed floats, and every tensor_content, are the raw bytes of the result record, so a response
is constant pieces around those; the pieces are kept by lane and shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from math import prod
from typing import Any, Final

from google.protobuf.message import DecodeError

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import ModelSpec, PredictRequest
from ringserve.frontend.buffers import LONG_BYTES, Buffers
from ringserve.frontend.catalog import Catalog, ServableView, SignatureView
from ringserve.frontend.handler import Buffer
from ringserve.frontend.lanes import Lane, LaneTable, Request, check_names, find_signature
from ringserve.frontend.outputs import Output
from ringserve.frontend.predict_templates import Matched, Template, TemplateTable
from ringserve.frontend.tensor_proto import Tensor, coded_values, decode, header, payload_tag, varint
from ringserve.shm.dtype import STRING, dtype_of


class PredictDecoder:
    """PredictRequest bytes -> Request or Failure.

    tensor_bytes_max: of all inputs of a request, see `tensor_proto.decode`. check_method_name: TF Serving's
    enable_signature_method_name_check.
    model_sent: after a Failure, the name of the model that the message asks for; empty when it has none.
    """

    def __init__(
        self,
        catalog: Catalog,
        lanes: LaneTable,
        *,
        tensor_bytes_max: int,
        check_method_name: bool = False,
        templates: TemplateTable | None = None,
    ) -> None:
        self.templates = templates if templates is not None else TemplateTable()
        self.model_sent = ""
        self._catalog = catalog
        self._lanes = lanes
        self._tensor_bytes_max = tensor_bytes_max
        self._check_method_name = check_method_name
        self._epoch = catalog.epoch

    def decode(self, message: Buffer) -> Matched | Failure:
        """The request in `message`. Its payloads may be views into `message` and live as long."""
        if self._epoch != self._catalog.epoch:
            self.templates.clear()
            self._epoch = self._catalog.epoch
        return self.templates.match(message) or self._parse(bytes(message))

    def kind(self, message: bytes) -> Template | None:
        """What messages are like whose payload is their only difference from this one; None: that is not known."""
        if self._epoch != self._catalog.epoch:
            return None
        return self.templates.plain(message)

    def _parse(self, message: bytes) -> Matched | Failure:
        self.model_sent = ""
        try:
            proto = PredictRequest.FromString(message)
        except DecodeError:
            return Failure(Code.INTERNAL, "Error parsing the request message as tensorflow.serving.PredictRequest.")
        self.model_sent = proto.model_spec.name
        found = self._find(proto)
        if isinstance(found, Failure):
            return found
        servable, signature = found
        failure = check_names(signature, proto.inputs.keys())
        if failure is not None:
            return failure
        tensors: dict[str, Tensor | Failure] = {}
        bytes_left = self._tensor_bytes_max
        for alias, each in proto.inputs.items():
            tensors[alias] = tensor = decode(each, alias, max(bytes_left, 0))
            bytes_left -= tensor.held_bytes if isinstance(tensor, Tensor) else 0
        request = self._lanes.bind(servable, signature, tensors, proto.output_filter)
        if isinstance(request, Request):
            decoded = {alias: tensor for alias, tensor in tensors.items() if isinstance(tensor, Tensor)}
            self.templates.learn(message, request, decoded)
        return request

    def _find(self, proto: Any) -> tuple[ServableView, SignatureView] | Failure:
        if not proto.HasField("model_spec"):
            return Failure(Code.INVALID_ARGUMENT, "Missing ModelSpec")
        servable = self._catalog.resolve(*model_spec_of(proto))
        if isinstance(servable, Failure):
            return servable
        name = proto.model_spec.signature_name
        signature = find_signature(servable, name, check_method_name=self._check_method_name)
        return signature if isinstance(signature, Failure) else (servable, signature)


def model_spec_of(proto: Any) -> tuple[str, int | None, str | None]:
    """(name, version or None, label or None) of a request that has a `model_spec`."""
    spec = proto.model_spec
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    return spec.name, version, spec.version_label if choice == "version_label" else None


#: What precedes an output's values: all bytes up to its payload; or (map key, tensor header) when the length of the
#: coded values is not known beforehand.
_Head = bytes | tuple[bytes, bytes]

_ANSWERS_PER_LANE_MAX: Final = 64
#: Values of an answer beyond which nothing is gained by making answers together.
_ALIKE_BYTES_MAX: Final = 4_096


class PredictEncoder:
    """A lane's outputs -> PredictResponse bytes. tensor_content: TF Serving's enable_serialization_as_tensor_content.

    buffers: where long answers lie, if given. It keeps its pieces in `lane.answers`, so the lanes must be of one
    LaneTable that no other encoder uses.
    """

    def __init__(self, *, tensor_content: bool = False, buffers: Buffers | None = None) -> None:
        self._tensor_content = tensor_content
        self._buffers = buffers

    def encode(self, lane: Lane, outputs: Sequence[Output], row_first: int, rows: int) -> Buffer:
        """Rows [row_first, row_first + rows) of `outputs`, which are in the lane's output order."""
        if len(outputs) == 1:
            output = outputs[0]
            shape = (rows, *output.shape[1:]) if output.batchable else output.shape
            answer = lane.answers.get((output.dtype, shape))
            if answer is None:
                answer = self._pieces(lane, (output.dtype, shape), [(output.dtype, shape)])
            heads, suffix = answer
            head = heads[0]
            if type(head) is bytes:
                raw = output.raw(row_first, rows)
                if len(raw) >= LONG_BYTES and self._buffers is not None:
                    return self._buffers.join((head, raw, suffix))
                return b"".join((head, raw, suffix))
        else:
            shapes = [(output.dtype, output.shape_of(rows)) for output in outputs]
            key = tuple(shapes)
            answer = lane.answers.get(key)
            if answer is None:
                answer = self._pieces(lane, key, shapes)
            heads, suffix = answer
        parts: list[Buffer] = []
        for head, output in zip(heads, outputs, strict=True):
            if type(head) is bytes:
                parts.append(head)
                parts.append(output.raw(row_first, rows))
            else:
                parts.append(self._coded(head, output, row_first, rows))
        parts.append(suffix)
        return self._buffers.join(parts) if self._buffers is not None else b"".join(parts)

    def encode_alike(
        self, lane: Lane, outputs: Sequence[Output], rows_first: Sequence[int], rows: int
    ) -> tuple[bytes, list[bytes], bytes] | None:
        """What `encode` gives for each of these first rows, as (head, bodies, tail): all differ in their bodies alone,
        which are of one length. None: they are not of this kind, or long."""
        body_bytes = rows * sum(output.row_bytes for output in outputs)
        if body_bytes > _ALIKE_BYTES_MAX or not all(output.batchable for output in outputs):
            return None
        shapes = [(output.dtype, output.shape_of(rows)) for output in outputs]
        key: Any = shapes[0] if len(shapes) == 1 else tuple(shapes)
        heads, tail = lane.answers.get(key) or self._pieces(lane, key, shapes)
        columns: list[Iterable[bytes]] = []  # of each answer's pieces
        for head, output in zip(heads, outputs, strict=True):
            if type(head) is not bytes:
                return None
            row_bytes, whole = output.row_bytes, bytes(output.raw(0, output.shape[0]))
            size = rows * row_bytes
            values = [whole[at : at + size] for at in [first * row_bytes for first in rows_first]]
            if len(heads) == 1:
                return head, values, tail
            columns += repeat(head, len(values)), values
        return b"", list(map(b"".join, zip(*columns, strict=True))), tail

    def _coded(self, head: tuple[bytes, bytes], output: Output, row_first: int, rows: int) -> bytes:
        key, tensor_header = head
        data = output.strings(row_first, rows) if output.dtype == STRING else output.raw(row_first, rows)
        values = coded_values(output.dtype, data, tensor_content=self._tensor_content)
        tensor_length = varint(len(tensor_header) + len(values))
        entry_length = len(key) + 1 + len(tensor_length) + len(tensor_header) + len(values)
        return b"".join((b"\x0a", varint(entry_length), key, b"\x12", tensor_length, tensor_header, values))

    def _pieces(self, lane: Lane, key: Any, shapes: list[tuple[int, tuple[int, ...]]]) -> tuple[list[_Head], bytes]:
        spec = lane.spec
        heads = [self._head(alias, *each) for alias, each in zip(spec.outputs, shapes, strict=True)]
        model_spec = ModelSpec(name=spec.model, signature_name=spec.signature)
        model_spec.version.value = spec.version
        model_spec.version.SetInParent()  # version 0 is a version too
        serialized = model_spec.SerializeToString()
        answer = (heads, b"\x12" + varint(len(serialized)) + serialized)
        if len(lane.answers) >= _ANSWERS_PER_LANE_MAX:
            lane.answers.clear()
        lane.answers[key] = answer
        return answer

    def _head(self, alias: str, dtype: int, shape: tuple[int, ...]) -> _Head:
        name = alias.encode()
        key = b"\x0a" + varint(len(name)) + name
        tensor_header = header(dtype, shape)
        tag = payload_tag(dtype, tensor_content=self._tensor_content)
        if tag is None:
            return key, tensor_header
        payload_bytes = prod(shape) * dtype_of(dtype).itemsize
        if payload_bytes:
            tensor_header += tag + varint(payload_bytes)
        tensor_length = varint(len(tensor_header) + payload_bytes)
        entry_length = len(key) + 1 + len(tensor_length) + len(tensor_header) + payload_bytes
        return b"".join((b"\x0a", varint(entry_length), key, b"\x12", tensor_length, tensor_header))
