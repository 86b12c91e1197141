"""One call on one stream: what every call has (`Exchange`), and the unary kind (`UnaryCall`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ringserve.frontend import ledger
from ringserve.frontend.handler import TURNED_AWAY_RETRY_MS, TURNED_AWAY_TEXT, Buffer
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.grpc_messages import MessageFault, MessageReader, RawMessage
from ringserve.frontend.http2.request import INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED, Request
from ringserve.frontend.http2.sending import Transfer

if TYPE_CHECKING:
    from ringserve.frontend.http2.connection import Connection


#: The whole answer to a call that has waited too long unread.
_PUSHBACK: Final = frames.retry_pushback(TURNED_AWAY_RETRY_MS)
_TURNED_AWAY: Final = frames.refusal_block(RESOURCE_EXHAUSTED, TURNED_AWAY_TEXT, _PUSHBACK)
_TURNED_AWAY_HEAD: Final = frames.headers(0, _TURNED_AWAY, True, frames.FRAME_BYTES_DEFAULT)[:5]


def turned_away(streams: Sequence[bytes], block: bytes = _TURNED_AWAY) -> bytes:
    """The frames that refuse the calls on these streams, as identifiers are on the wire. block: of their headers."""
    head = frames.headers(0, block, True, frames.FRAME_BYTES_DEFAULT)[:5]
    return head + (block + head).join(streams) + block


_STOPPED: Final = frames.rst_stream(0, frames.ErrorCode.NO_ERROR)
_TURNED_AWAY_STOPPED: Final = _TURNED_AWAY + _STOPPED[:5]


def stopped(streams: Sequence[bytes]) -> bytes:
    """As `turned_away`, of calls whose clients have not sent their messages, and need not (RFC 9113 8.1)."""
    between, end = _TURNED_AWAY_STOPPED, _STOPPED[9:]
    return b"".join([part for stream in streams for part in (_TURNED_AWAY_HEAD, stream, between, stream, end)])


class Exchange:
    """An open stream.

    arrived_ns: when its HEADERS came, by the host's clock.
    is_done: the answer is decided or nobody waits for it; a later one is ignored.
    is_fresh: a unary call none of whose DATA has come, which the frame loop may take the short way.
    is_half_closed: the client has ended its side. credit: see `sending.py`. unreturned_bytes: flow-controlled bytes
    received and not yet given back to the client's window. unread_bytes: those of them in messages nobody has taken.
    held_bytes: memory this stream's input takes. body_bytes: DATA received, for `content-length`.
    """

    __slots__ = (
        "arrived_ns",
        "body_bytes",
        "connection",
        "credit",
        "held_bytes",
        "is_done",
        "is_fresh",
        "is_half_closed",
        "reader",
        "request",
        "stream_id",
        "transfer",
        "unread_bytes",
        "unreturned_bytes",
    )
    is_fresh: bool

    def __init__(self, connection: Connection, stream_id: int, request: Request) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.request = request
        self.arrived_ns = connection.received_ns
        self.is_done = False
        self.is_half_closed = False
        self.credit = 0
        self.body_bytes = 0
        self.held_bytes = 0
        self.unread_bytes = 0
        self.unreturned_bytes = connection.withheld_bytes
        self.transfer: Transfer | None = None
        self.reader: MessageReader | None = None
        connection.calls.received += 1

    @property
    def waiting_count(self) -> int:
        """Messages that have come and nobody has taken, where there may be many."""
        return 0

    @property
    def timeout_ns(self) -> int:
        timeout_ns = self.request.timeout_ns
        if not timeout_ns:
            return 0
        connection = self.connection
        return timeout_ns - (connection.host.clock_ns() - self.arrived_ns) or -1

    @property
    def metadata(self) -> Sequence[tuple[str, bytes]]:
        return self.request.metadata

    @property
    def peer(self) -> str:
        return self.connection.peer

    @property
    def names(self) -> Sequence[str]:
        return self.connection.names

    def take(self, messages: list[RawMessage]) -> None:
        """Messages that the stream's input completed, and the client's end of it if `is_half_closed`. MessageFault."""
        raise NotImplementedError

    def gone(self) -> None:
        """The client has reset the stream or disconnected; the stream is closed already."""
        raise NotImplementedError

    def fail(self, code: int, text: str) -> None:
        raise NotImplementedError


class UnaryCall(Exchange):
    """`handler.Call` of the native engine."""

    __slots__ = ("_on_cancel", "_raw")

    def __init__(self, connection: Connection, stream_id: int, request: Request) -> None:
        # Exchange.__init__ by hand: a second frame per call would be a tenth of the engine's whole cost.
        self.connection = connection
        self.stream_id = stream_id
        self.request = request
        self.arrived_ns = connection.received_ns
        self.is_done = False
        self.is_fresh = True
        self.is_half_closed = False
        self.credit = 0
        self.body_bytes = 0
        self.held_bytes = 0
        self.unread_bytes = 0
        self.unreturned_bytes = connection.withheld_bytes
        self.transfer = None
        self.reader = None
        self._raw: RawMessage | None = None
        self._on_cancel: Callable[[], None] | None = None
        connection.calls.received += 1

    def finish(self, message: Buffer, made_id: str = "") -> None:
        if self.is_done:
            return
        self.is_done = True
        connection = self.connection
        size = len(message)
        if connection.inline_bytes_max > size + 4 < connection.send_window:
            # The whole answer at once. What `_finish_slowly` would write, in the same order.
            connection.calls.ended[0] += 1
            connection.send_window -= size + 5
            stream_id = self.stream_id
            if made_id or self.request.echo:
                tail = frames.named_tail(stream_id, self._name(made_id))
            else:
                tail = frames.answer_tail(stream_id)
            connection.out += (frames.answer_head(stream_id, size), message, tail)
            del connection.streams[stream_id]
            if not connection.is_awake:
                connection.is_awake = True
                connection.first_answered = self.arrived_ns, self.request.patience_ns
                connection.host.wake()
        else:
            self._finish_slowly(message, self._name(made_id))

    @staticmethod
    def finish_together(calls: Sequence[UnaryCall], head: bytes, bodies: Sequence[bytes], tail: bytes) -> None:
        """`finish` of each, with `head`, its body and `tail`; bodies: of one length. 1.1 in place of 2.8 us an answer,
        where it began in the client."""
        size = len(head) + len(bodies[0]) + len(tail)
        if size + 4 >= frames.FRAME_BYTES_DEFAULT:
            for call, body in zip(calls, bodies, strict=True):
                call.finish(b"".join((head, body, tail)))
            return
        pack, (first, second, third, fourth, last) = frames.whole_answers(head, len(bodies[0]), tail)
        for call, body in zip(calls, bodies, strict=True):
            if call.is_done:
                continue
            connection = call.connection
            if call.request.echo or not connection.inline_bytes_max > size + 4 < connection.send_window:
                call.finish(b"".join((head, body, tail)))
                continue
            call.is_done = True
            connection.calls.ended[0] += 1
            connection.send_window -= size + 5
            stream_id = call.stream_id
            connection.out.append(pack(first, stream_id, second, stream_id, third, body, fourth, stream_id, last))
            del connection.streams[stream_id]
            if not connection.is_awake:
                connection.is_awake = True
                connection.first_answered = call.arrived_ns, call.request.patience_ns
                connection.host.wake()

    def _name(self, made_id: str) -> bytes:
        """What tells the client its call's id: the one that it sent, or the one that was made for it."""
        return frames.request_id(made_id.encode()) if made_id else self.request.echo

    def _finish_slowly(self, message: Buffer, name: bytes) -> None:
        connection = self.connection
        if not connection.has_room(len(message)):
            self._refuse(RESOURCE_EXHAUSTED, "too many answers wait for their clients to take them", name)
            return
        connection.calls.ended[0] += 1
        connection.write_headers(self.stream_id, frames.RESPONSE_BLOCK, end_stream=False)
        tail = frames.named_tail(self.stream_id, name) if name else frames.answer_tail(self.stream_id)
        connection.transfer(Transfer(self, message, tail, self._close))

    def _close(self) -> None:
        self.connection.close_stream(self)

    def fail(self, code: int, text: str, retry_ms: int = 0, made_id: str = "") -> None:
        if self.is_done:
            return
        self.is_done = True
        self._refuse(code, text, self._name(made_id), retry_ms)

    def _refuse(self, code: int, text: str, name: bytes, retry_ms: int = 0) -> None:
        self.connection.calls.ended[code] += 1
        pushback = frames.retry_pushback(retry_ms) if retry_ms else b""
        block = frames.refusal_block(code, text, pushback) + name
        self.connection.write_headers(self.stream_id, block, end_stream=True)
        self.connection.close_stream(self)

    def turn_away(self) -> None:
        """A call that came whole has waited too long unread: refused as cheaply as can be."""
        connection = self.connection
        if connection.told is not None or self.request.echo:
            self.turn_away_by_name()
            return
        self.is_done = True
        connection.calls.unread += 1
        connection.calls.ended[RESOURCE_EXHAUSTED] += 1
        stream_id = self.stream_id
        if connection.inline_bytes_max < 0:
            connection.write_headers(stream_id, _TURNED_AWAY, end_stream=True)
        else:
            connection.out.append(_TURNED_AWAY_HEAD + stream_id.to_bytes(4, "big") + _TURNED_AWAY)
        del connection.streams[stream_id]

    def turn_away_by_name(self) -> None:
        """The same, where somebody wants to know of this call."""
        self.connection.calls.unread += 1
        self.connection.tell(self.request, RESOURCE_EXHAUSTED, TURNED_AWAY_TEXT)
        self.fail(RESOURCE_EXHAUSTED, TURNED_AWAY_TEXT, TURNED_AWAY_RETRY_MS)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel = callback

    def gone(self) -> None:
        if self.is_done:
            return
        self.is_done = True
        self.connection.calls.ended[ledger.CANCELLED] += 1
        self._raw = None
        if self._on_cancel is not None:
            try:
                self._on_cancel()
            except Exception as error:
                self.connection.host.bug(error)

    def take(self, messages: list[RawMessage]) -> None:
        reader = self.reader
        if self._raw is None and messages:
            self._raw = messages.pop(0)
            self.unread_bytes = len(self._raw[1])
        if messages:
            raise MessageFault(UNIMPLEMENTED, "more than one message for a unary method")
        if not self.is_half_closed or reader is None:
            return
        if reader.is_inside_message:
            raise MessageFault(INTERNAL, "the stream ended inside a message")
        if self._raw is None:
            raise MessageFault(UNIMPLEMENTED, "no message for a unary method")
        patience_ns, connection = self.request.patience_ns, self.connection
        if patience_ns and connection.is_too_much(self):
            connection.count_ordinary()
            self.turn_away_by_name()
        elif reader.is_long_work(self._raw):
            connection.host.aside(self._decode, self._decoded)
        else:
            self._run(reader.decoded(self._raw))

    def has_room(self) -> bool:
        """Takes one of the read's places, but for a long message, which is a queue in the socket by itself."""
        if self._raw is None or len(self._raw[1]) > frames.FRAME_BYTES_DEFAULT:
            return True
        had, self.connection.room_calls = self.connection.room_calls, max(0, self.connection.room_calls - 1)
        return had > 0

    def _decode(self) -> Buffer:
        """Runs on a thread. A call that is over by then has let go of its message."""
        raw, reader = self._raw, self.reader
        return b"" if raw is None or reader is None else reader.decoded(raw)

    def _decoded(self, message: Buffer | None, error: Exception | None) -> None:
        if self.is_done:
            return
        if message is None:
            code, text = (error.code, error.text) if isinstance(error, MessageFault) else (INTERNAL, "internal error")
            self.connection.refuse(self, code, text)
        else:
            self._run(message)

    def _run(self, message: Buffer) -> None:
        self._raw = None
        self.unread_bytes = 0
        self.connection.count_held(self)
        self.connection.run(self, message)
