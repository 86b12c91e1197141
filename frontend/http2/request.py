"""From header fields to a request: the rules of RFC 9113 8 and of gRPC's HTTP/2 mapping, one field at a time.

A field is judged once (`judge`) and its verdict is remembered by `headers.py`; a request is put together from judged
fields (`build`). A request is immutable and shared by every call whose header block has the same bytes.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from ringserve.frontend import request_ids
from ringserve.frontend.handler import PATIENCE_PART, TIMEOUT_NS_MAX, Methods, StreamHandler, UnaryHandler
from ringserve.frontend.http2 import frames
from ringserve.frontend.status import grpc_text

UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
RESOURCE_EXHAUSTED: Final = 8

Metadata = tuple[tuple[str, bytes], ...]

#: Fields of one header list, which may be written with a byte each and cost some microseconds each; and values that one
#: binary field has, which may be, too.
FIELDS_MAX: Final = 512

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # a token of RFC 9110 5.6.2 without capitals
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(?:[+;]|\Z)")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_UNIT_NS: Final = {
    b"H": 3_600_000_000_000,
    b"M": 60_000_000_000,
    b"S": 1_000_000_000,
    b"m": 1_000_000,
    b"u": 1_000,
    b"n": 1,
}
_CONNECTION_FIELDS: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)  # RFC 9113 8.2.2
_PSEUDO_FIELDS: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
#: Headers of the protocol itself, which are not metadata. `frontend/grpcio_engine.py` leaves out the same ones.
RESERVED_FIELDS: Final = frozenset(
    b"te content-type content-length host user-agent grpc-timeout grpc-encoding grpc-accept-encoding "
    b"grpc-message-type accept-encoding".split()
)
_SPECIAL_FIELDS: Final = _PSEUDO_FIELDS | {b"te", b"content-type", b"content-length", b"grpc-encoding"}


# What a field does to its request. Plain ints: a member of an enum costs more to fetch than to compare.
IGNORED: Final = 0  # nothing
METADATA: Final = 1  # adds `pairs`
TIMEOUT: Final = 2  # sets `timeout_ns`
SPECIAL: Final = 3  # `build` looks at name and value
MALFORMED: Final = 4  # makes the request malformed (RFC 9113 8.1.1)
REFUSED: Final = 5  # well-formed HTTP that gRPC does not allow: the call is answered INTERNAL
ECHOED: Final = 6  # adds `pairs`, and is told back in the trailers: the request's id


class Field(NamedTuple):
    """A judged header field. `list_bytes` is its share of the header list's size (RFC 9113 6.5.2)."""

    kind: int
    name: bytes
    value: bytes
    list_bytes: int
    timeout_ns: int
    pairs: Metadata
    text: str


class Details(NamedTuple):
    """The part of a request that the fast path never looks at."""

    path: str
    stream: StreamHandler | None
    encoding: str  # "", "gzip" or "deflate"
    malformed: str  # why the request is malformed, or ""
    refusal: bytes  # header block of the trailers-only answer, or b""
    refused: tuple[int, str]  # its code and text
    weight: int  # what reading it counts for when it becomes no call: long lists cost more than they show


class Request:
    """What a header block asks for.

    unary: the handler, or None for everything that is not a well-formed unary call of a known method.
    body_bytes: `content-length`, -1 without. timeout_ns: 0 without. echo: a piece of header block that belongs to the
    answer's trailers. patience_ns: a call that has waited for longer to be read is refused; 0: none is.
    """

    __slots__ = ("body_bytes", "details", "echo", "metadata", "patience_ns", "timeout_ns", "unary")

    def __init__(
        self,
        unary: UnaryHandler | None,
        body_bytes: int,
        timeout_ns: int,
        metadata: Metadata,
        details: Details,
        echo: bytes = b"",
        patience_ns: int = 0,
    ) -> None:
        self.patience_ns = patience_ns
        self.unary = unary
        self.body_bytes = body_bytes
        self.timeout_ns = timeout_ns
        self.metadata = metadata
        self.details = details
        self.echo = echo


