"""The bytes of an answer's head. Everything but the date and the length is made once for each kind of answer."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
CLOSE: Final = b"Connection: close\r\n"

_REASONS: Final = {**{status.value: status.phrase for status in HTTPStatus}, 499: "Client Closed Request"}
#: Kinds of answers that are kept; applications know few.
_KINDS_MAX: Final = 512


class AnswerHeads:
    """Makes the heads of answers. `refresh_date` is to be called about once a second."""

    def __init__(self) -> None:
        self._starts: dict[tuple[int, bytes, bytes, bytes], bytes] = {}
        self._date = b""
        self.refresh_date()

    def refresh_date(self) -> None:
        """Look at the clock for the Date of the answers to come."""
        self._date = f"Date: {formatdate(usegmt=True)}\r\nContent-Length: ".encode()

    def head(
        self, status: int, content_type: bytes, headers: bytes, connection: bytes, length: int, echo: bytes = b""
    ) -> bytes:
        """A whole head. headers, connection: header lines with their ends of line, or nothing. echo: a line of this one
        answer alone, with an end of line before it, or nothing."""
        key = (status, content_type, headers, connection)
        start = self._starts.get(key)
        if start is None:
            start = self._start(*key)
        return b"%b%b%d%b\r\n\r\n" % (start, self._date, length, echo)

    def _start(self, status: int, content_type: bytes, headers: bytes, connection: bytes) -> bytes:
        if len(self._starts) >= _KINDS_MAX:
            self._starts.clear()
        reason = _REASONS.get(status, "Unknown").encode()
        kind = b"Content-Type: %b\r\n" % content_type if content_type else b""
        start = b"HTTP/1.1 %d %b\r\n%b%b%b" % (status, reason, kind, headers, connection)
        self._starts[status, content_type, headers, connection] = start
        return start


def plain_page(status: int, text: str) -> tuple[bytes, bytes]:
    """An ErrorPage of plain text."""
    return f"{text}\n".encode(), b"text/plain; charset=utf-8"
