"""Goal: what RFC 9113 says of frames, streams, windows and settings (3 to 7). Method: a table of cases, named by the
section; each is sent through the short way and through the long one. `test_rules.py` has further ones.
"""

from __future__ import annotations

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
    frame,
)
from ringserve.frontend.http2.frames import ErrorCode as E
from tests.frontend.http2.outcomes import Case, outcome
from tests.frontend.http2.peer import HOLD, Peer, answers, goaway, message, request_fields, u32

BIG = 2**31 - 1
LARGEST = FRAME_BYTES_MAX


def setting(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(number.to_bytes(2, "big") + u32(value) for number, value in pairs))


def split(peer: Peer, cuts: int, flags: int = 0) -> bytes:
    """A header block in that many CONTINUATION frames, each of whose lengths is one byte but the last one's."""
    block = peer.block(request_fields())
    parts = [block[at : at + 1] for at in range(cuts)]
    last = frame(CONTINUATION, END_HEADERS, 1, block[cuts:])
    return frame(HEADERS, flags, 1) + b"".join(frame(CONTINUATION, 0, 1, part) for part in parts) + last


def padded(peer: Peer, stream_id: int, padding: int, flags: int = 0) -> bytes:
    payload = bytes((padding,)) + message(b"padded") + bytes(padding)
    return frame(DATA, PADDED | END_STREAM | flags, stream_id, payload)


