"""What a gRPC engine and a gRPC method know of each other: the seam between `http2/`, `grpcio_engine.py` and the API.

Both engines call the same handlers with the same `Call`, so that a method is written once and tested through both.
Handlers are plain functions called on the event loop: a unary handler returns at once and finishes its call now or
later (a future per call would cost more than decoding the request).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

#: Message bytes as an engine hands them over. Valid only during the handler call: copy what must live longer.
Buffer = bytes | memoryview


class Call(Protocol):
    """One unary call. Exactly one of `finish` and `fail` is effective; the later ones are ignored."""

    @property
    def timeout_ns(self) -> int:
        """What is left of the client's `grpc-timeout`, which counts from its HEADERS; 0: none, negative: it is over."""

    @property
    def metadata(self) -> Sequence[tuple[str, bytes]]:
        """Request metadata without pseudo and reserved headers, in order; `-bin` values are decoded."""

    @property
    def peer(self) -> str:
        """The client's address as `ipv4:127.0.0.1:1234`, `ipv6:[::1]:1234` or `unix:`."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the client's verified certificate (`dns:client.example`, `cn:client`); none without one."""

    def finish(self, message: Buffer, made_id: str = "") -> None:
        """Answer with one message and status OK. Harmless when the client has gone.

        made_id: what the call is called from now on, where the client sent no id that could be used; it is told so.
        """

    def fail(self, code: int, text: str, retry_ms: int = 0, made_id: str = "") -> None:
        """Answer with a status other than OK. Harmless when the client has gone.

        retry_ms: clients that would try again may do so in that time (`grpc-retry-pushback-ms`); 0: nothing is said.
        """

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """`callback` runs once if the client resets the stream or disconnects before the call is over."""


class Stream(Protocol):
    """One streaming call (any of the three streaming kinds)."""

    @property
    def timeout_ns(self) -> int: ...

    @property
    def metadata(self) -> Sequence[tuple[str, bytes]]: ...

    @property
    def peer(self) -> str: ...

    @property
    def names(self) -> Sequence[str]: ...

    async def receive(self) -> bytes | None:
        """The next message, or None when the client has half-closed. Flow control follows the reading."""

    async def send(self, message: bytes) -> None:
        """Send one message; returns when the buffers have room (write back-pressure)."""


class StreamFailure(Exception):
    """Raised by a streaming handler to end its call with a status other than OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


UnaryHandler = Callable[[Call, Buffer], None]


class Kind(Protocol):
    """Messages of one length that begin and end alike."""

    @property
    def prefix(self) -> bytes: ...

    @property
    def suffix(self) -> bytes: ...


class Together(Protocol):
    """What a unary handler may have as its attribute `together`: a way to take many calls at once.

    An attribute of the very function, so that a handler that passes calls on to another one (access, logs, traces) has
    none, and sees each.
    """

    def kind(self, message: bytes) -> Kind | None:
        """The kind of this message; None: calls with such messages are to be handled singly."""

    def take(self, calls: Sequence[Call], kind: Kind, data: bytes, places: Sequence[int]) -> None:
        """Handles these calls, whose messages are of that kind and lie in `data` at these places."""

StreamHandler = Callable[[Stream], Awaitable[None]]


class Refused(NamedTuple):
    """A call that an engine answered by itself. path: as the client wrote it. request_id: empty without one."""

    path: str
    peer: str
    request_id: str
    code: int
    text: str


#: Longer timeouts mean this one, of thirty years: added to a time it is still a number of 64 bits.
TIMEOUT_NS_MAX: Final = 10**18
#: The part of its deadline that a call may have waited before it is read: it still must be decoded, queued and run.
#: Who has waited for longer is told why it is refused, and when to come again.
PATIENCE_PART: Final = 4
TURNED_AWAY_TEXT: Final = "This server has more to do than it can do in time: the call waited too long to be read"
TURNED_AWAY_RETRY_MS: Final = 10


class Crowd(Protocol):
    """Messages of one length that would be refused now, known by how they begin and end. path: of their method."""

    path: str
    prefix: bytes
    suffix: bytes

    def room(self, timeout_ns: int) -> float:
        """How many of them can be answered within that time; inf: it is over, forget them."""

    def comes(self, change: int) -> None:
        """So many more of them have begun to come and were let in; negative: so many have come whole, or never will."""

    def refuse(self, count: int) -> tuple[int, str, int]:
        """So many are refused. What they are told: code, text, and in how many ms to come again (0: nothing)."""


@dataclass(frozen=True)
class Methods:
    """The methods of a server, by full path (`/package.Service/Method`). Others are answered UNIMPLEMENTED.

    heavy: unary ones that are refused when there is more to do than can be done in time.
    refused: is told of calls that no handler sees, as far as the engine knows of them.
    crowds: by the length of a message, which ones an engine may refuse in their handlers' place; these change it.
    """

    unary: dict[str, UnaryHandler] = field(default_factory=dict)
    stream: dict[str, StreamHandler] = field(default_factory=dict)
    heavy: frozenset[str] = frozenset()
    refused: Callable[[Refused], None] | None = None
    crowds: dict[int, list[Crowd]] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of a gRPC engine. Zero means "no limit" for `connection_age_ms_max`, `connections_per_address_max` and
    `stall_ms_max` alone.

    message_bytes_max: largest request message. inflated_bytes_max: largest one that came compressed, decompressed.
    held_bytes_max: of requests that are not complete, all connections together. concurrent_streams_max: per connection.
    unsent_bytes_max: answers that wait for their clients' windows, all connections together; one connection's:
    half. stall_ms_max: a client that neither sends the rest of a request nor takes its answers, 16 KiB at least in
    so long, is cut off; 0: never.
    header_list_bytes_max: RFC 9113 6.5.2. write_buffer_bytes_max: unsent answers of a connection above which its
    reading stops. connections_max: per frontend process; connections_per_address_max: of one client address (of IPv6, a
    /64). connection_age_ms_max: a connection about that old is asked to go, and its calls may finish.
    """

    message_bytes_max: int = 2**31 - 1
    inflated_bytes_max: int = 100 * 2**20
    held_bytes_max: int = 2**30
    unsent_bytes_max: int = 2**30
    stall_ms_max: int = 50_000
    concurrent_streams_max: int = 1024
    header_list_bytes_max: int = 65_536
    write_buffer_bytes_max: int = 8 * 2**20
    connections_max: int = 10_000
    connections_per_address_max: int = 0
    connection_age_ms_max: int = 0
