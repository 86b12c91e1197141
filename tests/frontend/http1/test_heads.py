"""Request heads: what they mean, which are refused, and that the same bytes mean the same."""

from __future__ import annotations

import pytest

from ringserve.frontend.http1 import heads
from ringserve.frontend.http1.exchange import Head
from ringserve.frontend.http1.heads import BadRequestError, ChunkedBody, HeadTable


def read(text: bytes, headers_max: int = 128) -> Head:
    """The head of a text with a Host, which is added where it has none."""
    if b"Host:" not in text:
        text = text.replace(b"\n", b"\nHost: a\n", 1)
    return HeadTable(headers_max).read(text.replace(b"\n", b"\r\n") + b"\r\n")


def test_a_head() -> None:
    head = read(b"POST /v1/models/m:predict?a=%20#f HTTP/1.1\nHost: a:1\nX-Y:  v w \nContent-Length: 12\n")
    assert (head.method, head.target) == ("POST", "/v1/models/m:predict?a=%20#f")
    assert head.headers == ((b"host", b"a:1"), (b"x-y", b"v w"), (b"content-length", b"12"))
    assert (head.body_bytes, head.is_1_1, head.keeps_alive, head.expects_continue) == (12, True, True, False)
    assert head.get(b"x-y") == b"v w"
    assert head.get(b"nothing") is None


@pytest.mark.parametrize(
    ("text", "is_1_1", "keeps_alive"),
    [
        (b"GET / HTTP/1.1\n", True, True),
        (b"GET / HTTP/1.1\nConnection: close\n", True, False),
        (b"GET / HTTP/1.1\nConnection: Close, x\n", True, False),
        (b"GET / HTTP/1.0\n", False, False),
        (b"GET / HTTP/1.0\nConnection: keep-alive\n", False, True),
        (b"GET / HTTP/1.0\nConnection: Keep-Alive\n", False, True),
    ],
)
def test_connections(text: bytes, is_1_1: bool, keeps_alive: bool) -> None:
    head = read(text)
    assert (head.is_1_1, head.keeps_alive) == (is_1_1, keeps_alive)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://host:80/v1/x?y", "/v1/x?y"),
        (b"HTTPS://host", "/"),
        (b"http://user@host/a#b", "/a#b"),
        (b"*", "*"),
        (b"/a//b", "/a//b"),
        (b"/http://x", "/http://x"),
    ],
)
def test_targets(target: bytes, expected: str) -> None:
    assert read(b"OPTIONS " + target + b" HTTP/1.1\n").target == expected


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade\nUpgrade: h2c\n",
        b"Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAA\n",
    ],
)
@pytest.mark.parametrize("length", [b"", b"Content-Length: 5\n", b"Transfer-Encoding: chunked\n"])
def test_offers_of_other_protocols_are_ignored(offer: bytes, length: bytes) -> None:
    head = read(b"POST / HTTP/1.1\n" + length + offer)
    assert head.body_bytes == {b"": 0, b"Content-Length: 5\n": 5}.get(length, -1)
    assert head.keeps_alive


REFUSED: list[tuple[bytes, int]] = [
    (b"GET /\n", 505),
    (b"GET / HTTP/0.9\n", 505),
    (b"GET / HTTP/2.0\n", 505),
    (b"PRI * HTTP/2.0\n", 400),
    (b"NONSENSE / HTTP/1.1\n", 501),
    (b"get / HTTP/1.1\n", 501),
    (b"CONNECT a:80 HTTP/1.1\n", 501),
    (b"GET /a b HTTP/1.1\n", 400),
    (b"GET  HTTP/1.1\n", 400),
    (b"GET /\xff HTTP/1.1\n", 400),
    (b"GET http://[/ HTTP/1.1\n", 400),
    (b"GET / HTTP/1.1\nA\n", 400),
    (b"GET / HTTP/1.1\nA : b\n", 400),
    (b"GET / HTTP/1.1\n: b\n", 400),
    (b"GET / HTTP/1.1\nA: b\n c\n", 400),
    (b"GET / HTTP/1.1\nA: b\x00\n", 400),
    # requests whose end two servers may see in two places
    (b"POST / HTTP/1.1\nContent-Length: 5\nContent-Length: 5\n", 400),
    (b"POST / HTTP/1.1\nContent-Length: 5\nContent-Length: 6\n", 400),
    (b"POST / HTTP/1.1\nContent-Length: 5, 5\n", 400),
    (b"POST / HTTP/1.1\nContent-Length: 5\nTransfer-Encoding: chunked\n", 400),
    (b"POST / HTTP/1.1\nTransfer-Encoding: chunked\nContent-Length: 5\n", 400),
    (b"POST / HTTP/1.1\nTransfer-Encoding: gzip\n", 400),
    (b"POST / HTTP/1.1\nTransfer-Encoding: gzip, chunked\n", 501),
    (b"POST / HTTP/1.1\nTransfer-Encoding: chunked, chunked\n", 400),
    (b"POST / HTTP/1.1\nTransfer-Encoding: xchunked\n", 400),
    (b"POST / HTTP/1.0\nTransfer-Encoding: chunked\n", 501),
    (b"POST / HTTP/1.1\nContent-Length: +5\n", 400),
    (b"POST / HTTP/1.1\nContent-Length: -5\n", 400),
    (b"POST / HTTP/1.1\nContent-Length: 0x5\n", 400),
    (b"POST / HTTP/1.1\nContent-Length: 5 5\n", 400),
    (b"POST / HTTP/1.1\nContent-Length:\n", 400),
    (b"POST / HTTP/1.1\nContent-Length: 99999999999999999999999\n", 400),
    (b"POST / HTTP/1.1\nExpect: something\n", 417),
]


