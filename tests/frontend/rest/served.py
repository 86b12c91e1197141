"""An HTTP exchange without a network, and the models that the REST tests serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ringserve.broker.messages import VersionState
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.http1.exchange import JSON, Head
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output
from ringserve.frontend.recorder import Recorder
from ringserve.frontend.rest_api import MetricPages, RestApp, RestSettings, make_app
from ringserve.frontend.tally import Tally
from ringserve.shm import dtype as dt
from tests.frontend.fakes import (
    HALF_PLUS_TWO,
    LoopbackClient,
    Model,
    catalog_of,
    half_plus_two,
    make_output,
    signature_def,
    version_info,
)

GOLDEN = Path(__file__).parent / "golden"

PREDICT = "/v1/models/default:predict"


class Response(NamedTuple):
    """An answer. headers: names in lower case, without those of the HTTP server itself."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error, after checking that the body has exactly TF Serving's form (3.3)."""
        value = json.loads(self.body)
        assert list(value) == ["error"]
        text = value["error"]
        assert isinstance(text, str)
        assert self.body.startswith(b'{\n    "error": "')
        assert self.body.endswith(b'"\n}')
        return text


class FakeExchange:
    """An `Exchange` that remembers its answer."""

    def __init__(self, head: Head, body: bytes | bytearray, *, local: bool = True) -> None:
        self.head = head
        self.body: bytes | bytearray = body
        self.peer_is_local = local
        self.peer = "127.0.0.1:1"
        self.names: Sequence[str] = ()
        self.upload_ns = 0
        self.waited_ns = 0
        self.request_id = head.request_id
        self.response: Response | None = None
        self.answered = asyncio.Event()
        self.cancel: Callable[[], None] | None = None

    def take_body(self) -> bytes | bytearray:
        body, self.body = self.body, b""
        return body

    def answer(
        self, status: int, body: bytes = b"", content_type: bytes = JSON, headers: bytes = b"", made_id: str = ""
    ) -> None:
        assert self.response is None, "answered twice"
        assert isinstance(body, bytes)
        found = {"content-type": content_type.decode()}
        if made_id or self.head.request_id:
            found["x-request-id"] = made_id or self.head.request_id
        for line in headers.decode().split("\r\n")[:-1]:
            name, value = line.split(": ", 1)
            found[name.lower()] = value
        self.response = Response(status, found, body)
        self.answered.set()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self.cancel = callback


def head_of(method: str, target: str, headers: Mapping[str, str] | None = None, body_bytes: int = 0) -> Head:
    pairs = tuple((name.lower().encode(), value.encode()) for name, value in (headers or {}).items())
    request_id = next((value.decode() for name, value in pairs if name == b"x-request-id"), "")
    return Head(method, target, pairs, body_bytes=body_bytes, request_id=request_id)


async def request(
    app: RestApp,
    method: str,
    target: str,
    body: bytes | bytearray = b"",
    headers: Mapping[str, str] | None = None,
    *,
    local: bool = True,
) -> Response:
    """One request, as the HTTP server passes it on."""
    exchange = FakeExchange(head_of(method, target, headers, len(body)), body, local=local)
    app.handle(exchange)
    async with asyncio.timeout(60):
        await exchange.answered.wait()
    assert exchange.response is not None
    return exchange.response


def call(
    app: RestApp | None,
    method: str,
    target: str,
    body: bytes | bytearray | str = b"",
    headers: Mapping[str, str] | None = None,
    *,
    local: bool = True,
) -> Response:
    """`request` for those who have no loop."""
    data = body.encode() if isinstance(body, str) else body
    return asyncio.run(request(app or serve(), method, target, data, headers, local=local))


def post(body: bytes | bytearray | str, model: str = "default", app: RestApp | None = None) -> Response:
    """A predict request of a model of `serve()`."""
    return call(app, "POST", f"/v1/models/{model}:predict", body)


def golden(name: str) -> bytes:
    """What an answer must be, byte for byte."""
    return (GOLDEN / name).read_bytes()


DTYPES = {
    "float": dt.FLOAT,
    "double": dt.DOUBLE,
    "half": dt.HALF,
    "bfloat16": dt.BFLOAT16,
    "int8": dt.INT8,
    "int16": dt.INT16,
    "int32": dt.INT32,
    "int64": dt.INT64,
    "uint8": dt.UINT8,
    "uint16": dt.UINT16,
    "uint32": dt.UINT32,
    "uint64": dt.UINT64,
    "bool": dt.BOOL,
    "string": dt.STRING,
    "complex64": dt.COMPLEX64,
}

EXAMPLES = {"inputs": (dt.STRING, [-1])}


