"""Goal: what RFC 9113 says of requests (8). Method: a table of cases, named by the section, as in the one of frames.

One rule holds for the protocol's own headers only: 8.2.1 forbids white space at the ends of a value, gRPC allows that
of metadata to be stripped, and its clients send it.
"""

from __future__ import annotations

import pytest

from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import END_HEADERS, END_STREAM
from ringserve.frontend.http2.frames import ErrorCode as E
from tests.frontend.http2.outcomes import Case, Write, outcome
from tests.frontend.http2.peer import ECHO, Peer, answers, changed, message, request_fields

MALFORMED = (E.PROTOCOL_ERROR, 1)
BOTH = END_HEADERS | END_STREAM


def one(*more: tuple[str, str]) -> Write:
    """A request with further headers."""
    return lambda peer: peer.headers(1, request_fields(ECHO, *more)) + peer.data(1, message(b""))


def length(value: str, size: int, cut: int = 0) -> Write:
    """A request of that content-length whose DATA have that size, after `cut` bytes in a frame of their own."""

    def write(peer: Peer) -> bytes:
        data = message(bytes(max(0, size - 5)))[:size]
        first = peer.data(1, data[:cut], 0) if cut else b""
        return peer.headers(1, request_fields(ECHO, ("content-length", value))) + first + peer.data(1, data[cut:])

    return write


