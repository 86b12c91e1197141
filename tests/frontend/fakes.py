"""Stand-ins for what lies around the gRPC API: a call, a client that answers at once, catalogs made of signatures."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ringserve.broker.messages import Code, VersionInfo, VersionState
from ringserve.config.protos import SignatureDef, SignatureDefMap, TensorProto
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.handler import Buffer
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output, Reply
from ringserve.shm.dtype import FLOAT, STRING, dtype_of
from ringserve.shm.tensor import string_record_bytes, write_strings

#: alias -> (dtype, shape); None is unknown rank.
Specs = Mapping[str, tuple[int, Sequence[int] | None]]


def signature_def(
    inputs: Specs,
    outputs: Specs,
    method_name: str = "tensorflow/serving/predict",
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """A SignatureDef whose tensor names are `ALIAS:0`."""
    signature = SignatureDef(method_name=method_name)
    for where, specs in ((signature.inputs, inputs), (signature.outputs, outputs)):
        for alias, (dtype, shape) in specs.items():
            info = where[alias]
            info.name = f"{alias}:0"
            info.dtype = dtype
            if shape is None:
                info.tensor_shape.unknown_rank = True
            else:
                info.tensor_shape.SetInParent()
                for size in shape:
                    info.tensor_shape.dim.add(size=size)
    for alias, proto in (defaults or {}).items():
        signature.defaults[alias].CopyFrom(proto)
    return signature


HALF_PLUS_TWO = signature_def({"x": (FLOAT, [-1])}, {"y": (FLOAT, [-1])})


def version_info(
    name: str = "default",
    version: int = 123,
    signatures: Mapping[str, Any] | None = None,
    state: int = VersionState.AVAILABLE,
    error: tuple[int, str] = (0, ""),
) -> VersionInfo:
    """One line of a catalog; by default a half_plus_two that serves."""
    if signatures is None:
        signatures = {"serving_default": HALF_PLUS_TWO}
    serialized = SignatureDefMap(signature_def=signatures).SerializeToString()
    return VersionInfo(name, version, state, error[0], error[1], serialized, [])


def catalog_of(*versions: VersionInfo, labels: Mapping[str, Mapping[str, int]] | None = None) -> Catalog:
    catalog = Catalog()
    catalog.update(versions, labels)
    return catalog


def float_proto(values: Sequence[float], shape: Sequence[int], *, content: bool = False) -> Any:
    """A TensorProto of floats, in float_val or in tensor_content."""
    proto = TensorProto(dtype=FLOAT)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    if content:
        proto.tensor_content = np.asarray(values, dtype="<f4").tobytes()
    else:
        proto.float_val.extend(values)
    return proto


def make_output(
    dtype: int, shape: tuple[int, ...], data: npt.ArrayLike | Sequence[bytes], *, batchable: bool
) -> Output:
    """An Output over a record that does not begin at the beginning of its ring."""
    if dtype == STRING:
        values = [bytes(value) for value in np.asarray(data, dtype=object).ravel()]
        written = bytearray(string_record_bytes(values))
        write_strings(memoryview(written), 0, values)
        record = bytes(written)
    else:
        array = np.asarray(data)
        assert array.dtype.itemsize == dtype_of(dtype).itemsize
        assert array.size == int(np.prod(shape))
        record = array.tobytes()
    return Output(dtype, shape, memoryview(b"\xee" * 64 + record + b"\xee" * 64).toreadonly(), 64, batchable)


class FakeCall:
    """A handler.Call that remembers how it ended."""

    def __init__(self, timeout_ns: int = 0) -> None:
        self.timeout_ns = timeout_ns
        self.metadata: list[tuple[str, bytes]] = []
        self.peer = "ipv4:127.0.0.1:1"
        self.names: Sequence[str] = ()
        self.message: bytes | None = None
        self.failure: tuple[int, str] | None = None
        self.made_id = ""
        self.cancel: Callable[[], None] | None = None

    def finish(self, message: Buffer, made_id: str = "") -> None:
        assert self.message is None
        assert self.failure is None
        self.message, self.made_id = bytes(message), made_id

    def fail(self, code: int, text: str, retry_ms: int = 0, made_id: str = "") -> None:
        assert self.message is None
        assert self.failure is None
        self.failure, self.made_id = (int(code), text), made_id

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self.cancel = callback


#: (lane, rows, payloads copied) -> outputs, or (code, text)
Model = Callable[[Lane, int, list[Any]], "list[Output] | tuple[int, str]"]


class LoopbackClient:
    """Answers at once with what `model` says; without a model it keeps the replies for the test to answer."""

    def __init__(self, catalog: Catalog, model: Model | None = None) -> None:
        self.catalog = catalog
        self.model = model
        self.requests: list[tuple[Lane, int, list[Any], int, Reply]] = []
        self.cancelled: list[int] = []
        #: What operators' calls are answered with, by verb; and the calls: (verb, body, timeout_s).
        self.told: dict[str, tuple[int, str, bytes]] = {}
        self.asks: list[tuple[str, bytes, float | None]] = []

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int:
        copies = [list(payload) if isinstance(payload, list) else bytes(payload) for payload in payloads]
        self.requests.append((lane, rows, copies, timeout_ns, reply))
        if self.model is None:
            return len(self.requests)
        outputs = self.model(lane, rows, copies)
        if isinstance(outputs, tuple):
            reply.fail(*outputs)
            return -1
        reply.answer(outputs, 0, rows)
        return len(self.requests)

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    async def ask(self, verb: str, body: bytes = b"", timeout_s: float | None = None) -> tuple[int, str, bytes]:
        self.asks.append((verb, body, timeout_s))
        return self.told[verb]


def half_plus_two(lane: Lane, rows: int, payloads: list[Any]) -> list[Output]:
    """y = x / 2 + 2, whatever the shape."""
    x = np.frombuffer(payloads[0], dtype="<f4")
    inner = lane.spec.inputs[0].shape
    shape = (rows, *inner) if lane.spec.batchable else inner
    return [make_output(FLOAT, shape, (x * 0.5 + 2).astype("<f4"), batchable=lane.spec.batchable)]


def usual_catalog() -> Catalog:
    """Version 123 serves and is labelled `stable`, 124 could not be loaded."""
    return catalog_of(
        version_info("default", 123),
        version_info("default", 124, state=VersionState.END, error=(3, "bad")),
        labels={"default": {"stable": 123}},
    )


def assert_leaves_no_cycle(client: LoopbackClient, make_call: Callable[[], FakeCall]) -> None:
    """A call that `client` keeps waiting, and then fails, dies without the cyclic collector."""
    made = make_call()
    ghost = weakref.ref(made)
    gc.disable()
    try:
        client.requests[0][4].fail(Code.UNAVAILABLE, "x")
        client.requests.clear()
        del made
        assert ghost() is None
    finally:
        gc.enable()
