"""A client's half of a connection for tests without I/O: writes raw frames, reads frames back with `hpack`.

It keeps no rules, so that it can break all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import hpack

from ringserve.frontend.buffers import Buffers
from ringserve.frontend.handler import Buffer, Call, EngineLimits, Methods, Refused, Stream
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.account import Account
from ringserve.frontend.http2.connection import Connection
from ringserve.frontend.http2.frames import END_HEADERS, END_STREAM, ErrorCode
from ringserve.frontend.http2.headers import HeaderCache

ECHO = "/test.Service/Echo"
HOLD = "/test.Service/Hold"
BUG = "/test.Service/Bug"
STREAM = "/test.Service/Stream"

Fields = list[tuple[str, str]]


class Frame(NamedTuple):
    """A frame from the server. `fields`: of HEADERS. `code`: of RST_STREAM and GOAWAY."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    fields: Fields | None = None
    code: ErrorCode | None = None


class Host:
    """A connection's host without a loop."""

    def __init__(self) -> None:
        self.wakes = 0
        self.seconds = 1.0
        self.bugs: list[BaseException] = []
        self.account = Account(Buffers(2**30))

    def wake(self) -> None:
        self.wakes += 1

    def now(self) -> float:
        return self.seconds

    def clock_ns(self) -> int:
        return int(self.seconds * 1e9)

    def bug(self, error: BaseException) -> None:
        self.bugs.append(error)

    def aside(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        try:
            result = work()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)


def request_fields(path: str = ECHO, *more: tuple[str, str]) -> Fields:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    ]


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def changed(**changes: str | None) -> list[tuple[str, str]]:
    """The usual request fields with some changed (`_method` stands for `:method`) or, with None, left out."""
    names = {name.replace("_", ":", 1) if name[0] == "_" else name.replace("_", "-"): name for name in changes}
    fields = [(name, changes[names[name]] if name in names else value) for name, value in request_fields()]
    return [(name, value) for name, value in fields if value is not None]


