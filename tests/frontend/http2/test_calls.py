"""Goal: every form that a call may take on the wire is answered, and answered alike; every request that no handler will
see is refused in the way gRPC asks for; and what else the server says of itself. Method: as in `test_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ringserve.frontend.handler import EngineLimits
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
    PRIORITY_FLAG,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    frame,
)
from tests.frontend.http2.peer import BUG, ECHO, HOLD, Peer, answers, changed, goaway, message, request_fields, u32

E = ErrorCode
Write = Callable[[Peer], bytes]


FORMS: dict[str, Write] = {
    "END_STREAM in its own frame": lambda p: p.headers(1) + p.data(1, message(b"hello"), 0) + p.data(1, b""),
    "trailers": lambda p: (
        p.headers(1) + p.data(1, message(b"hello"), 0) + p.headers(1, [("x-after", "1")], END_HEADERS | END_STREAM)
    ),
    "message in pieces": lambda p: (
        p.headers(1) + b"".join(p.data(1, bytes((byte,)), 0) for byte in message(b"hello")) + p.data(1, b"")
    ),
    "padding": lambda p: p.headers(1) + frame(DATA, PADDED | END_STREAM, 1, b"\x03" + message(b"hello") + bytes(3)),
    "padded header block with priority": lambda p: (
        frame(
            HEADERS,
            END_HEADERS | PADDED | PRIORITY_FLAG,
            1,
            b"\x07" + bytes(5) + p.block(request_fields()) + bytes(7),
        )
        + p.data(1, message(b"hello"))
    ),
    "header block in three frames": lambda p: (
        (block := p.block(request_fields()))
        and frame(HEADERS, 0, 1, block[:3])
        + frame(CONTINUATION, 0, 1, block[3:50])
        + frame(CONTINUATION, END_HEADERS, 1, block[50:])
        + p.data(1, message(b"hello"))
    ),
    "no te": lambda p: p.headers(1, changed(te=None)) + p.data(1, message(b"hello")),
    "no authority": lambda p: p.headers(1, changed(_authority=None)) + p.data(1, message(b"hello")),
    "subtype": lambda p: p.headers(1, changed(content_type="application/grpc+proto")) + p.data(1, message(b"hello")),
    "content-length": lambda p: (
        p.headers(1, request_fields(ECHO, ("content-length", "10"))) + p.data(1, message(b"hello"))
    ),
    "table size update": lambda p: frame(HEADERS, END_HEADERS, 1, b"\x20" + p.block(request_fields()))
    + p.data(1, message(b"hello")),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("short_way", [True, False])
def test_every_form_of_a_call_is_answered_alike(name: str, short_way: bool) -> None:
    peer = Peer(short_way=short_way)
    peer.send(FORMS[name](peer))
    answer = answers(peer.read())[1]
    assert answer.body == message(b"hello")
    assert answer.fields == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
    assert answer.reset is None
    assert not peer.connection.streams
    assert peer.connection.held_bytes == 0


REFUSALS: dict[str, tuple[dict[str, str], Write]] = {
    "GET": ({":status": "405"}, lambda p: p.headers(1, changed(_method="GET"), END_HEADERS | END_STREAM)),
    "not gRPC": ({":status": "415"}, lambda p: p.headers(1, changed(content_type="application/json"))),
    "nearly gRPC": ({":status": "415"}, lambda p: p.headers(1, changed(content_type="application/grpcx"))),
    "no content type": ({":status": "415"}, lambda p: p.headers(1, changed(content_type=None))),
    "unknown method": (
        {"grpc-status": "12", "grpc-message": "unknown method /a.B/C%25"},
        lambda p: p.headers(1, request_fields("/a.B/C%")),
    ),
    "unknown encoding": (
        {"grpc-status": "12", "grpc-accept-encoding": "identity,deflate,gzip"},
        lambda p: p.headers(1, request_fields(ECHO, ("grpc-encoding", "br"))),
    ),
    "bad timeout": ({"grpc-status": "13"}, lambda p: p.headers(1, request_fields(ECHO, ("grpc-timeout", "1")))),
    "bad base64": ({"grpc-status": "13"}, lambda p: p.headers(1, request_fields(ECHO, ("x-bin", "!")))),
    "header list too large": (
        {"grpc-status": "8"},
        lambda p: frame(HEADERS, 0, 1, (block := p.block(request_fields(ECHO, ("x", "y" * 70_000))))[:16_000])
        + b"".join(frame(CONTINUATION, 0, 1, block[at : at + 16_000]) for at in range(16_000, len(block), 16_000))
        + frame(CONTINUATION, END_HEADERS, 1),
    ),
    "no message": ({"grpc-status": "12"}, lambda p: p.headers(1) + p.data(1, b"")),
    "no message at all": ({"grpc-status": "12"}, lambda p: p.headers(1, None, END_HEADERS | END_STREAM)),
    "two messages": ({"grpc-status": "12"}, lambda p: p.headers(1) + p.data(1, message(b"a") + message(b"b"))),
    "half a message": ({"grpc-status": "13"}, lambda p: p.headers(1) + p.data(1, message(b"hello")[:-1])),
    "compressed without encoding": ({"grpc-status": "13"}, lambda p: p.headers(1) + p.data(1, message(b"a", 1))),
    "unknown flag": ({"grpc-status": "13"}, lambda p: p.headers(1) + p.data(1, message(b"a", 2))),
    "damaged gzip": (
        {"grpc-status": "13"},
        lambda p: p.headers(1, request_fields(ECHO, ("grpc-encoding", "gzip"))) + p.data(1, message(b"a", 1)),
    ),
    "a bug": ({"grpc-status": "13", "grpc-message": "internal error"}, lambda p: p.call(1, b"", BUG)),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("short_way", [True, False])
def test_refusal(name: str, short_way: bool) -> None:
    expected, write = REFUSALS[name]
    peer = Peer(short_way=short_way)
    peer.send(write(peer))
    answer = answers(peer.read())[1]
    assert expected.items() <= answer.fields.items()
    assert answer.body == b""
    assert answer.reset in (None, E.NO_ERROR)
    assert peer.messages == []
    assert not peer.connection.streams
    assert peer.connection.held_bytes == 0


def test_streams_over_the_limit_are_refused_and_may_be_tried_again() -> None:
    peer = Peer(EngineLimits(concurrent_streams_max=2))
    peer.send(b"".join(peer.call(stream_id, b"x", HOLD) for stream_id in (1, 3, 5)))
    assert {key: value.reset for key, value in answers(peer.read()).items()} == {5: E.REFUSED_STREAM}
    peer.held[0].finish(b"")
    peer.send(peer.call(7, b"x", HOLD))
    assert 7 not in {key for key, value in answers(peer.read()).items() if value.reset}
    assert len(peer.held) == 3


def test_pings_and_settings_are_acknowledged() -> None:
    peer = Peer()
    peer.send(frames.ping(b"12345678", False) + frames.settings({3: 7}))
    assert [(f.kind, f.flags, f.payload) for f in peer.read()] == [(PING, ACK, b"12345678"), (SETTINGS, ACK, b"")]


def test_the_server_speaks_first_and_announces_its_limits() -> None:
    peer = Peer(EngineLimits(concurrent_streams_max=77, header_list_bytes_max=1_234), begun=False)
    first, second = peer.read()
    assert first.kind == SETTINGS
    pairs = {int.from_bytes(first.payload[i : i + 2], "big"): first.payload[i + 2 : i + 6] for i in range(0, 30, 6)}
    assert pairs[1] == u32(0)
    assert pairs[3] == u32(77)
    assert pairs[5] == u32(FRAME_BYTES_MAX)
    assert pairs[6] == u32(1_234)
    assert second.kind == WINDOW_UPDATE


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
        frames.PREFACE + frames.ping(bytes(8), False),
        frames.PREFACE + frames.SETTINGS_ACK,
    ],
)
def test_a_wrong_beginning(data: bytes) -> None:
    peer = Peer(begun=False)
    peer.send(data)
    assert goaway(peer.read()) == E.PROTOCOL_ERROR


def test_noise_is_forgiven_with_time() -> None:
    peer = Peer()
    for _ in range(10):
        peer.send(frames.ping(bytes(8), False) * 3_000)
        peer.host.seconds += 11
    assert goaway(peer.read()) is None


def test_reset_cancels_the_call_once_and_a_late_answer_is_dropped() -> None:
    peer = Peer()
    peer.send(peer.call(1, b"x", HOLD))
    peer.send(frames.rst_stream(1, E.CANCEL))
    assert peer.cancelled == 1
    peer.held[0].finish(b"late")
    peer.held[0].fail(13, "late")
    assert peer.read() == []
    peer.connection.disconnected()
    assert peer.cancelled == 1


def test_disconnection_cancels_every_call() -> None:
    peer = Peer()
    peer.send(peer.call(1, b"x", HOLD) + peer.call(3, b"x", HOLD) + peer.call(5))
    peer.connection.disconnected()
    assert peer.cancelled == 2


def test_a_client_that_is_answered_while_it_sends_is_told_to_stop() -> None:
    peer = Peer(EngineLimits(message_bytes_max=100))
    peer.send(peer.headers(1) + peer.data(1, message(bytes(101))[:50], 0))
    answer = answers(peer.read())[1]
    assert (answer.status, answer.reset) == (8, E.NO_ERROR)
    peer.send(peer.data(1, bytes(20), 0) + peer.data(1, bytes(36)))
    assert peer.read() == []


def test_drain_takes_two_steps() -> None:
    peer = Peer()
    peer.send(peer.call(1, b"x", HOLD))
    peer.connection.drain()
    first, ping = peer.read()
    assert (first.kind, first.payload[:4], first.code) == (GOAWAY, u32(2**31 - 1), E.NO_ERROR)
    peer.send(peer.call(3, b"on its way already"))
    assert answers(peer.read())[3].status == 0
    peer.send(frames.ping(ping.payload, True))
    (final,) = peer.read()
    assert (final.kind, final.payload[:4], final.code) == (GOAWAY, u32(3), E.NO_ERROR)
    peer.send(peer.call(5, b"too late") + frames.window_update(5, 10) + frames.rst_stream(5, E.CANCEL))
    assert peer.read() == []
    assert not peer.connection.is_drained
    peer.held[0].finish(b"done")
    assert answers(peer.read())[1].body == message(b"done")
    assert peer.connection.is_drained


# ------------------------------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("short_way", [True, False])
@pytest.mark.parametrize(
    ("value", "timeout_ns"),
    [
        *(("17n", 17), ("17u", 17_000), ("17m", 17 * 10**6), ("17S", 17 * 10**9), ("17M", 1020 * 10**9)),
        *(("17H", 61_200 * 10**9), ("99999999H", 10**18)),
    ],
)
def test_a_deadline_counts_from_the_headers(short_way: bool, value: str, timeout_ns: int) -> None:
    """A message that comes later has less time, one that comes too late none; but never 0, which is no limit."""
    peer = Peer(short_way=short_way)
    peer.send(peer.call(1, b"x", HOLD, ("grpc-timeout", value)) + peer.call(3, b"x", HOLD))
    assert [call.timeout_ns for call in peer.held] == [timeout_ns, 0]
    peer.send(peer.headers(5, request_fields(HOLD, ("grpc-timeout", value))))
    peer.host.seconds += 17.0
    peer.send(peer.data(5, message(b"x")))
    assert peer.held[2].timeout_ns == (timeout_ns - 17 * 10**9 or -1)
    assert peer.held[0].timeout_ns == peer.held[2].timeout_ns, "whoever asks later hears of less"


@pytest.mark.parametrize("value", ["0n", "0S", "00000000H"])
def test_no_time_at_all_is_over_at_once(value: str) -> None:
    peer = Peer()
    peer.send(peer.headers(1, request_fields(HOLD, ("grpc-timeout", value))))
    peer.host.seconds += 0.001
    peer.send(peer.data(1, message(b"x")))
    assert peer.held[0].timeout_ns < 0


@pytest.mark.parametrize("value", ["", "S", "5", "5s", "-5S", "1.5S", "5 S", "100000000S", "5SS"])
def test_a_malformed_deadline_is_refused(value: str) -> None:
    peer = Peer()
    peer.send(peer.call(1, b"x", HOLD, ("grpc-timeout", value)))
    answer = answers(peer.read())[1]
    assert (answer.status, answer.fields["grpc-message"]) == (13, "malformed grpc-timeout")
    assert not peer.held
