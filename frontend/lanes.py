"""From a request's named tensors to the lane it travels in: TF Serving's checks of a Predict, in its order, and ours.

TF Serving looks at names only and leaves dtypes and shapes to the run time, and models rely on that: its own tests
feed `x` of shape [3] to signatures that say [-1,1], [] or [1], and signatures may lie about dtype and shape. So:

refused early (INVALID_ARGUMENT, no worker is bothered)
  - numeric dtype sent, another numeric dtype declared: the run time refuses it always;
  - declared rank >= 2, same rank sent, and an axis other than 0 that is declared fixed differs;
  - more axes than an array may have on its way into TensorFlow.
passed on to the model, alone in its batch, so that no other request can be harmed by what it does
  - another rank than declared; a fixed axis 0 that differs; strings for a numeric declaration or the reverse (inputs
    of serialized Examples are sometimes declared float); no elements at all.
batched
  - every input of the signature and every output wanted declares rank >= 1 with a free axis 0, and every input sent
    has the declared dtype and rank, and all have the same number (> 0) of rows and rows of more than zero bytes.

Requests of different inner shapes are in different lanes, unless the model pads: then the lane leaves open (-1) the
inner axes that the signature leaves open, and each record says its own shape (`shm/head.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any, Final, NamedTuple

from ringserve.broker.messages import Code, Failure, InputSpec, LaneSpec
from ringserve.broker.wire import pack_lane
from ringserve.frontend.catalog import DEFAULT_SIGNATURE, ServableView, SignatureView, TensorSpec
from ringserve.frontend.handler import Buffer
from ringserve.frontend.shedding import Pressure
from ringserve.frontend.tensor_proto import Tensor, check_axes
from ringserve.shm.dtype import STRING, dtype_of, name_of
from ringserve.shm.head import RANK_MAX, pack_head

__all__ = ["Lane", "LaneTable", "Request", "Tensor", "check_names", "find_signature"]

PREDICT_METHODS: Final = ("tensorflow/serving/predict", "tensorflow/serving/classify", "tensorflow/serving/regress")


class Lane:
    """A lane as a frontend holds it. Two Lanes of equal `key` are the same lane; compare keys, not objects.

    A lane that leaves axes open has one Lane for each combination of inner shapes that was met.
    row_bytes: of one row of each input (of the whole input when not batchable), None for strings.
    heads: for each input the inner shape that its record must say, None where the lane says it; or None for all.
    pressure: what the broker last said of the lane's load.
    answers: for the response encoder's own use; it bounds it.
    """

    __slots__ = ("answers", "heads", "key", "pressure", "row_bytes", "spec")

    def __init__(self, spec: LaneSpec, own: LaneSpec | None = None) -> None:
        """own: the spec with the requests' own inner shapes, where `spec` leaves axes open."""
        self.spec = spec
        self.key = pack_lane(spec)
        inputs = (own or spec).inputs
        self.row_bytes: tuple[int | None, ...] = tuple(
            None if each.dtype == STRING else prod(each.shape) * dtype_of(each.dtype).itemsize for each in inputs
        )
        pairs = zip(spec.inputs, inputs, strict=True)
        heads = tuple(each.shape if -1 in open_.shape else None for open_, each in pairs)
        self.heads = heads if any(head is not None for head in heads) else None
        self.pressure = Pressure(sum(each or 0 for each in self.row_bytes))
        self.answers: dict[Any, Any] = {}

    def with_heads(self, rows: int, payloads: Sequence[Buffer | list[bytes]]) -> list[Buffer | list[bytes]]:
        """The payloads as their records must be, where some say their own shape."""
        found: list[Buffer | list[bytes]] = []
        for shape, payload in zip(self.heads or (), payloads, strict=True):
            if shape is None:
                found.append(payload)
                continue
            head = pack_head((rows, *shape))
            found.append([head, *payload] if isinstance(payload, list) else b"".join((head, payload)))
        return found


