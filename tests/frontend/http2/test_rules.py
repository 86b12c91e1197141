"""Goal: every rule of RFC 9113 that a server must enforce has a row. Method: a row is what a client sends after a
correct beginning, and how the server must end the stream, or the connection, or that it must not mind.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arriving import FRAME_BYTES_MAX
from ringserve.frontend.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    frame,
)
from tests.frontend.http2.peer import ECHO, HOLD, Peer, answers, changed, goaway, message, request_fields, u32

E = ErrorCode
Write = Callable[[Peer], bytes]


def setting(number: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, number.to_bytes(2, "big") + u32(value))


CONNECTION_FAULTS: dict[str, tuple[ErrorCode, Write]] = {
    "frame too large": (E.FRAME_SIZE_ERROR, lambda p: p.headers(1) + p.data(1, bytes(FRAME_BYTES_MAX + 1))),
    "frame too large, not yet complete": (E.FRAME_SIZE_ERROR, lambda p: p.data(1, bytes(FRAME_BYTES_MAX + 1))[:20]),
    "DATA on stream 0": (E.PROTOCOL_ERROR, lambda p: p.data(0, b"")),
    "DATA on an idle stream": (E.PROTOCOL_ERROR, lambda p: p.data(1, b"")),
    "DATA on a stream of the server": (E.PROTOCOL_ERROR, lambda p: p.data(2, b"")),
    "DATA with all padding": (E.PROTOCOL_ERROR, lambda p: p.headers(1) + frame(DATA, PADDED, 1, b"\x06abcde")),
    "DATA without pad length": (E.FRAME_SIZE_ERROR, lambda p: p.headers(1) + frame(DATA, PADDED, 1)),
    "HEADERS on stream 0": (E.PROTOCOL_ERROR, lambda p: p.headers(0)),
    "HEADERS on an even stream": (E.PROTOCOL_ERROR, lambda p: p.headers(2)),
    "HEADERS on a closed stream": (E.STREAM_CLOSED, lambda p: p.call(1) + p.headers(1)),
    "HEADERS on a skipped stream": (E.STREAM_CLOSED, lambda p: p.call(3) + p.headers(1)),
    "HEADERS too short for priority": (
        E.FRAME_SIZE_ERROR,
        lambda p: frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 1, b"1234"),
    ),
    "HEADERS with all padding": (E.PROTOCOL_ERROR, lambda p: frame(HEADERS, END_HEADERS | PADDED, 1, b"\x04abc")),
    "header block interrupted by another frame": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1, flags=0) + frames.ping(bytes(8), False),
    ),
    "header block interrupted by a stream": (E.PROTOCOL_ERROR, lambda p: p.headers(1, flags=0) + p.call(3)),
    "header block interrupted by DATA": (E.PROTOCOL_ERROR, lambda p: p.headers(1, flags=0) + p.data(1, b"")),
    "header block interrupted by an extension": (E.PROTOCOL_ERROR, lambda p: p.headers(1, flags=0) + frame(99, 0, 1)),
    "CONTINUATION alone": (E.PROTOCOL_ERROR, lambda p: frame(CONTINUATION, END_HEADERS, 1)),
    "CONTINUATION after a whole block": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1) + frame(CONTINUATION, END_HEADERS, 1),
    ),
    "CONTINUATION on another stream": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1, flags=0) + frame(CONTINUATION, END_HEADERS, 3),
    ),
    "header block without end": (
        E.ENHANCE_YOUR_CALM,
        lambda p: p.headers(1, flags=0) + frame(CONTINUATION, 0, 1, bytes(10_000)) * 20,
    ),
    "header block of empty frames": (
        E.ENHANCE_YOUR_CALM,
        lambda p: p.headers(1, flags=0) + frame(CONTINUATION, 0, 1) * 100,
    ),
    "header block that is not HPACK": (E.COMPRESSION_ERROR, lambda p: frame(HEADERS, END_HEADERS, 1, b"\xff" * 20)),
    "header block cut short": (E.COMPRESSION_ERROR, lambda p: frame(HEADERS, END_HEADERS, 1, b"\x40\x05a")),
    "bad Huffman code": (
        E.COMPRESSION_ERROR,
        lambda p: frame(HEADERS, END_HEADERS, 1, b"\x40\x84\xff\xff\xff\xff\x00"),
    ),
    "index into an empty table": (E.COMPRESSION_ERROR, lambda p: frame(HEADERS, END_HEADERS, 1, b"\xbe")),
    "header table larger than allowed": (E.COMPRESSION_ERROR, lambda p: frame(HEADERS, END_HEADERS, 1, b"\x3f\x01")),
    "PRIORITY on stream 0": (E.PROTOCOL_ERROR, lambda p: frame(PRIORITY, 0, 0, bytes(5))),
    "PRIORITY of the wrong size, idle": (E.FRAME_SIZE_ERROR, lambda p: frame(PRIORITY, 0, 1, bytes(4))),
    "RST_STREAM on stream 0": (E.PROTOCOL_ERROR, lambda p: frame(RST_STREAM, 0, 0, u32(8))),
    "RST_STREAM on an idle stream": (E.PROTOCOL_ERROR, lambda p: frame(RST_STREAM, 0, 1, u32(8))),
    "RST_STREAM of the wrong size": (E.FRAME_SIZE_ERROR, lambda p: p.headers(1) + frame(RST_STREAM, 0, 1, bytes(3))),
    "SETTINGS on a stream": (E.PROTOCOL_ERROR, lambda p: frame(SETTINGS, 0, 1)),
    "SETTINGS of the wrong size": (E.FRAME_SIZE_ERROR, lambda p: frame(SETTINGS, 0, 0, bytes(5))),
    "SETTINGS acknowledgement with content": (E.FRAME_SIZE_ERROR, lambda p: frame(SETTINGS, ACK, 0, bytes(6))),
    "ENABLE_PUSH of 2": (E.PROTOCOL_ERROR, lambda p: setting(2, 2)),
    "INITIAL_WINDOW_SIZE too large": (E.FLOW_CONTROL_ERROR, lambda p: setting(4, 2**31)),
    "INITIAL_WINDOW_SIZE overflows a stream": (
        E.FLOW_CONTROL_ERROR,
        lambda p: p.headers(1) + frames.window_update(1, 2**31 - 1 - 65_535) + setting(4, 65_536),
    ),
    "MAX_FRAME_SIZE too small": (E.PROTOCOL_ERROR, lambda p: setting(5, 16_383)),
    "MAX_FRAME_SIZE too large": (E.PROTOCOL_ERROR, lambda p: setting(5, 2**24)),
    "PUSH_PROMISE": (E.PROTOCOL_ERROR, lambda p: p.headers(1) + frame(PUSH_PROMISE, END_HEADERS, 1, u32(2))),
    "PING on a stream": (E.PROTOCOL_ERROR, lambda p: frame(PING, 0, 1, bytes(8))),
    "PING of the wrong size": (E.FRAME_SIZE_ERROR, lambda p: frame(PING, 0, 0, bytes(7))),
    "GOAWAY on a stream": (E.PROTOCOL_ERROR, lambda p: frame(GOAWAY, 0, 1, bytes(8))),
    "GOAWAY of the wrong size": (E.FRAME_SIZE_ERROR, lambda p: frame(GOAWAY, 0, 0, bytes(7))),
    "WINDOW_UPDATE of the wrong size": (E.FRAME_SIZE_ERROR, lambda p: frame(WINDOW_UPDATE, 0, 0, bytes(3))),
    "WINDOW_UPDATE by 0": (E.PROTOCOL_ERROR, lambda p: frames.window_update(0, 0)),
    "WINDOW_UPDATE on an idle stream": (E.PROTOCOL_ERROR, lambda p: frames.window_update(1, 1)),
    "WINDOW_UPDATE overflows": (E.FLOW_CONTROL_ERROR, lambda p: frames.window_update(0, 2**31 - 1)),
    "flood of PING": (E.ENHANCE_YOUR_CALM, lambda p: frames.ping(bytes(8), False) * 5_000),
    "flood of SETTINGS": (E.ENHANCE_YOUR_CALM, lambda p: frames.settings({}) * 5_000),
    "flood of empty DATA": (E.ENHANCE_YOUR_CALM, lambda p: p.headers(1) + p.data(1, b"", 0) * 5_000),
    "flood of resets": (
        E.ENHANCE_YOUR_CALM,
        lambda p: b"".join(p.headers(i) + frames.rst_stream(i, E.CANCEL) for i in range(1, 10_001, 2)),
    ),
    "flood of malformed requests": (
        E.ENHANCE_YOUR_CALM,
        lambda p: b"".join(p.headers(i, changed(_method=None)) for i in range(1, 10_001, 2)),
    ),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
@pytest.mark.parametrize("short_way", [True, False])
def test_connection_fault(name: str, short_way: bool) -> None:
    code, write = CONNECTION_FAULTS[name]
    peer = Peer(short_way=short_way)
    peer.send(write(peer))
    found = peer.read()
    assert goaway(found) == code
    assert peer.connection.is_closing
    assert not peer.connection.streams
    peer.send(peer.call(20_001))
    assert peer.read() == []


STREAM_FAULTS: dict[str, tuple[ErrorCode, Write]] = {
    "DATA after the end": (E.STREAM_CLOSED, lambda p: p.call(1, b"x", HOLD) + p.data(1, b"")),
    "DATA on a closed stream": (E.STREAM_CLOSED, lambda p: p.call(1) + p.data(1, b"")),
    "HEADERS after the end": (E.STREAM_CLOSED, lambda p: p.call(1, b"x", HOLD) + p.headers(1)),
    "trailers without END_STREAM": (E.PROTOCOL_ERROR, lambda p: p.headers(1) + p.headers(1, [("x", "y")])),
    "trailers with a pseudo-header": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1) + p.headers(1, [(":path", "/")], END_HEADERS | END_STREAM),
    ),
    "WINDOW_UPDATE by 0": (E.PROTOCOL_ERROR, lambda p: p.headers(1) + frames.window_update(1, 0)),
    "WINDOW_UPDATE overflows": (E.FLOW_CONTROL_ERROR, lambda p: p.headers(1) + frames.window_update(1, 2**31 - 1)),
    "PRIORITY of the wrong size": (E.FRAME_SIZE_ERROR, lambda p: p.headers(1) + frame(PRIORITY, 0, 1, bytes(4))),
    "content-length too small": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1, request_fields(ECHO, ("content-length", "9"))) + p.data(1, message(b"hello")),
    ),
    "content-length too large": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1, request_fields(ECHO, ("content-length", "11"))) + p.data(1, message(b"hello")),
    ),
    "content-length is no number": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1, request_fields(ECHO, ("content-length", "-1"))),
    ),
    "no method": (E.PROTOCOL_ERROR, lambda p: p.headers(1, changed(_method=None))),
    "no scheme": (E.PROTOCOL_ERROR, lambda p: p.headers(1, changed(_scheme=None))),
    "no path": (E.PROTOCOL_ERROR, lambda p: p.headers(1, changed(_path=None))),
    "empty path": (E.PROTOCOL_ERROR, lambda p: p.headers(1, changed(_path=""))),
    "method twice": (E.PROTOCOL_ERROR, lambda p: p.headers(1, [(":method", "POST"), *request_fields()])),
    "unknown pseudo-header": (E.PROTOCOL_ERROR, lambda p: p.headers(1, [(":protocol", "x"), *request_fields()])),
    "response pseudo-header": (E.PROTOCOL_ERROR, lambda p: p.headers(1, [(":status", "200"), *request_fields()])),
    "pseudo-header after a header": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1, [*request_fields()[1:], (":method", "POST")]),
    ),
    "capital in a name": (E.PROTOCOL_ERROR, lambda p: p.headers(1, request_fields(ECHO, ("X-a", "b")))),
    "space in a name": (E.PROTOCOL_ERROR, lambda p: p.headers(1, request_fields(ECHO, ("x a", "b")))),
    "empty name": (E.PROTOCOL_ERROR, lambda p: p.headers(1, request_fields(ECHO, ("", "b")))),
    "line feed in a value": (E.PROTOCOL_ERROR, lambda p: p.headers(1, request_fields(ECHO, ("x-a", "b\nc")))),
    "NUL in a value": (E.PROTOCOL_ERROR, lambda p: p.headers(1, request_fields(ECHO, ("x-a", "b\0c")))),
    "connection header": (E.PROTOCOL_ERROR, lambda p: p.headers(1, request_fields(ECHO, ("connection", "close")))),
    "transfer-encoding": (
        E.PROTOCOL_ERROR,
        lambda p: p.headers(1, request_fields(ECHO, ("transfer-encoding", "chunked"))),
    ),
    "te other than trailers": (E.PROTOCOL_ERROR, lambda p: p.headers(1, changed(te="gzip"))),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
@pytest.mark.parametrize("short_way", [True, False])
def test_stream_fault(name: str, short_way: bool) -> None:
    code, write = STREAM_FAULTS[name]
    peer = Peer(short_way=short_way)
    peer.send(write(peer))
    found = peer.read()
    assert answers(found)[1].reset == code
    assert goaway(found) is None
    assert not peer.connection.streams
    peer.send(peer.call(3, b"next"))
    assert answers(peer.read())[3].body == message(b"next")


HARMLESS: dict[str, Write] = {
    "nothing": lambda p: b"",
    "extension frames": lambda p: frame(99, 255, 7, b"whatever") + frame(12, 0, 0),
    "unknown setting": lambda p: setting(0x99, 2**32 - 1),
    "PRIORITY": lambda p: frame(PRIORITY, 0, 1, bytes(5)) + frame(PRIORITY, 0, 77, bytes(5)),
    "WINDOW_UPDATE after the end": lambda p: p.call(1) + frames.window_update(1, 100),
    "RST_STREAM after the end": lambda p: p.call(1) + frames.rst_stream(1, E.CANCEL),
    "late DATA for a refused call": lambda p: p.headers(1, request_fields("/a.B/C")) + p.data(1, bytes(100)),
    "late trailers for a refused call": lambda p: (
        p.headers(1, request_fields("/a.B/C")) + p.headers(1, [("x", "y")], END_HEADERS | END_STREAM)
    ),
    "GOAWAY of the client": lambda p: frames.goaway(0, E.NO_ERROR, "bye"),
    "PING acknowledgement": lambda p: frames.ping(bytes(8), True),
    "repeated SETTINGS acknowledgement": lambda p: frames.SETTINGS_ACK * 2,
    "reserved bit of the stream": lambda p: p.call(1 | 1 << 31),
    "cancelling every other call": lambda p: frames.window_update(0, 2**30)
    + b"".join(
        p.call(i) + p.headers(i + 2) + frames.rst_stream(i + 2, E.CANCEL) for i in range(1, 40_001, 4)
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("short_way", [True, False])
def test_harmless(name: str, short_way: bool) -> None:
    peer = Peer(short_way=short_way)
    peer.send(HARMLESS[name](peer))
    assert goaway(peer.read()) is None
    peer.send(peer.call(90_001, b"next"))
    assert answers(peer.read())[90_001].body == message(b"next")
