"""The second gRPC engine: `grpc.aio`'s server behind the same handler interface as `http2/`.

It is the reference that the native engine is compared with, and a way out for an operator whose client meets a bug in
the native one. It is about fifty times slower per call. Messages pass as bytes, without serializers; the library does
all of HTTP/2, so limits that it does not have (`write_buffer_bytes_max`, `connections_max`) do not apply here. It
binds its sockets itself; what arrives on one that is bound already is passed on to one of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

from ringserve.config.tls import SslConfig
from ringserve.frontend import request_ids
from ringserve.frontend.grpc_relay import Relay
from ringserve.frontend.handler import (
    Buffer,
    EngineLimits,
    Methods,
    Refused,
    StreamFailure,
    StreamHandler,
    UnaryHandler,
)
from ringserve.frontend.http2.request import RESERVED_FIELDS
from ringserve.frontend.http2.server import report_bug
from ringserve.frontend.ledger import CANCELLED, Ledger
from ringserve.frontend.status import grpc_text

#: Untyped on purpose: the library has no types of its own, and the stubs that exist lag behind it.
grpc: Any = importlib.import_module("grpc")
_RESERVED = frozenset(name.decode() for name in RESERVED_FIELDS)
_STATUS = {code.value[0]: code for code in grpc.StatusCode}
#: What the library calls the names of a verified certificate.
_NAMES = {
    "dns": "x509_dns",
    "uri": "x509_uri",
    "email": "x509_email",
    "ip": "x509_ip",
    "cn": "x509_common_name",
}
_OK, _INTERNAL, _UNIMPLEMENTED = 0, 13, 12
#: A deadline further away than this is none: the library reports a missing one as years.
_TIMEOUT_SECONDS_MAX = 10 * 365 * 86_400.0


class _Context(Protocol):
    """What is used of `grpc.aio.ServicerContext`."""

    def time_remaining(self) -> float | None: ...
    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...
    def peer(self) -> str: ...
    def auth_context(self) -> Mapping[str, Sequence[bytes]]: ...
    def set_code(self, code: Any) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, str]]) -> None: ...
    async def read(self) -> Any: ...
    async def write(self, message: bytes) -> None: ...


class _Call:
    """What unary and streaming calls share."""

    def __init__(self, context: _Context) -> None:
        self._context = context
        remaining = context.time_remaining()
        self.timeout_ns = (
            0 if remaining is None or remaining > _TIMEOUT_SECONDS_MAX else int(remaining * 1_000_000_000) or -1
        )

    @property
    def metadata(self) -> Sequence[tuple[str, bytes]]:
        return [
            (name, value if isinstance(value, bytes) else value.encode("ascii"))
            for name, value in self._context.invocation_metadata() or ()
            if name not in _RESERVED
        ]

    @property
    def peer(self) -> str:
        # The library percent-encodes the brackets of IPv6 addresses.
        peer = unquote(self._context.peer())
        return "unix:" if peer.startswith("unix") else peer

    @property
    def names(self) -> Sequence[str]:
        found = self._context.auth_context()
        return [f"{kind}:{value.decode()}" for kind, key in _NAMES.items() for value in found.get(key, ())]

    def trailers(self, made_id: str = "", retry_ms: int = 0) -> None:
        """Say what belongs to the end of the answer, whatever that is."""
        request_id = made_id or request_ids.sent(self.metadata)
        found = [("grpc-retry-pushback-ms", str(retry_ms))] if retry_ms else []
        found += [(request_ids.HEADER, request_id)] if request_id else []
        if found:
            self._context.set_trailing_metadata(tuple(found))


class UnaryCall(_Call):
    """`handler.Call` of this engine."""

    def __init__(self, context: _Context) -> None:
        super().__init__(context)
        self._outcome: asyncio.Future[tuple[bytes, int, str]] = asyncio.get_running_loop().create_future()
        self._on_cancel: Callable[[], None] | None = None

    def finish(self, message: Buffer, made_id: str = "") -> None:
        if not self._outcome.done():
            self.trailers(made_id)
            self._outcome.set_result((bytes(message), _OK, ""))

    def fail(self, code: int, text: str, retry_ms: int = 0, made_id: str = "") -> None:
        if not self._outcome.done():
            self.trailers(made_id, retry_ms)
            self._outcome.set_result((b"", code, text))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel = callback

    async def outcome(self) -> tuple[bytes, int, str]:
        """Message, code and text that the handler has decided on. Tells the handler when the client leaves first."""
        try:
            return await self._outcome
        except asyncio.CancelledError:
            if self._on_cancel is not None:
                self._on_cancel()
            raise


class StreamingCall(_Call):
    """`handler.Stream` of this engine."""

    async def receive(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else bytes(message)

    async def send(self, message: bytes) -> None:
        await self._context.write(message)


class _Booked:
    """Books one call of a handler: as cancelled, unless `end` says otherwise before it is left."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.end = CANCELLED

    def __enter__(self) -> _Booked:
        self._calls.ledger.received += 1
        self._calls.in_flight += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.in_flight -= 1
        self._calls.ledger.ended[self.end] += 1


