"""Goal: a long DATA frame is taken as it comes, wherever it is cut, to where its message lies, and keeps every rule
that a short one keeps. Method: random frames in random reads, in place where the connection has room, without I/O; then
one test for each rule; then real sockets, plain and with TLS, whose loop changes protocols while bytes come.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.config.tls import SslConfig
from ringserve.frontend.buffers import Buffers
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arriving import FRAME_BYTES_MAX
from ringserve.frontend.http2.control import STREAM_WINDOW_BYTES
from ringserve.frontend.http2.frames import DATA, END_HEADERS, END_STREAM, ErrorCode, frame
from ringserve.frontend.http2.stalls import LEAST_BYTES, Stalls
from tests.frontend.http2.certificates import HAS_OPENSSL, certificates
from tests.frontend.http2.peer import HOLD, Peer, answers, goaway, message, request_fields
from tests.frontend.http2.service import NATIVE, PREFIX, connect, running
from tests.frontend.http2.test_listening import listening, secure

LONG = 100_000


def noise(seed: int, nbytes: int) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def data_frames(stream_id: int, body: bytes, sizes: list[int]) -> bytes:
    """The whole of a request in DATA frames of these sizes, over and over."""
    found, at, turn = [], 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        found.append(frame(DATA, END_STREAM if at + size >= len(body) else 0, stream_id, body[at : at + size]))
        at, turn = at + size, turn + 1
    return b"".join(found)


@settings(max_examples=60)
@given(
    bodies=st.lists(st.sampled_from([0, 1, 16_000, 65_530, 65_536, 70_000, 300_000]), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, FRAME_BYTES_MAX), min_size=1, max_size=4),
    reads=st.lists(st.integers(1, 300_000), min_size=1, max_size=5),
    short_way=st.booleans(),
    has_blocks=st.booleans(),
)
def test_messages_come_out_whole_wherever_they_are_cut(
    bodies: list[int], sizes: list[int], reads: list[int], short_way: bool, has_blocks: bool
) -> None:
    # A frame of a few bytes is noise by rule, and a read of a few takes thousands of them.
    sizes, reads = [max(size, 3_000) for size in sizes], [max(size, 500) for size in reads]
    peer = Peer(short_way=short_way)
    peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 2**30}) + frames.window_update(0, 2**30))
    if not has_blocks:
        peer.host.account.buffers = None
    sent = [noise(index, size) for index, size in enumerate(bodies)]
    data = b"".join(
        peer.headers(2 * index + 1) + data_frames(2 * index + 1, message(body), sizes)
        for index, body in enumerate(sent)
    )
    peer.deliver(data, *reads)
    assert peer.messages == sent
    found = answers(peer.read())
    assert [found[2 * index + 1].status for index in range(len(sent))] == [0] * len(sent)
    assert (peer.connection.held_bytes, peer.host.account.input_bytes, peer.connection.part_bytes) == (0, 0, 0)


def test_a_message_is_read_where_it_lies() -> None:
    """Only the head of each frame and what follows the message goes through the connection's own input."""
    peer = Peer()
    body = noise(1, 600_000)
    peer.send(peer.headers(1))
    data = data_frames(1, message(body), [FRAME_BYTES_MAX])
    peer.send(data[:50])
    taken = 0
    for at in range(50, len(data), 9_999):
        room = peer.connection.room()
        assert room is not None
        assert len(room) == peer.connection.part_bytes + 9
        piece = data[at : at + 9_999]
        taken += len(piece)
        peer.deliver(piece, len(piece))
    assert peer.messages == [body]
    assert peer.connection.room() is None


def test_other_streams_go_on_between_the_frames_of_a_long_message() -> None:
    peer = Peer()
    body = message(noise(2, 2 * LONG))
    first, second = frame(DATA, 0, 1, body[:LONG]), frame(DATA, END_STREAM, 1, body[LONG:])
    peer.deliver(peer.headers(1) + first + peer.call(3, b"between") + second + peer.call(5, b"after"), 30_000)
    assert peer.messages == [b"between", body[5:], b"after"]


