"""A model's signatures: as the catalog publishes them, and as the tensors that a run feeds and fetches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tensorflow_serving.apis import get_model_metadata_pb2

from ringserve.broker.messages import Code, InputSpec, LaneSpec
from ringserve.workers.failures import RunFailure

#: DataType numbers above this are references to the type below: DT_FLOAT_REF = 101.
_REF_OFFSET = 100

#: In TF 2 exports a signature of this name says what to run after loading. It can be read, never run.
INIT_SIGNATURE = "__saved_model_init_op"


class Signature(NamedTuple):
    """Tensor names by alias. An alias with an empty name is not one dense tensor (sparse or composite)."""

    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def is_dense(self) -> bool:
        return all(self.inputs.values()) and all(self.outputs.values())


class Wiring(NamedTuple):
    """How a lane's inputs and outputs meet the graph's tensors.

    feeds, fetches: different tensor names, none in both. feed_of: for each feed the input that supplies it. same:
    pairs of inputs that name one tensor and so must be equal. sources: for each output its place in `fetches`, or
    -1 - i for "input i itself".
    """

    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    feed_of: tuple[int, ...]
    same: tuple[tuple[int, int], ...]
    sources: tuple[int, ...]


def published(meta_graph: Any) -> bytes:
    """A serialized tensorflow.serving.SignatureDefMap, as GetModelMetadata answers it; the init op's stays, as there.

    References are given as the plain type: what a client sends and gets is never a reference.
    """
    message = get_model_metadata_pb2.SignatureDefMap()
    for name, stored in meta_graph.signature_def.items():
        signature = message.signature_def[name]
        signature.CopyFrom(stored)
        for infos in (signature.inputs, signature.outputs):
            for info in infos.values():
                if info.dtype > _REF_OFFSET:
                    info.dtype -= _REF_OFFSET
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


def signatures_of(meta_graph: Any) -> dict[str, Signature]:
    """The signatures that can be run, by name."""
    return {
        name: Signature(
            name,
            {alias: info.name for alias, info in stored.inputs.items()},
            {alias: info.name for alias, info in stored.outputs.items()},
        )
        for name, stored in meta_graph.signature_def.items()
        if name != INIT_SIGNATURE
    }


def wire(signature: Signature, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Wiring:
    """The wiring of these aliases. Raises RunFailure for one that the signature lacks or that is not one tensor."""
    feed_index: dict[str, int] = {}
    feed_of: list[int] = []
    same: list[tuple[int, int]] = []
    for position, alias in enumerate(inputs):
        tensor = _tensor_name(signature, "input", signature.inputs, alias)
        if tensor in feed_index:
            same.append((feed_of[feed_index[tensor]], position))
        else:
            feed_index[tensor] = len(feed_of)
            feed_of.append(position)
    fetch_index: dict[str, int] = {}
    sources: list[int] = []
    for alias in outputs:
        tensor = _tensor_name(signature, "output", signature.outputs, alias)
        if tensor in feed_index:  # a session refuses to fetch what it is fed
            sources.append(-1 - feed_of[feed_index[tensor]])
        else:
            sources.append(fetch_index.setdefault(tensor, len(fetch_index)))
    return Wiring(tuple(feed_index), tuple(fetch_index), tuple(feed_of), tuple(same), tuple(sources))


def rewire(wiring: Wiring, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Wiring:
    """The same wiring over a call that feeds the same tensors, perhaps in another order, and fetches more of them."""
    input_of = dict(zip(wiring.feeds, wiring.feed_of, strict=True))
    place = [fetches.index(tensor) for tensor in wiring.fetches]
    return Wiring(
        feeds,
        fetches,
        tuple(input_of[tensor] for tensor in feeds),
        wiring.same,
        tuple(place[source] if source >= 0 else source for source in wiring.sources),
    )


def wire_lane(signatures: Mapping[str, Signature], spec: LaneSpec) -> Wiring:
    """The wiring of a lane. Raises RunFailure."""
    signature = signatures.get(spec.signature)
    if signature is None:
        raise RunFailure(Code.FAILED_PRECONDITION, f'Serving signature key "{spec.signature}" not found.')
    return wire(signature, tuple(i.alias for i in spec.inputs), spec.outputs)


def _tensor_name(signature: Signature, side: str, tensors: Mapping[str, str], alias: str) -> str:
    name = tensors.get(alias)
    if name is None:
        known = ",".join(sorted(tensors))
        text = f"{side} tensor alias not found in signature: {alias} Expected to be in the set {{{known}}}."
        raise RunFailure(Code.INVALID_ARGUMENT, text)
    if not name:
        raise RunFailure(
            Code.UNIMPLEMENTED,
            f'The {side} "{alias}" of signature "{signature.name}" is a sparse or composite tensor; '
            "only dense tensors can be served. Export a signature that takes its parts as dense tensors.",
        )
    return name


def lane_of(model: str, version: int, signature: Signature, specs: tuple[InputSpec, ...], batchable: bool) -> LaneSpec:
    """The lane of a request for every output of `signature`."""
    return LaneSpec(model, version, signature.name, specs, tuple(signature.outputs), batchable)
