"""Goal: a client cannot tell the native engine from grpc.aio's. Method: the same calls, by the official client library,
to both engines over loopback; each test states what must be seen, so that the two cannot be wrong together unnoticed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ringserve.frontend.handler import EngineLimits
from tests.frontend.http2.service import GRPCIO, NATIVE, PREFIX, Running, connect, grpc, running


@pytest.fixture(params=[NATIVE, GRPCIO], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(request.param) as server:
        yield server


@pytest.fixture
def fresh(request: pytest.FixtureRequest, server: Running) -> Running:
    """The shared server with its notes wiped."""
    server.service.cancelled.clear()
    server.service.held.clear()
    server.service.bugs.clear()
    return server


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[Any]:
    with connect(server.target) as channel:
        yield channel


def unary(channel: Any, method: str, message: bytes, **options: Any) -> bytes:
    answer: bytes = channel.unary_unary(PREFIX + method)(message, **options)
    return answer


def failure(channel: Any, method: str, message: bytes, **options: Any) -> tuple[int, str]:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, method, message, **options)
    return caught.value.code().value[0], caught.value.details()


@pytest.mark.parametrize("method", ["Echo", "Later"])
@pytest.mark.parametrize("size", [0, 1, 3_200, 16_379, 16_380, 65_531, 1_000_000])
def test_echo(channel: Any, method: str, size: int) -> None:
    message = bytes(range(256)) * (size // 256 + 1)
    assert unary(channel, method, message[:size]) == message[:size]


def test_large_messages_both_ways(channel: Any) -> None:
    message = bytes(range(256)) * (2**18)
    assert len(message) == 64 * 2**20
    assert unary(channel, "Echo", message) == message


@pytest.mark.parametrize("code", range(1, 17))
def test_status(channel: Any, code: int) -> None:
    assert failure(channel, "Fail", b"%d why" % code) == (code, "why")


@pytest.mark.parametrize("text", ["", "100 % sure", "zwölf Boxkämpfer\njagen 猫 \x7f", "x" * 1035])
def test_status_text(channel: Any, text: str) -> None:
    assert failure(channel, "Fail", f"3 {text}".encode()) == (3, text)


def test_unknown_method(channel: Any) -> None:
    assert failure(channel, "Nothing", b"") == (12, "unknown method /test.Service/Nothing")


def test_only_the_first_outcome_counts(channel: Any) -> None:
    assert unary(channel, "Twice", b"") == b"first"


def test_metadata(channel: Any) -> None:
    metadata = (("x-text", "a b"), ("x-bytes-bin", b"\x00\xff,"), ("x-text", "second"), ("x-empty-bin", b""))
    for _ in range(3):  # the second and third time through the caches
        lines = unary(channel, "Look", b"", metadata=metadata).decode().split("\n")
        assert lines[:4] == ["x-text=b'a b'", "x-bytes-bin=b'\\x00\\xff,'", "x-text=b'second'", "x-empty-bin=b''"]
        assert lines[4:] == ["timeout=no", "peer=ipv4:127.0.0.1"]


def test_metadata_that_changes_with_every_call(channel: Any) -> None:
    for index in range(50):
        metadata = (("x-fixed", "same"), ("x-trace", f"{index * 7919:032x}"), ("x-span-bin", bytes([index] * index)))
        lines = unary(channel, "Look", b"", metadata=metadata, timeout=10 + index / 7).decode().split("\n")
        expected = [("x-fixed", b"same"), ("x-trace", b"%032x" % (index * 7919)), metadata[2]]
        assert lines[:3] == [f"{name}={value!r}" for name, value in expected]
        assert lines[3] == "timeout=yes"


def test_deadline_ends_the_call_on_both_sides(fresh: Running, channel: Any) -> None:
    assert failure(channel, "Hold", b"", timeout=0.2)[0] == 4
    assert fresh.service.cancelled.wait(10)


def test_cancellation_reaches_the_handler(fresh: Running, channel: Any) -> None:
    call = channel.unary_unary(PREFIX + "Hold").future(b"")
    assert fresh.service.held.wait(10)
    assert call.cancel()
    assert fresh.service.cancelled.wait(10)


def test_disconnection_reaches_the_handler(fresh: Running) -> None:
    channel = connect(fresh.target)
    call = channel.unary_unary(PREFIX + "Hold").future(b"")
    assert fresh.service.held.wait(10)
    channel.close()
    assert fresh.service.cancelled.wait(10)
    assert call.done()


def test_a_bug_fails_its_own_call_and_is_reported(fresh: Running, channel: Any) -> None:
    assert failure(channel, "Bug", b"") == (13, "internal error")
    assert unary(channel, "Echo", b"still here") == b"still here"
    assert [str(bug) for bug in fresh.service.bugs] == ["a bug of the handler"]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(channel: Any, compression: Any) -> None:
    message = b"abc" * 50_000
    assert unary(channel, "Echo", message, compression=compression) == message


def test_200_calls_at_once(channel: Any) -> None:
    messages = [b"%d" % index * (index * 37 % 3_000 + 1) for index in range(1_000)]
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda message: unary(channel, "Later", message), messages))
    assert answers == messages


def test_many_large_answers_at_once(channel: Any) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda size: unary(channel, "Big", b"%d" % size), [3_000_000] * 20)
        sizes = [len(answer) for answer in answers]
    assert sizes == [3_000_000] * 20


def test_client_streaming(channel: Any) -> None:
    messages = [bytes([index]) * (index * 997) for index in range(100)]
    assert channel.stream_unary(PREFIX + "Collect")(iter(messages)) == b"".join(messages)
    assert channel.stream_unary(PREFIX + "Collect")(iter([])) == b""
    big = [bytes(6_000_000)] * 3
    assert len(channel.stream_unary(PREFIX + "Collect")(iter(big))) == 18_000_000


def test_server_streaming(channel: Any) -> None:
    answers = list(channel.unary_stream(PREFIX + "Repeat")(b"200 10000"))
    assert [int.from_bytes(answer[:4], "big") for answer in answers] == list(range(200))
    assert {len(answer) for answer in answers} == {10_004}
    assert list(channel.unary_stream(PREFIX + "Repeat")(b"0 0")) == []


def test_bidirectional_streaming(channel: Any) -> None:
    call = channel.stream_stream(PREFIX + "Chat")(iter([b"one", b"two", b"", b"three"]))
    assert list(call) == [b"ONE", b"TWO", b"", b"THREE"]
    assert call.code() == grpc.StatusCode.OK


def test_streaming_failure_before_and_after_a_message(channel: Any) -> None:
    for first, answers in ((b"", []), (b"seen", [b"seen"])):
        call = channel.stream_stream(PREFIX + "StreamFail")(iter([first]))
        assert [next(call) for _ in answers] == answers
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert (caught.value.code().value[0], caught.value.details()) == (9, "as asked: ümlaut %")


def test_streaming_bug(fresh: Running, channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(PREFIX + "StreamBug")(iter([b"x"])))
    assert (caught.value.code().value[0], caught.value.details()) == (13, "internal error")
    assert [str(bug) for bug in fresh.service.bugs] == ["a bug of the streaming handler"]


def test_cancelling_a_stream_ends_its_handler(fresh: Running, channel: Any) -> None:
    call = channel.unary_stream(PREFIX + "Endless")(b"")
    assert next(call) == bytes(1000)
    call.cancel()
    assert fresh.service.cancelled.wait(10)


def test_compressed_stream(channel: Any) -> None:
    call = channel.stream_stream(PREFIX + "Chat")(iter([b"abc" * 1000] * 3), compression=grpc.Compression.Gzip)
    assert list(call) == [b"ABC" * 1000] * 3


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_message_over_the_limit(engine: str) -> None:
    limits = EngineLimits(message_bytes_max=1_000)
    with running(engine, limits) as server, connect(server.target) as channel:
        assert unary(channel, "Echo", bytes(1_000)) == bytes(1_000)
        assert failure(channel, "Echo", bytes(1_001))[0] == 8
        assert failure(channel, "Echo", bytes(1_000_000))[0] == 8
        assert failure(channel, "Echo", bytes(1_000_000), compression=grpc.Compression.Gzip)[0] == 8
        assert unary(channel, "Echo", b"after") == b"after"


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_unix_socket(engine: str, tmp_path: Path) -> None:
    with running(engine, path=str(tmp_path / "s")) as server, connect(server.target) as channel:
        assert unary(channel, "Look", b"") == b"timeout=no\npeer=unix:"


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_ipv6(engine: str) -> None:
    with running(engine, family=socket.AF_INET6) as server, connect(server.target) as channel:
        assert unary(channel, "Look", b"") == b"timeout=no\npeer=ipv6:[::1]"


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_drain_lets_open_calls_finish_and_takes_no_new_ones(engine: str) -> None:
    with running(engine) as server, connect(server.target) as channel:
        def feed() -> Iterator[bytes]:
            yield b"one"
            assert server.service.held.wait(10)
            yield b"two"

        call = channel.stream_stream(PREFIX + "Chat")(feed())
        assert next(call) == b"ONE"
        drained = asyncio.run_coroutine_threadsafe(server.engine.drain(20), server.loop)
        server.service.held.set()
        assert list(call) == [b"TWO"]
        drained.result(20)
        assert failure(channel, "Echo", b"", timeout=5)[0] == 14


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_drain_ends_what_does_not_finish(engine: str) -> None:
    with running(engine) as server, connect(server.target) as channel:
        call = channel.unary_unary(PREFIX + "Hold").future(b"")
        assert server.service.held.wait(10)
        server.call(server.engine.drain(0.1))
        assert call.exception().code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert server.service.cancelled.wait(10)
