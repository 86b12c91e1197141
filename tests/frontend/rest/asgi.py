"""An ASGI server for one request, and the models that the REST tests serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ringserve.broker.messages import VersionState
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output
from ringserve.frontend.rest_api import RestApp, RestSettings, make_app
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


class Response(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error, after checking that the body has exactly TF Serving's form."""
        value = json.loads(self.body)
        assert list(value) == ["error"]
        text = value["error"]
        assert isinstance(text, str)
        assert self.body.startswith(b'{\n    "error": "')
        assert self.body.endswith(b'"\n}')
        return text


async def request(
    app: RestApp,
    method: str,
    target: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    length: bool = True,
) -> Response | None:
    """One request as uvicorn would pass it on; a sequence of bytes arrives in as many pieces."""
    chunks = [body] if isinstance(body, bytes) else list(body)
    path, _, query = target.partition("?")
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    if length:
        pairs.append((b"content-length", str(sum(map(len, chunks))).encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": pairs,
    }
    events = [
        {"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks)}
        for index, chunk in enumerate(chunks)
    ]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if events:
            return events.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("not reached")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None
    start, end = sent
    assert start["type"] == "http.response.start"
    assert end["type"] == "http.response.body"
    response = Response(start["status"], dict(start["headers"]), end["body"])
    assert int(response.headers[b"content-length"]) == len(response.body)
    return response


def call(
    app: RestApp,
    method: str,
    target: str,
    body: bytes | str | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    length: bool = True,
) -> Response:
    """`request` for those who have no loop."""
    data = body.encode() if isinstance(body, str) else body
    response = asyncio.run(request(app, method, target, data, headers, length=length))
    assert response is not None
    return response


def post(body: bytes | str | Sequence[bytes], model: str = "default", app: RestApp | None = None) -> Response:
    """A predict request of a model of `serve()`."""
    return call(app or serve(), "POST", f"/v1/models/{model}:predict", body)


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


def models() -> Catalog:
    """default: y = x/2 + 2 in version 123, a failed version 124, label `stable`.

    echo_DTYPE: output x is input x, of any shape. two: outputs a and b are inputs a and b, rows of any width. bytes:
    outputs k and k_bytes are the inputs. loading: no version serves yet. none: a signature without inputs.
    """
    echoes = []
    for name, number in DTYPES.items():
        signature = signature_def({"x": (number, None)}, {"x": (number, None)})
        echoes.append(version_info(f"echo_{name}", 1, {"serving_default": signature}))
    two = {"a": (dt.FLOAT, [-1, -1]), "b": (dt.INT32, [-1])}
    strings = {"k": (dt.STRING, [-1]), "k_bytes": (dt.STRING, [-1])}
    nothing = signature_def({}, {"y": (dt.FLOAT, None)})
    return catalog_of(
        version_info("default", 123, {"serving_default": HALF_PLUS_TWO, "none": nothing}),
        version_info("default", 124, state=VersionState.END, error=(13, "no such file")),
        *echoes,
        version_info("two", 1, {"serving_default": signature_def(two, two)}),
        version_info("bytes", 1, {"serving_default": signature_def(strings, strings)}),
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


def default_model(lane: Lane, rows: int, payloads: list[Any]) -> list[Output]:
    """What each model of `models` computes."""
    return (half_plus_two if lane.spec.model == "default" else echo)(lane, rows, payloads)


def serve(model: Model | None = default_model, settings: RestSettings | None = None) -> RestApp:
    """The application over a client that answers at once."""
    return make_app(LoopbackClient(models(), model), settings)