def test_two_long_messages_in_turns() -> None:
    peer = Peer()
    bodies = {1: message(noise(3, 3 * LONG)), 3: message(noise(4, 3 * LONG))}
    data = peer.headers(1) + peer.headers(3)
    for part in range(4):
        for stream_id, body in bodies.items():
            end = END_STREAM if part == 3 else 0
            data += frame(DATA, end, stream_id, body[part * LONG : (part + 1) * LONG])
    peer.deliver(data, 70_001)
    assert peer.messages == [bodies[1][5:], bodies[3][5:]]


# ---------------------------------------------------------------------------------------------------- rules of a part


CONNECTION_RULES: dict[str, tuple[ErrorCode, Callable[[Peer], bytes]]] = {
    "an idle stream": (ErrorCode.PROTOCOL_ERROR, lambda p: frame(DATA, 0, 1, bytes(LONG))),
    "stream 0": (ErrorCode.PROTOCOL_ERROR, lambda p: frame(DATA, 0, 0, bytes(LONG))),
    "a stream of the server": (ErrorCode.PROTOCOL_ERROR, lambda p: frame(DATA, 0, 2, bytes(LONG))),
    "within a header block": (
        ErrorCode.PROTOCOL_ERROR,
        lambda p: p.headers(1, flags=0) + frame(DATA, 0, 1, bytes(LONG)),
    ),
}


@pytest.mark.parametrize("name", CONNECTION_RULES)
def test_a_part_out_of_place_ends_the_connection(name: str) -> None:
    code, write = CONNECTION_RULES[name]
    peer = Peer()
    peer.send(write(peer)[:500])
    assert goaway(peer.read()) == code


