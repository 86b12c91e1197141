"""The part of a connection that is not calls: settings, pings, windows, resets, draining and closing.

One method per frame type, named in `RULES` of `connection.py`. Each is given a whole frame: flags, stream identifier,
payload.
"""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct
from typing import Final

from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.calls import Exchange
from ringserve.frontend.http2.frames import ACK, ConnectionFault, ErrorCode, StreamFault
from ringserve.frontend.http2.sending import Host, Sending

#: Streams that we have reset and whose late frames are therefore ignored (RFC 9113 5.1, closed).
_RESET_STREAMS_MAX: Final = 1_024
#: What a client may send before we return the window: on a stream, and on the connection, whose window is no limit
#: (`Connection` bounds what it holds instead).
STREAM_WINDOW_BYTES: Final = 4 * 2**20
CONNECTION_WINDOW_BYTES: Final = frames.WINDOW_BYTES_CEILING
_DRAIN_PING: Final = b"draining"
#: Settings in one frame. RFC 9113 names six; a client may send each once, and some that we do not know.
_SETTINGS_MAX: Final = 64

_setting = Struct(">HI")


def _weight(call: Exchange, now_ns: int = 0) -> int:
    """What undoing a call counts: a call whose request is complete was counted as an ordinary one already.

    now_ns: when its client gave it up. Whoever waited for its deadline did what clients do under overload.
    """
    if now_ns and 0 < call.request.timeout_ns <= 2 * (now_ns - call.arrived_ns):
        return 1
    return 2 if call.is_half_closed else 1


