"""HTTP/2 frames (RFC 9113 4, 6, 7): numbers, error types, and the writing of every frame that the server sends.

Header blocks that we send are made of static-table indexes and literals *without* indexing only. They depend on no
table state, so most of them are constants, and no encoder has to be kept per connection.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
FRAME_BYTES_DEFAULT: Final = 16_384
FRAME_BYTES_CEILING: Final = 2**24 - 1
WINDOW_BYTES_DEFAULT: Final = 65_535
WINDOW_BYTES_CEILING: Final = 2**31 - 1
HEADER_TABLE_BYTES_DEFAULT: Final = 4_096

# Frame types, plain ints because the frame loop compares them for every frame.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

SETTINGS_HEADER_TABLE_SIZE: Final = 1
SETTINGS_ENABLE_PUSH: Final = 2
SETTINGS_MAX_CONCURRENT_STREAMS: Final = 3
SETTINGS_INITIAL_WINDOW_SIZE: Final = 4
SETTINGS_MAX_FRAME_SIZE: Final = 5
SETTINGS_MAX_HEADER_LIST_SIZE: Final = 6


class ErrorCode(IntEnum):
    """RFC 9113 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The client broke the protocol in a way that ends the connection (RFC 9113 5.4.1): GOAWAY with this code."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


class StreamFault(Exception):
    """The client broke the protocol in a way that ends one stream (RFC 9113 5.4.2): RST_STREAM with this code."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


#: Length and type of a frame as one number (length << 8 | type), flags, stream identifier with its reserved bit.
FRAME_HEADER: Final = Struct(">IBI")
#: That number of every RST_STREAM.
HEAD_RESET: Final = 4 << 8 | RST_STREAM
_SETTING: Final = Struct(">HI")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame, whole."""
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def unpadded(flags: int, payload: bytes | memoryview) -> bytes | memoryview:
    """The payload of a received frame without its padding (RFC 9113 6.1). ConnectionFault: there is none such."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without its padding's length")
    if payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(number, value) for number, value in values.items()))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def ping(payload: bytes, ack: bool) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last_stream_id: int, code: ErrorCode, text: str = "") -> bytes:
    head = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big")
    return frame(GOAWAY, 0, 0, head + text.encode("utf-8", "replace")[:256])


def headers(stream_id: int, block: bytes, end_stream: bool, frame_bytes_max: int) -> bytes:
    """A header block as one HEADERS frame and as many CONTINUATION frames as the peer's frame size asks for."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= frame_bytes_max:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[at : at + frame_bytes_max] for at in range(0, len(block), frame_bytes_max)]
    frames = [frame(HEADERS, flags, stream_id, parts[0])]
    frames += [frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream_id, parts[-1]))
    return b"".join(frames)


# Header blocks of answers.


def _string(value: bytes) -> bytes:
    """An HPACK string literal without Huffman coding (RFC 7541 5.1, 5.2): longer on the wire, cheaper at both ends."""
    length = len(value)
    if length < 127:
        return bytes((length,)) + value
    length -= 127
    head = [127]
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + value


def literal(name: bytes, value: bytes) -> bytes:
    """A field as a literal without indexing and with a new name (RFC 7541 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


_CONTENT_TYPE_GRPC: Final = b"\x0f\x10" + _string(b"application/grpc")  # static table 31: content-type

#: `:status: 200`, `content-type: application/grpc`.
RESPONSE_BLOCK: Final = b"\x88" + _CONTENT_TYPE_GRPC
#: `grpc-status: 0`.
TRAILERS_OK_BLOCK: Final = literal(b"grpc-status", b"0")

ACCEPT_ENCODING: Final = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")

#: Longest `grpc-message`, in bytes of its text. The API cuts texts much earlier; clients' header lists end at 8 KB.
STATUS_TEXT_BYTES_MAX: Final = 4_096

_PERCENT: Final = [bytes((b,)) if 0x20 <= b <= 0x7E and b != 0x25 else b"%%%02X" % b for b in range(256)]


def percent_encode(text: str) -> bytes:
    """gRPC's coding of `grpc-message`: UTF-8, every byte outside printable ASCII and `%` itself as `%XX`."""
    raw = text.encode("utf-8", "replace")[:STATUS_TEXT_BYTES_MAX]
    return b"".join([_PERCENT[byte] for byte in raw])