class Request(NamedTuple):
    """What `Client.infer` needs. payloads: in the lane's input order; raw bytes, or a list of bytes for strings."""

    lane: Lane
    rows: int
    payloads: list[Buffer | list[bytes]]


def find_signature(
    servable: ServableView, name: str, *, check_method_name: bool = False
) -> SignatureView | Failure:
    """The signature a gRPC Predict means; an empty name means `serving_default`."""
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        return Failure(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    if check_method_name and signature.method_name not in PREDICT_METHODS:
        expected = ", ".join(PREDICT_METHODS)
        return Failure(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{expected}}}. Was: {signature.method_name}",
        )
    return signature


def check_names(signature: SignatureView, sent: Collection[str]) -> Failure | None:
    """Whether the inputs sent are enough and not too many, by name alone."""
    declared = signature.inputs
    if len(sent) == len(declared) and all(alias in declared for alias in sent):
        return None
    if len(sent) > len(declared) or (len(sent) < len(declared) and not signature.defaults):
        sent_set, declared_set = set(sent), set(declared)
        return Failure(
            Code.INVALID_ARGUMENT,
            f"input size does not match signature: {len(sent)}!={len(declared)} "
            f"len({{{_join(sent_set)}}}) != len({{{_join(declared_set)}}}). "
            f"Sent extra: {{{_join(sent_set - declared_set)}}}. "
            f"Missing but required: {{{_join(declared_set - sent_set)}}}.",
        )
    for alias, spec in declared.items():
        if alias not in sent and alias not in signature.defaults:
            return Failure(
                Code.INVALID_ARGUMENT,
                f"Signature input alias: {alias}(feed name: {spec.tensor_name}) not found in request and no default "
                f"value provided. Inputs expected to be in the request {{{_join(sent)}}}, "
                f"or default input alias set: {_join(signature.defaults)}",
            )
    return None


def _join(names: Collection[str]) -> str:
    return ",".join(sorted(names))


class LaneTable:
    """Makes requests, and keeps one Lane per spec as long as it has room.

    lanes_max bounds the table against clients that send ever new shapes: when it is full it starts again empty, which
    costs the next request of each lane some microseconds and nothing else.
    """

    def __init__(self, lanes_max: int = 4096) -> None:
        self._lanes_max = lanes_max
        self._lanes: dict[LaneSpec | tuple[LaneSpec, LaneSpec], Lane] = {}

    def intern(self, spec: LaneSpec, own: LaneSpec | None = None) -> Lane:
        """The Lane of a spec; own: as Lane takes it."""
        key = spec if own is None else (spec, own)
        lane = self._lanes.get(key)
        if lane is None:
            # True is equal to 1: a lane that was made of it would be everybody's lane of that shape.
            if any(type(size) is not int for each in (own or spec).inputs for size in each.shape):
                raise TypeError("a shape is of what is no number")
            if len(self._lanes) >= self._lanes_max:
                self._lanes.clear()
            lane = self._lanes[key] = Lane(spec, own)
        return lane

    def bind(
        self,
        servable: ServableView,
        signature: SignatureView,
        tensors: Mapping[str, Tensor | Failure],
        output_filter: Sequence[str] = (),
    ) -> Request | Failure:
        """A request of `tensors` by alias. A value may be the Failure of its decoding; it is reported in its turn.

        Payloads are the tensors' own buffers, not copies. An empty output_filter means all outputs.
        """
        failure = check_names(signature, tensors.keys())
        if failure is not None:
            return failure
        inputs: list[tuple[TensorSpec, Tensor]] = []
        for alias, spec in signature.inputs.items():
            tensor = tensors[alias] if alias in tensors else signature.defaults[alias]
            if isinstance(tensor, Failure):
                return tensor
            inputs.append((spec, tensor))
        if not tensors.keys() <= signature.inputs.keys():
            used = _join(tensors.keys() & signature.inputs.keys())
            return Failure(
                Code.INVALID_ARGUMENT,
                f"Inputs contains invalid name. Used request inputs: {used}, request input: {_join(tensors)}",
            )
        outputs = _wanted(signature, output_filter)
        if isinstance(outputs, Failure):
            return outputs
        for index, (spec, tensor) in enumerate(inputs):
            failure = _check_tensor(index, spec, tensor)
            if failure is not None:
                return failure
        return self._request(servable, signature, inputs, outputs)

    def _request(
        self,
        servable: ServableView,
        signature: SignatureView,
        inputs: list[tuple[TensorSpec, Tensor]],
        outputs: tuple[str, ...],
    ) -> Request:
        batchable = signature.rows_joinable and all(signature.outputs[alias].has_row_axis for alias in outputs)
        rows = inputs[0][1].shape[0] if batchable and inputs[0][1].shape else 0
        batchable = batchable and rows > 0 and all(_joins(spec, tensor, rows) for spec, tensor in inputs)
        specs = tuple(
            InputSpec(spec.alias, tensor.dtype, tensor.shape[1:] if batchable else tensor.shape)
            for spec, tensor in inputs
        )
        spec = LaneSpec(servable.name, servable.version, signature.name, specs, outputs, batchable)
        open_spec = _opened(spec, inputs) if servable.pads and batchable else spec
        lane = self.intern(spec) if open_spec == spec else self.intern(open_spec, spec)
        return Request(lane, rows if batchable else 1, [tensor.data for _, tensor in inputs])