@pytest.mark.parametrize(("text", "status"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_refused(text: bytes, status: int) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(text)
    assert caught.value.status == status
    assert caught.value.text


def test_expectations() -> None:
    assert read(b"POST / HTTP/1.1\nContent-Length: 5\nExpect: 100-Continue\n").expects_continue
    assert not read(b"POST / HTTP/1.0\nContent-Length: 5\nExpect: 100-continue\n").expects_continue


def test_the_number_of_headers_is_bounded() -> None:
    many = b"".join(b"a%d: b\n" % number for number in range(9))
    assert len(read(b"GET / HTTP/1.1\n" + many, 10).headers) == 10
    with pytest.raises(BadRequestError) as caught:
        read(b"GET / HTTP/1.1\n" + many, 9)
    assert caught.value.status == 431


def test_the_same_bytes_are_read_once() -> None:
    table = HeadTable(10)
    text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert table.find(text) is None
    head = table.read(text)
    assert table.find(text) is head
    assert table.find(text.replace(b"a", b"b")) is None


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_KEPT_MAX", 4)
    table = HeadTable(10)
    texts = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(10)]
    for text in texts:
        table.read(text)
        assert table.find(text) is not None
        assert sum(table.find(each) is not None for each in texts) <= 4
    long = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 3000)
    table.read(long)
    assert table.find(long) is None


def test_a_head_in_pieces_means_the_same() -> None:
    text = b"POST /v1/x HTTP/1.1\r\nHost: abc\r\nContent-Length: 7\r\nExpect: 100-continue\r\n\r\n"
    whole = HeadTable(10).read(text)
    for cut in range(len(text)):
        parser = HeadTable(10).parser()
        for piece in (text[:cut], text[cut:]):
            if piece:
                parser.feed(piece)
        head = parser.head()
        for slot in Head.__slots__:
            assert getattr(head, slot) == getattr(whole, slot), slot


CHUNKED: list[tuple[bytes, bytes]] = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nabcde\r\n0\r\n\r\n", b"abcde"),
    (b"5;x=y;z\r\nabcde\r\nA\r\n0123456789\r\n000\r\n\r\n", b"abcde0123456789"),
    (b"5\r\nabcde\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n", b"abcde"),
    (b"c\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n\r\n\r\n\r\n\r\n"),
    (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    (b"9\r\n0\r\n\r\nGET \r\n0\r\n\r\n", b"0\r\n\r\nGET "),
]


@pytest.mark.parametrize(("text", "body"), CHUNKED, ids=[str(n) for n in range(len(CHUNKED))])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
def test_chunked_bodies(text: bytes, body: bytes, step: int) -> None:
    decoder = ChunkedBody()
    rest = text + b"GET /next HTTP/1.1\r\n\r\n"
    used = 0
    while not decoder.is_complete:
        used += decoder.feed(rest[used : used + step])
    assert b"".join(decoder.pieces) == body
    assert used == len(text), "nothing of the next request was taken"


@pytest.mark.parametrize(
    "text", [b"x\r\n", b"5\r\nabcdef", b"-1\r\n", b"5\nabcde\r\n", b"ffffffffffffffffff\r\n", b"\r\n"]
)
def test_bad_chunks(text: bytes) -> None:
    decoder = ChunkedBody()
    with pytest.raises(BadRequestError) as caught:
        decoder.feed(text)
    assert caught.value.status == 400
