"""Goal: a read full of what is costly to handle is handled in parts, between which other connections are served, and
nothing more is read meanwhile. Method: parts, turns of the loop and frames are counted; no time is measured.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from ringserve.frontend.handler import EngineLimits, Methods
from ringserve.frontend.http2 import connection as connection_file
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arriving import FRAME_BYTES_MAX
from ringserve.frontend.http2.connection import FRAMES_AT_ONCE_MAX
from ringserve.frontend.http2.frames import ErrorCode
from ringserve.frontend.http2.in_place import InPlace
from ringserve.frontend.http2.protocol import EngineProtocol
from ringserve.frontend.http2.refusing import WORK_AT_ONCE_MAX
from ringserve.frontend.http2.server import NativeEngine
from ringserve.frontend.http2.turns import LONG_BYTES_MAX
from tests.frontend.http2.peer import ECHO, Peer, answers, goaway, message, request_fields

READ_BYTES = 2**18
#: Fields that every block has afresh, so that no cache knows it.
FIELDS = 480


def costly_blocks(nbytes: int, name: bytes = b"n") -> bytes:
    """HEADERS of calls, each with hundreds of tiny fields, as many as there is room for; and the end of each stream."""
    peer, stream_id = Peer(), 1
    pieces: list[bytes] = []
    while sum(len(piece) for piece in pieces) < nbytes:
        known = frames.literal(name, str(stream_id).encode())
        block = peer.block(request_fields()) + known + b"\x90" * FIELDS
        pieces.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block))
        pieces.append(frames.frame(frames.DATA, frames.END_STREAM, stream_id, message(b"")))
        stream_id += 2
    return b"".join(pieces)


def crumbs(nbytes: int) -> bytes:
    """A call whose message comes in DATA frames of one byte each."""
    size = nbytes // 10
    peer = Peer()
    body = b"".join(frames.frame(frames.DATA, 0, 1, b"x") for _ in range(size))
    prefix = frames.frame(frames.DATA, 0, 1, b"\x00" + size.to_bytes(4, "big"))
    return peer.headers(1) + prefix + body + frames.frame(frames.DATA, frames.END_STREAM, 1, b"")


def calls(nbytes: int) -> bytes:
    peer = Peer()
    one = len(peer.call(1))
    return b"".join(peer.call(stream_id) for stream_id in range(1, 2 * (nbytes // one), 2))


class Parts:
    """A connection that is given one read, part by part."""

    def __init__(self, **limits: int) -> None:
        self.peer = Peer(EngineLimits(**limits))

    def run(self, data: bytes) -> list[int]:
        """How many calls each part has ended."""
        connection = self.peer.connection
        counts: list[int] = []
        connection.receive(data)
        while True:
            counts.append(len(self.peer.messages) - sum(counts))
            if not connection.has_rest:
                return counts
            connection.go_on()


def test_costly_header_blocks_are_read_a_few_at_a_time() -> None:
    data = costly_blocks(READ_BYTES)
    parts = Parts()
    counts = parts.run(data)
    assert sum(counts) > 300
    most = WORK_AT_ONCE_MAX // FIELDS + 1
    assert max(counts) <= most
    assert len(counts) >= sum(counts) // most
    assert {answer.status for answer in answers(parts.peer.read()).values()} == {0}


def test_known_header_blocks_cost_their_frames_only() -> None:
    counts = Parts(concurrent_streams_max=10_000).run(calls(READ_BYTES))
    assert max(counts) == FRAMES_AT_ONCE_MAX // 2
    assert len(counts) == -(-sum(counts) // (FRAMES_AT_ONCE_MAX // 2))


def test_crumbs_of_data_are_taken_so_many_at_a_time() -> None:
    data = crumbs(READ_BYTES)
    parts = Parts()
    counts = parts.run(data)
    assert sum(counts) == 1
    assert len(counts) >= (READ_BYTES // 10) // FRAMES_AT_ONCE_MAX
    assert answers(parts.peer.read())[1].status == 0


def test_settings_that_look_at_every_stream_count_for_as_much() -> None:
    """Each change of the initial window takes a look at each open stream."""
    peer = Peer()
    peer.send(b"".join(peer.headers(stream_id) for stream_id in range(1, 2_001, 2)))
    peer.connection.receive(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 70_000}) * 200)
    parts = 1
    while peer.connection.has_rest:
        peer.connection.go_on()
        parts += 1
    assert parts >= 200 * 1_000 // (WORK_AT_ONCE_MAX + 1_000)


@pytest.mark.parametrize("make", [costly_blocks, crumbs, calls])
def test_parts_change_nothing(make: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(20_000)
    whole, single = Peer(), Peer()
    whole.send(data)
    monkeypatch.setattr(connection_file, "FRAMES_AT_ONCE_MAX", 1)
    single.connection.receive(data[:-3])
    while single.connection.has_rest:
        single.connection.go_on()
    single.send(data[-3:])
    assert single.messages == whole.messages
    assert single.raw() == whole.raw()


def test_an_oversized_frame_behind_the_first_part_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_file, "FRAMES_AT_ONCE_MAX", 1)
    peer = Peer()
    peer.send(frames.ping(bytes(8), False) + frames.frame(frames.DATA, 0, 1, bytes(FRAME_BYTES_MAX + 1))[:100])
    assert goaway(peer.read()) == ErrorCode.FRAME_SIZE_ERROR


def test_a_long_frame_that_is_not_there_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_file, "FRAMES_AT_ONCE_MAX", 1)
    peer = Peer()
    data = peer.headers(1) + peer.data(1, message(bytes(16_379)))
    peer.send(data[:-1])
    assert not peer.messages
    peer.send(data[-1:])
    assert peer.messages == [bytes(16_379)]


# ------------------------------------------------------------------------------------------------------- over a loop


class Socket(asyncio.Transport):
    """A socket that takes everything, or nothing, and notes whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_read = True
        self.pauses = 0
        self.unsent_bytes = 0
        self.closed = False
        self.protocol: asyncio.BaseProtocol | None = None  # another than the connection's own

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        assert self.is_read
        self.is_read = False
        self.pauses += 1

    def resume_reading(self) -> None:
        assert not self.is_read
        self.is_read = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed


class Loop:
    """An engine on a running loop, and clients of it without sockets."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.methods = Methods({ECHO: self._echo}, {}, frozenset((ECHO,)))
        self.engine = NativeEngine(self.methods, EngineLimits(stall_ms_max=0), lambda error: None)

    def _echo(self, call: Any, data: Any) -> None:
        self.messages.append(bytes(data))
        call.finish(self.messages[-1])

    def connect(self) -> tuple[EngineProtocol, Socket]:
        protocol, sock = EngineProtocol(self.engine, asyncio.get_running_loop()), Socket()
        protocol.connection_made(sock)
        protocol.data_received(frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK)
        sock.written = b""
        return protocol, sock

    async def close(self, *protocols: EngineProtocol) -> None:
        for protocol in protocols:
            protocol.connection_lost(None)
        await self.engine.close()


def test_others_are_answered_between_the_parts() -> None:
    async def run() -> None:
        loop = Loop()
        (attacker, sock), (honest, theirs) = loop.connect(), loop.connect()
        attacker.data_received(costly_blocks(READ_BYTES))
        assert sock.pauses == 1
        turns, stream_id = 0, 1
        while not sock.is_read:
            before = len(loop.messages)
            honest.data_received(Peer().call(stream_id))
            assert len(loop.messages) == before + 1
            assert theirs.written
            theirs.written = b""
            stream_id += 2
            await asyncio.sleep(0)
            turns += 1
            assert loop.engine.turns.taken <= turns
        assert turns >= 75
        await loop.close(attacker, honest)

    asyncio.run(run())


def test_many_of_them_take_turns() -> None:
    """In one turn of the loop one part of one of them is handled, however many there are."""

    async def run() -> None:
        loop = Loop()
        clients = [loop.connect() for _ in range(5)]
        for number, (protocol, _) in enumerate(clients):
            protocol.data_received(costly_blocks(20_000, b"client-%d" % number))
        turns = 0
        while not all(sock.is_read for _, sock in clients):
            await asyncio.sleep(0)
            turns += 1
            assert loop.engine.turns.taken <= turns
        assert turns >= 5 * 4
        await loop.close(*(protocol for protocol, _ in clients))

    asyncio.run(run())


def test_who_does_not_take_answers_gets_no_turns_either() -> None:
    async def run() -> None:
        loop = Loop()
        protocol, sock = loop.connect()
        protocol.pause_writing()
        sock.unsent_bytes = 2**30
        protocol.data_received(costly_blocks(READ_BYTES))
        for _ in range(20):
            await asyncio.sleep(0)
        assert loop.engine.turns.taken <= 1
        assert (sock.pauses, sock.is_read) == (1, False)
        sock.unsent_bytes = 0
        protocol.resume_writing()
        while not sock.is_read:
            await asyncio.sleep(0)
        assert not protocol.connection.has_rest
        assert loop.engine.turns.taken > 50
        await loop.close(protocol)

    asyncio.run(run())


def test_a_client_that_leaves_leaves_its_turns() -> None:
    async def run() -> None:
        loop = Loop()
        protocol, _ = loop.connect()
        protocol.data_received(costly_blocks(READ_BYTES))
        protocol.connection_lost(None)
        echoed = len(loop.messages)
        for _ in range(10):
            await asyncio.sleep(0)
        assert loop.engine.turns.taken <= 1
        assert len(loop.messages) == echoed
        assert not protocol.connection.has_rest
        await loop.close()

    asyncio.run(run())


# -------------------------------------------------------------------------------------------- long messages, in place


class Upload:
    """A client whose message has begun; the rest lies in its socket, and is read as a loop reads it."""

    def __init__(self, loop: Loop, nbytes: int) -> None:
        self.protocol, self.sock = loop.connect()
        self.body = random.Random(nbytes).randbytes(nbytes)
        raw = message(self.body)
        cut = [raw[at : at + FRAME_BYTES_MAX] for at in range(0, len(raw), FRAME_BYTES_MAX)]
        data = b"".join(frames.frame(frames.DATA, 0, 1, piece) for piece in cut)
        self.unread = data + frames.frame(frames.DATA, frames.END_STREAM, 1, b"")
        self.protocol.data_received(Peer().headers(1) + self._take(100))
        assert isinstance(self.sock.protocol, InPlace)

    def _take(self, nbytes: int) -> bytes:
        data, self.unread = self.unread[:nbytes], self.unread[nbytes:]
        return data

    def read(self, part: int = 1) -> int:
        """What one turn of the loop reads: as often as a read fills all the room there was for it.

        part: for what part of that room the socket has bytes.
        """
        count = 0
        while self.sock.is_read and self.unread:
            protocol = self.sock.protocol
            assert isinstance(protocol, InPlace)
            room = protocol.get_buffer(-1)
            data = self._take(len(room) // part)
            room[: len(data)] = data
            count += len(data)
            protocol.buffer_updated(len(data))
            if len(data) < len(room):
                break
        return count


def test_a_turn_reads_so_much_of_long_messages_whoever_they_are_from() -> None:
    async def run() -> None:
        loop = Loop()
        one, other = Upload(loop, 5 * LONG_BYTES_MAX // 2), Upload(loop, 3 * FRAME_BYTES_MAX)
        honest, theirs = loop.connect()
        assert LONG_BYTES_MAX <= one.read() < LONG_BYTES_MAX + FRAME_BYTES_MAX + 9
        assert other.read() <= FRAME_BYTES_MAX + 9  # there was nothing left for it
        assert not one.sock.is_read
        assert not other.sock.is_read
        turns, most = 0, 0
        while one.unread or other.unread:
            honest.data_received(Peer().call(2 * turns + 1))
            assert theirs.written
            theirs.written = b""
            await asyncio.sleep(0)
            turns += 1
            taken = one.read() + other.read()
            assert taken < LONG_BYTES_MAX + 2 * FRAME_BYTES_MAX
            assert turns < 20
            most = max(most, taken)
        assert most > 2 * FRAME_BYTES_MAX + 9
        assert loop.engine.turns.taken <= turns
        assert {one.body, other.body} <= set(loop.messages)
        await loop.close(one.protocol, other.protocol, honest)

    asyncio.run(run())


def test_a_read_that_empties_the_socket_is_followed_by_the_next_one() -> None:
    """What the loop would not go on reading anyway need not be stopped."""

    async def run() -> None:
        loop = Loop()
        upload = Upload(loop, 2 * LONG_BYTES_MAX)
        while upload.unread:
            upload.read(part=2)
            assert upload.sock.is_read
        assert upload.sock.pauses <= 1 + 1  # for the change of protocols
        assert loop.messages == [upload.body]
        await loop.close(upload.protocol)

    asyncio.run(run())