class Control(Sending):
    """Settings, windows, closed streams and the end of a connection.

    is_closing: write what is in `out`, then close the socket. last_stream_id: the highest stream opened by the client.
    work: what the present part of a read has cost beside the handling of its frames, see `refusing.WORK_AT_ONCE_MAX`.
    withheld_bytes: what new streams' windows are smaller by than STREAM_WINDOW_BYTES, see `beginnings.py`.
    is_in_rush: more is asked of the event loop than it can do.
    """

    def __init__(self, host: Host, unsent_bytes_max: int) -> None:
        super().__init__(host, unsent_bytes_max)
        self.is_closing = False
        self.is_draining = False
        self.work = 0
        self.is_in_rush = False
        self.last_stream_id = 0
        self.held_bytes = 0
        self.withheld_bytes = 0
        self.received_ns = 0  # when the bytes came that are handled now
        self._is_plain = False  # nothing is the case that every frame must be checked for by `Connection._frame`
        self._settings_seen = False
        self._settings_acknowledged = False
        self._final_stream_id = -1  # after the final GOAWAY: newer streams are ignored
        self._reset_streams: OrderedDict[int, None] = OrderedDict()
        self._received_bytes = 0  # flow-controlled bytes not yet returned to the connection's window

    # Frames from the client.

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            if self._settings_acknowledged:
                self._noise.add()
            else:
                self._settings_acknowledged = True
                self._table_is_off()
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if len(payload) > 6 * _SETTINGS_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"more than {_SETTINGS_MAX} settings in a frame")
        if self._settings_seen:
            self._noise.add()
        initial_window = -1
        for number, value in _setting.iter_unpack(payload):
            if number != frames.SETTINGS_INITIAL_WINDOW_SIZE:
                self._apply_setting(number, value)
            elif value > frames.WINDOW_BYTES_CEILING:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
            else:
                initial_window = value  # only the last one counts, and applying it takes a look at every stream
        if initial_window >= 0:
            self.work += len(self.streams)
            self.set_peer_initial_window(initial_window)
        self._settings_seen = True
        self._is_plain = self._final_stream_id < 0
        self.write(frames.SETTINGS_ACK)

    def _apply_setting(self, number: int, value: int) -> None:
        if number == frames.SETTINGS_HEADER_TABLE_SIZE:
            self.set_peer_header_table_bytes(value)
        elif number == frames.SETTINGS_ENABLE_PUSH:
            if value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        elif number == frames.SETTINGS_MAX_FRAME_SIZE:
            if not frames.FRAME_BYTES_DEFAULT <= value <= frames.FRAME_BYTES_CEILING:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
            self.set_peer_frame_bytes_max(value)

    def _table_is_off(self) -> None:
        """The client knows that our header table has size 0."""

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        self._noise.add()
        if not flags & ACK:
            self.write(frames.ping(payload, ack=True))
        elif payload == _DRAIN_PING and self.is_draining and self._final_stream_id < 0:
            self._go_away_finally()

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """The client opens no more streams; ours stay as they are, and the client closes when it has its answers."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self._noise.add()

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"WINDOW_UPDATE of {len(payload)} bytes")
        self._noise.add_update()
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self.send_window += increment
            if self.send_window > frames.WINDOW_BYTES_CEILING:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
            return
        call = self.streams.get(stream_id)
        if call is None:
            self._must_not_be_idle(stream_id, "WINDOW_UPDATE")  # on a closed stream it is merely late
            return
        if not increment:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        call.credit += increment
        if self.peer_initial_window + call.credit > frames.WINDOW_BYTES_CEILING:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window overflows")
        self.unpark(call)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"RST_STREAM of {len(payload)} bytes")
        call = self.streams.get(stream_id)
        if call is None:
            self._must_not_be_idle(stream_id, "RST_STREAM")
            self._noise.add_late_resets(1)
            return
        if self.is_in_rush and call.is_half_closed and call.request.timeout_ns:
            self._noise.add_late_resets(1)  # its deadline may have passed in the socket, which no look tells for sure
        else:
            self._noise.add(_weight(call, self.received_ns))
        self._forget_stream(call)
        call.gone()

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Deprecated by RFC 9113 5.3 and ignored, except for what makes it malformed."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._noise.add()
        if len(payload) != 5:
            if stream_id in self.streams:
                raise StreamFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _must_not_be_idle(self, stream_id: int, what: str) -> None:
        if stream_id & 1 and self._final_stream_id >= 0:
            return  # perhaps one of the streams that are ignored since the final GOAWAY
        if not stream_id & 1 or stream_id > self.last_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")

    # Windows of the client's input.

    def _return_connection_window(self) -> None:
        if self._received_bytes > CONNECTION_WINDOW_BYTES:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is overrun")
        self.write(frames.window_update(0, self._received_bytes))
        self._received_bytes = 0

    def return_stream_window(self, call: Exchange) -> None:
        """Gives back what has been taken of a stream's input, in large steps."""
        nbytes = call.unreturned_bytes - call.unread_bytes
        if nbytes >= STREAM_WINDOW_BYTES // 2 and not call.is_half_closed:
            call.unreturned_bytes -= nbytes
            self.write(frames.window_update(call.stream_id, nbytes))

    # Ends of streams and of the connection.

    def close_stream(self, call: Exchange) -> None:
        """Our END_STREAM is written. A client that still sends is told to stop (RFC 9113 8.1)."""
        if self.streams.get(call.stream_id) is not call:
            return
        if not call.is_half_closed:
            self._remember_reset(call.stream_id)
            self.write(frames.rst_stream(call.stream_id, ErrorCode.NO_ERROR))
        self._forget_stream(call)

    def reset_stream(self, stream_id: int, code: ErrorCode) -> None:
        """Ends a stream for an error of the client, which counts as if it had reset the stream. ConnectionFault."""
        call = self.streams.get(stream_id)
        self.drop_stream(stream_id, code)
        self._noise.add(_weight(call) if call is not None else 1)

    def drop_stream(self, stream_id: int, code: ErrorCode) -> None:
        """Resets a stream, whoever is to blame."""
        self._remember_reset(stream_id)
        self.write(frames.rst_stream(stream_id, code))
        call = self.streams.get(stream_id)
        if call is not None:
            self._forget_stream(call)
            call.gone()

    def _remember_reset(self, stream_id: int) -> None:
        self._reset_streams[stream_id] = None
        if len(self._reset_streams) > _RESET_STREAMS_MAX:
            self._reset_streams.popitem(last=False)

    def _forget_stream(self, call: Exchange) -> None:
        del self.streams[call.stream_id]
        self.held_bytes -= call.held_bytes
        self.host.account.input_bytes -= call.held_bytes
        call.held_bytes = 0
        if call.transfer is not None:
            self.drop_transfer(call)

    def drain(self) -> None:
        """Begins the graceful end (RFC 9113 6.8): new streams are still taken until the client has seen the notice."""
        if not self.is_draining and not self.is_closing:
            self.is_draining = True
            self.write(frames.goaway(frames.WINDOW_BYTES_CEILING, ErrorCode.NO_ERROR) + frames.ping(_DRAIN_PING, False))

    def _go_away_finally(self) -> None:
        """The client has seen the notice: from here on nothing new is taken."""
        self._final_stream_id = self.last_stream_id
        self._is_plain = False
        self.write(frames.goaway(self.last_stream_id, ErrorCode.NO_ERROR))

    @property
    def has_settings(self) -> bool:
        """The client has completed its half of the connection's beginning."""
        return self._settings_seen

    @property
    def is_drained(self) -> bool:
        return self._final_stream_id >= 0 and not self.streams

    def close(self, code: ErrorCode, text: str = "") -> None:
        """Ends the connection now, with a last GOAWAY. Calls that are open learn that the client is gone."""
        if not self.is_closing:
            if code:
                self.host.account.refusals[code.name.lower()] += 1
            self.write(frames.goaway(self.last_stream_id, code, text))
            self.disconnected()

    def disconnected(self) -> None:
        """The client is gone; so are its calls."""
        self.is_closing = True
        calls = list(self.streams.values())
        self.streams.clear()
        self._queue.clear()
        self.host.account.input_bytes -= self.held_bytes
        self.host.account.output_bytes -= self.queued_bytes
        self.held_bytes = self.queued_bytes = 0
        for call in calls:
            call.transfer = None
            call.gone()
