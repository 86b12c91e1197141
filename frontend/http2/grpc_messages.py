"""gRPC messages inside DATA frames: the five-byte prefix (compressed flag, length), and compression.

Frames and messages do not line up, so a reader collects the pieces of a message and joins them once. The bytes of a
long message go to their place at once (`buffers.py`), where the host may read them to, too (`room`).
"""

from __future__ import annotations

from typing import Final

from ringserve.frontend import inflate
from ringserve.frontend.buffers import LONG_BYTES, Buffers
from ringserve.frontend.handler import Buffer
from ringserve.frontend.http2.request import INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED

PREFIX_BYTES: Final = 5
#: Room behind a long message: for the head of the frame that follows, which is read with the bytes before it.
_BEHIND_BYTES: Final = 9
#: What a held piece costs beside its bytes; it is counted, so that tiny frames cannot hold much memory.
_PIECE_BYTES: Final = 64
#: Compressed messages up to this are decompressed at once: they hold 4 MiB at most, which take milliseconds.
_QUICK_BYTES_MAX: Final = 4_096
_WRAPPERS: Final = {"gzip": inflate.GZIP, "deflate": inflate.ZLIB}


class MessageFault(Exception):
    """The message cannot be read: the call ends with this status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


#: The compressed flag and the bytes of a message as they came. Decompressing waits until somebody takes it.
RawMessage = tuple[int, Buffer]


class MessageReader:
    """The incoming messages of one stream.

    held_bytes: memory that the pieces of the incomplete message take. buffers: where long messages lie; without it, or
    where it has no room, they are joined like others.
    """

    __slots__ = (
        "_buffers",
        "_came_bytes",
        "_encoding",
        "_flag",
        "_inflated_bytes_max",
        "_message_bytes_max",
        "_need_bytes",
        "_piece_bytes",
        "_pieces",
        "_place",
        "held_bytes",
    )

    def __init__(
        self, encoding: str, message_bytes_max: int, inflated_bytes_max: int, buffers: Buffers | None = None
    ) -> None:
        self._encoding = encoding
        self._message_bytes_max = message_bytes_max
        self._inflated_bytes_max = min(inflated_bytes_max, message_bytes_max)
        self._pieces: list[bytes] = []
        self._piece_bytes = 0
        self._need_bytes = PREFIX_BYTES
        self._buffers = buffers
        self._place: memoryview | None = None  # of the long message that comes
        self._flag = 0
        self._came_bytes = 0
        self.held_bytes = 0

    def feed(self, piece: Buffer) -> list[RawMessage]:
        """Takes the next bytes of the stream; the messages that they complete. MessageFault: one is too large."""
        if self._place is not None:
            return self._feed_place(self._place, piece)
        if not isinstance(piece, bytes):
            piece = bytes(piece)
        self._pieces.append(piece)
        self._piece_bytes += len(piece)
        self.held_bytes += len(piece) + _PIECE_BYTES
        if self._piece_bytes < self._need_bytes:
            return []
        return self._cut()

    def room(self, nbytes: int) -> memoryview | None:
        """Where the next `nbytes` of the stream can be read to, and the head of a frame behind them. Feed them then.

        None: they do not all belong to a long message.
        """
        place, at = self._place, self._came_bytes
        if place is None or at + nbytes > len(place) - _BEHIND_BYTES:
            return None
        return place[at : at + nbytes + _BEHIND_BYTES]

    def _feed_place(self, place: memoryview, piece: Buffer) -> list[RawMessage]:
        at = self._came_bytes
        size = len(place) - _BEHIND_BYTES
        count = min(len(piece), size - at)
        if not isinstance(piece, memoryview) or piece.obj is not place.obj:  # else it was read into `room`
            place[at : at + count] = piece[:count]
        self._came_bytes = at + count
        self.held_bytes += count
        if self._came_bytes < size:
            return []
        message = (self._flag, place[:size])
        self._place = None
        self._hold(b"")
        return [message, *(self.feed(piece[count:]) if count < len(piece) else ())]

    def _begin_place(self, flag: int, size: int, beginning: bytes) -> bool:
        """Whether the message that begins so goes to a block of its own from now on."""
        place = self._buffers.take(size + _BEHIND_BYTES) if self._buffers is not None else None
        if place is None:
            return False
        self._hold(b"")
        self._place, self._flag, self._came_bytes = place, flag, len(beginning)
        place[: len(beginning)] = beginning
        self.held_bytes = len(beginning) + _PIECE_BYTES
        return True

    def _cut(self) -> list[RawMessage]:
        messages: list[RawMessage] = []
        if self._need_bytes > PREFIX_BYTES and self._piece_bytes == self._need_bytes:
            # The common end of a long message. Its first piece gives up the prefix, so that the join is the message.
            first = self._pieces[0]
            if len(first) >= PREFIX_BYTES:
                self._pieces[0] = first[PREFIX_BYTES:]
                messages.append((first[0], b"".join(self._pieces)))
                self._hold(b"")
                return messages
        data = b"".join(self._pieces)
        at = 0
        need = PREFIX_BYTES
        while len(data) - at >= PREFIX_BYTES:
            size = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
            if size > self._message_bytes_max:
                raise MessageFault(
                    RESOURCE_EXHAUSTED,
                    f"Received message larger than max ({size} vs. {self._message_bytes_max})",
                )
            need = PREFIX_BYTES + size
            if len(data) - at < need:
                if size >= LONG_BYTES and self._begin_place(data[at], size, data[at + PREFIX_BYTES :]):
                    return messages
                break
            messages.append((data[at], data[at + PREFIX_BYTES : at + need]))
            at += need
            need = PREFIX_BYTES
        self._hold(data[at:])
        self._need_bytes = need
        return messages

    def _hold(self, rest: bytes) -> None:
        self._pieces = [rest] if rest else []
        self._piece_bytes = len(rest)
        self.held_bytes = len(rest) + _PIECE_BYTES if rest else 0
        self._need_bytes = PREFIX_BYTES

    @property
    def is_inside_message(self) -> bool:
        return self._piece_bytes > 0 or self._place is not None

    def is_long_work(self, raw: RawMessage) -> bool:
        """Whether `decoded` may take so long that others would have to wait for it."""
        return bool(raw[0]) and len(raw[1]) > _QUICK_BYTES_MAX

    def decoded(self, raw: RawMessage) -> Buffer:
        """The message itself. MessageFault: it cannot be decompressed, or not within the limit."""
        flag, message = raw
        if flag == 0:
            return message
        if flag != 1:
            raise MessageFault(INTERNAL, f"bad compressed flag {flag} of a message")
        if not self._encoding:
            raise MessageFault(INTERNAL, "compressed message without grpc-encoding")
        return decompress(self._encoding, message, self._inflated_bytes_max)


def decompress(encoding: str, data: Buffer, bytes_max: int) -> bytes:
    """`data` decompressed. MessageFault: damaged, or more than `bytes_max` (never produced to find that out)."""
    wrapper = _WRAPPERS.get(encoding)
    if wrapper is None:
        raise MessageFault(UNIMPLEMENTED, f"grpc-encoding {encoding} is not supported")
    try:
        return inflate.inflate(data, wrapper, bytes_max)
    except inflate.DamagedError as error:
        raise MessageFault(INTERNAL, f"damaged {encoding} message: {error}") from error
    except inflate.TooLargeError as error:
        text = f"Received message larger than max ({bytes_max}) after decompression"
        raise MessageFault(RESOURCE_EXHAUSTED, text) from error
