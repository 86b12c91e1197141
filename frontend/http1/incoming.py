"""The body of one request while it comes: its bytes, out of their chunks, and how much of them comes in a while."""

from __future__ import annotations

from ringserve.frontend.http1.exchange import Head
from ringserve.frontend.http1.heads import BadRequestError, ChunkedBody


class IncomingBody:
    """head: of its request. began_ns: when it began. window_bytes: came since somebody last set it to 0.

    bytes_max: larger bodies are refused. Raises BadRequestError for those, and for what is no body.
    """

    __slots__ = ("_bytes_max", "_data", "_decoder", "_missing", "began_ns", "head", "is_complete", "window_bytes")

    def __init__(self, head: Head, bytes_max: int, began_ns: int) -> None:
        self.head = head
        self.began_ns = began_ns
        self.is_complete = False
        self.window_bytes = 0
        self._bytes_max = bytes_max
        self._check(head.body_bytes)
        self._data = bytearray()
        self._missing = head.body_bytes
        self._decoder = ChunkedBody() if head.body_bytes < 0 else None

    def __len__(self) -> int:
        """Bytes so far."""
        return len(self._data)

    def feed(self, data: bytes) -> int:
        """Take bytes off `data`, or as many as others can wait for; returns how many."""
        decoder = self._decoder
        if decoder is None:
            size = min(len(data), self._missing)
            self._missing -= size
            self._data += data if size == len(data) else data[:size]
            self.is_complete = not self._missing
        else:
            size = decoder.feed_some(data)
            for piece in decoder.pieces:
                self._data += piece
            decoder.pieces.clear()
            self.is_complete = decoder.is_complete
            self._check(len(self._data))
        self.window_bytes += size
        return size

    def take(self, copy_below_bytes: int) -> bytes | bytearray:
        """All of it, once. Up to that size it is a copy of the size that it needs."""
        data, self._data = self._data, bytearray()
        return bytes(data) if len(data) <= copy_below_bytes else data

    def _check(self, size: int) -> None:
        if size > self._bytes_max:
            text = f"a request body may have {self._bytes_max} bytes at most; raise rest_body_bytes_max"
            raise BadRequestError(413, text, self.head)