def _wanted(signature: SignatureView, output_filter: Sequence[str]) -> tuple[str, ...] | Failure:
    """The output aliases to compute, sorted, so that the order in which a client names them makes no second lane."""
    if not output_filter:
        return signature.output_aliases
    seen = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            return Failure(
                Code.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{_join(signature.outputs)}}}.",
            )
        if alias in seen:
            return Failure(Code.INVALID_ARGUMENT, f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(sorted(seen))


def _check_tensor(index: int, spec: TensorSpec, tensor: Tensor) -> Failure | None:
    """What is refused before it runs; see the top of this file for why no more than that."""
    failure = check_axes(spec.alias, tensor.shape)
    if failure is not None:
        return failure
    if tensor.dtype != spec.dtype and STRING not in (tensor.dtype, spec.dtype):
        return Failure(
            Code.INVALID_ARGUMENT,
            f"Expects arg[{index}] to be {name_of(spec.dtype)} but {name_of(tensor.dtype)} is provided"
            f" (input: {spec.alias})",
        )
    declared, sent = spec.shape, tensor.shape
    if declared is None or declared[1:] == sent[1:] or len(declared) != len(sent):
        return None
    if all(size in (-1, sent_size) for size, sent_size in zip(declared[1:], sent[1:], strict=True)):
        return None
    return Failure(
        Code.INVALID_ARGUMENT,
        f"input {spec.alias} has an incompatible shape: expected {shape_text(declared)}, got {shape_text(sent)}",
    )


def _joins(spec: TensorSpec, tensor: Tensor, rows: int) -> bool:
    """Whether this input, of a signature whose rows can be joined, is as declared and has `rows` rows."""
    shape = tensor.shape
    return (
        tensor.dtype == spec.dtype
        and spec.shape is not None
        and len(shape) == len(spec.shape)
        and shape[0] == rows
        and 0 not in shape
    )


def _opened(spec: LaneSpec, inputs: Sequence[tuple[TensorSpec, Tensor]]) -> LaneSpec:
    """The lane in which requests of other inner shapes are, too: the axes that the signature leaves open are."""
    opened = []
    for each, (declared, _) in zip(spec.inputs, inputs, strict=True):
        inner = declared.shape[1:] if declared.shape is not None else each.shape
        opened.append(each._replace(shape=inner) if len(inner) < RANK_MAX else each)
    return spec._replace(inputs=tuple(opened))


def shape_text(shape: Sequence[int]) -> str:
    """`[-1,28,28]`, as TensorFlow writes shapes."""
    return f"[{','.join(map(str, shape))}]"
