"""Goal: where a request ends, and whose it is, can be read in one way only (RFC 9112). Method: a table of whole
requests, named by the section, with the status each must be answered with; delivered whole, byte by byte, and with
a second request behind it, which must be answered if and only if the connection goes on.
"""

from __future__ import annotations

import pytest

from ringserve.frontend.http1.exchange import Http1Limits
from ringserve.frontend.http1.heads import FRAMING_BYTES_MAX
from tests.frontend.http1.peer import Peer, mirror, on_loop, read_answers

NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def get(*lines: bytes, version: bytes = b"1.1", target: bytes = b"/") -> bytes:
    return b"GET %b HTTP/%b\r\n%b\r\n" % (target, version, b"".join(line + b"\r\n" for line in lines))


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return POST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


#: The request, and its status; 200 with a True: the connection goes on.
CASES: dict[str, tuple[bytes, int, bool]] = {
    "2.2 empty lines before a request": (b"\r\n\r\n" + get(b"Host: a"), 200, True),
    "2.2 white space before the first header": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, False),
    "2.2 a bare LF behind the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, False),
    "2.2 a bare LF behind a header": (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, False),
    "2.2 a bare CR in a header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", 400, False),
    "2.2 a bare CR before LF, twice": (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400, False),
    "2.2 a bare CR in the request line": (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400, False),
    "2.3 HTTP/1.2": (get(b"Host: a", version=b"1.2"), 400, False),
    "2.3 HTTP/2.0": (get(b"Host: a", version=b"2.0"), 505, False),
    "2.3 HTTP/1.10": (get(b"Host: a", version=b"1.10"), 400, False),
    "2.3 a version in small letters": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, False),
    "3 two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 200, True),
    "3 a space in the target": (get(b"Host: a", target=b"/a b"), 400, False),
    "3 a tab before the version": (b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", 400, False),
    "3.1 a method in small letters": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501, False),
    "3.1 an unknown method": (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501, False),
    "3.2 no Host": (get(), 400, False),
    "3.2 no Host over HTTP/1.0": (get(version=b"1.0"), 200, False),
    "3.2 two Hosts": (get(b"Host: a", b"Host: b"), 400, False),
    "3.2 two Hosts, alike": (get(b"Host: a", b"host: a"), 400, False),
    "3.2 two Hosts over HTTP/1.0": (get(b"Host: a", b"Host: b", version=b"1.0"), 400, False),
    "3.2 an empty Host": (get(b"Host:"), 200, True),
    "3.2 a Host with a port": (get(b"Host: [::1]:80"), 200, True),
    "3.2 a Host with a path": (get(b"Host: a/b"), 400, False),
    "3.2 a Host with a user": (get(b"Host: u@a"), 400, False),
    "3.2 a Host with a space": (get(b"Host: a b"), 400, False),
    "3.2 a list of Hosts": (get(b"Host: a, b"), 400, False),
    "3.2.2 absolute-form": (get(b"Host: other", target=b"http://a/x"), 200, True),
    "3.2.2 absolute-form without Host": (get(target=b"http://a/x"), 400, False),
    "3.2.3 authority-form": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501, False),
    "3.2.4 asterisk-form": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 200, True),
    "5.1 a space before the colon": (get(b"Host : a"), 400, False),
    "5.1 a tab before the colon": (get(b"Host: a", b"X\t: b"), 400, False),
    "5.1 a space before the colon of Content-Length": (post(b"Content-Length : 3", body=b"abc"), 400, False),
    "5.1 no colon": (get(b"Host: a", b"X"), 400, False),
    "5.1 no name": (get(b"Host: a", b": x"), 400, False),
    "5.1 a NUL in a value": (get(b"Host: a", b"X: \0"), 400, False),
    "5.1 a NUL in a name": (get(b"Host: a", b"X\0: y"), 400, False),
    "5.2 obs-fold": (get(b"Host: a", b"X: b", b" c"), 400, False),
    "5.2 obs-fold with a tab": (get(b"Host: a", b"X: b", b"\tc"), 400, False),
    "5.2 obs-fold of Transfer-Encoding": (post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"), 400, False),
    "6.1 chunked": (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", 200, True),
    "6.1 chunked in any letters": (post(b"Transfer-Encoding: Chunked", body=b"0\r\n\r\n"), 200, True),
    "6.1 chunked twice": (post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400, False),
    "6.1 chunked in two lines": (
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        False,
    ),
    "6.1 chunked, then something": (post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 400, False),
    "6.1 another coding": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501, False),
    "6.1 identity": (post(b"Transfer-Encoding: identity", body=b"abc"), 400, False),
    "6.1 a name that only looks like it": (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400, False),
    "6.1 a vertical tab before chunked": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400, False),
    "6.1 chunked over HTTP/1.0": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        501,
        False,
    ),
    "6.2 Content-Length": (post(b"Content-Length: 3", body=b"abc"), 200, True),
    "6.2 zeros before": (post(b"Content-Length: 003", body=b"abc"), 200, True),
    "6.2 a sign": (post(b"Content-Length: +3", body=b"abc"), 400, False),
    "6.2 a negative length": (post(b"Content-Length: -3", body=b"abc"), 400, False),
    "6.2 hexadecimal": (post(b"Content-Length: 0x3", body=b"abc"), 400, False),
    "6.2 a fraction": (post(b"Content-Length: 3.0", body=b"abc"), 400, False),
    "6.2 an underscore": (post(b"Content-Length: 1_0", body=b"abc"), 400, False),
    "6.2 a space within": (post(b"Content-Length: 1 0", body=b"abc"), 400, False),
    "6.2 nothing": (post(b"Content-Length:", body=b"abc"), 400, False),
    "6.2 beyond 64 bits": (post(b"Content-Length: 18446744073709551619", body=b"abc"), 400, False),
    "6.2 more than is taken": (post(b"Content-Length: 9999999999"), 413, False),
    "6.3 both": (post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400, False),
    "6.3 both, the other way": (
        post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"),
        400,
        False,
    ),
    "6.3 two lengths": (post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), 400, False),
    "6.3 two lengths, alike": (post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400, False),
    "6.3 a list of lengths": (post(b"Content-Length: 3, 3", body=b"abc"), 400, False),
    "6.3 no length: no body": (POST + b"\r\n", 200, True),
    "6.3 a GET with a body": (get(b"Host: a", b"Content-Length: 3") + b"abc", 200, True),
    "7.1 chunk sizes in any letters": (CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", 200, True),
    "7.1 zeros before a chunk's size": (CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n", 200, True),
    "7.1 a chunk's size beyond 64 bits": (CHUNKED + b"fffffffffffffffff\r\nabc", 400, False),
    "7.1 a chunk's size that wraps": (CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n", 400, False),
    "7.1 a chunk's size with a sign": (CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n", 400, False),
    "7.1 a chunk's size with 0x": (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400, False),
    "7.1 a chunk's size with a space before": (CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n", 400, False),
    "7.1 no chunk size": (CHUNKED + b"\r\nabc\r\n0\r\n\r\n", 400, False),
    "7.1 a chunk longer than it says": (CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400, False),
    "7.1 a bare LF behind a chunk's size": (CHUNKED + b"3\nabc\r\n0\r\n\r\n", 400, False),
    "7.1 a bare LF behind a chunk": (CHUNKED + b"3\r\nabc\n0\r\n\r\n", 400, False),
    "7.1 a bare CR behind a chunk's size": (CHUNKED + b"3\rXabc\r\n0\r\n\r\n", 400, False),
    "7.1.1 extensions": (CHUNKED + b'3;a=b;c="d"\r\nabc\r\n0;x\r\n\r\n', 200, True),
    "7.1.1 an extension with a bare LF": (CHUNKED + b"3;a\nabc\r\n0\r\n\r\n", 400, False),
    "7.1.1 an extension without end": (CHUNKED + b"3;" + b"a" * (FRAMING_BYTES_MAX + 20), 400, False),
    "7.1.1 many extensions": (CHUNKED + (b"1;" + b"e" * 500 + b"\r\nx\r\n") * 200 + b"0\r\n\r\n", 400, False),
    "7.1.2 trailers": (CHUNKED + b"0\r\nX: y\r\n\r\n", 200, True),
    "7.1.2 trailers without end": (CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000, 400, False),
    "7.1.2 a length in the trailers": (CHUNKED + b"0\r\nContent-Length: 99\r\n\r\n", 400, False),
    "7.8 an offer of another protocol": (
        post(
            *(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
            *(b"Content-Length: 3",),
            body=b"abc",
        ),
        200,
        True,
    ),
    "7.8 an offer of web sockets": (get(b"Host: a", b"Connection: Upgrade", b"Upgrade: websocket"), 200, True),
    "9.3 HTTP/1.0 ends": (get(b"Host: a", version=b"1.0"), 200, False),
    "9.6 close": (get(b"Host: a", b"Connection: close"), 200, False),
    "9110 10.1.1 an unknown expectation": (post(b"Expect: 200-maybe", b"Content-Length: 0"), 417, False),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, False),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 501, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["whole", "bytes", "halves"])
def test_rfc_9112(name: str, way: str) -> None:
    text, status, goes_on = CASES[name]
    cut = {"whole": len(text), "bytes": 1, "halves": len(text) // 2}[way]

    async def test() -> None:
        peer = Peer(mirror, Http1Limits())
        behind = NEXT if goes_on else b""
        await peer.send(*(text[at : at + cut] for at in range(0, len(text), cut)), behind)
        answers = read_answers(peer.take())
        assert [answer.status for answer in answers] == ([status, 200] if goes_on else [status])
        if goes_on:
            assert answers[-1].body == b"GET /next 1 "
            return
        assert answers[0].headers["connection"] == "close"
        if not peer.is_closed():
            peer.connection.data_received(NEXT)
            assert peer.take() == b"", "what stands behind a bad request is no request"

    on_loop(test)


def test_rfc_9112_9_3_2_answers_come_in_the_order_of_their_requests() -> None:
    async def test() -> None:
        peer = Peer(mirror)
        await peer.send(b"".join(get(b"Host: a", target=b"/%d" % number) for number in range(100)))
        for _ in range(10):
            await peer.send(b"")
        bodies = [answer.body for answer in read_answers(peer.take())]
        assert bodies == [b"GET /%d 1 " % number for number in range(100)]

    on_loop(test)


def test_rfc_9110_10_1_1_continue() -> None:
    async def test() -> None:
        peer = Peer(mirror)
        await peer.send(post(b"Expect: 100-continue", b"Content-Length: 3"))
        assert [answer.status for answer in read_answers(peer.take())] == [100]
        await peer.send(b"abc")
        assert [answer.status for answer in read_answers(peer.take())] == [200]

    on_loop(test)