def test_nothing_comes_before_the_settings() -> None:
    peer = Peer(begun=False)
    peer.send(frames.PREFACE + frame(DATA, 0, 1, bytes(LONG))[:20])
    assert goaway(peer.read()) == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (message(bytes(2 * LONG)), ErrorCode.PROTOCOL_ERROR),  # more than declared: known before the frame has ended
        (message(bytes(LONG - 500)), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_length_that_was_declared_holds(body: bytes, code: ErrorCode) -> None:
    peer = Peer()
    fields = request_fields(HOLD, ("content-length", str(LONG)))
    data = peer.headers(1, fields) + frame(DATA, END_STREAM, 1, body) + peer.call(3)
    peer.deliver(data, 10_000)
    found = answers(peer.read())
    assert found[1].reset == code
    assert found[3].status == 0, "the rest of the frame was nobody's"
    assert peer.host.account.input_bytes == 0


def test_the_window_holds_within_a_frame() -> None:
    """The rest of the message lies on the connection unread, so that no window is given back."""
    peer = Peer(EngineLimits(message_bytes_max=2**30))
    peer.send(peer.headers(1, request_fields(HOLD)))
    peer.connection.return_stream_window = lambda call: None  # type: ignore[method-assign]
    body = message(bytes(STREAM_WINDOW_BYTES + 1))
    peer.deliver(data_frames(1, body, [FRAME_BYTES_MAX]), 100_000)
    assert answers(peer.read())[1].reset == ErrorCode.FLOW_CONTROL_ERROR
    peer.send(peer.call(3))
    assert answers(peer.read())[3].status == 0


def test_a_message_too_large_is_refused_at_its_beginning() -> None:
    peer = Peer(EngineLimits(message_bytes_max=LONG))
    data = peer.headers(1) + frame(DATA, 0, 1, message(bytes(LONG + 1)))
    peer.send(data[:200])
    assert answers(peer.read())[1].status == 8
    assert peer.connection.room() is None
    peer.deliver(data[200:] + peer.call(3), 5_000)
    assert answers(peer.read())[3].status == 0


def test_a_call_that_ends_within_its_frame_leaves_the_rest_to_nobody() -> None:
    peer = Peer()
    data = peer.headers(1) + frame(DATA, END_STREAM, 1, message(bytes(LONG)))
    peer.deliver(data[:50_000], 10_000)
    assert peer.connection.held_bytes >= 49_000
    peer.connection.streams[1].fail(4, "too late")
    assert peer.connection.room() is None
    assert (peer.connection.held_bytes, peer.host.account.input_bytes) == (0, 0)
    peer.deliver(data[50_000:] + peer.call(3), 10_000)
    assert {key: value.status for key, value in answers(peer.read()).items()} == {1: 4, 3: 0}
    assert peer.messages == [b"hello"]


def test_an_unfinished_message_is_counted_and_bounded() -> None:
    limits = EngineLimits(held_bytes_max=3 * LONG)
    peer = Peer(limits)
    for stream_id in (1, 3, 5, 7):
        peer.deliver(peer.headers(stream_id) + frame(DATA, 0, stream_id, message(bytes(2 * LONG))[:LONG]), 20_000)
    found = answers(peer.read())
    assert [stream_id for stream_id in found if found[stream_id].status == 8] == [5, 7]
    assert peer.connection.held_bytes == peer.host.account.input_bytes
    peer.connection.disconnected()
    assert peer.host.account.input_bytes == 0


@pytest.mark.parametrize("per_look", [0, LEAST_BYTES - 1, LEAST_BYTES])
def test_a_frame_must_come(per_look: int) -> None:
    """Even where its call is over, and the rest of it is nobody's."""
    peer, stalls = Peer(), Stalls()
    peer.send(peer.headers(1) + frame(DATA, 0, 1, message(bytes(FRAME_BYTES_MAX - 5)))[:100])
    peer.connection.streams[1].fail(13, "over")
    for _ in range(5):
        if not peer.connection.is_closing:
            assert stalls.look(peer.connection, 0, 0)
            peer.connection.receive(bytes(per_look))
    assert peer.connection.is_closing == (per_look < LEAST_BYTES)


def test_a_lost_connection_holds_no_block() -> None:
    peer = Peer()
    buffers = peer.host.account.buffers
    assert buffers is not None
    peer.deliver(peer.headers(1) + frame(DATA, 0, 1, message(bytes(2 * LONG))[:LONG]), 20_000)
    assert buffers.tidy()
    peer.connection.disconnected()
    assert buffers.tidy(), "it was in use since the last time"
    assert not buffers.tidy()
    assert buffers.allocated_bytes == 0


def test_announced_is_not_held() -> None:
    """A client that announces much and sends little takes blocks up to the bound, and is served without them."""
    peer = Peer(EngineLimits(message_bytes_max=2**30))
    peer.host.account.buffers = buffers = Buffers(300 * 2**20)
    for stream_id in range(1, 41, 2):
        announced = b"\x00" + (100 * 2**20).to_bytes(4, "big")
        peer.send(peer.headers(stream_id, request_fields(HOLD)) + frame(DATA, 0, stream_id, announced + bytes(100)))
    assert buffers.allocated_bytes <= 300 * 2**20
    assert peer.connection.held_bytes < 20 * 1_000
    peer.deliver(peer.headers(101) + frame(DATA, END_STREAM, 101, message(noise(5, LONG))), 30_000)
    assert peer.messages == [noise(5, LONG)]


# --------------------------------------------------------------------------------------------------------- real sockets


@pytest.mark.parametrize("nbytes", [70_000, 300_000, 5_000_000, 40_000_000])
def test_long_messages_there_and_back(nbytes: int) -> None:
    limits = EngineLimits(message_bytes_max=2**30)
    with running(NATIVE, limits) as server, connect(server.target) as channel:
        body = noise(nbytes, nbytes)
        echo = channel.unary_unary(f"{PREFIX}Echo")
        calls = [echo.future(body, timeout=60) for _ in range(3)]
        short = [echo(b"short", timeout=60) for _ in range(20)]
        assert all(call.result() == body for call in calls)
        assert short == [b"short"] * 20
        assert not server.service.bugs


@pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")
def test_long_messages_over_tls() -> None:
    certs = certificates()
    tls = SslConfig(certs.server.key, certs.server.cert, "", False)
    with (
        listening(NATIVE, limits=EngineLimits(message_bytes_max=2**30), tls=tls) as server,
        secure(f"127.0.0.1:{server.port}", certs.authority) as channel,
    ):
        collect = channel.stream_unary(f"{PREFIX}Collect")
        body = noise(9, 3_000_000)
        answer = collect(iter([body[:1_000_000], b"", body[1_000_000:]]), timeout=60)
        assert answer == body


@pytest.mark.parametrize("after", [1, 40_000, 200_000])
def test_a_client_that_leaves_within_a_frame(after: int) -> None:
    with running(NATIVE) as server:
        peer = Peer(begun=False)  # only writes the frames
        body = message(noise(7, 250_000))
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(frames.PREFACE + frames.settings({}) + peer.headers(1, request_fields(f"{PREFIX}Echo")))
            client.sendall(frame(DATA, END_STREAM, 1, body)[: 9 + after])
            server.call(_until(lambda: bool(server.engine.connections_count)))
        server.call(_until(lambda: not server.engine.connections_count))
        account = server.engine.account
        assert account.input_bytes == 0
        server.call(_until(lambda: not account.buffers.tidy()))
        with connect(server.target) as channel:
            assert channel.unary_unary(f"{PREFIX}Echo")(body, timeout=20) == body
        assert not server.service.bugs


@pytest.mark.parametrize("step", [1, 7, 9, 1_000, 70_000])
def test_a_dribbled_frame(step: int) -> None:
    """Reads of a byte, a frame's head apart from its bytes, the end of one frame with the head of the next."""
    with running(NATIVE) as server:
        peer = Peer(begun=False)
        body = message(noise(8, 80_000 if step < 100 else 600_000))
        data = peer.headers(1, request_fields(f"{PREFIX}Echo"), END_HEADERS) + data_frames(1, body, [70_000])
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(frames.PREFACE + frames.settings({4: 2**30}) + frames.window_update(0, 2**30))
            dribbled = len(data) // 2 // step * step if step >= 1_000 else 300 * step
            for at in range(0, dribbled, step):
                client.sendall(data[at : at + step])
            client.sendall(data[dribbled:-step])
            client.sendall(data[-step:])
            received = b""
            while b"grpc-status" not in received:
                piece = client.recv(1 << 20)
                assert piece
                received += piece
        assert not server.service.bugs


@pytest.mark.parametrize("seed", range(4))
def test_long_and_short_calls_in_turn_some_of_them_given_up(seed: int) -> None:
    """One connection whose protocol changes all the time, in writes of any length."""
    chance = random.Random(seed)
    bodies: dict[int, bytes] = {}
    peer = Peer(begun=False)
    data = frames.PREFACE + frames.settings({4: 2**30}) + frames.window_update(0, 2**30)
    for stream_id in range(1, 121, 2):
        body = noise(stream_id, chance.choice([10, 500, 20_000, 70_000, 300_000]))
        written = data_frames(stream_id, message(body), [chance.choice([16_384, 70_000, FRAME_BYTES_MAX])])
        data += peer.headers(stream_id, request_fields(f"{PREFIX}Echo"))
        if chance.random() < 0.15:
            first = 9 + (int.from_bytes(written[:3], "big"))
            if first < len(written):  # given up between two frames
                data += written[:first] + frames.rst_stream(stream_id, ErrorCode.CANCEL)
                continue
        bodies[stream_id] = body
        data += written
    received = bytearray()
    with running(NATIVE) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        wanted = sum(map(len, bodies.values()))

        def read() -> None:
            while len(received) < wanted or _answered(received).keys() != bodies.keys():
                received.extend(client.recv(1 << 20) or pytest.fail("closed"))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        at = 0
        while at < len(data):
            size = chance.choice([1, 9, 1_000, 30_000, 400_000])
            client.sendall(data[at : at + size])
            at += size
        reader.join(20)
        assert not server.service.bugs
    assert _answered(received) == bodies


def _answered(received: bytearray) -> dict[int, bytes]:
    """The messages of the streams that have ended."""
    found: dict[int, bytearray] = {}
    ended: dict[int, bytes] = {}
    at = 0
    while at + 9 <= len(received):
        head, flags, stream_id = frames.FRAME_HEADER.unpack_from(received, at)
        stop = at + 9 + (head >> 8)
        if stop > len(received):
            break
        if head & 255 == DATA:
            found.setdefault(stream_id, bytearray()).extend(received[at + 9 : stop])
        elif head & 255 == frames.HEADERS and flags & END_STREAM:
            ended[stream_id] = bytes(found.get(stream_id, b""))[5:]
        at = stop
    return ended


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.001)  # asked again until it is so; the limit ends a failure
