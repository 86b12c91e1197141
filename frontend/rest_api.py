"""The REST API as an ASGI application: read a request, infer, write its answer.

What takes long (large bodies, what only the exact JSON parser can read, large answers) runs on one side thread, so that
the event loop goes on meanwhile; everything else is done where it stands, which is quicker than handing it over.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.grpc_api import InferClient
from ringserve.frontend.json_predict import Body, find_signature, read_body, read_inputs
from ringserve.frontend.json_text import error_body
from ringserve.frontend.lanes import LaneTable, Request
from ringserve.frontend.rest_reply import RestReply
from ringserve.frontend.rest_routes import Action, Page, Route, route
from ringserve.frontend.rest_status import metadata_body, models_not_ready, status_body
from ringserve.frontend.status import http_status

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_T = TypeVar("_T")

#: Bodies above this are read on the side thread.
_SIDE_BYTES_MIN: Final = 2**20
#: Bodies above this that turn out to need a slow way are read again on the side thread.
_HURRY_BYTES_MIN: Final = 32_768
#: A client is watched for going away once its request has taken this long; to cancel quicker ones gains nothing.
_WATCH_AFTER_S: Final = 0.02

_JSON: Final = b"application/json"
_HTML: Final = b"text/html; charset=ISO-8859-1"
_TEXT: Final = b"text/plain; charset=utf-8"
_CORS: Final = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
]


@dataclass(frozen=True)
class RestSettings:
    """body_bytes_max: largest request body as sent. gunzip_bytes_max: largest one after decompression.

    timeout_ms: time a request may wait and run when its X-Request-Timeout header (in seconds) does not say otherwise;
    0 for no limit. cors: allow browsers of any origin.
    """

    body_bytes_max: int = 256 * 2**20
    gunzip_bytes_max: int = 100 * 2**20
    timeout_ms: int = 30_000
    cors: bool = False


class Answer(NamedTuple):
    """What goes back to the client."""

    status: int
    body: bytes
    content_type: bytes = _JSON


class _Headers(NamedTuple):
    length: int
    gzip: bool
    timeout: bytes | None
    origin: bytes


def make_app(client: InferClient, settings: RestSettings | None = None) -> RestApp:
    """The ASGI application of one frontend."""
    return RestApp(client, settings or RestSettings())


class RestApp:
    """Answers every HTTP request; never raises."""

    def __init__(self, client: InferClient, settings: RestSettings) -> None:
        self._client = client
        self._settings = settings
        self._lanes = LaneTable()
        self._side = ThreadPoolExecutor(1, thread_name_prefix="rest-side")

    def close(self) -> None:
        """End the side thread when its present work is done."""
        self._side.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["type"] != "http":
            return
        path: bytes = scope["raw_path"]
        try:
            answer = await self._answer(scope, path, receive)
        except asyncio.CancelledError:
            # Only the drain's end cancels; the client still gets to know.
            answer = _failed(Failure(Code.UNAVAILABLE, "the server is shutting down"))
        except Exception:
            log.exception("request for %r", path)
            answer = _failed(Failure(Code.INTERNAL, "internal error; see the log of the server"))
        if answer is None:
            return
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", str(len(answer.body)).encode()),
        ]
        if self._settings.cors and path[:4].lower() == b"/v1/":
            headers += _CORS
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, path: bytes, receive: Receive) -> Answer | None:
        target = route(scope["method"], path, scope["query_string"])
        if isinstance(target, Failure):
            return _failed(target)
        if isinstance(target, Page):
            return Answer(target.status, target.body, _HTML)
        action = target.action
        if action is Action.PREDICT:
            return await self._predict(target, _headers(scope["headers"]), receive)
        catalog = self._client.catalog
        if action is Action.STATUS:
            # A label in a status request means nothing.
            return _answered(status_body(catalog, target.name, target.version))
        if action is Action.METADATA:
            return _answered(metadata_body(catalog, target.name, target.version, target.label))
        if action is Action.OPTIONS:
            origin = _headers(scope["headers"]).origin
            return Answer(200 if b"http://" in origin or b"https://" in origin else 400, b"", _HTML)
        if action is Action.HEALTH:
            return Answer(200, b"ok\n", _TEXT)
        if action is Action.READY:
            return self._ready()
        return _failed(Failure(Code.UNIMPLEMENTED, f"{action.value} is not served over REST yet; predict is"))

    def _ready(self) -> Answer:
        catalog = self._client.catalog
        if not catalog.names():
            return Answer(503, b"no model is known yet\n", _TEXT)
        missing = models_not_ready(catalog)
        if missing:
            return Answer(503, f"no available version of: {', '.join(missing)}\n".encode(), _TEXT)
        return Answer(200, b"ready\n", _TEXT)

    # -------------------------------------------------------------------------------------------------- predict

    async def _predict(self, target: Route, headers: _Headers, receive: Receive) -> Answer | None:
        timeout_ns = self._timeout_ns(headers.timeout)
        if timeout_ns < 0:
            return _failed(
                Failure(Code.INVALID_ARGUMENT, "X-Request-Timeout must be a number of seconds greater than 0")
            )
        data = await self._receive(headers, receive)
        if data is None or isinstance(data, Answer):
            return data
        request = await self._read(target, data)
        del data
        if isinstance(request, Failure):
            return _failed(request)
        reply, bound = request
        del request
        reply.request_id = self._client.infer(bound.lane, bound.rows, bound.payloads, timeout_ns, reply)
        del bound  # the payloads are copied by now
        future = reply.future
        if future.done():
            result = future.result()
        else:
            watch = _Watch(self._client, reply, receive)
            try:
                result = await future
            except asyncio.CancelledError:
                self._client.cancel(reply.request_id)
                raise
            finally:
                watch.close()
        if result is None:
            return None
        if isinstance(result, list):
            result = await self._aside(reply.write, result)
        return _answered(result)

    async def _read(self, target: Route, data: bytes) -> tuple[RestReply, Request] | Failure:
        """In TF Serving's order: the text, then the model, then its signature, then the tensors."""
        body: Body | Failure | None = None
        size = len(data)
        hurry = size > _HURRY_BYTES_MIN
        if size <= _SIDE_BYTES_MIN:
            body = read_body(data, hurry=hurry)
        if body is None:
            body = await self._aside(read_body, data)
            assert body is not None
        del data
        if isinstance(body, Failure):
            return body
        servable = self._client.catalog.resolve(target.name, target.version, target.label)
        if isinstance(servable, Failure):
            return servable
        signature = find_signature(servable, body.signature_name)
        if isinstance(signature, Failure):
            return signature
        inputs = read_inputs(body, signature, hurry=hurry) if size <= _SIDE_BYTES_MIN else None
        if inputs is None:
            inputs = await self._aside(read_inputs, body, signature)
            assert inputs is not None
        if isinstance(inputs, Failure):
            return inputs
        request = self._lanes.bind(servable, signature, inputs.tensors)
        if isinstance(request, Failure):
            return request
        return RestReply(request.lane.spec.outputs, by_row=inputs.by_row), request

    async def _receive(self, headers: _Headers, receive: Receive) -> bytes | Answer | None:
        """The whole body; None when the client has gone."""
        limit = self._settings.body_bytes_max
        size = headers.length
        chunks: list[bytes] = []
        if size <= limit:
            size = 0
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                chunk = message.get("body", b"")
                if chunk:
                    chunks.append(chunk)
                    size += len(chunk)
                if size > limit or not message.get("more_body", False):
                    break
        if size > limit:
            return Answer(413, error_body(f"a request body may have {limit} bytes at most; raise rest_body_bytes_max"))
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if not headers.gzip:
            return data
        if size <= _HURRY_BYTES_MIN // 8:
            return _gunzip(data, self._settings.gunzip_bytes_max)
        return await self._aside(_gunzip, data, self._settings.gunzip_bytes_max)

    def _timeout_ns(self, header: bytes | None) -> int:
        """0 for none, -1 when the header makes no sense."""
        if header is None:
            return max(self._settings.timeout_ms, 0) * 1_000_000
        try:
            seconds = float(header)
        except ValueError:
            return -1
        return int(seconds * 1e9) if 0.0 < seconds <= 1e9 else -1

    async def _aside(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._side, function, *arguments)


