"""One connection without a socket: requests in any pieces, one at a time, answers in order, and what ends it."""

from __future__ import annotations

import asyncio
import logging
import random
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ringserve.frontend.http1.exchange import Exchange, Http1Limits
from ringserve.frontend.http1.heads import PIECES_AT_ONCE_MAX
from tests.frontend.http1.peer import GET, Holding, Peer, chunked, mirror, on_loop, post, read_answers

# ----------------------------------------------------------------------------------------------- requests in pieces

BODIES = st.sampled_from(
    [b"", b"a", b"hello", b"\r\n\r\n", b"x\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"z" * 500]
)
REQUESTS = st.one_of(
    st.just((GET, "GET", b"GET /x 1 ")),
    st.just((b"HEAD /h HTTP/1.1\r\nHost: b\r\n\r\n", "HEAD", b"")),
    st.just((b"\r\n\r\nGET /n HTTP/1.1\r\nHost: b\r\n\r\n", "GET", b"GET /n 1 ")),
    BODIES.map(lambda body: (post(body), "POST", b"POST /p 2 " + body)),
    BODIES.map(lambda body: (post(body, b"Expect: 100-continue\r\n"), "POST", b"POST /p 3 " + body)),
    st.builds(
        lambda body, size: (chunked(body, size), "POST", b"POST /c 2 " + body), BODIES, st.sampled_from([1, 2, 5, 1000])
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=6), st.randoms(use_true_random=False), st.booleans())
def test_any_split_gives_the_same_answers(
    requests: list[tuple[bytes, str, bytes]], chance: random.Random, later: bool
) -> None:
    """Requests one behind the other, in pieces of any size, answered at once or later."""

    async def test() -> None:
        def mirror_later(exchange: Exchange) -> None:
            asyncio.get_running_loop().call_soon(mirror, exchange)

        peer = Peer(mirror_later if later else mirror)
        data = b"".join(text for text, _, _ in requests)
        cuts = sorted(chance.sample(range(len(data) + 1), min(len(data), chance.choice([0, 1, 5, 40, 5000]))))
        edges = [0, *cuts, len(data)]
        await peer.send(*(data[start:stop] for start, stop in pairwise(edges)))
        for _ in range(50):
            await asyncio.sleep(0)
        methods = [method for _, method, _ in requests]
        answers = [answer for answer in read_answers(peer.take(), methods) if answer.status != 100]
        assert [answer.body for answer in answers] == [body for _, _, body in requests]
        assert {answer.status for answer in answers} == {200}
        assert not peer.is_closed()
        assert not peer.is_paused()

    on_loop(test)


NOISE = st.lists(
    st.sampled_from(
        [GET, post(b"abc"), chunked(b"abcdef"), b"\r\n", b"GET", b" /x", b" HTTP/1.1", b"\r\n\r\n", b"A: b\r\n"]
    )
    | st.binary(max_size=20),
    max_size=12,
).map(b"".join)


@settings(max_examples=600, deadline=None)
@given(NOISE, st.integers(1, 60))
def test_any_bytes_in_any_pieces_end_alike(data: bytes, step: int) -> None:
    """Never an exception; the same answers whatever the pieces; nothing after the first refusal."""

    async def outcome(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bool]:
        peer = Peer(mirror)
        await peer.send(*pieces)
        for _ in range(5):
            await asyncio.sleep(0)
        answers = read_answers(peer.take())
        for answer in answers[:-1]:
            assert answer.status in (100, 200)
        ended = peer.transport.has_eof or peer.is_closed()
        return [(answer.status, answer.body if answer.status == 200 else b"") for answer in answers], ended

    async def test() -> None:
        whole = await outcome([data] if data else [])
        pieces = await outcome([data[at : at + step] for at in range(0, len(data), step)])
        assert whole == pieces

    on_loop(test)


# ------------------------------------------------------------------------------------------------- one at a time


def test_pipelined_requests_wait_for_their_turn() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        peer.push(post(b"1") + post(b"2") + GET)
        assert len(application.exchanges) == 1
        assert peer.is_paused(), "what is not looked at yet is not added to"
        assert application.exchanges[0].take_body() == b"1"
        application.exchanges[0].answer(200, b"one")
        assert [answer.body for answer in read_answers(peer.take())] == [b"one"]
        assert len(application.exchanges) == 2
        application.exchanges[1].answer(200, b"two")
        application.exchanges[0].answer(200, b"again")
        assert not peer.is_paused()
        application.exchanges[2].answer(200, b"three")
        assert [answer.body for answer in read_answers(peer.take())] == [b"two", b"three"]

    on_loop(test)


def test_reading_goes_on_while_a_request_runs() -> None:
    """Otherwise nobody would notice that the client leaves."""

    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        peer.push(post(b"1"))
        assert not peer.is_paused()
        peer.lose()
        assert application.cancelled == 1
        application.exchanges[0].answer(200, b"late")
        assert peer.take() == b""
        assert peer.server.connections_count == 0

    on_loop(test)


def test_a_client_that_asks_much_at_once_lets_others_go_first() -> None:
    async def test() -> None:
        peer = Peer(mirror, Http1Limits(requests_at_once_max=10))
        peer.push(GET * 35)
        counts = [len(read_answers(peer.take()))]
        for _ in range(4):
            await asyncio.sleep(0)
            counts.append(len(read_answers(peer.take())))
        assert counts == [10, 10, 10, 5, 0]
        assert not peer.is_paused()

    on_loop(test)


def test_a_body_in_many_chunks_is_read_in_parts() -> None:
    """One read may hold forty thousand chunks of a byte."""

    async def test() -> None:
        peer = Peer(mirror)
        body = bytes(40_000)
        peer.push(chunked(body, 1))
        turns = 0
        while peer.is_paused():
            await asyncio.sleep(0)
            turns += 1
        # The bytes between two looks hold some chunks more.
        assert len(body) / (PIECES_AT_ONCE_MAX + 1_500) - 1 <= turns <= len(body) / PIECES_AT_ONCE_MAX
        assert [answer.body for answer in read_answers(peer.take())] == [b"POST /c 2 " + body]

    on_loop(test)


def test_a_client_that_does_not_read_gets_no_further_answers_made() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        peer.push(GET)
        peer.connection.pause_writing()
        application.exchanges[0].answer(200, b"a")
        peer.push(GET)
        assert len(application.exchanges) == 1
        assert peer.is_paused()
        peer.connection.resume_writing()
        assert len(application.exchanges) == 2
        assert not peer.is_paused()

    on_loop(test)


# ------------------------------------------------------------------------------------------------------- answers


def test_an_answer() -> None:
    async def test() -> None:
        peer = Peer(lambda exchange: exchange.answer(404, b"{}", headers=b"X: y\r\nZ: w\r\n"))
        peer.push(GET)
        (answer,) = read_answers(peer.take())
        headers = dict(answer.headers)
        assert headers.pop("date").endswith(" GMT")
        assert headers == {"content-type": "application/json", "content-length": "2", "x": "y", "z": "w"}
        assert (answer.status, answer.body) == (404, b"{}")

    on_loop(test)


def test_long_answers_are_not_joined_with_their_head() -> None:
    async def test() -> None:
        body = bytes(200_000)
        peer = Peer(lambda exchange: exchange.answer(200, body))
        peer.push(GET)
        assert read_answers(peer.take())[0].body == body

    on_loop(test)


@pytest.mark.parametrize(
    ("request_", "connection", "closes"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "close", True),
        (b"GET / HTTP/1.0\r\n\r\n", "close", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive", False),
        (b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx", "close", True),
    ],
)
def test_who_closes(request_: bytes, connection: str | None, closes: bool) -> None:
    async def test() -> None:
        peer = Peer(mirror)
        peer.push(request_)
        (answer,) = read_answers(peer.take())
        assert answer.headers.get("connection") == connection
        assert peer.is_closed() == closes
        await peer.send(GET)
        assert bool(peer.take()) != closes

    on_loop(test)


def test_head_has_no_body_and_its_length() -> None:
    async def test() -> None:
        peer = Peer(mirror)
        peer.push(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        first, second = read_answers(peer.take(), ["HEAD", "GET"])
        assert (first.body, first.headers["content-length"]) == (b"", "10")
        assert second.body == b"GET /x 1 "

    on_loop(test)


def test_continue_is_said_only_when_the_client_waits() -> None:
    async def test() -> None:
        head, body = post(b"abc", b"Expect: 100-continue\r\n")[:-3], b"abc"
        peer = Peer(mirror)
        peer.push(head)
        assert peer.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.push(body)
        assert [answer.status for answer in read_answers(peer.take())] == [200]
        peer.push(head + body[:1])
        assert peer.take() == b""
        peer.push(body[1:])
        assert [answer.status for answer in read_answers(peer.take())] == [200]

    on_loop(test)


def test_a_handlers_bug_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    def broken(exchange: Exchange) -> None:
        raise ValueError("a bug")

    async def test() -> None:
        peer = Peer(broken)
        peer.push(GET * 2)
        assert [answer.status for answer in read_answers(peer.take())] == [500, 500]

    with caplog.at_level(logging.CRITICAL):
        on_loop(test)
