"""Calls with long messages are refused by how these begin, and while that happens clients send no more than beginnings.

A message whose lane is full costs most where it is carried for nothing: by the network, by the client, and by the core
that reads it here. So a call of a crowd (`handler.Crowd`) is refused when its first bytes are there. And a connection
that brings long ones is made *narrow*: its client is told that new streams have room for a beginning only. Who is let
in despite the crowd is given the rest of its window when that has come, for a round trip more than else.

A stream's window is what it was given less `unreturned_bytes`. What a narrow connection holds back counts among these,
so that nothing but their number knows of it, and the usual return (`Control.return_stream_window`) gives it.
"""

from __future__ import annotations

from math import inf
from typing import Final

from ringserve.frontend.buffers import LONG_BYTES
from ringserve.frontend.handler import Buffer, Crowd, EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.calls import Exchange, UnaryCall
from ringserve.frontend.http2.control import STREAM_WINDOW_BYTES
from ringserve.frontend.http2.grpc_messages import PREFIX_BYTES
from ringserve.frontend.http2.headers import HeaderCache
from ringserve.frontend.http2.refusing import Refusing
from ringserve.frontend.http2.sending import Host

#: What a client may send on a stream of a narrow connection before it is let in.
NARROW_BYTES: Final = 4_096
#: For how long no long call must have been refused before its connection is as wide as others.
CALM_NS: Final = 1_000_000_000


class Beginnings(Refusing):
    """The input of one connection, without the rest of what would be refused."""

    def __init__(self, host: Host, cache: HeaderCache, limits: EngineLimits) -> None:
        super().__init__(host, cache, limits)
        self._is_narrow = False
        self._refused_ns = 0  # when the last long call was
        #: By stream, the crowds of calls that were let in and have not come whole.
        self._coming: dict[int, Crowd] = {}

    def refuses(self, call: UnaryCall, beginning: Buffer) -> bool:
        """The first bytes of a call's input are there, and more is to come. Refuses the call if its lane is full."""
        if self._is_narrow and self.received_ns - self._refused_ns > CALM_NS:
            self._is_narrow = False
            self._resize()
        crowd = self._crowd_of(call, beginning) if self._crowds and self.told is None else None
        if crowd is None:
            return False
        size = int.from_bytes(beginning[1:PREFIX_BYTES], "big")
        room = crowd.room(call.request.timeout_ns - self.waited_ns())
        if room < 1:
            self._noise.forgive(1)  # its client has done nothing unusual
            call.fail(*crowd.refuse(1))
            self.crowded(crowd, size)
            return True
        if room == inf:
            self._disperse(size, crowd)
        else:
            self._coming[call.stream_id] = crowd
            crowd.comes(1)
        return False

    def _crowd_of(self, call: Exchange, beginning: Buffer) -> Crowd | None:
        """That of a message that begins so; None: it has none that its beginning and its length tell for sure."""
        request = call.request
        if not request.patience_ns or len(beginning) < PREFIX_BYTES or beginning[0]:
            return None
        for crowd in self._crowds.get(int.from_bytes(beginning[1:PREFIX_BYTES], "big"), ()):
            prefix = crowd.prefix
            if not crowd.suffix and beginning[PREFIX_BYTES : PREFIX_BYTES + len(prefix)] == prefix:
                return crowd if crowd.path == request.details.path else None
        return None

    def crowded(self, crowd: Crowd, size: int) -> None:
        super().crowded(crowd, size)
        # Of one that its beginning does not tell, narrow streams would only keep whole messages from coming.
        if size >= LONG_BYTES and not crowd.suffix and PREFIX_BYTES + len(crowd.prefix) <= NARROW_BYTES:
            self._refused_ns = self.received_ns
            self._is_narrow = True
            self._resize()

    def _withheld(self) -> int:
        """What new streams have less room for than else."""
        return STREAM_WINDOW_BYTES - NARROW_BYTES if self._is_narrow else 0

    def _resize(self) -> None:
        """Tells the client what new streams have room for, if that has changed. Open ones get back what they lose."""
        withheld_bytes = self._withheld()
        if withheld_bytes == self.withheld_bytes:
            return
        change, self.withheld_bytes = withheld_bytes - self.withheld_bytes, withheld_bytes
        self.write(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES - withheld_bytes}))
        self.work += len(self.streams)
        for call in self.streams.values():
            call.unreturned_bytes += change
            self.return_stream_window(call)

    def has_come(self, call: Exchange) -> None:
        """Its message is there, or never will be."""
        crowd = self._coming.pop(call.stream_id, None)
        if crowd is not None:
            crowd.comes(-1)

    def _forget_stream(self, call: Exchange) -> None:
        super()._forget_stream(call)
        self.has_come(call)

    def disconnected(self) -> None:
        super().disconnected()
        while self._coming:
            self._coming.popitem()[1].comes(-1)