def message(data: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return bytes((flag,)) + len(data).to_bytes(4, "big") + data


class Peer:
    """A connection under test and its client. The methods that write return the bytes; `send` delivers them."""

    def __init__(
        self, limits: EngineLimits | None = None, short_way: bool = True, begun: bool = True, **handlers: Any
    ) -> None:
        self.host = Host()
        self.held: list[Call] = []
        self.messages: list[bytes] = []  # that handlers were given
        self.cancelled = 0
        unary = {ECHO: self._echo, HOLD: self._hold, BUG: self._bug} | handlers
        self.refused: list[Refused] = []  # what the engine said of calls that no handler sees
        methods = Methods(unary, {STREAM: self._stream}, frozenset((ECHO, BUG)), self.refused.append)
        self.limits = limits or EngineLimits()
        self.cache = HeaderCache(methods, self.limits.header_list_bytes_max)
        self.connection = Connection(self.host, self.cache, self.limits, "ipv4:127.0.0.1:1")
        self.connection.is_short_way_on = short_way
        self._encoder = hpack.Encoder()
        self._encoder.header_table_size = 0
        self._decoder = hpack.Decoder()
        self._rest = b""
        if begun:
            self.send(frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK)
            self.read()

    def _echo(self, call: Call, data: Buffer) -> None:
        self.messages.append(bytes(data))
        call.finish(bytes(data))

    def _hold(self, call: Call, data: Buffer) -> None:
        self.messages.append(bytes(data))
        call.on_cancel(self._cancel)
        self.held.append(call)

    def _cancel(self) -> None:
        self.cancelled += 1

    def _bug(self, call: Call, data: Buffer) -> None:
        raise RuntimeError("bug")

    async def _stream(self, stream: Stream) -> None:
        raise AssertionError("these tests have no event loop")

    def block(self, fields: Fields) -> bytes:
        return self._encoder.encode(fields)

    def headers(self, stream_id: int, fields: Fields | None = None, flags: int = END_HEADERS) -> bytes:
        return frames.frame(frames.HEADERS, flags, stream_id, self.block(fields or request_fields()))

    def data(self, stream_id: int, data: bytes, flags: int = END_STREAM) -> bytes:
        return frames.frame(frames.DATA, flags, stream_id, data)

    def call(self, stream_id: int, data: bytes = b"hello", path: str = ECHO, *more: tuple[str, str]) -> bytes:
        """A whole unary call."""
        return self.headers(stream_id, request_fields(path, *more)) + self.data(stream_id, message(data))

    def send(self, data: bytes, waited_ns: int = 0) -> None:
        """waited_ns: for how long those bytes lay in the socket before they were read."""
        self.connection.is_awake = True
        self.connection.receive(data, self.host.clock_ns() - waited_ns)
        while self.connection.has_rest:
            self.connection.go_on()
        self.connection.is_awake = False

    def deliver(self, data: bytes, *sizes: int) -> None:
        """Delivers the bytes in reads of these sizes, over and over, as a loop that reads in place where it may."""
        connection, at, turn = self.connection, 0, 0
        while at < len(data):
            room = connection.room()
            piece = data[at : at + min(sizes[turn % len(sizes)], len(room) if room is not None else len(data))]
            at += len(piece)
            turn += 1
            if room is not None:
                inside = min(len(piece), connection.part_bytes)
                room[: len(piece)] = piece
                behind = bytes(room[inside : len(piece)])
                connection.is_awake = True
                connection.receive_part(room[:inside], self.host.clock_ns())
                connection.is_awake = False
                piece = behind
            if piece:
                self.send(piece)

    def raw(self) -> bytes:
        """What the server has written since the last look, transfers included."""
        connection = self.connection
        while connection.has_transfers():
            connection.pump()
        data = b"".join(connection.out)
        connection.out.clear()
        return data

    def read(self) -> list[Frame]:
        """The same as frames."""
        data = self._rest + self.raw()
        found = []
        at = 0
        while at < len(data):
            head, flags, stream_id = frames.FRAME_HEADER.unpack_from(data, at)
            payload = data[at + 9 : at + 9 + (head >> 8)]
            at += 9 + (head >> 8)
            kind = head & 255
            fields = code = None
            if kind == frames.HEADERS:
                assert flags & END_HEADERS, "use a peer with larger frames for this"
                fields = [(str(name), str(value)) for name, value in self._decoder.decode(payload)]
            elif kind == frames.RST_STREAM:
                code = ErrorCode(int.from_bytes(payload, "big"))
            elif kind == frames.GOAWAY:
                code = ErrorCode(int.from_bytes(payload[4:8], "big"))
            found.append(Frame(kind, flags, stream_id, payload, fields, code))
        return found


class Answer(NamedTuple):
    """One stream's answer, put together from frames."""

    fields: dict[str, str]
    body: bytes
    reset: ErrorCode | None

    @property
    def status(self) -> int:
        return int(self.fields.get("grpc-status", -1))


def answers(found: list[Frame]) -> dict[int, Answer]:
    """The answers in those frames, by stream."""
    result: dict[int, Answer] = {}
    for frame in found:
        if not frame.stream_id or frame.kind not in (frames.HEADERS, frames.DATA, frames.RST_STREAM):
            continue
        old = result.get(frame.stream_id, Answer({}, b"", None))
        if frame.kind == frames.HEADERS:
            assert frame.fields is not None
            old = old._replace(fields=old.fields | dict(frame.fields))
        elif frame.kind == frames.DATA:
            old = old._replace(body=old.body + frame.payload)
        else:
            old = old._replace(reset=frame.code)
        result[frame.stream_id] = old
    return result


def goaway(found: list[Frame]) -> ErrorCode | None:
    """The error code of the last GOAWAY among those frames."""
    codes = [frame.code for frame in found if frame.kind == frames.GOAWAY]
    return codes[-1] if codes else None
