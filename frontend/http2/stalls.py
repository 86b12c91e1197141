"""Clients that keep the server waiting: looked at now and then, what has stood still since the last look is ended.

A slow client is served as long as something moves: LEAST_BYTES from one look to the next. So it is cut off after one
to two of the times between looks (`EngineLimits.stall_ms_max`).
"""

from __future__ import annotations

from typing import Final

from ringserve.frontend.http2.calls import Exchange, UnaryCall
from ringserve.frontend.http2.connection import Connection
from ringserve.frontend.http2.frames import ErrorCode
from ringserve.frontend.http2.request import DEADLINE_EXCEEDED

#: What must come of a request, or leave of the answers, between two looks.
LEAST_BYTES: Final = 16_384
#: What must leave of each single answer that waits for its stream's window: a slow client may share itself among many.
_CRUMB_BYTES: Final = 1_024


class Stalls:
    """What one connection looked like at the last look."""

    __slots__ = ("_beginning", "_bodies", "_is_closing", "_parked", "_pumped_bytes", "_taken_bytes")

    def __init__(self) -> None:
        self._beginning: list[bytes] = []  # of a frame or header block that is not complete
        self._bodies: dict[int, int] = {}  # requests that are not complete: stream, bytes that had come
        self._parked: dict[int, int] = {}  # answers held up by their stream's window: stream, bytes left
        self._pumped_bytes = -1  # of the connection; -1: no answer waited
        self._taken_bytes = -1  # likewise, of the socket
        self._is_closing = False

    def look(self, connection: Connection, unsent_bytes: int, taken_bytes: int) -> bool:
        """Ends what has not moved. False: the socket itself must be closed without waiting for the client.

        unsent_bytes: what the socket has not taken. taken_bytes: what it ever took.
        """
        if self._socket_stands(unsent_bytes, taken_bytes) or (self._is_closing and connection.is_closing):
            return False
        self._is_closing = connection.is_closing
        if connection.is_closing:
            return True
        beginning = connection.beginning()
        if beginning and beginning is self._beginning:
            connection.close(ErrorCode.ENHANCE_YOUR_CALM, "the rest of a frame or of a header block did not come")
            return True
        self._beginning = beginning
        if self._answers_stand(connection):
            connection.close(ErrorCode.ENHANCE_YOUR_CALM, "the connection's window stays closed")
            return True
        self._look_at_calls(connection)
        return True

    def _socket_stands(self, unsent_bytes: int, taken_bytes: int) -> bool:
        before, self._taken_bytes = self._taken_bytes, taken_bytes if unsent_bytes else -1
        return before >= 0 and unsent_bytes > 0 and taken_bytes - before < LEAST_BYTES

    def _answers_stand(self, connection: Connection) -> bool:
        """Every answer waits, and for the connection's window too: nothing will move before the client says so."""
        waits = connection.queued_bytes > 0 and connection.send_window <= 0
        before, self._pumped_bytes = self._pumped_bytes, connection.pumped_bytes if waits else -1
        return waits and before >= 0 and connection.pumped_bytes - before < LEAST_BYTES

    def _look_at_calls(self, connection: Connection) -> None:
        bodies: dict[int, int] = {}
        parked: dict[int, int] = {}
        for stream_id, call in list(connection.streams.items()):
            if _is_unfinished(call):
                bodies[stream_id] = call.body_bytes
                if call.body_bytes - self._bodies.get(stream_id, -LEAST_BYTES) < LEAST_BYTES:
                    call.fail(DEADLINE_EXCEEDED, "the request did not arrive in time")
                    continue
            transfer = call.transfer
            if transfer is not None and transfer.is_parked:
                parked[stream_id] = transfer.left_bytes
                if self._parked.get(stream_id, transfer.left_bytes + LEAST_BYTES) - transfer.left_bytes < _CRUMB_BYTES:
                    connection.drop_stream(stream_id, ErrorCode.CANCEL)
        self._bodies, self._parked = bodies, parked


def _is_unfinished(call: Exchange) -> bool:
    """The client owes the rest of a request. A streaming call may be silent between its messages."""
    if call.is_half_closed or call.is_done:
        return False
    return isinstance(call, UnaryCall) or (call.reader is not None and call.reader.is_inside_message)
