"""What has come from the client and is not handled yet: a frame's beginning, and what one read holds too much of.

A read may hold thousands of frames. Only a part of them is handled at a time (`Connection._frames` says how much); the
rest waits here until the host, which reads nothing meanwhile, calls `go_on`. A DATA frame longer than those that every
server takes is handled in *parts*, as they come: nothing of it is kept here.
"""

from __future__ import annotations

from typing import Final

from ringserve.frontend.http2.control import CONNECTION_WINDOW_BYTES, Control
from ringserve.frontend.http2.frames import (
    DATA,
    FRAME_BYTES_DEFAULT,
    FRAME_HEADER,
    PADDED,
    PREFACE,
    ConnectionFault,
    ErrorCode,
)
from ringserve.frontend.http2.sending import Host

#: Largest DATA frame that we take, unpadded; every other frame is as long as the least limit allows (RFC 9113 4.2) at
#: most, except for header blocks. A frame costs some microseconds whatever its length, and what is read of a longer one
#: can go to its place in one piece.
FRAME_BYTES_MAX: Final = 2**18
#: What must come of a part from one look at stalled clients to the next.
_PROGRESS_BYTES: Final = 16_384
#: Pieces of a frame that are kept apart: a byte that comes alone takes forty.
_PIECES_MAX: Final = 64