def models() -> Catalog:
    """default: y = x/2 + 2 in version 123, a failed version 124, label `stable`.

    echo_DTYPE: output x is input x, of any shape. two: outputs a and b are inputs a and b, rows of any width. bytes:
    outputs k and k_bytes are the inputs. loading: no version serves yet. none: a signature without inputs. examples:
    signatures `classify`, `labels`, `scores` and `regress` over Examples.
    """
    echoes = []
    for name, number in DTYPES.items():
        signature = signature_def({"x": (number, None)}, {"x": (number, None)})
        echoes.append(version_info(f"echo_{name}", 1, {"serving_default": signature}))
    two = {"a": (dt.FLOAT, [-1, -1]), "b": (dt.INT32, [-1])}
    strings = {"k": (dt.STRING, [-1]), "k_bytes": (dt.STRING, [-1])}
    nothing = signature_def({}, {"y": (dt.FLOAT, None)})
    both = {"classes": (dt.STRING, [-1, -1]), "scores": (dt.FLOAT, [-1, -1])}
    examples = {
        "classify": signature_def(EXAMPLES, both, "tensorflow/serving/classify"),
        "labels": signature_def(EXAMPLES, {"classes": both["classes"]}, "tensorflow/serving/classify"),
        "scores": signature_def(EXAMPLES, {"scores": both["scores"]}, "tensorflow/serving/classify"),
        "regress": signature_def(EXAMPLES, {"outputs": (dt.FLOAT, [-1, 1])}, "tensorflow/serving/regress"),
    }
    return catalog_of(
        version_info("default", 123, {"serving_default": HALF_PLUS_TWO, "none": nothing}),
        version_info("default", 124, state=VersionState.END, error=(13, "no such file")),
        *echoes,
        version_info("two", 1, {"serving_default": signature_def(two, two)}),
        version_info("bytes", 1, {"serving_default": signature_def(strings, strings)}),
        version_info("examples", 2, examples),
        version_info("loading", 5, state=VersionState.LOADING),
        labels={"default": {"stable": 123}},
    )


def echo(lane: Lane, rows: int, payloads: list[Any]) -> list[Output]:
    """Every output is the input of the same place."""
    outputs = []
    for spec, payload in zip(lane.spec.inputs, payloads, strict=True):
        shape = (rows, *spec.shape) if lane.spec.batchable else spec.shape
        if spec.dtype != dt.STRING:
            numpy_type = dt.dtype_of(spec.dtype).numpy
            assert numpy_type is not None
            payload = np.frombuffer(payload, numpy_type)
        outputs.append(make_output(spec.dtype, shape, payload, batchable=lane.spec.batchable))
    return outputs


#: What the model `examples` says of every example.
LABELS: list[bytes] = [b"car", b'bi"ke', b"bus"]
SCORES = [0.2, 0.7, 1 / 3]


def examples_model(lane: Lane, rows: int, payloads: list[Any]) -> list[Output]:
    """Three classes for each example; of a regress the number of bytes of the example."""
    found = {
        "classes": make_output(dt.STRING, (rows, 3), LABELS * rows, batchable=True),
        "scores": make_output(dt.FLOAT, (rows, 3), np.array(SCORES * rows, np.float32), batchable=True),
        "outputs": make_output(
            dt.FLOAT, (rows, 1), np.array([len(each) for each in payloads[0]], np.float32), batchable=True
        ),
    }
    return [found[alias] for alias in lane.spec.outputs]


def default_model(lane: Lane, rows: int, payloads: list[Any]) -> list[Output]:
    """What each model of `models` computes."""
    computed = {"default": half_plus_two, "examples": examples_model}.get(lane.spec.model, echo)
    outputs: list[Output] = computed(lane, rows, payloads)
    return outputs


class RestLoopback(LoopbackClient):
    """Also what REST needs beyond gRPC."""

    def __init__(self, catalog: Catalog | None = None, model: Model | None = None) -> None:
        super().__init__(models() if catalog is None else catalog, model)
        self.recorder: Recorder | None = None
        self.connected = True

    def infer(self, lane: Lane, rows: int, payloads: Any, timeout_ns: int, reply: Any) -> int:
        """Records as the client does."""
        if self.recorder is not None:
            self.recorder.see(lane, rows, payloads, getattr(reply, "api", ""))
        return super().infer(lane, rows, payloads, timeout_ns, reply)


class CountingTally(Tally):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str, str, int]] = []
        self.runs: list[tuple[str, str]] = []

    def request(
        self, entrypoint: str, api: str, model: str, code: int, started_ns: int, lane: Lane | None = None
    ) -> None:
        assert 0 <= self.clock_ns() - started_ns < 60 * 10**9
        self.requests.append((entrypoint, api, model, code))

    def run(self, api: str, model: str, started_ns: int) -> None:
        assert 0 <= self.clock_ns() - started_ns < 60 * 10**9
        self.runs.append((api, model))


def serve(
    model: Model | None = default_model,
    settings: RestSettings | None = None,
    *,
    tally: Tally | None = None,
    metrics: MetricPages | None = None,
) -> RestApp:
    """The application over a client that answers at once."""
    return make_app(RestLoopback(model=model), settings, tally=tally, metrics=metrics)


def cases(table: Sequence[tuple[Any, ...]]) -> list[str]:
    """Test ids of a table: its rows' numbers."""
    return [str(number) for number in range(len(table))]
