"""Reading the bytes of a long message to where they belong: while they come, they take the place of the protocol.

The event loop else reads into a buffer of its own and makes `bytes` of it, from which a message is put together: two
copies and their memory, which a long message need not have. Each read is the rest of a frame and the head of the next
one, which lies where that frame's bytes go and is overwritten by them. After a message comes a short read aside, so
that the next one's bytes are still in the socket when its place is known.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ringserve.frontend.http2.protocol import EngineProtocol

#: What must be missing of a frame; for less the change of protocols costs as much as the copies.
IN_PLACE_BYTES_MIN: Final = 32_768
_ASIDE_BYTES: Final = 16_384


class InPlace(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol as long as one long message comes after another."""

    def __init__(self, protocol: EngineProtocol) -> None:
        self._protocol = protocol
        self._room: memoryview | None = None
        self._part_bytes = 0
        self._aside = bytearray()
        # Whatever a transport asks a protocol for, but reading.
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign, assignment]

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        connection = self._protocol.connection
        self._part_bytes = connection.part_bytes
        room = self._room = connection.room()
        if room is None and not self._aside:
            self._aside = bytearray(_ASIDE_BYTES)
        return self._aside if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        protocol, room, self._room = self._protocol, self._room, None
        if room is None:
            protocol.read(bytes(self._aside[:nbytes]))
            if protocol.connection.room() is None:  # short messages, or the rest of one that nobody wants any more
                protocol.read_as_usual()
            return
        inside = min(nbytes, self._part_bytes)
        protocol.read_part(room[:inside], bytes(room[inside:nbytes]), nbytes == len(room))
