"""DATA: what comes for the open streams, as whole frames or in parts, and the calls whose messages it completes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ringserve.frontend import request_ids
from ringserve.frontend.handler import Buffer, EngineLimits, Refused
from ringserve.frontend.http2.barring import Barring
from ringserve.frontend.http2.calls import Exchange, UnaryCall
from ringserve.frontend.http2.control import STREAM_WINDOW_BYTES
from ringserve.frontend.http2.frames import END_STREAM, ConnectionFault, ErrorCode, StreamFault, unpadded
from ringserve.frontend.http2.grpc_messages import MessageFault, MessageReader
from ringserve.frontend.http2.headers import HeaderCache
from ringserve.frontend.http2.request import INTERNAL, RESOURCE_EXHAUSTED, Request
from ringserve.frontend.http2.sending import Host

#: Input of unfinished and untaken messages that a connection may hold, however small `message_bytes_max` is.
_HELD_BYTES_MIN: Final = 256 * 2**20
#: What a message takes here besides its bytes, while it waits: one of none took 75 of the 5 that were counted.
_MESSAGE_BYTES: Final = 128
#: DATA that come late for a stream that we have reset cost a client nothing when they are smaller.
_LATE_BYTES_MIN: Final = 256


class Bodies(Barring):
    """The input of a connection's calls. peer, names: `handler.Call`'s."""

    def __init__(self, host: Host, cache: HeaderCache, limits: EngineLimits, peer: str) -> None:
        super().__init__(host, cache, limits)
        self.peer = peer
        self.names: Sequence[str] = ()
        self._held_bytes_max = max(_HELD_BYTES_MIN, limits.message_bytes_max + limits.message_bytes_max // 8)

    def room(self) -> memoryview | None:
        """Where the host may read the rest of the part that is coming (`part_bytes`), and the next frame's head.

        None: nowhere, it must be given to `receive` as it comes. Valid until anything else is handled.
        """
        call = self.streams.get(self._part_stream_id) if self.part_bytes else None
        reader = call.reader if call is not None else None
        return reader.room(self.part_bytes) if reader is not None else None

    def _on_data(self, flags: int, stream_id: int, payload: Buffer) -> None:
        self._received_bytes += len(payload)  # padding and all, and whatever becomes of the stream
        data = unpadded(flags, payload)
        call = self._call_of_data(stream_id, len(payload), is_noise=len(payload) < _LATE_BYTES_MIN)
        if call is not None:
            if not data and not flags & END_STREAM:
                self._noise.add()
            self._input(call, data, bool(flags & END_STREAM))

    def _part(self, stream_id: int, piece: memoryview, flags: int) -> None:
        self._received_bytes += len(piece)
        try:
            call = self._call_of_data(stream_id, len(piece), is_noise=False)
            if call is not None:
                self._input(call, piece, bool(flags & END_STREAM))
        except StreamFault as fault:
            self.reset_stream(stream_id, fault.code)

    def _call_of_data(self, stream_id: int, nbytes: int, is_noise: bool) -> Exchange | None:
        """Whose input so many bytes are; None: nobody's, they come too late. StreamFault, ConnectionFault."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        call = self.streams.get(stream_id)
        if call is None:
            self._must_not_be_idle(stream_id, "DATA")
            is_over = stream_id in self._reset_streams or self._was_barred(stream_id)
            if is_over or 0 <= self._final_stream_id < stream_id:
                if is_noise:
                    self._noise.add()
                return None
            raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA on a closed stream")
        if call.is_half_closed:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA after the end of the stream")
        call.unreturned_bytes += nbytes
        if call.unreturned_bytes > STREAM_WINDOW_BYTES + self.withheld_bytes:  # of which the client may not know yet
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is overrun")
        return call

    def _input(self, call: Exchange, data: Buffer, ends_stream: bool) -> None:
        """Input of an open stream: its bytes, its end, or both."""
        reader = call.reader
        if reader is None:
            if not ends_stream and isinstance(call, UnaryCall) and self.refuses(call, data):
                return
            limits = self._limits
            encoding = call.request.details.encoding
            buffers = self.host.account.buffers
            reader = MessageReader(encoding, limits.message_bytes_max, limits.inflated_bytes_max, buffers)
            call.reader = reader
            call.is_fresh = False
        call.is_half_closed = ends_stream
        call.body_bytes += len(data)
        declared = call.request.body_bytes
        if declared >= 0 and (call.body_bytes > declared or (ends_stream and call.body_bytes < declared)):
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "content-length differs from the data")
        try:
            messages = reader.feed(data) if data else []
            if messages:
                self.has_come(call)
            call.take(messages)
        except MessageFault as fault:
            self.refuse(call, fault.code, fault.text)
        if call.is_done:
            return
        self.count_held(call)
        if self.held_bytes > self._held_bytes_max:
            self.refuse(call, RESOURCE_EXHAUSTED, "this connection has too many unfinished messages")
        elif self.host.account.input_bytes > self._limits.held_bytes_max:
            self.refuse(call, RESOURCE_EXHAUSTED, "this server holds too many unfinished messages; try again")
        else:
            self.return_stream_window(call)

    def refuse(self, call: Exchange, code: int, text: str) -> None:
        """Fails a call for what its client has sent."""
        if call.request.unary is not None and not call.is_done:  # of streams their handlers know
            self.tell(call.request, code, text)
        call.fail(code, text)

    def tell(self, request: Request, code: int, text: str) -> None:
        """Says, to whoever wants to know, that no handler has seen this call."""
        if self.told is not None:
            request_id = request_ids.sent(request.metadata)
            self.told(Refused(request.details.path, self.peer, request_id, code, text))

    def count_held(self, call: Exchange) -> None:
        """Brings the account of held input up to date with one stream."""
        held = call.unread_bytes + call.waiting_count * _MESSAGE_BYTES
        held += call.reader.held_bytes if call.reader is not None else 0
        self.held_bytes += held - call.held_bytes
        self.host.account.input_bytes += held - call.held_bytes
        call.held_bytes = held

    def count_ordinary(self) -> None:
        """A call has come whole, and gets an answer."""
        self._noise.forgive(1)

    # Handlers.

    def run(self, call: UnaryCall, message: Buffer) -> None:
        """Calls a unary handler."""
        self.count_ordinary()
        try:
            call.request.unary(call, message)  # type: ignore[misc]
        except Exception as error:
            self._bug(call, error)

    def _bug(self, call: Exchange, error: Exception) -> None:
        """A handler raised: this call fails, and the host decides what becomes of the process."""
        call.fail(INTERNAL, "internal error")
        error.add_note(request_ids.noted(call.request.details.path, call.metadata))
        self.host.bug(error)