def status_block(code: int, text: str) -> bytes:
    """The trailers of a call that failed."""
    block = literal(b"grpc-status", b"%d" % code)
    return block + literal(b"grpc-message", percent_encode(text)) if text else block


@lru_cache(256)
def refusal_block(code: int, text: str, more: bytes = b"") -> bytes:
    """A trailers-only answer: the response headers and the trailers of a failed call in one block. Under overload many
    calls in turn are told the same, so the last ones are kept."""
    return RESPONSE_BLOCK + status_block(code, text) + more


def retry_pushback(retry_ms: int) -> bytes:
    """The trailer that tells a client with a retry policy when to come again."""
    return literal(b"grpc-retry-pushback-ms", b"%d" % retry_ms)


def request_id(value: bytes) -> bytes:
    """The trailer that tells a client what its request is called."""
    return literal(b"x-request-id", value)


def http_error_block(status: int, text: str) -> bytes:
    """The answer to a request that is not gRPC: an HTTP status, and a gRPC one for proxies that translate."""
    return (
        b"\x08" + _string(b"%d" % status) + _CONTENT_TYPE_GRPC + status_block(2 if status != 404 else 12, text)
    )  # 0x08: literal without indexing, name :status


# The two halves of a complete unary answer around its message, each one call of `pack`:
# HEADERS frame, DATA frame header, gRPC's five-byte prefix | message | HEADERS frame with END_STREAM.
_ANSWER_HEAD: Final = Struct(f">5sI{len(RESPONSE_BLOCK)}sIBIBI")
_ANSWER_TAIL: Final = Struct(f">5sI{len(TRAILERS_OK_BLOCK)}s")
_ANSWER_HEAD_START: Final = len(RESPONSE_BLOCK).to_bytes(3, "big") + bytes((HEADERS, END_HEADERS))
_ANSWER_TAIL_START: Final = len(TRAILERS_OK_BLOCK).to_bytes(3, "big") + bytes((HEADERS, END_HEADERS | END_STREAM))
_answer_head = _ANSWER_HEAD.pack
_answer_tail = _ANSWER_TAIL.pack


def answer_head(stream_id: int, message_bytes: int) -> bytes:
    """Everything of a unary answer that stands before its message, which must fit one DATA frame."""
    return _answer_head(
        _ANSWER_HEAD_START, stream_id, RESPONSE_BLOCK, message_bytes + 5 << 8, 0, stream_id, 0, message_bytes
    )


@lru_cache(256)
def whole_answers(head: bytes, body_bytes: int, tail: bytes) -> tuple[Callable[..., bytes], tuple[bytes, ...]]:
    """For unary answers whose messages are `head`, so many other bytes, and `tail`: (pack, pieces). All of one is
    `pack(pieces[0], stream_id, pieces[1], stream_id, pieces[2], those bytes, pieces[3], stream_id, pieces[4])`."""
    message_bytes = len(head) + body_bytes + len(tail)
    pieces = (
        _ANSWER_HEAD_START,
        RESPONSE_BLOCK + (message_bytes + 5 << 8).to_bytes(4, "big") + b"\0",
        b"\0" + message_bytes.to_bytes(4, "big") + head,
        tail + _ANSWER_TAIL_START,
        TRAILERS_OK_BLOCK,
    )
    first, second, third, fourth, last = (f"{len(piece)}s" for piece in pieces)
    return Struct(f">{first}I{second}I{third}{body_bytes}s{fourth}I{last}").pack, pieces


def named_tail(stream_id: int, name: bytes) -> bytes:
    """The same as `answer_tail` with one more trailer, from `request_id`."""
    return frame(HEADERS, END_HEADERS | END_STREAM, stream_id, TRAILERS_OK_BLOCK + name)


def answer_tail(stream_id: int) -> bytes:
    """Everything of a unary answer that stands after its message."""
    return _answer_tail(_ANSWER_TAIL_START, stream_id, TRAILERS_OK_BLOCK)