CASES: dict[str, Case] = {
    "8.1 trailers": (
        None,
        lambda p: p.headers(1) + p.data(1, message(b""), 0) + p.headers(1, [("x-after", "1")], BOTH),
    ),
    "8.1 trailers without END_STREAM": (MALFORMED, lambda p: p.headers(1) + p.headers(1, [("x", "y")])),
    "8.1 a second request's headers on a stream": (MALFORMED, lambda p: p.headers(1) + p.headers(1, flags=BOTH)),
    "8.1 headers after trailers": (
        (E.STREAM_CLOSED, 0),
        lambda p: p.headers(1)
        + p.data(1, message(b""), 0)
        + p.headers(1, [("x", "1")], BOTH)
        + p.headers(1, [("x", "1")], BOTH),
    ),
    "8.1.1 content-length": (None, length("10", 10)),
    "8.1.1 content-length over frames": (None, length("10", 10, 3)),
    "8.1.1 content-length too small": (MALFORMED, length("9", 10)),
    "8.1.1 content-length too small, seen early": (
        MALFORMED,
        lambda p: p.headers(1, request_fields(ECHO, ("content-length", "2"))) + p.data(1, bytes(3), 0),
    ),
    "8.1.1 content-length too large": (MALFORMED, length("11", 10)),
    "8.1.1 content-length without data": (
        MALFORMED,
        lambda p: p.headers(1, request_fields(ECHO, ("content-length", "5")), BOTH),
    ),
    "8.1.1 content-length too large with trailers": (
        MALFORMED,
        lambda p: p.headers(1, request_fields(ECHO, ("content-length", "99")))
        + p.data(1, message(b""), 0)
        + p.headers(1, [("x", "1")], BOTH),
    ),
    "8.1.1 padding is no content": (
        None,
        lambda p: p.headers(1, request_fields(ECHO, ("content-length", "5")))
        + frames.frame(frames.DATA, frames.PADDED | END_STREAM, 1, b"\x09" + message(b"") + bytes(9)),
    ),
    "8.1.1 content-length twice, alike": (None, one(("content-length", "5"), ("content-length", "5"))),
    "8.1.1 content-length twice": (MALFORMED, one(("content-length", "5"), ("content-length", "6"))),
    "8.1.1 content-length with a sign": (MALFORMED, one(("content-length", "+5"))),
    "8.1.1 content-length of two numbers": (MALFORMED, one(("content-length", "5, 5"))),
    "8.1.1 content-length without number": (MALFORMED, one(("content-length", ""))),
    "8.1.1 content-length beyond all numbers": (MALFORMED, one(("content-length", "9" * 40))),
    "8.2.1 capitals in a name": (MALFORMED, one(("X-Name", "v"))),
    "8.2.1 capitals in a name of the protocol": (MALFORMED, one(("Grpc-Timeout", "1S"))),
    "8.2.1 a space in a name": (MALFORMED, one(("x name", "v"))),
    "8.2.1 a colon in a name": (MALFORMED, one(("x:name", "v"))),
    "8.2.1 a control character in a name": (MALFORMED, one(("x\x7fname", "v"))),
    "8.2.1 a letter beyond ASCII in a name": (MALFORMED, one(("x-n\xe4me", "v"))),
    "8.2.1 an empty name": (MALFORMED, one(("", "v"))),
    "8.2.1 NUL in a value": (MALFORMED, one(("x-name", "a\0b"))),
    "8.2.1 CR in a value": (MALFORMED, one(("x-name", "a\rb"))),
    "8.2.1 LF in a value": (MALFORMED, one(("x-name", "a\nb"))),
    "8.2.1 an end of line in a value": (MALFORMED, one(("x-name", "a\r\nx-other: b"))),
    "8.2.1 NUL in a value of the protocol": (MALFORMED, one(("user-agent", "a\0b"))),
    "8.2.1 other bytes in a value": (None, one(("x-name", "a\tb\xff"))),
    "8.2.1 white space before a value": (MALFORMED, one(("user-agent", " a"))),
    "8.2.1 white space behind a value": (MALFORMED, one(("user-agent", "a\t"))),
    "8.2.1 white space alone": (MALFORMED, one(("grpc-accept-encoding", " "))),
    "8.2.1 white space before :path": (MALFORMED, lambda p: p.headers(1, changed(_path=f" {ECHO}"))),
    "8.2.1 white space behind te": (MALFORMED, lambda p: p.headers(1, changed(te="trailers "))),
    "8.2.1 white space behind content-length": (MALFORMED, one(("content-length", "5 "))),
    "8.2.1 white space before a timeout": (MALFORMED, one(("grpc-timeout", " 1S"))),
    "8.2.1 white space within a value": (None, one(("user-agent", "a b\tc"))),
    "8.2.1 white space around metadata": (None, one(("x-name", " a\t"))),
    "8.2.2 connection": (MALFORMED, one(("connection", "keep-alive"))),
    "8.2.2 proxy-connection": (MALFORMED, one(("proxy-connection", "keep-alive"))),
    "8.2.2 keep-alive": (MALFORMED, one(("keep-alive", "5"))),
    "8.2.2 transfer-encoding": (MALFORMED, one(("transfer-encoding", "chunked"))),
    "8.2.2 upgrade": (MALFORMED, one(("upgrade", "h2c"))),
    "8.2.2 te: trailers": (None, lambda p: p.call(1)),
    "8.2.2 te: anything else": (MALFORMED, lambda p: p.headers(1, changed(te="trailers, deflate"))),
    "8.2.3 cookies may come in pieces": (None, one(("cookie", "a=1"), ("cookie", "b=2"))),
    "8.3 an unknown pseudo-header": (MALFORMED, lambda p: p.headers(1, [(":x", "y"), *request_fields()])),
    "8.3 a pseudo-header of answers": (MALFORMED, lambda p: p.headers(1, [(":status", "200"), *request_fields()])),
    "8.3 a pseudo-header behind others": (
        MALFORMED,
        lambda p: p.headers(1, [*request_fields()[1:], (":method", "POST")]),
    ),
    "8.3 a pseudo-header behind others, unknown": (MALFORMED, one((":x", "y"))),
    "8.3 a pseudo-header in trailers": (
        MALFORMED,
        lambda p: p.headers(1) + p.data(1, message(b""), 0) + p.headers(1, [(":path", "/")], BOTH),
    ),
    "8.3.1 no :method": (MALFORMED, lambda p: p.headers(1, changed(_method=None))),
    "8.3.1 no :scheme": (MALFORMED, lambda p: p.headers(1, changed(_scheme=None))),
    "8.3.1 no :path": (MALFORMED, lambda p: p.headers(1, changed(_path=None))),
    "8.3.1 an empty :path": (MALFORMED, lambda p: p.headers(1, changed(_path=""))),
    "8.3.1 no :authority": (None, lambda p: p.headers(1, changed(_authority=None)) + p.data(1, message(b""))),
    "8.3.1 :method twice": (MALFORMED, lambda p: p.headers(1, [(":method", "POST"), *request_fields()])),
    "8.3.1 :scheme twice": (MALFORMED, lambda p: p.headers(1, [(":scheme", "http"), *request_fields()])),
    "8.3.1 :path twice": (MALFORMED, lambda p: p.headers(1, [(":path", ECHO), *request_fields()])),
    "8.3.1 :authority twice": (MALFORMED, lambda p: p.headers(1, [(":authority", "a"), *request_fields()])),
    "8.3.1 pseudo-headers in any order": (
        None,
        lambda p: p.headers(1, [*reversed(request_fields()[:4]), *request_fields()[4:]]) + p.data(1, message(b"")),
    ),
    "8.4 the client's SETTINGS may forbid pushing, which never happens": (None, lambda p: frames.settings({2: 0})),
    "8.5 CONNECT with :path": (MALFORMED, lambda p: p.headers(1, changed(_method="CONNECT"))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("short_way", [True, False])
def test_rfc_9113(name: str, short_way: bool) -> None:
    expected, write = CASES[name]
    assert outcome(write, short_way=short_way) == expected


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] == MALFORMED])
def test_what_is_malformed_is_so_when_it_comes_again(name: str) -> None:
    """A verdict that was remembered is the same verdict, on another connection of the same server, too."""
    _, write = CASES[name]
    one, two = Peer(), Peer()
    two.connection._decoder._cache = one.cache
    two.connection._decoder.blocks = one.cache.blocks
    for peer in (one, two):
        peer.send(write(peer))
        assert answers(peer.read())[1].reset == E.PROTOCOL_ERROR
        assert peer.messages == [], "no handler saw it"


@pytest.mark.parametrize(("method", "status"), [("GET", "405"), ("PUT", "405"), ("post", "405")])
def test_rfc_9113_8_3_1_other_methods_are_answered(method: str, status: str) -> None:
    peer = Peer()
    peer.send(peer.headers(1, changed(_method=method), BOTH))
    assert answers(peer.read())[1].fields[":status"] == status


def test_rfc_9113_8_5_connect_is_answered() -> None:
    peer = Peer()
    peer.send(peer.headers(1, [(":method", "CONNECT"), (":authority", "a:80")]))
    assert answers(peer.read())[1].fields[":status"] == "405"


def test_rfc_9113_8_1_an_answer_before_the_requests_end_resets_with_no_error() -> None:
    peer = Peer()
    peer.send(peer.headers(1, request_fields("/un.Known/Method")))
    answer = answers(peer.read())[1]
    assert (answer.status, answer.reset) == (12, E.NO_ERROR)