CASES: dict[str, Case] = {
    "4.1 unknown frame types are ignored": (None, lambda p: frame(0x0A, 0xFF, 0, b"x") + frame(0xFF, 0, 77, b"y")),
    "4.1 undefined flags are ignored": (None, lambda p: frame(PING, 0xFE & ~ACK, 0, bytes(8))),
    "4.1 the reserved bit of a stream is ignored": (None, lambda p: frame(PRIORITY, 0, 1 | 1 << 31, bytes(5))),
    "4.2 a frame of the largest size": (None, lambda p: frame(0x0A, 0, 0, bytes(16_384))),
    "4.2 a frame one byte too large": ((E.FRAME_SIZE_ERROR, 0), lambda p: frame(0x0A, 0, 0, bytes(LARGEST + 1))),
    "4.2 HEADERS one byte too large": (
        (E.FRAME_SIZE_ERROR, 0),
        lambda p: frame(HEADERS, END_HEADERS, 1, bytes(LARGEST + 1)),
    ),
    "4.2 DATA of the largest size": (
        None,
        lambda p: p.headers(1, request_fields(HOLD)) + p.data(1, message(bytes(LARGEST - 5))),
    ),
    "10.5.1 a header block beyond all reason": (
        (E.ENHANCE_YOUR_CALM, 0),
        lambda p: frame(HEADERS, END_HEADERS, 1, bytes(2 * p.limits.header_list_bytes_max + 1)),
    ),
    "10.5 a long frame that is not plain DATA": ((E.ENHANCE_YOUR_CALM, 0), lambda p: frame(0x0A, 0, 0, bytes(16_385))),
    "10.5 a long padded frame": (
        (E.ENHANCE_YOUR_CALM, 0),
        lambda p: p.headers(1) + frame(DATA, PADDED, 1, bytes(16_385)),
    ),
    "4.3 a block in CONTINUATION frames": (None, lambda p: split(p, 5) + p.data(1, message(b""))),
    "4.3 a block in empty frames": (
        None,
        lambda p: frame(HEADERS, END_STREAM, 1)
        + frame(CONTINUATION, 0, 1) * 3
        + frame(CONTINUATION, END_HEADERS, 1, p.block(request_fields())),
    ),
    "4.3 a block that does not decode": ((E.COMPRESSION_ERROR, 0), lambda p: frame(HEADERS, END_HEADERS, 1, b"\x80")),
    "4.3 a block for a closed stream that does not decode": (
        (E.COMPRESSION_ERROR, 0),
        lambda p: p.headers(1, request_fields("/a.B/C")) + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"),
    ),
    "5.1 idle: DATA": ((E.PROTOCOL_ERROR, 0), lambda p: p.data(1, b"")),
    "5.1 idle: RST_STREAM": ((E.PROTOCOL_ERROR, 0), lambda p: frames.rst_stream(1, E.CANCEL)),
    "5.1 idle: WINDOW_UPDATE": ((E.PROTOCOL_ERROR, 0), lambda p: frames.window_update(1, 1)),
    "5.1 idle: CONTINUATION": ((E.PROTOCOL_ERROR, 0), lambda p: frame(CONTINUATION, END_HEADERS, 1)),
    "5.1 idle: PRIORITY": (None, lambda p: frame(PRIORITY, 0, 5, bytes(5))),
    "5.1 half-closed: DATA": ((E.STREAM_CLOSED, 1), lambda p: p.call(1, b"x", HOLD) + p.data(1, b"")),
    "5.1 half-closed: HEADERS": (
        (E.STREAM_CLOSED, 1),
        lambda p: p.call(1, b"x", HOLD) + p.headers(1, [("x", "y")], END_HEADERS | END_STREAM),
    ),
    "5.1 half-closed: WINDOW_UPDATE": (None, lambda p: p.call(1, b"x", HOLD) + frames.window_update(1, 9)),
    "5.1 half-closed: PRIORITY": (None, lambda p: p.call(1, b"x", HOLD) + frame(PRIORITY, 0, 1, bytes(5))),
    "5.1 closed by both: DATA": ((E.STREAM_CLOSED, 1), lambda p: p.call(1) + p.data(1, b"")),
    "5.1 closed by both: HEADERS": ((E.STREAM_CLOSED, 0), lambda p: p.call(1) + p.headers(1)),
    "5.1 closed by both: RST_STREAM, WINDOW_UPDATE, PRIORITY": (
        None,
        lambda p: p.call(1)
        + frames.rst_stream(1, E.CANCEL)
        + frames.window_update(1, 5)
        + frame(PRIORITY, 0, 1, bytes(5)),
    ),
    "5.1 closed by the client's reset: DATA": (
        (E.STREAM_CLOSED, 1),
        lambda p: p.headers(1) + frames.rst_stream(1, E.CANCEL) + p.data(1, b""),
    ),
    "5.1.1 a stream of the server's": ((E.PROTOCOL_ERROR, 0), lambda p: p.headers(2)),
    "5.1.1 a lower stream than before": ((E.STREAM_CLOSED, 0), lambda p: p.call(5) + p.headers(3)),
    "5.1.1 streams may be left out": (None, lambda p: p.call(5) + p.call(77)),
    "5.5 an extension within a block": ((E.PROTOCOL_ERROR, 0), lambda p: p.headers(1, flags=0) + frame(0x0A, 0, 0)),
    "6.1 DATA on stream 0": ((E.PROTOCOL_ERROR, 0), lambda p: p.data(0, b"x")),
    "6.1 DATA with padding": (None, lambda p: p.headers(1) + padded(p, 1, 200)),
    "6.1 DATA with a padding of 0": (None, lambda p: p.headers(1) + padded(p, 1, 0)),
    "6.1 DATA whose padding is the whole frame": (
        (E.PROTOCOL_ERROR, 0),
        lambda p: p.headers(1) + frame(DATA, PADDED, 1, b"\x05abcde"[:5]),
    ),
    "6.2 HEADERS on stream 0": ((E.PROTOCOL_ERROR, 0), lambda p: p.headers(0)),
    "6.2 HEADERS with padding and priority": (
        None,
        lambda p: frame(
            HEADERS,
            END_HEADERS | PADDED | PRIORITY_FLAG,
            1,
            b"\x07" + bytes(5) + p.block(request_fields()) + bytes(7),
        )
        + p.data(1, message(b"x")),
    ),
    "6.2 HEADERS whose padding is the whole frame": (
        (E.PROTOCOL_ERROR, 0),
        lambda p: frame(HEADERS, END_HEADERS | PADDED, 1, b"\x03abc"[:3]),
    ),
    "6.3 PRIORITY on stream 0": ((E.PROTOCOL_ERROR, 0), lambda p: frame(PRIORITY, 0, 0, bytes(5))),
    "6.3 PRIORITY of the wrong size": (
        (E.FRAME_SIZE_ERROR, 1),
        lambda p: p.headers(1) + frame(PRIORITY, 0, 1, bytes(6)),
    ),
    "6.4 RST_STREAM on stream 0": ((E.PROTOCOL_ERROR, 0), lambda p: frames.rst_stream(0, E.CANCEL)),
    "6.4 RST_STREAM with an unknown code": (None, lambda p: p.headers(1) + frame(RST_STREAM, 0, 1, u32(2**32 - 1))),
    "6.4 RST_STREAM of the wrong size": (
        (E.FRAME_SIZE_ERROR, 0),
        lambda p: p.headers(1) + frame(RST_STREAM, 0, 1, bytes(5)),
    ),
    "6.5 SETTINGS on a stream": ((E.PROTOCOL_ERROR, 0), lambda p: frame(SETTINGS, 0, 1)),
    "6.5 SETTINGS of the wrong size": ((E.FRAME_SIZE_ERROR, 0), lambda p: frame(SETTINGS, 0, 0, bytes(7))),
    "6.5 an acknowledgement with content": ((E.FRAME_SIZE_ERROR, 0), lambda p: frame(SETTINGS, ACK, 0, bytes(6))),
    "6.5.2 ENABLE_PUSH is 0 or 1": (None, lambda p: setting((2, 0)) + setting((2, 1))),
    "6.5.2 ENABLE_PUSH is not 2": ((E.PROTOCOL_ERROR, 0), lambda p: setting((2, 2))),
    "6.5.2 MAX_CONCURRENT_STREAMS of 0": (None, lambda p: setting((3, 0))),
    "6.5.2 INITIAL_WINDOW_SIZE of the largest": (None, lambda p: setting((4, BIG))),
    "6.5.2 INITIAL_WINDOW_SIZE above": ((E.FLOW_CONTROL_ERROR, 0), lambda p: setting((4, BIG + 1))),
    "6.5.2 INITIAL_WINDOW_SIZE above, though not last": (
        (E.FLOW_CONTROL_ERROR, 0),
        lambda p: setting((4, BIG + 1), (4, 5)),
    ),
    "6.5.2 MAX_FRAME_SIZE at its ends": (None, lambda p: setting((5, 2**14), (5, 2**24 - 1))),
    "6.5.2 MAX_FRAME_SIZE below": ((E.PROTOCOL_ERROR, 0), lambda p: setting((5, 2**14 - 1))),
    "6.5.2 MAX_FRAME_SIZE above": ((E.PROTOCOL_ERROR, 0), lambda p: setting((5, 2**24))),
    "6.5.2 unknown settings are ignored": (None, lambda p: setting((0, 1), (7, 1), (0xFFFF, 2**32 - 1))),
    "6.6 PUSH_PROMISE from a client": (
        (E.PROTOCOL_ERROR, 0),
        lambda p: p.headers(1) + frame(PUSH_PROMISE, END_HEADERS, 1, u32(2) + p.block(request_fields())),
    ),
    "6.7 PING on a stream": ((E.PROTOCOL_ERROR, 0), lambda p: frame(PING, 0, 1, bytes(8))),
    "6.7 PING of the wrong size": ((E.FRAME_SIZE_ERROR, 0), lambda p: frame(PING, 0, 0, bytes(9))),
    "6.8 GOAWAY on a stream": ((E.PROTOCOL_ERROR, 0), lambda p: frame(GOAWAY, 0, 1, bytes(8))),
    "6.8 GOAWAY of the client's ends nothing": (None, lambda p: p.call(1, b"x", HOLD) + frames.goaway(0, E.NO_ERROR)),
    "6.8 GOAWAY of the wrong size": ((E.FRAME_SIZE_ERROR, 0), lambda p: frame(GOAWAY, 0, 0, bytes(7))),
    "6.9 WINDOW_UPDATE by 0": ((E.PROTOCOL_ERROR, 0), lambda p: frames.window_update(0, 0)),
    "6.9 WINDOW_UPDATE by 0 of a stream": ((E.PROTOCOL_ERROR, 1), lambda p: p.headers(1) + frames.window_update(1, 0)),
    "6.9 the reserved bit of an increment": (
        (E.PROTOCOL_ERROR, 0),
        lambda p: frame(WINDOW_UPDATE, 0, 0, u32(1 << 31)),
    ),
    "6.9 WINDOW_UPDATE of the wrong size": ((E.FRAME_SIZE_ERROR, 0), lambda p: frame(WINDOW_UPDATE, 0, 0, bytes(5))),
    "6.9.1 the largest window": (None, lambda p: frames.window_update(0, BIG - 65_535)),
    "6.9.1 a larger window": ((E.FLOW_CONTROL_ERROR, 0), lambda p: frames.window_update(0, BIG - 65_534)),
    "6.9.1 a larger window in steps": ((E.FLOW_CONTROL_ERROR, 0), lambda p: frames.window_update(0, 2**30) * 2),
    "6.9.1 a stream's larger window": (
        (E.FLOW_CONTROL_ERROR, 1),
        lambda p: p.headers(1) + frames.window_update(1, BIG - 65_534),
    ),
    "6.9.1 padding counts, so a window can be given back for nothing, but not for ever": (
        (E.ENHANCE_YOUR_CALM, 0),
        lambda p: p.headers(1) + frame(DATA, PADDED, 1, b"\xff" + bytes(255)) * 20_000,
    ),
    "6.9.2 a changed initial window overflows a stream's": (
        (E.FLOW_CONTROL_ERROR, 0),
        lambda p: p.headers(1) + frames.window_update(1, BIG - 65_535) + setting((4, 65_536)),
    ),
    "6.10 CONTINUATION after END_HEADERS": (
        (E.PROTOCOL_ERROR, 0),
        lambda p: p.headers(1) + frame(CONTINUATION, END_HEADERS, 1),
    ),
    "6.10 CONTINUATION on another stream": (
        (E.PROTOCOL_ERROR, 0),
        lambda p: p.headers(1, flags=0) + frame(CONTINUATION, END_HEADERS, 3),
    ),
    "6.10 CONTINUATION on stream 0": ((E.PROTOCOL_ERROR, 0), lambda p: frame(CONTINUATION, END_HEADERS, 0)),
    "6.10 CONTINUATION after DATA": (
        (E.PROTOCOL_ERROR, 0),
        lambda p: p.headers(1) + p.data(1, b"", 0) + frame(CONTINUATION, END_HEADERS, 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("short_way", [True, False])
def test_rfc_9113(name: str, short_way: bool) -> None:
    expected, write = CASES[name]
    assert outcome(write, short_way=short_way) == expected


BEGINNINGS: dict[str, tuple[bytes, E | None]] = {
    "3.4 nothing but the preface": (frames.PREFACE, None),
    "3.4 another preface": (b"GET / HTTP/1.1\r\n\r\n" + bytes(10), E.PROTOCOL_ERROR),
    "3.4 a preface with a wrong end": (frames.PREFACE[:-1] + b"x", E.PROTOCOL_ERROR),
    "3.4 SETTINGS must be first": (frames.PREFACE + frames.ping(bytes(8), False), E.PROTOCOL_ERROR),
    "3.4 an acknowledgement is not the SETTINGS meant": (frames.PREFACE + frames.SETTINGS_ACK, E.PROTOCOL_ERROR),
    "3.4 empty SETTINGS": (frames.PREFACE + frames.settings({}), None),
    "6.5.3 no acknowledgement, but calls": (frames.PREFACE + frames.settings({}) + Peer().call(1), None),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_rfc_9113_beginnings(name: str) -> None:
    data, expected = BEGINNINGS[name]
    peer = Peer(begun=False)
    peer.send(data)
    found = peer.read()
    assert goaway(found) == expected
    assert found[0].kind == SETTINGS, "3.4: the server's first frame"


def test_rfc_9113_6_5_3_each_settings_frame_is_acknowledged_in_its_order() -> None:
    peer = Peer()
    peer.send(setting((4, 10)) + frames.ping(b"between!", False) + setting((4, 20), (4, 30)))
    assert [frame.kind for frame in peer.read()] == [SETTINGS, PING, SETTINGS]
    assert peer.connection.peer_initial_window == 30, "the last of equal settings counts"


def test_rfc_9113_6_9_2_a_window_may_become_negative() -> None:
    peer = Peer()
    peer.send(peer.call(1, b"x", HOLD))
    peer.held[0].finish(bytes(100_000))
    sent = sum(len(frame.payload) for frame in peer.read() if frame.kind == DATA)
    assert sent == 65_535
    peer.send(setting((4, 1_000)) + frames.window_update(0, 10**6) + frames.window_update(1, 64_000))
    assert peer.read()[0].kind == SETTINGS, "64,000 more do not make up for 64,535 less"
    peer.send(frames.window_update(1, 36_000 + 10_000))
    found = peer.read()
    assert sum(len(frame.payload) for frame in found if frame.kind == DATA) == 100_005 - 65_535
    assert answers(found)[1].status == 0


def test_rfc_9113_6_7_a_ping_is_answered_with_its_own_bytes() -> None:
    peer = Peer()
    peer.send(frames.ping(b"12345678", False))
    (found,) = peer.read()
    assert (found.kind, found.flags, found.payload) == (PING, ACK, b"12345678")


def test_rfc_9113_6_8_the_last_stream_of_a_goaway() -> None:
    peer = Peer()
    peer.send(peer.call(7, b"x", HOLD) + frame(PING, 0, 0))
    last = [frame for frame in peer.read() if frame.kind == GOAWAY][-1]
    assert int.from_bytes(last.payload[:4], "big") == 7
    assert peer.cancelled == 1