def judge(name: bytes, value: bytes) -> Field:
    """The verdict on one field, which depends on nothing else."""
    kind, key, text = _names.get(name) or _judge_name(name)
    size = len(name) + len(value) + 32
    if b"\x00" in value or b"\r" in value or b"\n" in value:
        return Field(MALFORMED, name, value, size, 0, (), "forbidden byte in a header value")
    # RFC 9113 8.2.1 allows no white space at the ends of any value. gRPC's mapping says of metadata that it may be
    # stripped, and gRPC's own clients send what their callers gave them.
    if kind != METADATA and value != value.strip(b" \t"):
        return Field(MALFORMED, name, value, size, 0, (), "white space at an end of a header value")
    if kind == METADATA:
        if not key.endswith("-bin"):
            plain = value.strip(b" \t")
            if key == request_ids.HEADER and request_ids.well_formed(plain):
                kind = ECHOED
            return Field(kind, name, value, size, 0, ((key, plain),), "")
        try:
            return Field(kind, name, value, size, 0, binary_pairs(key, value), "")
        except ValueError:
            return Field(REFUSED, name, value, size, 0, (), "malformed binary metadata")
    if kind == TIMEOUT:
        timeout_ns = parse_timeout(value)
        if timeout_ns < 0:
            return Field(REFUSED, name, value, size, 0, (), "malformed grpc-timeout")
        return Field(kind, name, value, size, timeout_ns, (), "")
    return Field(kind, name, value, size, 0, (), text)


#: Verdicts on names: kind, the name as text, and what is wrong with it. Bounded; emptied when it is full.
_names: dict[bytes, tuple[int, str, str]] = {}
_NAMES_MAX: Final = 512


def _judge_name(name: bytes) -> tuple[int, str, str]:
    kind, text = METADATA, ""
    if name in _SPECIAL_FIELDS:
        kind = SPECIAL
    elif not _NAME.fullmatch(name):
        kind, text = MALFORMED, "bad header name"
    elif name in _CONNECTION_FIELDS:
        kind, text = MALFORMED, "connection-specific header"
    elif name == b"grpc-timeout":
        kind = TIMEOUT
    elif name in RESERVED_FIELDS:
        kind = IGNORED
    verdict = (kind, name.decode("latin-1"), text)
    if len(name) <= 128:
        if len(_names) >= _NAMES_MAX:
            _names.clear()
        _names[name] = verdict
    return verdict


def parse_timeout(value: bytes) -> int:
    """`grpc-timeout` in ns, at least 1 because 0 means "none" elsewhere; -1 when it is malformed.

    At most `TIMEOUT_NS_MAX`: eight digits of hours are more than a 64-bit number of nanoseconds holds.
    """
    unit_ns = _UNIT_NS.get(value[-1:], 0)
    digits = value[:-1]
    if not unit_ns or not digits.isdigit() or len(digits) > 8:
        return -1
    return min(int(digits) * unit_ns, TIMEOUT_NS_MAX) or 1


def binary_pairs(key: str, value: bytes) -> Metadata:
    """A `-bin` header as metadata; it may hold several values. ValueError: not base64, or too many."""
    pairs = []
    if value.count(b",") >= FIELDS_MAX:
        raise ValueError(f"more than {FIELDS_MAX} values")
    for part in value.split(b","):
        part = part.strip(b" \t=")
        try:
            pairs.append((key, binascii.a2b_base64(part + b"=" * (-len(part) % 4), strict_mode=True)))
        except binascii.Error as error:
            raise ValueError(str(error)) from error
    return tuple(pairs)


