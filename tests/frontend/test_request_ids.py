"""Request ids in both engines of gRPC and in HTTP/1.1: a client is told the id that it sent, whatever the answer is.

Held here: which ids are well-formed; the id comes back with answers, failures, refusals of the engine itself, streams,
and beside a retry hint; the first of several counts; what could break a line or a header is never repeated; an id of
ours takes the place of none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ringserve.frontend import request_ids
from ringserve.frontend.handler import EngineLimits, Methods
from ringserve.frontend.http1.exchange import Exchange, Http1Limits
from tests.frontend.http1.peer import Holding, mirror, on_loop, post, read_answers
from tests.frontend.http1.peer import Peer as HttpPeer
from tests.frontend.http2.peer import ECHO, Peer, answers
from tests.frontend.http2.service import GRPCIO, NATIVE, PREFIX, Running, Service, connect, grpc

HEADER = request_ids.HEADER
ID = "7f3c-OK/=+.~!"


@pytest.mark.parametrize("value", [b"a", b"x" * 128, b"0af7651916cd43dd8448eb211c80319c", b'"quoted"', b"a,b;c=\\d"])
def test_well_formed(value: bytes) -> None:
    assert request_ids.well_formed(value) == value.decode()


@pytest.mark.parametrize(
    "value",
    [b"", b"x" * 129, b"a b", b"a\tb", b"a\nb", b"a\r\nx: y", b"a\x00", b"a\x1b[31m", b"\x7f", "ä".encode(), b"a\n"],
)
def test_malformed(value: bytes) -> None:
    assert request_ids.well_formed(value) == ""


def test_made_ids_are_well_formed_and_differ() -> None:
    made = {request_ids.make() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(each) for each in made} == {24}
    assert all(request_ids.well_formed(each.encode()) == each for each in made)


# --------------------------------------------------------------------------------------------------------------- gRPC


class Named(Service):
    """The service, and methods that answer with ids of their own and with retry hints."""

    def methods(self) -> Methods:
        methods = super().methods()
        methods.unary[PREFIX + "Made"] = lambda call, message: call.finish(bytes(message), "made")
        methods.unary[PREFIX + "MadeFail"] = lambda call, _: call.fail(5, "none", made_id="made")
        methods.unary[PREFIX + "Push"] = lambda call, _: call.fail(14, "later", 20)
        return methods


@pytest.fixture(params=[NATIVE, GRPCIO], scope="module")
def channel(request: pytest.FixtureRequest) -> Iterator[Any]:
    server = Running(request.param, Named(), EngineLimits(message_bytes_max=100_000), 2, "")
    with connect(server.target) as channel:
        yield channel
    server.stop()


def told(channel: Any, method: str, message: bytes, *sent: str) -> dict[str, str]:
    """The trailing metadata of a call with these ids, however it ends."""
    try:
        _, call = channel.unary_unary(PREFIX + method).with_call(message, metadata=[(HEADER, each) for each in sent])
    except grpc.RpcError as error:
        call = error
    return {key: value for key, value in call.trailing_metadata() or () if key in (HEADER, "grpc-retry-pushback-ms")}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        pytest.param("Echo", b"hello", id="answer"),
        pytest.param("Later", b"x" * 70_000, id="an answer of several frames"),
        pytest.param("Fail", b"9 why", id="failure"),
        pytest.param("NoSuchMethod", b"", id="unknown method"),
        pytest.param("Bug", b"", id="bug"),
    ],
)
def test_the_id_comes_back(channel: Any, method: str, message: bytes) -> None:
    for number in range(3):  # the first call is not read from the caches
        assert told(channel, method, message, f"{ID}{number}") == {HEADER: f"{ID}{number}"}
    assert told(channel, method, message) == {}


def test_the_first_of_several_counts(channel: Any) -> None:
    assert told(channel, "Echo", b"", "one", "two") == {HEADER: "one"}


def test_beside_a_retry_hint(channel: Any) -> None:
    assert told(channel, "Push", b"", ID) == {HEADER: ID, "grpc-retry-pushback-ms": "20"}


@pytest.mark.parametrize("value", ["a b", "x" * 129, "a\tb"])
def test_what_is_no_id_is_not_repeated(channel: Any, value: str) -> None:
    assert told(channel, "Echo", b"", value) == {}


@pytest.mark.parametrize("method", ["Made", "MadeFail"])
def test_an_id_of_ours(channel: Any, method: str) -> None:
    assert told(channel, method, b"hello") == {HEADER: "made"}


def test_streams(channel: Any) -> None:
    chat = channel.stream_stream(PREFIX + "Chat")(iter([b"a"]), metadata=[(HEADER, ID)])
    assert list(chat) == [b"A"]
    assert dict(chat.trailing_metadata())[HEADER] == ID
    failing = channel.stream_stream(PREFIX + "StreamFail")(iter([b""]), metadata=[(HEADER, ID)])
    with pytest.raises(grpc.RpcError):
        list(failing)
    assert dict(failing.trailing_metadata())[HEADER] == ID


def test_the_native_engines_own_refusals_tell_the_id() -> None:
    peer = Peer(limits=EngineLimits(message_bytes_max=10))
    peer.send(peer.call(1, bytes(11), ECHO, (HEADER, ID)))
    answer = answers(peer.read())[1]
    assert (answer.status, answer.fields[HEADER]) == (8, ID)


def test_the_short_way_and_the_long_way_say_the_same() -> None:
    written = []
    for is_short in (True, False):
        peer = Peer()
        peer.read()
        peer.connection.is_short_way_on = is_short
        peer.send(b"".join(peer.call(1 + 2 * number, b"hello", ECHO, (HEADER, f"id-{number}")) for number in range(5)))
        written.append(peer.raw())
    assert written[0] == written[1]
    assert b"id-4" in written[0]


# ---------------------------------------------------------------------------------------------------------------- REST


def test_answers_tell_the_id() -> None:
    async def test() -> None:
        peer = HttpPeer(mirror)
        for value in (b"one", b"two"):
            await peer.send(post(b"body", b"X-Request-ID:  %b \r\n" % value))
            (answer,) = read_answers(peer.take())
            assert answer.headers[HEADER] == value.decode()
        await peer.send(post(b"body"))
        (answer,) = read_answers(peer.take())
        assert HEADER not in answer.headers

    on_loop(test)


@pytest.mark.parametrize("value", [b"a b", b"x" * 129, b"\xc3\xa4", b"a\tb", b""])
def test_what_is_no_id_is_not_repeated_over_http(value: bytes) -> None:
    async def test() -> None:
        peer = HttpPeer(mirror)
        await peer.send(post(b"body", b"X-Request-Id: %b\r\n" % value))
        (answer,) = read_answers(peer.take())
        assert HEADER not in answer.headers

    on_loop(test)


def test_refusals_of_the_engine_tell_the_id() -> None:
    async def test() -> None:
        peer = HttpPeer(mirror, Http1Limits(body_bytes_max=3))
        await peer.send(post(b"body", b"X-Request-Id: one\r\n"))
        (answer,) = read_answers(peer.take())
        assert (answer.status, answer.headers[HEADER]) == (413, "one")

    on_loop(test)


def test_a_stop_tells_the_id() -> None:
    async def test() -> None:
        peer = HttpPeer(Holding().handle)
        await peer.send(post(b"body", b"X-Request-Id: one\r\n"))
        peer.connection.stop()
        (answer,) = read_answers(peer.take())
        assert (answer.status, answer.headers[HEADER]) == (503, "one")

    on_loop(test)


def test_an_id_of_ours_over_http() -> None:
    def handle(exchange: Exchange) -> None:
        exchange.answer(200, made_id="made")

    async def test() -> None:
        peer = HttpPeer(handle)
        await peer.send(post(b"body"))
        (answer,) = read_answers(peer.take())
        assert answer.headers[HEADER] == "made"


    on_loop(test)


def test_ids_do_not_drive_kinds_of_answers_out_of_their_table() -> None:
    async def test() -> None:
        peer = HttpPeer(mirror)
        for number in range(20):
            await peer.send(post(b"body", b"X-Request-Id: %d\r\n" % number))
        assert len(peer.server.answers._starts) == 1

    on_loop(test)
