"""Request heads: llhttp reads each new one, the same bytes again need no reading.

A client that calls in a loop sends the same head every time, but for Content-Length. What a head means is a function
of its bytes, so all connections share one table from these bytes to the `Head`; only heads not seen lately, and bodies
in chunks, reach the parser.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

import httptools

from ringserve.frontend import request_ids
from ringserve.frontend.http1.exchange import Head

END_OF_HEAD: Final = b"\r\n\r\n"

_REQUEST_ID: Final = request_ids.HEADER.encode()

#: Heads longer than this are read anew each time, and so many are kept at most (a few MB).
_KEPT_BYTES_MAX: Final = 2048
_KEPT_MAX: Final = 4096

#: What a Host may consist of (RFC 3986 3.2.2, 3.2.3), roughly: nothing that ends an authority or begins another part.
_HOST: Final = re.compile(rb"[0-9A-Za-z\-._~!$&'()*+;=%:\[\]]*")

#: What a chunked body may have beside its content: so much (extensions, trailers), and so much more for every piece.
FRAMING_BYTES_MAX: Final = 65_536
_FRAMING_BYTES_PER_PIECE: Final = 16

#: Chunks taken before others get their turn, and the bytes between two looks at how many there were.
PIECES_AT_ONCE_MAX: Final = 2_048
_STEP_BYTES: Final = 8_192

#: What the decoder of chunked bodies is told in place of the real head.
_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class BadRequestError(Exception):
    """Bytes that are no request, or one that cannot be served: the status to answer, why, and its head if known."""

    def __init__(self, status: int, text: str, head: Head | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.head = head


class HeadParser:
    """Reads one head, in pieces if need be, none of them beyond its end. Also the target of llhttp's callbacks."""

    def __init__(self, headers_max: int) -> None:
        self._headers_max = headers_max
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._keeps_alive = False
        self._is_complete = False

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        # The parser forgets this when the request is over, which without a body is right behind its head.
        self._keeps_alive = self._parser.should_keep_alive()
        self._is_complete = True

    def feed(self, data: bytes) -> None:
        """Raises BadRequestError as soon as this cannot become a request any more."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer to change protocols, which may be ignored; CONNECT, which may not, is refused below
        except httptools.HttpParserInvalidMethodError as error:
            raise BadRequestError(501, str(error)) from None
        except httptools.HttpParserError as error:
            raise BadRequestError(400, str(error)) from None
        if len(self._headers) > self._headers_max:
            raise BadRequestError(431, f"more than {self._headers_max} headers")

    def head(self) -> Head:
        """The head, after its last byte was fed."""
        parser = self._parser
        version = parser.get_http_version()
        method = parser.get_method().decode("latin-1")
        if not self._is_complete:
            raise BadRequestError(400, "no end of the headers")
        if version not in ("1.0", "1.1"):
            raise BadRequestError(505, f"HTTP/{version} is not served here")
        if method == "CONNECT":
            raise BadRequestError(501, "this is no proxy")
        self._check_host(version)
        length, expects_continue, request_id = 0, False, ""
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)  # llhttp has checked that it is a number, and the only one
            elif name == b"transfer-encoding":
                # llhttp has checked that `chunked` is the last coding, and that there is no Content-Length.
                if value.lower() != b"chunked" or version == "1.0":
                    raise BadRequestError(501, "of all transfer codings only chunked is served, over HTTP/1.1")
                length = -1
            elif name == b"expect" and version == "1.1":
                if value.lower() != b"100-continue":
                    raise BadRequestError(417, "Expect may only say 100-continue")
                expects_continue = True
            elif name == _REQUEST_ID:
                request_id = request_id or request_ids.well_formed(value)
        return Head(
            method,
            _without_host(self._target.decode("latin-1")),
            tuple(self._headers),
            body_bytes=length,
            is_1_1=version == "1.1",
            keeps_alive=self._keeps_alive,
            expects_continue=expects_continue,
            request_id=request_id,
        )

    def _check_host(self, version: str) -> None:
        """RFC 9112 3.2: exactly one Host over HTTP/1.1, and never two, which two servers may choose between."""
        hosts = [value for name, value in self._headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise BadRequestError(400, "a request must say Host, once")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise BadRequestError(400, "this is no Host")


def _without_host(target: str) -> str:
    """Clients may send the whole URL, as they do to proxies."""
    if target.startswith("/") or "://" not in target:
        return target
    try:
        parts = urlsplit(target)
    except ValueError as error:
        raise BadRequestError(400, str(error)) from None
    return target[len(parts.scheme) + 3 + len(parts.netloc) :] or "/"


class HeadTable:
    """Every head seen lately, by its bytes. `headers_max`: as in Http1Limits."""

    def __init__(self, headers_max: int) -> None:
        self._headers_max = headers_max
        self._heads: dict[bytes, Head] = {}
        #: The head of these very bytes, or None.
        self.find = self._heads.get

    def read(self, data: bytes) -> Head:
        """The head of whole `data`, which ends where the head does. Raises BadRequestError."""
        parser = self.parser()
        parser.feed(data)
        head = parser.head()
        self.keep(data, head)
        return head

    def parser(self) -> HeadParser:
        """A parser for a head that arrives in pieces."""
        return HeadParser(self._headers_max)

    def keep(self, data: bytes, head: Head) -> None:
        """Remember a head. When the table is full it starts again empty: refilling costs each client some µs."""
        if len(data) <= _KEPT_BYTES_MAX:
            if len(self._heads) >= _KEPT_MAX:
                self._heads.clear()
            self._heads[data] = head


class ChunkedBody:
    """Takes a chunked body out of its chunks. Also the target of llhttp's callbacks.

    The parser gets a head of its own, so that nothing the real one says (an offer of another protocol, say) can make it
    read the body otherwise.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)
        self._last = b""
        self._spare_bytes = FRAMING_BYTES_MAX
        self.pieces: list[bytes] = []
        self.is_complete = False

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)
        self._spare_bytes += len(data) + _FRAMING_BYTES_PER_PIECE

    def on_message_complete(self) -> None:
        self.is_complete = True

    def feed_some(self, data: bytes) -> int:
        """`feed`, but no more of `data` than others can wait for: a read may hold tens of thousands of chunks."""
        size = 0
        while size < len(data) and not self.is_complete and len(self.pieces) < PIECES_AT_ONCE_MAX:
            size += self.feed(data[size : size + _STEP_BYTES])
        return size

    def feed(self, data: bytes) -> int:
        """Take bytes off `data`; returns how many. `pieces` grows by what they hold. Raises BadRequestError.

        A body ends in an empty line, so it never reaches over one: what follows may be another request, and must not
        be read before this one is answered.
        """
        end = (self._last + data).find(END_OF_HEAD)
        size = len(data) if end < 0 else end + len(END_OF_HEAD) - len(self._last)
        self._last = (self._last + data[:size])[-3:]
        try:
            self._parser.feed_data(data[:size])
        except httptools.HttpParserError as error:
            raise BadRequestError(400, str(error)) from None
        self._spare_bytes -= size
        if self._spare_bytes < 0:
            raise BadRequestError(400, "a body's chunks have too much beside their content")
        return size
