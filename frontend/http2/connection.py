"""One HTTP/2 connection without I/O: bytes in (`receive`), handlers called, bytes out (`out`).

`receive` is one loop over frames. Nearly all frames at load are a HEADERS frame that opens a unary call and a DATA
frame that holds its whole message; the loop handles these two in place. Everything else, and these two in any unusual
circumstance, goes through `_frame` to one method per frame type, which know every rule. The short way is a special
case of the long way and is tested against it (`is_short_way_on`).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from ringserve.frontend.handler import Buffer, EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arriving import FRAME_BYTES_MAX
from ringserve.frontend.http2.calls import Exchange, UnaryCall
from ringserve.frontend.http2.control import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES
from ringserve.frontend.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_DEFAULT,
    FRAME_HEADER,
    HEAD_RESET,
    HEADERS,
    PADDED,
    PRIORITY_FLAG,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    unpadded,
)
from ringserve.frontend.http2.headers import HeaderCache
from ringserve.frontend.http2.refusing import NEVER_NS, WORK_AT_ONCE_MAX
from ringserve.frontend.http2.request import Request
from ringserve.frontend.http2.sending import Host
from ringserve.frontend.http2.streams import StreamingCall
from ringserve.frontend.http2.taking import TOGETHER_MIN, Taking

#: The head (length << 8 | type) of the longest frame that needs no look at what it is.
_HEAD_USUAL: Final = FRAME_BYTES_DEFAULT << 8 | 255
#: Of the shortest DATA frame that can hold a message's prefix.
_HEAD_PREFIXED: Final = 5 << 8
#: CONTINUATION frames of one header block; a block of the largest size needs four.
_FRAGMENTS_MAX: Final = 64
#: Where no calls could be taken together, the next ones are tried so much later.
_SINGLE_BYTES: Final = 16_384
#: What is taken of one read before others have their turn: so many frames, and so much work beside them.
FRAMES_AT_ONCE_MAX: Final = 256

_frame_header = FRAME_HEADER.unpack_from
_message_prefix = Struct(">BI").unpack_from


class Connection(Taking):
    """The server's side of one connection."""

    def __init__(self, host: Host, cache: HeaderCache, limits: EngineLimits, peer: str) -> None:
        super().__init__(host, cache, limits, peer)
        self.is_short_way_on = True
        self._block_stream_id = 0  # 0: none
        self._block_ends_stream = False
        self.out.append(
            frames.settings(
                {
                    frames.SETTINGS_HEADER_TABLE_SIZE: 0,
                    frames.SETTINGS_MAX_CONCURRENT_STREAMS: limits.concurrent_streams_max,
                    frames.SETTINGS_INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                    frames.SETTINGS_MAX_FRAME_SIZE: FRAME_BYTES_MAX,
                    frames.SETTINGS_MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
                }
            )
            + frames.window_update(0, CONNECTION_WINDOW_BYTES - frames.WINDOW_BYTES_DEFAULT)
        )

    def _frames(self, data: bytes, at: int) -> None:
        end = len(data)
        streams = self.streams
        streams_max = self._limits.concurrent_streams_max
        message_bytes_max = self._limits.message_bytes_max
        blocks = self._decoder.blocks
        is_plain = self._is_plain and self.is_short_way_on
        room = self.room_calls
        waited_ns = self.waited_ns() if room else NEVER_NS  # where there is no room nobody has the patience
        sought_ns = NEVER_NS if self.is_in_rush else waited_ns  # who has less patience is looked for in runs
        crowds = self._crowds
        is_barring, let_in = self.is_barring, self.let_in
        calls = resets = spared_at = single_at = 0
        for _ in range(FRAMES_AT_ONCE_MAX):
            if at + 9 > end:
                break
            head, flags, stream_id = _frame_header(data, at)
            if head > _HEAD_USUAL:
                self._check_length(head, flags)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            if is_plain:
                kind = head & 255
                if kind == DATA:
                    call = streams.get(stream_id)
                    if flags == END_STREAM and call is not None and call.is_fresh and head >= _HEAD_PREFIXED:
                        compressed, size = _message_prefix(data, at + 9)
                        request = call.request
                        if (
                            size + 5 << 8 == head
                            and not compressed
                            and size <= message_bytes_max
                            and request.body_bytes in (-1, size + 5)
                        ):
                            if stream_id in let_in and at >= single_at:
                                after = self._take_let_in(data, at, stop, request)
                                if after:
                                    at = after
                                    if self.work > WORK_AT_ONCE_MAX:
                                        break
                                    continue
                                single_at = at + _SINGLE_BYTES
                            self._received_bytes += size + 5
                            call.is_fresh = False
                            call.is_half_closed = True
                            calls += 1
                            if stream_id in let_in:
                                if self.is_too_much(call):  # type: ignore[arg-type]
                                    call.turn_away()  # type: ignore[attr-defined]
                                    at = stop
                                    continue
                            elif request.patience_ns:
                                if request.patience_ns < waited_ns:
                                    call.turn_away()  # type: ignore[attr-defined]
                                    at = stop
                                    continue
                                room -= 1
                                if not room:
                                    waited_ns = sought_ns = NEVER_NS
                            try:
                                whole = data if head <= _HEAD_USUAL else memoryview(data)
                                request.unary(call, whole[at + 14 : stop])  # type: ignore[misc, arg-type]
                            except Exception as error:
                                self._bug(call, error)
                            at = stop
                            continue
                elif (
                    kind == HEADERS
                    and flags == END_HEADERS
                    and self.last_stream_id < stream_id
                    and stream_id & 0x80000001 == 1
                    and len(streams) < streams_max
                ):
                    block = data[at + 9 : stop]
                    request = blocks.get(block) or self._decode(block)
                    if request.patience_ns and at >= spared_at and (request.patience_ns < sought_ns or crowds):
                        self.room_calls = room
                        after, spared_at = self._refuse_run(data, at, request, waited_ns, sought_ns)
                        room = self.room_calls
                        if not room:
                            waited_ns = NEVER_NS
                        sought_ns = waited_ns
                        if after:
                            at = after
                            if self.work > WORK_AT_ONCE_MAX:
                                break
                            continue
                    if at >= single_at and not is_barring and stop + 9 <= end:
                        run_end = spared_at if spared_at > at else end
                        single_at = at + _SINGLE_BYTES
                        if at + TOGETHER_MIN * (stop - at + 9 + (_frame_header(data, stop)[0] >> 8)) <= run_end:
                            self.room_calls = room
                            after = self._take_run(data, at, stop, run_end, request, waited_ns)
                            room = self.room_calls
                            if not room:
                                waited_ns = sought_ns = NEVER_NS
                            if after:
                                at = single_at = after
                                if self.work > WORK_AT_ONCE_MAX:
                                    break
                                continue
                    if request.unary is not None:
                        self.last_stream_id = stream_id
                        call = streams[stream_id] = UnaryCall(self, stream_id, request)
                        if is_barring:
                            self.room_calls = room
                            self._admit(call, waited_ns)
                            room = self.room_calls
                            if not room:
                                waited_ns = sought_ns = NEVER_NS
                    else:
                        self._open(stream_id, request, ends_stream=False)
                    at = stop
                    if self.work > WORK_AT_ONCE_MAX:
                        break
                    continue
                elif (
                    head == HEAD_RESET and stream_id <= self.last_stream_id and stream_id & 1
                    and stream_id not in streams
                ):  # fmt: skip
                    resets += 1  # it crossed our answer on its way
                    at = stop
                    continue
            if calls:
                self._noise.forgive(calls)
                calls = 0
            if resets:
                self._noise.add_late_resets(resets)
                resets = 0
            self.room_calls = room
            whole = data if head <= _HEAD_USUAL else memoryview(data)
            self._frame(head & 255, flags, stream_id & 0x7FFFFFFF, whole[at + 9 : stop])
            if self.is_closing:
                return
            room = self.room_calls
            if not room:
                waited_ns = sought_ns = NEVER_NS
            at = stop
            if self.work > WORK_AT_ONCE_MAX:
                break
            blocks = self._decoder.blocks
            is_plain = self._is_plain and self.is_short_way_on
        self.room_calls = room
        self._keep(data, at)
        if calls:
            self._noise.forgive(calls)
        if resets:
            self._noise.add_late_resets(resets)

    def _check_length(self, head: int, flags: int) -> None:
        """ConnectionFault: a frame that is longer than every server takes is too long for us, too."""
        nbytes, kind = head >> 8, head & 255
        if nbytes > FRAME_BYTES_MAX:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {nbytes} bytes")
        if kind in (HEADERS, frames.CONTINUATION):
            if nbytes > 2 * self._limits.header_list_bytes_max:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header block is too long")
        elif kind != DATA or flags & PADDED:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"frame of {nbytes} bytes that is not plain DATA")

    def _check_order(self, kind: int, flags: int, stream_id: int) -> None:
        if self._block_stream_id:
            if kind != frames.CONTINUATION or stream_id != self._block_stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        elif not self._settings_seen and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def _frame(self, kind: int, flags: int, stream_id: int, payload: Buffer) -> None:
        """The long way: any frame, any circumstance. payload: a view only of a long frame."""
        self._check_order(kind, flags, stream_id)
        rule = _RULES.get(kind)
        if rule is None:
            self._noise.add()
            return  # an extension (RFC 9113 5.5)
        try:
            rule(self, flags, stream_id, payload)
        except StreamFault as fault:
            self.reset_stream(stream_id, fault.code)

    # HEADERS and CONTINUATION.

    def _on_headers(self, flags: int, stream_id: int, payload: Buffer) -> None:
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        block = bytes(unpadded(flags, payload))
        if flags & PRIORITY_FLAG:
            if len(block) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            block = block[5:]
        self._block_ends_stream = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._header_block(stream_id, block)
            return
        self._block = [block]
        self._block_stream_id = stream_id
        self._is_plain = False

    def _on_continuation(self, flags: int, stream_id: int, payload: Buffer) -> None:
        if not self._block_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block.append(bytes(payload))
        if len(self._block) > _FRAGMENTS_MAX or sum(map(len, self._block)) > 2 * self._limits.header_list_bytes_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header block is too long")
        if flags & END_HEADERS:
            block, self._block = b"".join(self._block), []
            self._block_stream_id = 0
            self._is_plain = self._final_stream_id < 0
            self._header_block(stream_id, block)

    def _header_block(self, stream_id: int, block: bytes) -> None:
        """A whole header block. It is decoded in any case: the library's table must follow the client's."""
        if stream_id > self.last_stream_id:
            request = self._decoder.blocks.get(block) or self._decode(block)
            if self._final_stream_id >= 0:
                self._noise.add()
                return  # the client will try it elsewhere: we said so in GOAWAY
            self._open(stream_id, request, self._block_ends_stream)
            return
        self._noise.add(len(block) >> 6)
        well_formed = self._decoder.decode_trailers(block)
        self.work += len(block)
        call = self.streams.get(stream_id)
        if call is None:
            if stream_id not in self._reset_streams:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {stream_id}")
            self._noise.add()
            return
        if call.is_half_closed:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after the end of the stream")
        if not self._block_ends_stream or not well_formed:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "malformed trailers")
        self._input(call, b"", ends_stream=True)

    def _open(self, stream_id: int, request: Request, ends_stream: bool) -> None:
        """A new stream, which need not become a call."""
        self.last_stream_id = stream_id
        details = request.details
        if details.malformed:
            self._noise.add(details.weight)
            self.reset_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        if len(self.streams) >= self._limits.concurrent_streams_max:
            self.reset_stream(stream_id, ErrorCode.REFUSED_STREAM)
            return
        if details.refusal:
            self._noise.add(details.weight)
            self.calls.refuse()
            self.tell(request, *details.refused)
            self.write_headers(stream_id, details.refusal, end_stream=True)
            if not ends_stream:
                self._remember_reset(stream_id)
                self.write(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
            return
        call: Exchange
        if request.unary is not None:
            call = UnaryCall(self, stream_id, request)
            self.streams[stream_id] = call
        else:
            call = StreamingCall(self, stream_id, request)
            self.streams[stream_id] = call
            call.start()
        if ends_stream:
            self._input(call, b"", ends_stream=True)
        elif self.is_barring:
            self._admit(call, self.waited_ns())

    def _table_is_off(self) -> None:
        self._decoder.table_is_off()


_RULES: Final[dict[int, Callable[[Any, int, int, Any], None]]] = {
    frames.DATA: Connection._on_data,
    frames.HEADERS: Connection._on_headers,
    frames.PRIORITY: Connection._on_priority,
    frames.RST_STREAM: Connection._on_rst_stream,
    frames.SETTINGS: Connection._on_settings,
    frames.PUSH_PROMISE: Connection._on_push_promise,
    frames.PING: Connection._on_ping,
    frames.GOAWAY: Connection._on_goaway,
    frames.WINDOW_UPDATE: Connection._on_window_update,
    frames.CONTINUATION: Connection._on_continuation,
}