class Arriving(Control):
    """The input of one connection, cut where it must be.

    part_bytes: what is still to come of a DATA frame that is handled in parts.
    """

    def __init__(self, host: Host, unsent_bytes_max: int) -> None:
        super().__init__(host, unsent_bytes_max)
        self._preface_seen = False
        self._partial: list[bytes] = []  # a frame that has not come whole
        self._partial_bytes = 0
        self._partial_need = len(PREFACE)
        self._block: list[bytes] = []  # fragments of a header block that CONTINUATION frames go on with
        self._rest = b""  # what is left of a read, from `_rest_at` on
        self._rest_at = 0
        self.part_bytes = 0
        self._part_flags = 0
        self._part_stream_id = 0
        self._part_beginning: list[bytes] = []  # another list whenever enough of it has come
        self._part_came_bytes = 0

    @property
    def has_rest(self) -> bool:
        """More has come than was to be handled at once: nothing is to be read until `go_on` has handled the rest."""
        return bool(self._rest)

    def waited_ns(self) -> int:
        """How long what is handled now has waited since it came, as far as that is known."""
        return self.host.clock_ns() - self.received_ns

    def go_on(self) -> None:
        """Handles the next part of what `receive` left."""
        data, at, self._rest = self._rest, self._rest_at, b""
        self._receive(data, at)

    def receive(self, data: bytes, received_ns: int = 0) -> None:
        """Handles the next bytes from the client, or as many as others can wait for. Raises nothing, whatever comes.

        received_ns: when they came, by the host's clock; 0: now.
        """
        if self._rest:
            self._rest += data  # which nobody asked for
        elif not self.is_closing:
            self.received_ns = received_ns or self.host.clock_ns()
            self._receive(data, -1)

    def _receive(self, data: bytes, at: int) -> None:
        """Handles bytes from `at` on; -1: from the beginning, which may be the end of a frame that began earlier."""
        if self.is_closing:
            return
        self.work = 0
        try:
            if at < 0:
                at = self._complete_partial(data) if self._partial_need else 0
            if at >= 0 and self.part_bytes and not self.is_closing:
                at = self._take_part(memoryview(data), at)
            if at >= 0 and not self.is_closing:
                self._frames(data, at)
            if self._received_bytes > CONNECTION_WINDOW_BYTES // 2:
                self._return_connection_window()
        except ConnectionFault as fault:
            self.close(fault.code, fault.text)

    def receive_part(self, piece: memoryview, received_ns: int) -> None:
        """As `receive`, for what was read in place: bytes of the part that is coming, no more of them."""
        if not self.is_closing:
            self.received_ns = received_ns
            self.work = 0
            try:
                self._take_part(piece, 0)
                if self._received_bytes > CONNECTION_WINDOW_BYTES // 2:
                    self._return_connection_window()
            except ConnectionFault as fault:
                self.close(fault.code, fault.text)

    def _take_part(self, data: memoryview, at: int) -> int:
        """Hands on what came of a DATA frame. Where the next frame begins; -1: not here."""
        piece = data[at : at + self.part_bytes]
        self.part_bytes -= len(piece)
        self._part_came_bytes += len(piece)
        if self._part_came_bytes >= _PROGRESS_BYTES:
            self._part_came_bytes, self._part_beginning = 0, [b""]
        self._part(self._part_stream_id, piece, self._part_flags if not self.part_bytes else 0)
        return -1 if self.part_bytes else at + len(piece)

    def _begin_part(self, flags: int, stream_id: int, nbytes: int, piece: memoryview) -> None:
        """A DATA frame of `nbytes` has begun with this piece of its payload."""
        self._check_order(DATA, flags, stream_id)
        self.part_bytes, self._part_flags, self._part_stream_id = nbytes, flags, stream_id
        self._part_came_bytes, self._part_beginning = 0, [b""]
        self._hold(b"", 0)
        if piece:
            self._take_part(piece, 0)

    def _part(self, stream_id: int, piece: memoryview, flags: int) -> None:
        """A piece of a DATA frame's payload; flags: of the frame, 0 if more of it is to come."""
        raise NotImplementedError

    def _check_order(self, kind: int, flags: int, stream_id: int) -> None:
        """ConnectionFault: no such frame may come now."""
        raise NotImplementedError

    def _complete_partial(self, data: bytes) -> int:
        """Completes and handles the frame that began earlier. Where the next one begins in `data`; -1: not here.

        Only that frame is put together; joining it with all of `data` would copy every byte of a busy connection.
        """
        at = 0
        while self._partial_need and not self.is_closing:
            missing = self._partial_need - self._partial_bytes
            piece = data[at : at + missing]
            self._partial.append(piece)
            if len(self._partial) > _PIECES_MAX:
                self._partial[:] = [b"".join(self._partial)]
            self._partial_bytes += len(piece)
            whole = len(piece) == missing
            if not self._preface_seen:
                self._preface(b"".join(self._partial))
            elif whole:
                self._frames(b"".join(self._partial), 0)  # or it was the head only: then the rest is missing now
            if not whole:
                return -1
            at += missing
        return at

    def _preface(self, data: bytes) -> None:
        if not PREFACE.startswith(data):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        if len(data) == len(PREFACE):
            self._preface_seen = True
            self._hold(b"", 0)

    def beginning(self) -> list[bytes]:
        """The header block or the frame that the client has begun: the same list until something has come of it."""
        return self._block or self._partial or (self._part_beginning if self.part_bytes else [])

    def _hold(self, rest: bytes, need_bytes: int) -> None:
        """Keeps the beginning of a frame until `need_bytes` of it are there."""
        if rest:
            self._partial, self._partial_bytes, self._partial_need = [rest], len(rest), need_bytes
        elif self._partial_need:
            self._partial, self._partial_bytes, self._partial_need = [], 0, 0

    def _frames(self, data: bytes, at: int) -> None:
        """Handles the whole frames from `at` on, not more of them than others can wait for; the rest to `_keep`."""
        raise NotImplementedError

    def _keep(self, data: bytes, at: int) -> None:
        """What was not handled of `data`: the beginning of a frame, or as much as others must not wait for."""
        missing = 9
        if at + 9 <= len(data):
            head, flags, stream_id = FRAME_HEADER.unpack_from(data, at)
            missing += head >> 8
            is_plain = head & 255 == DATA and not flags & PADDED
            if at + missing > len(data) and is_plain and FRAME_BYTES_DEFAULT < head >> 8 <= FRAME_BYTES_MAX:
                self._begin_part(flags, stream_id & 0x7FFFFFFF, head >> 8, memoryview(data)[at + 9 :])
                return
            if at + missing <= len(data) or missing > 9 + FRAME_BYTES_MAX:
                self._rest, self._rest_at = data, at
                self._hold(b"", 0)
                return
        self._hold(data[at:], missing)