class Calls:
    """The engine's books. in_flight: calls that are in their handlers."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.in_flight = 0


def _unary(path: str, handler: UnaryHandler, on_bug: Callable[[BaseException], None], calls: Calls) -> Any:
    async def serve(message: bytes, context: _Context) -> bytes:
        with _Booked(calls) as booked:
            call = UnaryCall(context)
            try:
                handler(call, message)
            except Exception as error:
                call.fail(_INTERNAL, "internal error")
                error.add_note(request_ids.noted(path, call.metadata))
                on_bug(error)
            answer, code, text = await call.outcome()
            booked.end = int(code)
            _set_status(context, code, text)
            return answer

    return grpc.unary_unary_rpc_method_handler(serve)


def _stream(handler: StreamHandler, on_bug: Callable[[BaseException], None], calls: Calls) -> Any:
    async def serve(_: Any, context: _Context) -> None:
        with _Booked(calls) as booked:
            try:
                call = StreamingCall(context)
                call.trailers()
                await handler(call)
                booked.end = _OK
            except StreamFailure as failure:
                booked.end = int(failure.code)
                _set_status(context, failure.code, failure.text)
            except Exception as error:
                booked.end = _INTERNAL
                _set_status(context, _INTERNAL, "internal error")
                on_bug(error)

    return grpc.stream_stream_rpc_method_handler(serve)


def _set_status(context: _Context, code: int, text: str) -> None:
    if code != _OK:
        context.set_code(_STATUS.get(code, grpc.StatusCode.UNKNOWN))
        context.set_details(text)


class _Router(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a path; an unknown path is answered with the native engine's text."""

    def __init__(self, methods: Methods, on_bug: Callable[[BaseException], None], calls: Calls) -> None:
        self._calls = calls
        self._told = methods.refused
        self._handlers = {path: _unary(path, handler, on_bug, calls) for path, handler in methods.unary.items()}
        self._handlers |= {path: _stream(handler, on_bug, calls) for path, handler in methods.stream.items()}

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method) or _unknown(details.method, self._calls.ledger, self._told)


def _unknown(path: str, ledger: Ledger, told: Callable[[Refused], None] | None) -> Any:
    async def serve(_: bytes, context: _Context) -> bytes:
        ledger.refuse()
        call, text = _Call(context), grpc_text(f"unknown method {path}")
        call.trailers()
        if told is not None:
            told(Refused(path, call.peer, request_ids.sent(call.metadata), _UNIMPLEMENTED, text))
        _set_status(context, _UNIMPLEMENTED, text)
        return b""

    return grpc.unary_unary_rpc_method_handler(serve)


class GrpcioEngine:
    """A serving engine. Make one with `serve_grpcio`."""

    def __init__(self, server: Any, ports: list[int], relay: Relay | None, calls: Calls) -> None:
        self.calls = calls
        self._server = server
        self._relay = relay
        self.ports = ports

    @property
    def connections_count(self) -> int:
        """Unknown to this engine: always 0."""
        return 0

    async def drain(self, timeout_s: float) -> None:
        """Stops accepting, lets the calls that are open finish, and closes; after `timeout_s` it closes anyway."""
        await self._stop(timeout_s)

    async def close(self) -> None:
        """Ends everything at once; who is relayed has a second to take what was said last."""
        await self._stop(None)

    async def _stop(self, grace_s: float | None) -> None:
        if self._relay is not None:
            self._relay.stop_accepting()
        await self._server.stop(grace_s)
        if self._relay is not None:
            await self._relay.end()


async def serve_grpcio(
    methods: Methods,
    addresses: list[str],
    limits: EngineLimits,
    on_bug: Callable[[BaseException], None] = report_bug,
    options: Sequence[tuple[str, int | str]] = (),
    *,
    tls: Callable[[], SslConfig] | None = None,
    relayed: tuple[socket.socket, str] | None = None,
) -> GrpcioEngine:
    """Starts serving on addresses in gRPC's notation (`host:port`, `unix:path`); port 0 picks one, see `ports`.

    `options` are gRPC channel arguments and win over those made from `limits`. tls: what holds when it is called,
    which every handshake does, from other threads; for all addresses. relayed: a listening socket to serve, too, and
    the name of a UNIX socket of our own that its connections are passed on to.
    OSError: an address cannot be bound.
    """
    arguments: dict[str, int | str] = {
        "grpc.max_receive_message_length": limits.message_bytes_max,
        "grpc.max_send_message_length": 2**31 - 1,
        "grpc.max_concurrent_streams": limits.concurrent_streams_max,
        "grpc.max_metadata_size": limits.header_list_bytes_max,
        "grpc.so_reuseport": 1,
    }
    if limits.connection_age_ms_max:
        arguments["grpc.max_connection_age_ms"] = limits.connection_age_ms_max
    server = grpc.aio.server(options=list((arguments | dict(options)).items()))
    calls = Calls()
    server.add_generic_rpc_handlers((_Router(methods, on_bug, calls),))
    ports = []
    for address in [*addresses, *([f"unix:{relayed[1]}"] if relayed else [])]:
        try:
            port = server.add_secure_port(address, _credentials(tls)) if tls else server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        ports.append(port)
    await server.start()
    relay = Relay(*relayed) if relayed else None
    if relay is not None:
        await relay.start()
    return GrpcioEngine(server, ports, relay, calls)


def _credentials(tls: Callable[[], SslConfig]) -> Any:
    """With no certificates to verify clients with, the library takes its own list, as TF Serving does."""
    used = tls()
    first = used

    def fetch() -> Any:
        nonlocal used
        newest = tls()
        if newest == used:
            return None
        used = newest
        return _certificates(newest)

    return grpc.dynamic_ssl_server_credentials(_certificates(first), fetch, first.client_verify)


def _certificates(tls: SslConfig) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(tls.key.encode(), tls.cert.encode())], tls.ca.encode() or None
    )
