"""The sending half of a connection: answers into `out`, under both flow-control windows.

A small answer goes straight to `out` (`UnaryCall.finish`). An answer that a window, the frame size or a slow socket
holds up becomes a `Transfer`, which `pump` moves frame by frame, in turns with the other transfers, whenever the
protocol asks for more. A stream's window is never stored: it is the peer's current initial window plus the call's
`credit` (increments received less bytes sent), so a change of that setting needs no walk over the streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from ringserve.frontend.handler import Buffer
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.account import Account
from ringserve.frontend.http2.frames import (
    DATA,
    FRAME_BYTES_DEFAULT,
    FRAME_HEADER,
    WINDOW_BYTES_DEFAULT,
    ConnectionFault,
    ErrorCode,
)
from ringserve.frontend.http2.noise import Noise

if TYPE_CHECKING:
    from ringserve.frontend.http2.calls import Exchange

#: Bytes of transfers moved into `out` at a time: enough for one system call, little enough to take turns.
PUMP_BYTES_MAX: Final = 2**20
#: Largest DATA frame written even if the peer takes more, so that small answers slip in between.
_FRAME_BYTES_MAX: Final = 2**17


#: Output: whole frames or parts of them, in order.
Piece = bytes | memoryview


class Host(Protocol):
    """What a connection needs from the outside. All of it is called on the event loop.

    account: of all connections of the engine.
    """

    @property
    def account(self) -> Account: ...

    def wake(self) -> None:
        """Output is waiting: collect it (`Sending.collect`) before the loop sleeps."""

    def now(self) -> float:
        """Seconds of a monotonic clock; asked only when a client misbehaves."""

    def clock_ns(self) -> int:
        """The clock of deadlines, in ns; asked once for whatever is read together."""

    def bug(self, error: BaseException) -> None:
        """A handler raised. The call has been answered INTERNAL."""

    def aside(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """Does what would hold up the loop elsewhere, then calls `done` with its outcome on the loop."""


class Transfer:
    """One message (and, when it is the last, the frames after it) on its way to the client."""

    __slots__ = ("_at", "_body", "_prefix", "call", "is_parked", "left_bytes", "on_sent", "tail")

    def __init__(self, call: Exchange, message: Buffer, tail: bytes, on_sent: Callable[[], None] | None) -> None:
        self.call = call
        self._prefix = b"\x00" + len(message).to_bytes(4, "big")
        self._body = memoryview(message)
        self._at = 0
        self.left_bytes = len(message) + 5
        self.tail = tail
        self.on_sent = on_sent
        self.is_parked = False

    def take(self, nbytes: int, frame_bytes_max: int, out: list[Piece]) -> None:
        """Adds the next `nbytes` of prefix and message to `out`, in frames. The message is not copied."""
        stream_id = self.call.stream_id
        self.left_bytes -= nbytes
        start = self._at
        stop = self._at = start + nbytes
        if start < 5:
            size = min(nbytes, frame_bytes_max)
            out += (FRAME_HEADER.pack(size << 8 | DATA, 0, stream_id), self._prefix[start : start + size])
            start += size
            if start > 5:
                out.append(self._body[: start - 5])
        body = self._body
        last = start + (stop - start) // frame_bytes_max * frame_bytes_max
        if start < last:
            head = FRAME_HEADER.pack(frame_bytes_max << 8 | DATA, 0, stream_id)
            for at in range(start - 5, last - 5, frame_bytes_max):
                out += (head, body[at : at + frame_bytes_max])
        if last < stop:
            out += (FRAME_HEADER.pack(stop - last << 8 | DATA, 0, stream_id), body[last - 5 : stop - 5])


class Sending:
    """Output of one connection.

    out: frames for the socket, complete and in order. send_window: the connection's window. inline_bytes_max: largest
    DATA payload that may go to `out` at once if `send_window` has room; -1 while it must not. calls: the books.
    streams: the open streams by identifier. queued_bytes: of answers that wait in transfers. pumped_bytes: of those
    that have left, since the beginning. first_answered: of the call whose answer the host was woken for
    since it last looked: when it had come, and for how long it may have been unread (`Request.patience_ns`).
    """

    def __init__(self, host: Host, unsent_bytes_max: int) -> None:
        self.host = host
        self.calls = host.account.calls
        self._unsent_bytes_max = unsent_bytes_max
        self._noise = Noise(host.now)
        self.queued_bytes = 0
        self.pumped_bytes = 0
        self._is_blocked = False  # the socket takes nothing more
        self.out: list[Piece] = []
        self.is_awake = False  # the host already knows that output may be waiting
        self.first_answered: tuple[int, int] | None = None
        self.streams: dict[int, Exchange] = {}
        self.send_window = WINDOW_BYTES_DEFAULT
        self.peer_initial_window = WINDOW_BYTES_DEFAULT
        self.peer_frame_bytes_max = FRAME_BYTES_DEFAULT
        self.inline_bytes_max = FRAME_BYTES_DEFAULT
        self._header_table_update = b""  # due at the start of the next header block that we send
        self._queue: deque[Transfer] = deque()

    def write(self, data: bytes) -> None:
        """Puts one or more whole frames into `out`."""
        self.out.append(data)
        if not self.is_awake:
            self.is_awake = True
            self.host.wake()

    def write_headers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        if self._header_table_update:
            block, self._header_table_update = self._header_table_update + block, b""
            self._tune_inline()
        self.write(frames.headers(stream_id, block, end_stream, self.peer_frame_bytes_max))

    def transfer(self, transfer: Transfer) -> None:
        """Queues a message whose stream has its response headers."""
        transfer.call.transfer = transfer
        self._queue.append(transfer)
        self.queued_bytes += transfer.left_bytes
        self.host.account.output_bytes += transfer.left_bytes
        self.inline_bytes_max = -1
        if not self.is_awake:
            self.is_awake = True
            self.host.wake()

    def drop_transfer(self, call: Exchange) -> None:
        """The stream was reset."""
        transfer, call.transfer = call.transfer, None
        if transfer is None:
            return
        self._left(transfer.left_bytes)
        if not transfer.is_parked:
            self._queue.remove(transfer)
            self._tune_inline()

    def has_room(self, nbytes: int) -> bool:
        """Whether one more answer may wait. One alone always may, unless all connections together hold too much."""
        limit, account = self._unsent_bytes_max, self.host.account
        if account.output_bytes + nbytes > limit and account.output_bytes:
            return False
        return not self.queued_bytes or self.queued_bytes + nbytes <= limit // 2

    def set_blocked(self, is_blocked: bool) -> None:
        """Whether the socket takes nothing more: then answers wait as transfers, which are counted."""
        self._is_blocked = is_blocked
        self._tune_inline()

    def _left(self, nbytes: int) -> None:
        self.queued_bytes -= nbytes
        self.host.account.output_bytes -= nbytes

    def has_transfers(self) -> bool:
        """True when `pump` may have something to do."""
        return bool(self._queue) and self.send_window > 0

    def pump(self) -> None:
        """Moves up to PUMP_BYTES_MAX of the queued transfers into `out`, a frame of each in turn."""
        queue = self._queue
        room = PUMP_BYTES_MAX
        frame_bytes_max = min(self.peer_frame_bytes_max, _FRAME_BYTES_MAX)
        sent = 0
        while queue and self.send_window > 0 and room > 0:
            transfer = queue.popleft()
            call = transfer.call
            nbytes = min(
                transfer.left_bytes,
                self.send_window,
                self.peer_initial_window + call.credit,
                frame_bytes_max if queue else max(room, frame_bytes_max),
            )
            if nbytes <= 0:
                transfer.is_parked = True  # until its stream's window opens
                continue
            transfer.take(nbytes, frame_bytes_max, self.out)
            self.send_window -= nbytes
            call.credit -= nbytes
            room -= nbytes
            sent += nbytes
            if transfer.left_bytes:
                queue.append(transfer)
                continue
            call.transfer = None
            if transfer.tail:
                self.out.append(transfer.tail)
            if transfer.on_sent is not None:
                transfer.on_sent()
        if sent:
            self._left(sent)
            self.pumped_bytes += sent
            self._noise.sent(sent)
        self._tune_inline()

    def unpark(self, call: Exchange) -> None:
        """The call's stream window grew."""
        transfer = call.transfer
        if transfer is not None and transfer.is_parked and self.peer_initial_window + call.credit > 0:
            transfer.is_parked = False
            self._queue.append(transfer)
            self.inline_bytes_max = -1

    def set_peer_initial_window(self, nbytes: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE applies to the open streams too (RFC 9113 6.9.2)."""
        grown = nbytes > self.peer_initial_window
        self.peer_initial_window = nbytes
        if grown:
            for call in self.streams.values():
                if nbytes + call.credit > frames.WINDOW_BYTES_CEILING:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE overflows a window")
                self.unpark(call)
        self._tune_inline()

    def set_peer_frame_bytes_max(self, nbytes: int) -> None:
        self.peer_frame_bytes_max = nbytes
        self._tune_inline()

    def set_peer_header_table_bytes(self, nbytes: int) -> None:
        """We never use the table; a peer that shrinks it must be told that we know (RFC 7541 4.2). Once is enough."""
        if nbytes < frames.HEADER_TABLE_BYTES_DEFAULT:
            self._header_table_update = b"\x20"
            self._tune_inline()

    def _tune_inline(self) -> None:
        blocked = self._queue or self._header_table_update or self._is_blocked
        self.inline_bytes_max = -1 if blocked else min(self.peer_initial_window, self.peer_frame_bytes_max)
