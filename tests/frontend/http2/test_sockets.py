"""Goal: the engine over real sockets: back-pressure, limits, and clients written by others. Method: a raw client that
does what the official one never would; `grpclib`, `h2load` and `curl` where they are installed.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import re
import shutil
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import END_HEADERS, END_STREAM, ErrorCode
from tests.frontend.http2.peer import Peer, message, request_fields
from tests.frontend.http2.service import NATIVE, PREFIX, Running, connect, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(NATIVE) as server:
        yield server


def beginning(initial_window: int = 2**31 - 1) -> bytes:
    settings = frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: initial_window})
    return frames.PREFACE + settings + frames.SETTINGS_ACK + frames.window_update(0, 2**31 - 1 - 65_535)


def call(stream_id: int, method: str, data: bytes) -> bytes:
    peer = Peer()
    return peer.headers(stream_id, request_fields(PREFIX + method)) + peer.data(stream_id, message(data))


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for something that must come, and says what when it does not."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)  # a poll: the server is another thread, and tells nobody


def received(sock: socket.socket, stop: Callable[[bytes], bool]) -> bytes:
    sock.settimeout(20)
    data = b""
    while not stop(data):
        piece = sock.recv(2**20)
        if not piece:
            break
        data += piece
    return data


def count_answers(sock: socket.socket, wanted: int) -> int:
    """Reads until that many answers have ended, or the connection has; how many have."""
    sock.settimeout(20)
    ended = b"grpc-status\x010"
    count, rest = 0, b""
    while count < wanted and (piece := sock.recv(2**20)):
        rest = rest[1 - len(ended) :] + piece  # too short a rest to hold one that is counted already
        count += rest.count(ended)
    return count


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    limits = EngineLimits(write_buffer_bytes_max=2**20)
    with running(NATIVE, limits) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(beginning())
        until(lambda: server.engine.connections_count == 1, "the connection is accepted")
        (protocol,) = server.engine._protocols
        # The socket's buffers take some megabytes; 100 answers of a megabyte are far more than those and the limit.
        sock.sendall(b"".join(call(stream_id, "Big", b"1000000") for stream_id in range(1, 201, 2)))
        until(lambda: not protocol._can_write, "writing goes on although nobody reads the answers")
        # Small answers do not wait for room, so they are what can fill the buffer beyond the limit.
        sock.settimeout(0.2)
        echoes = [call(stream_id, "Echo", bytes(9_000)) for stream_id in range(201, 2_201, 2)]
        sent = 0
        data = b"".join(echoes)
        try:
            while sent < len(data):
                sent += sock.send(data[sent : sent + 50_000])
        except TimeoutError:
            pass
        unsent = protocol._transport.get_write_buffer_size()
        assert unsent < 16 * 2**20
        rest = data[sent:]

        def send_rest() -> None:
            sock.settimeout(20)
            sock.sendall(rest)

        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send_rest)
            assert count_answers(sock, 1_100) == 1_100
            sending.result(20)


def test_answers_held_by_the_clients_window_do_not_stop_reading(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(beginning(initial_window=10))
        sock.sendall(b"".join(call(stream_id, "Big", b"30000000") for stream_id in (1, 3)))
        sock.sendall(frames.ping(b"nowplase", False))
        assert b"nowplase" in received(sock, lambda data: b"nowplase" in data)


def test_connections_over_the_limit_are_closed() -> None:
    with running(NATIVE, EngineLimits(connections_max=2)) as server:
        sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        until(lambda: server.engine.connections_count == 2, "two connections are allowed")
        with socket.create_connection(("127.0.0.1", server.port)) as third:
            end = received(third, lambda data: False)
            assert frames.goaway(0, ErrorCode.ENHANCE_YOUR_CALM, "too many connections") in end
        until(lambda: server.engine.connections_count == 2, "the third is forgotten")
        for sock in sockets:
            sock.close()
        until(lambda: server.engine.connections_count == 0, "a closed connection is forgotten")
        with connect(server.target) as channel:
            assert channel.unary_unary(PREFIX + "Echo")(b"room again") == b"room again"


def test_a_closed_connection_is_freed_without_the_cyclic_collector() -> None:
    gone: list[weakref.ref[object]] = []
    gc.collect()
    gc.disable()
    try:
        with running(NATIVE) as server:
            with connect(server.target) as channel:
                assert len(channel.unary_unary(PREFIX + "Big")(b"1000000")) == 1_000_000
                assert list(channel.stream_stream(PREFIX + "Chat")(iter([b"a"]))) == [b"A"]
                held = channel.unary_unary(PREFIX + "Hold").future(b"")
                assert server.service.held.wait(20)
                gone += [weakref.ref(protocol.connection) for protocol in server.engine._protocols]
                gone += [weakref.ref(protocol) for protocol in server.engine._protocols]
            assert held.done()
            until(lambda: server.engine.connections_count == 0, "the connection is closed")
            until(lambda: all(reference() is None for reference in gone), "a closed connection is still held")
    finally:
        gc.enable()
    assert len(gone) == 2


def test_a_faulty_client_gets_its_goaway_before_the_end(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(1_000))
        goaway = frames.goaway(0, ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        assert received(sock, lambda data: False).endswith(goaway)


def test_a_client_that_says_nothing_is_closed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringserve.frontend.http2.protocol.HANDSHAKE_SECONDS", 0.05)
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        assert received(sock, lambda data: False).endswith(frames.goaway(0, ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS"))


def test_a_streams_deadline_holds_although_its_client_does_not_keep_it(server: Running) -> None:
    server.service.cancelled.clear()
    peer = Peer()
    fields = request_fields(f"{PREFIX}Endless", ("grpc-timeout", "100m"))
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(beginning() + peer.headers(1, fields) + peer.data(1, message(b"")))
        assert b"grpc-status\x014" in received(sock, lambda data: b"grpc-status\x01" in data)
    assert server.service.cancelled.wait(20)


def test_streaming_input_waits_for_its_reader() -> None:
    """A client may not send more on a stream than the handler has taken plus one window."""
    with running(NATIVE) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(beginning())
        peer = Peer()
        sock.sendall(peer.headers(1, request_fields(PREFIX + "Endless")))
        body = message(bytes(16_000))
        sock.sendall(b"".join(frames.frame(frames.DATA, 0, 1, body) for _ in range(263)))
        found = received(sock, lambda data: frames.rst_stream(1, ErrorCode.FLOW_CONTROL_ERROR) in data)
        assert frames.rst_stream(1, ErrorCode.FLOW_CONTROL_ERROR) in found
        assert server.service.cancelled.wait(20)


def test_taking_messages_returns_their_window() -> None:
    with running(NATIVE) as server, connect(server.target) as channel:
        upload = channel.stream_unary(PREFIX + "Dam").future(iter([bytes(1_000_000)] * 20), timeout=30)
        until(lambda: server.engine.connections_count == 1, "the connection is accepted")
        (protocol,) = server.engine._protocols
        until(
            lambda: any(call.unread_bytes > 4_000_000 for call in [*protocol.connection.streams.values()]),
            "the window is used up by messages that nobody has taken",
        )
        server.loop.call_soon_threadsafe(server.service.gate.set)
        assert upload.result() == b"20000000"


def test_grpclib(server: Running) -> None:
    client: Any = importlib.import_module("grpclib.client")
    const: Any = importlib.import_module("grpclib.const")
    exceptions: Any = importlib.import_module("grpclib.exceptions")

    class Codec:
        __content_subtype__ = "proto"

        def encode(self, message: bytes, message_type: object) -> bytes:
            return message

        def decode(self, data: bytes, message_type: object) -> bytes:
            return data

    async def calls() -> None:
        channel = client.Channel("127.0.0.1", server.port, codec=Codec())
        try:
            echo = client.UnaryUnaryMethod(channel, PREFIX + "Echo", bytes, bytes)
            for size in (0, 100, 100_000, 6_000_000):
                assert await echo(bytes(size), timeout=20) == bytes(size)
            answers = await asyncio.gather(*(echo(b"%d" % index, timeout=20) for index in range(200)))
            assert answers == [b"%d" % index for index in range(200)]
            look = client.UnaryUnaryMethod(channel, PREFIX + "Look", bytes, bytes)
            seen = await look(b"", metadata={"x-a": "b", "x-c-bin": b"\0\1"}, timeout=20)
            assert seen.startswith(b"x-a=b'b'\nx-c-bin=b'\\x00\\x01'\ntimeout=yes")
            fail = client.UnaryUnaryMethod(channel, PREFIX + "Fail", bytes, bytes)
            with pytest.raises(exceptions.GRPCError) as caught:
                await fail("5 weg ünd 100 %".encode())
            assert (caught.value.status, caught.value.message) == (const.Status.NOT_FOUND, "weg ünd 100 %")
            chat = client.StreamStreamMethod(channel, PREFIX + "Chat", bytes, bytes)
            assert await chat([b"a", b"b"]) == [b"A", b"B"]
        finally:
            channel.close()

    asyncio.run(calls())


@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed")
def test_h2load(server: Running, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(message(bytes(3_200)))
    command = ["h2load", "-n", "20000", "-c", "4", "-m", "32", "-d", str(body), "-H", "content-type: application/grpc"]
    done = subprocess.run(
        [*command, "-H", "te: trailers", f"http://127.0.0.1:{server.port}{PREFIX}Echo"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "20000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    # headers, one message and its prefix per call
    match = re.search(r"\((\d+)\) data", done.stdout)
    assert match is not None
    assert int(match[1]) == 20_000 * 3_205


def _curl_has_http2() -> bool:
    curl = shutil.which("curl")
    return bool(curl) and "HTTP2" in subprocess.run([str(curl), "--version"], capture_output=True, text=True).stdout


@pytest.mark.skipif(not _curl_has_http2(), reason="curl without HTTP/2")
def test_curl(server: Running, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(message(b"by curl"))

    def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = ["curl", "-sS", "--http2-prior-knowledge", "--max-time", "20", "-D", str(tmp_path / "head")]
        url = f"http://127.0.0.1:{server.port}{PREFIX}Echo"
        return subprocess.run([*command, *arguments, url], capture_output=True, timeout=30)

    grpc_request = ["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", f"@{body}"]
    assert curl(*grpc_request).stdout == message(b"by curl")
    curl()
    assert (tmp_path / "head").read_text().startswith("HTTP/2 405")
    curl("-X", "POST", "-H", "content-type: application/json")
    assert (tmp_path / "head").read_text().startswith("HTTP/2 415")


def test_a_call_in_every_possible_piece_over_a_socket(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in beginning() + call(1, "Echo", b"slowly"):
            sock.send(bytes((byte,)))
        ended = frames.answer_tail(1)
        assert message(b"slowly") in received(sock, lambda data: ended in data)


def test_requests_without_end_are_answered_and_stopped(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        peer = Peer()
        sock.sendall(beginning() + peer.headers(1, request_fields("/no.Such/Method"), END_HEADERS))
        stopped = frames.rst_stream(1, ErrorCode.NO_ERROR)
        assert stopped in received(sock, lambda data: stopped in data)
        sock.sendall(peer.data(1, bytes(10), END_STREAM) + call(3, "Echo", b"and on"))
        assert message(b"and on") in received(sock, lambda data: frames.answer_tail(3) in data)


def test_a_client_that_leaves_before_the_turns_output_is_written(server: Running) -> None:
    """The transport ends in the same turn of the loop, before what the connection had to say leaves: nobody's fault."""
    faults: list[dict[str, Any]] = []

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        (protocol,) = server.engine._protocols
        protocol._transport.abort()  # `connection_lost` comes soon
        protocol.connection.drain()  # and behind it the write of GOAWAY
        assert protocol.connection.out
        while server.engine._protocols:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        loop.set_exception_handler(None)

    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(beginning())
        received(sock, lambda data: frames.SETTINGS_ACK in data)
        until(lambda: server.engine.connections_count == 1, "the clients of other tests to be gone")
        server.call(leave())
    assert not faults