class _Watch:
    """Cancels a request when its client disconnects before it is answered."""

    def __init__(self, client: InferClient, reply: RestReply, receive: Receive) -> None:
        self._client = client
        self._reply = reply
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._client.cancel(self._reply.request_id)
        self._reply.abandon()

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


def _headers(pairs: Iterable[Sequence[bytes]]) -> _Headers:
    length, gzip, timeout, origin = 0, False, None, b""
    for name, value in pairs:
        if name == b"content-length":
            # The HTTP parser has checked it; the sum of what arrives is checked again.
            length = int(value)
        elif name == b"content-encoding":
            gzip = gzip or b"gzip" in value
        elif name == b"x-request-timeout":
            timeout = value
        elif name == b"origin":
            origin = value
    return _Headers(length, gzip, timeout, origin)


def _gunzip(data: bytes, bytes_max: int) -> bytes:
    """The decompressed body; empty when it is corrupt or too large, which TF Serving answers as an empty document."""
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data, bytes_max + 1)
    except zlib.error:
        return b""
    return plain if inflater.eof and len(plain) <= bytes_max else b""


def _answered(body: bytes | Failure) -> Answer:
    return _failed(body) if isinstance(body, Failure) else Answer(200, body)


def _failed(failure: Failure) -> Answer:
    return Answer(http_status(failure.code), error_body(failure.text))