def build(fields: Iterable[Field], methods: Methods, list_bytes_max: int) -> Request:
    """The request that judged fields make. Never raises: what is wrong with it stands in its details."""
    special: dict[bytes, bytes] = {}
    timeout_ns, list_bytes, fields_count, regular_seen = 0, 0, 0, False
    metadata: list[tuple[str, bytes]] = []
    malformed = refused = ""
    echo = b""
    for field in fields:
        list_bytes += field.list_bytes
        fields_count += 1
        if field.name[:1] != b":":
            regular_seen = True
        elif regular_seen:
            malformed = malformed or "pseudo-header after a header"
        if field.kind == METADATA:
            metadata += field.pairs
        elif field.kind == ECHOED:
            metadata += field.pairs
            echo = echo or echo_of(field)
        elif field.kind == TIMEOUT:
            timeout_ns = field.timeout_ns
        elif field.kind == SPECIAL:
            repeats = field.name in special
            if repeats and (field.name in _PSEUDO_FIELDS or special[field.name] != field.value):
                malformed = malformed or f"repeated {field.name.decode()}"
            special[field.name] = field.value
        elif field.kind == MALFORMED:
            malformed = malformed or field.text
        elif field.kind == REFUSED:
            refused = refused or field.text
    path = special.get(b":path", b"").decode("latin-1")
    body = special.get(b"content-length")
    malformed = malformed or _missing(special)
    body_bytes = int(body) if body is not None and _DIGITS.fullmatch(body) else -1
    refusal, code, text = b"", 0, ""
    if not malformed:
        refusal, code, text = _refusal(special, methods, path, refused, list_bytes > list_bytes_max)
        refusal += echo if refusal else b""
    encoding = special.get(b"grpc-encoding", b"identity").decode("latin-1")
    sound = not malformed and not refusal
    details = Details(
        path,
        methods.stream.get(path) if sound else None,
        "" if encoding == "identity" else encoding,
        malformed,
        refusal,
        (code, text),
        fields_count >> 4,
    )
    unary = methods.unary.get(path) if sound else None
    patience_ns = patience_of(timeout_ns, path, methods)
    return Request(unary, body_bytes, timeout_ns, tuple(metadata), details, echo, patience_ns)


def patience_of(timeout_ns: int, path: str, methods: Methods) -> int:
    """A request's patience_ns."""
    return timeout_ns // PATIENCE_PART if path in methods.heavy else 0


def echo_of(field: Field) -> bytes:
    """What tells a client the id that it sent in this field."""
    return frames.request_id(field.pairs[0][1])


def _missing(special: dict[bytes, bytes]) -> str:
    """Why these pseudo-headers and special headers cannot make a request (RFC 9113 8.3.1, 8.2.2), or ""."""
    if special.get(b":method") == b"CONNECT":
        return "" if b":scheme" not in special and b":path" not in special else "CONNECT with :scheme or :path"
    for name in (b":method", b":scheme", b":path"):
        if not special.get(name):
            return f"no {name.decode()}"
    if special.get(b"te", b"trailers").lower() != b"trailers":
        return "te is not trailers"
    if not _DIGITS.fullmatch(special.get(b"content-length", b"0")):
        return "bad content-length"
    return ""


def _refusal(
    special: dict[bytes, bytes], methods: Methods, path: str, refused: str, oversized: bool
) -> tuple[bytes, int, str]:
    """The answer to a well-formed request that no handler will see, with its code and text; b"" without one."""
    if special[b":method"] != b"POST":
        return _http_error(405, "gRPC calls use POST")
    content_type = special.get(b"content-type", b"").lower()
    if not _CONTENT_TYPE.match(content_type):
        return _http_error(415, "content-type is not application/grpc")
    if oversized:
        return _failure(RESOURCE_EXHAUSTED, "request headers are too large")
    if path not in methods.unary and path not in methods.stream:
        return _failure(UNIMPLEMENTED, grpc_text(f"unknown method {path}"))
    if refused:
        return _failure(INTERNAL, refused)
    if special.get(b"grpc-encoding", b"identity") not in (b"identity", b"gzip", b"deflate"):
        encoding = special[b"grpc-encoding"].decode("latin-1")
        return _failure(UNIMPLEMENTED, f"grpc-encoding {encoding} is not supported", frames.ACCEPT_ENCODING)
    return b"", 0, ""


def _http_error(status: int, text: str) -> tuple[bytes, int, str]:
    return frames.http_error_block(status, text), UNKNOWN, text


def _failure(code: int, text: str, more: bytes = b"") -> tuple[bytes, int, str]:
    return frames.refusal_block(code, text, more), code, text
