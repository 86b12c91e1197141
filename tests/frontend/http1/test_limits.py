"""What bounds a connection without a socket: sizes, time, numbers; and how connections end."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from ringserve.frontend.http1.exchange import Http1Limits
from tests.frontend.http1.peer import GET, Holding, Peer, chunked, mirror, on_loop, post, read_answers

# ------------------------------------------------------------------------------------------------- sizes and limits

SIZES: list[tuple[Http1Limits, list[bytes], int]] = [
    # limits, pieces, HTTP status
    (Http1Limits(body_bytes_max=3), [post(b"abc")], 200),
    (Http1Limits(body_bytes_max=3), [post(b"abcd")], 413),
    (Http1Limits(body_bytes_max=3), [post(b"abcd")[:-4]], 413),
    (Http1Limits(body_bytes_max=3), [post(b"abcd", b"Expect: 100-continue\r\n")[:-4]], 413),
    (Http1Limits(body_bytes_max=3), [chunked(b"abc")], 200),
    (Http1Limits(body_bytes_max=3), [chunked(b"abcd", 1)], 413),
    (Http1Limits(body_bytes_max=3), [chunked(b"")[:-5], b"fff\r\n", b"abcd"], 413),
    (Http1Limits(header_bytes_max=60), [b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % (b"b" * 34)], 200),
    (Http1Limits(header_bytes_max=60), [b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % (b"b" * 35)], 431),
    (Http1Limits(header_bytes_max=60), [b"GET / HTTP/1.1\r\n", b"A: %b" % (b"b" * 60)], 431),
    (Http1Limits(header_bytes_max=60), [b"GET /%b" % (b"b" * 30), b"b" * 30], 431),
    (Http1Limits(headers_max=2), [b"GET / HTTP/1.1\r\nHost: b\r\nC: d\r\n\r\n"], 200),
    (Http1Limits(headers_max=2), [b"GET / HTTP/1.1\r\nHost: b\r\nC: d\r\nE: f\r\n\r\n"], 431),
    (Http1Limits(), [b"\x16\x03\x01\x02\x00"], 501),
    (Http1Limits(), [b"GET /a b"], 400),
    (Http1Limits(), [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx"], 400),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "pieces", "status"), SIZES, ids=[str(n) for n in range(len(SIZES))])
def test_limits(limits: Http1Limits, pieces: list[bytes], status: int) -> None:
    async def test() -> None:
        peer = Peer(mirror, limits)
        await peer.send(*pieces)
        (answer,) = read_answers(peer.take())
        assert answer.status == status
        if status != 200:
            assert answer.headers["connection"] == "close"
            assert answer.body
            assert peer.transport.has_eof, "the client may read the answer before the connection is gone"
            peer.push(b"more of it" * 100)
            assert peer.take() == b""
            assert not peer.is_closed()
            peer.ticks(10)
            assert peer.is_closed()

    on_loop(test)


def test_all_bodies_together_are_bounded() -> None:
    async def test() -> None:
        application = Holding()
        limits = Http1Limits(bodies_bytes_max=1_000_000)
        one = Peer(application.handle, limits)
        two = Peer(application.handle, server=one.server)
        head = post(bytes(600_000))[: -600_000]
        one.push(head)
        two.push(head)
        one.push(bytes(599_999))
        two.push(bytes(400_000))
        assert one.server.bodies_bytes == 999_999
        two.push(bytes(1000))
        assert read_answers(two.take())[0].status == 503
        assert one.server.bodies_bytes == 599_999
        one.push(b"x")
        assert len(application.exchanges) == 1
        assert one.server.bodies_bytes == 600_000, "counted until it is answered"
        application.exchanges[0].answer(200)
        assert one.server.bodies_bytes == 0
        one.push(head + bytes(300_000))
        assert one.server.bodies_bytes == 300_000
        one.lose()
        assert one.server.bodies_bytes == 0

    on_loop(test)


def test_small_bodies_are_bytes_and_large_ones_are_not_copied() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        kinds: list[Any] = []
        for size in (10, 200_000, 300_000):
            body = bytes(size)
            await peer.send(post(body)[:-size], body[:3], body[3:])
            taken = application.exchanges[-1].take_body()
            assert taken == body
            assert application.exchanges[-1].take_body() == b""
            kinds.append(type(taken))
            application.exchanges[-1].answer(200)
        assert kinds == [bytes, bytes, bytearray]

    on_loop(test)


# ------------------------------------------------------------------------------------------------------------ time

LIMITS = Http1Limits(
    idle_s=5,
    head_s=3,
    body_window_s=4,
    body_window_bytes_min=100,
    write_s=6,
    write_window_bytes_min=100,
    linger_s=2,
    tick_s=1,
)


def test_rest_3_2_idle_connections_are_closed_as_libevent_does() -> None:
    assert Http1Limits().idle_s == 50

    async def test() -> None:
        peer = Peer(mirror, LIMITS)
        peer.ticks(5)
        assert not peer.is_closed()
        peer.push(GET)
        peer.ticks(5)
        assert not peer.is_closed(), "counted from the last answer"
        peer.ticks(1)
        assert peer.is_closed()
        assert len(read_answers(peer.take())) == 1, "without a word"

    on_loop(test)


def test_a_slow_head_is_refused_however_it_drips() -> None:
    async def test() -> None:
        peer = Peer(mirror, LIMITS)
        for byte in b"GET ":
            peer.push(bytes((byte,)))
            peer.ticks(1)
        (answer,) = read_answers(peer.take())
        assert answer.status == 408
        peer.ticks(3)
        assert peer.is_closed()

    on_loop(test)


def test_empty_lines_do_not_keep_a_connection_open() -> None:
    async def test() -> None:
        peer = Peer(mirror, LIMITS)
        for _ in range(6):
            peer.push(b"\r\n")
            peer.ticks(1)
        assert peer.is_closed()

    on_loop(test)


@pytest.mark.parametrize(("per_tick", "refused"), [(30, False), (15, True), (0, True)])
def test_a_body_must_bring_something(per_tick: int, refused: bool) -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle, LIMITS)
        peer.push(post(bytes(1000))[:-1000])
        for _ in range(12):
            if per_tick and not peer.transport.has_eof:
                peer.push(bytes(per_tick))
            peer.ticks(1)
        assert bool(peer.take().startswith(b"HTTP/1.1 408 ")) == refused

    on_loop(test)


def test_a_request_that_runs_is_not_timed() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle, LIMITS)
        peer.push(GET)
        peer.ticks(100)
        assert not peer.is_closed()
        application.exchanges[0].answer(200)
        peer.ticks(5)
        assert not peer.is_closed()

    on_loop(test)


def test_a_client_that_never_reads_is_cut_off() -> None:
    async def test() -> None:
        peer = Peer(mirror, LIMITS)
        peer.push(GET)
        peer.transport.unsent_bytes = 1000
        peer.connection.pause_writing()
        peer.ticks(6)
        peer.transport.unsent_bytes = 900  # it took something
        peer.ticks(7)
        assert not peer.transport.is_aborted
        peer.transport.unsent_bytes = 801  # it took something, but not enough
        peer.ticks(1)
        assert peer.transport.is_aborted

    on_loop(test)


def test_answers_that_nobody_takes_are_bounded_together() -> None:
    """Large ones are refused in their place; small ones go out, and all do when there is room again."""

    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle, dataclasses.replace(LIMITS, unsent_bytes_max=1000))
        peer.server.unsent_bytes = 900  # of others
        peer.push(GET)
        application.exchanges[0].answer(200, b"x" * 70_000)
        assert [answer.status for answer in read_answers(peer.take())] == [200]
        peer.transport.unsent_bytes = 70_000
        peer.connection.pause_writing()
        assert peer.server.unsent_bytes == 70_900
        peer.connection.resume_writing()
        assert peer.server.unsent_bytes == 900
        peer.server.unsent_bytes = 1001
        peer.push(GET + GET)
        application.exchanges[1].answer(200, b"small")
        application.exchanges[2].answer(200, b"x" * 70_000)
        assert [answer.status for answer in read_answers(peer.take())] == [200, 503]
        assert peer.server.refusals["503"] == 1
        calls = peer.server.calls
        assert (calls.received, {k: n for k, n in calls.ended.items() if n}) == (3, {200: 2, 503: 1}), "each once"
        peer.connection.pause_writing()
        peer.lose()
        assert peer.server.unsent_bytes == 1001

    on_loop(test)


# --------------------------------------------------------------------------------------------------------- the end


def test_a_half_closed_client_gets_its_answers() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        peer.push(post(b"1") + GET)
        assert peer.connection.eof_received(), "stays open"
        application.exchanges[0].answer(200, b"one")
        application.exchanges[1].answer(200, b"two")
        one, two = (answer for answer in read_answers(peer.take()) if answer.status != 100)
        assert "connection" not in one.headers
        assert two.headers["connection"] == "close"
        assert peer.is_closed()

    on_loop(test)


@pytest.mark.parametrize("data", [b"", b"GET / HT", post(b"abc")[:-1], GET])
def test_a_client_that_leaves_in_the_middle(data: bytes) -> None:
    async def test() -> None:
        peer = Peer(mirror)
        await peer.send(data)
        assert not peer.connection.eof_received()

    on_loop(test)


def test_a_client_that_may_be_gone_is_spoken_to() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        peer.push(GET)
        peer.connection.eof_received()
        assert [answer.status for answer in read_answers(peer.take())] == [100]
        old = Peer(application.handle)
        old.push(b"GET / HTTP/1.0\r\n\r\n")
        assert old.connection.eof_received()
        assert old.take() == b"", "HTTP/1.0 knows no interim answers"

    on_loop(test)


def test_a_drain() -> None:
    async def test() -> None:
        application = Holding()
        idle = Peer(application.handle)
        busy, half, fresh, silent = (Peer(application.handle, server=idle.server) for _ in range(4))
        idle.push(GET)
        application.exchanges.pop().answer(200)
        idle.take()
        busy.push(GET)
        half.push(post(b"abc")[:-1])
        draining = asyncio.create_task(idle.server.drain(20))
        await asyncio.sleep(0)
        everybody = (idle, busy, half, fresh, silent)
        assert [peer.is_closed() for peer in everybody] == [True, False, False, False, False]
        half.push(b"c")
        fresh.push(GET)
        for exchange in application.exchanges:
            exchange.answer(200)
        for closed in (False, True):
            silent.server.tick += 1
            silent.connection.drain()
            assert silent.is_closed() == closed, "its request may be on its way for a moment"
        for peer in (busy, half, fresh):
            assert read_answers(peer.take())[0].headers["connection"] == "close"
            assert peer.is_closed()
        assert not draining.done()
        for peer in everybody:
            peer.lose()
        await draining

    on_loop(test)


def test_the_end_of_a_drain() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        peer.push(GET)
        await peer.server.drain(0.0)
        assert application.cancelled == 1
        (answer,) = read_answers(peer.take())
        assert (answer.status, answer.body) == (503, b"the server is shutting down\n")
        assert peer.is_closed()
        application.exchanges[0].answer(200)
        assert peer.take() == b""

    on_loop(test)


def test_too_many_connections() -> None:
    async def test() -> None:
        server = Peer(mirror, Http1Limits(connections_max=2)).server
        peers = [Peer(mirror, server=server) for _ in range(200)]
        peers[0].push(GET)
        assert read_answers(peers[0].take())[0].status == 200
        peers[1].push(GET)
        (answer,) = read_answers(peers[1].take())
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert [peer.transport.is_aborted for peer in peers].index(True) == 2 + 128 - 1
        assert all(peer.transport.is_aborted for peer in peers[2 + 128 - 1 :])
        silent = peers[2]
        silent.ticks(25)
        silent.ticks(5)
        assert silent.is_closed()

    on_loop(test)


def test_where_a_client_sits() -> None:
    async def test() -> None:
        application = Holding()
        peer = Peer(application.handle)
        peer.push(GET)
        assert application.exchanges[0].peer_is_local is False, "not known: not local"

    on_loop(test)


