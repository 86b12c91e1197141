"""What the HTTP/1.1 engine and an application know of each other: a request that is there whole, and its one answer.

The application is one plain function, called on the event loop with an `Exchange`; it answers at once or later. A task
or a future per request would cost more than reading most requests does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

JSON: Final = b"application/json"


class Head:
    """A request line and its headers. Requests of the same bytes share one object, so nobody changes it.

    method: as sent. target: as sent, without scheme and host. headers: names in lower case, in order. body_bytes: what
    Content-Length says, 0 without one, -1 for a chunked body. keeps_alive: the client wants to go on with this
    connection. memo: room for the application: what this head means to it, found out once. request_id: what the client
    calls this request; empty without a well-formed id. echo: the header line that tells it so, with an end of line
    before it.
    """

    __slots__ = (
        "body_bytes", "echo", "expects_continue", "headers", "is_1_1", "keeps_alive", "memo", "method", "request_id",
        "target",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        target: str,
        headers: tuple[tuple[bytes, bytes], ...],
        *,
        body_bytes: int = 0,
        is_1_1: bool = True,
        keeps_alive: bool = True,
        expects_continue: bool = False,
        request_id: str = "",
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body_bytes = body_bytes
        self.is_1_1 = is_1_1
        self.keeps_alive = keeps_alive
        self.expects_continue = expects_continue
        self.memo: Any = None
        self.request_id = request_id
        self.echo = echo_of(request_id) if request_id else b""

    def get(self, name: bytes) -> bytes | None:
        """The value of the first header of that (lower-case) name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


def echo_of(request_id: str) -> bytes:
    """The header line that tells a client what its request is called, with an end of line before it."""
    return b"\r\nX-Request-Id: %b" % request_id.encode("ascii")


class Exchange(Protocol):
    """One request and its answer."""

    @property
    def head(self) -> Head: ...

    @property
    def peer_is_local(self) -> bool:
        """Whether the client runs on this host: it came by the loopback interface or a UNIX socket."""

    @property
    def peer(self) -> str:
        """The client's address, for logs."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the client's verified certificate (`dns:client.example`); none without one."""

    @property
    def request_id(self) -> str:
        """What the request is called; empty where the client sent no id that could be used."""

    @property
    def upload_ns(self) -> int:
        """How long the body took to arrive after the head."""

    @property
    def waited_ns(self) -> int:
        """How long the request lay in its socket, whole and unread, at least. To be asked at once, if at all: it costs
        a system call. 0 for what was sent ahead, before an answer."""

    def take_body(self) -> bytes | bytearray:
        """The whole body, decoded from its chunks. The exchange lets go of it: a second call gives nothing."""

    def answer(
        self, status: int, body: bytes = b"", content_type: bytes = JSON, headers: bytes = b"", made_id: str = ""
    ) -> None:
        """Send the answer. Only the first one goes out, and none when the client has gone.

        headers: further header lines, each with its end of line. made_id: what the request is called from now on, where
        the client sent no id that could be used; it is told so.
        """

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """`callback` runs once if the client goes away, or the server stops, before there is an answer."""


Handler = Callable[[Exchange], None]

#: (status, text) -> (body, content type) of an answer that the engine gives by itself.
ErrorPage = Callable[[int, str], tuple[bytes, bytes]]


#: (status, text, head, the client's address): told of every such answer. head: None where there is none yet.
OnRefusal = Callable[[int, str, Head | None, str], None]


@dataclass(frozen=True)
class Http1Limits:
    """Bounds of the HTTP/1.1 server. Zero means "no limit" for `connections_per_address_max` alone.

    connections_max: of this server; so many more as connections_told_max are answered 503, and beyond these none is
    taken.
    connections_per_address_max: of one client address (of IPv6, a /64); 0: no limit but the other.
    body_bytes_max: of one request, as sent. bodies_bytes_max: of all requests that are not answered yet, but for those
    below 256 KiB. unsent_bytes_max: of answers that wait for their clients, all together; when there are more, 503 goes
    in place of large ones. header_bytes_max, headers_max: of a request line with its headers; how many lines.
    requests_at_once_max: requests answered on one connection before others get their turn.
    idle_s: how long a connection may wait for its next request. head_s: how long a request's head may take.
    body_window_s, body_window_bytes_min: what a body must bring in every window of that length. write_s,
    write_window_bytes_min: what a client must take of its answer in every window of that length.
    linger_s: how long the rest of a refused request is read and dropped.
    tick_s: how often all of these are looked at.
    """

    connections_max: int = 10_000
    connections_told_max: int = 128
    connections_per_address_max: int = 0
    body_bytes_max: int = 256 * 2**20
    bodies_bytes_max: int = 2**30
    unsent_bytes_max: int = 2**30
    header_bytes_max: int = 65_536
    headers_max: int = 128
    requests_at_once_max: int = 32
    idle_s: float = 50.0
    head_s: float = 20.0
    body_window_s: float = 50.0
    body_window_bytes_min: int = 16_384
    write_s: float = 50.0
    write_window_bytes_min: int = 16_384
    linger_s: float = 3.0
    tick_s: float = 1.0
