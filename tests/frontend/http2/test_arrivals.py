"""Goal: a frontend that comes to its input too late knows since when it waited, and refuses what it cannot do in time
before it has cost anything, while whoever has no deadline waits. Method: made-up sockets with time as an argument, a
connection without I/O, and a real socket whose server is busy.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from itertools import pairwise

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code
from ringserve.frontend.handler import Buffer, Call, EngineLimits, Methods, Refused
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arrivals import LONG_MESSAGES_BYTES, LONG_READ_BYTES, Arrivals
from ringserve.frontend.http2.frames import ErrorCode
from ringserve.frontend.http2.noise import NOISE_MAX
from ringserve.frontend.http2.server import serve_native
from ringserve.frontend.ledger import Ledger
from tests.frontend.http2.peer import ECHO, HOLD, Peer, answers, goaway, message, request_fields
from tests.frontend.http2.test_turns import Loop

MS = 1_000_000


class MadeUpSocket:
    """Bytes come, and are read, at times that are given. Knows when each byte came."""

    def __init__(self) -> None:
        self.came: list[tuple[int, int]] = []  # up to which byte, when
        self.all_bytes = 0
        self.read_bytes = 0
        self.arrivals = Arrivals(lambda: self.all_bytes - self.read_bytes)

    def come(self, nbytes: int, now_ns: int) -> None:
        self.all_bytes += nbytes
        self.came.append((self.all_bytes, now_ns))

    def read(self, bytes_max: int, now_ns: int) -> tuple[int, int]:
        """What the first byte's wait is taken to have begun with, and when it really came."""
        first, nbytes = self.read_bytes, min(bytes_max, self.all_bytes - self.read_bytes)
        self.read_bytes += nbytes
        since_ns = self.arrivals.since_ns(nbytes, now_ns)
        return since_ns, next(at_ns for end, at_ns in self.came if end > first)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10 * MS), st.integers(1, 600_000)), max_size=40),
    st.integers(LONG_READ_BYTES, 262_144),
)
def test_a_wait_counts_from_the_first_read_after_a_byte_came(steps: list[tuple[int, int]], bytes_max: int) -> None:
    made, now_ns = MadeUpSocket(), 0
    reads_ns: list[int] = []
    for pause_ns, nbytes in steps:
        made.come(nbytes, now_ns)
        now_ns += pause_ns
        reads_ns.append(now_ns)
        since_ns, came_ns = made.read(bytes_max, now_ns)
        assert since_ns == next(at_ns for at_ns in reads_ns if at_ns > came_ns)


def test_what_is_read_at_once_has_not_waited_and_costs_no_look() -> None:
    looked: list[int] = []
    arrivals = Arrivals(lambda: looked.append(1) or 0)  # type: ignore[func-returns-value]
    assert arrivals.since_ns(LONG_READ_BYTES - 1, 5) == 5
    assert not looked
    assert arrivals.since_ns(LONG_READ_BYTES, 7) == 7
    assert looked == [1]


def overloaded(made: MadeUpSocket, begin_ms: int, end_ms: int) -> list[bool]:
    """A client has a megabyte more in the socket than is read, every 5 ms. Whether that queue stands, each time."""
    found = []
    for at_ms in range(begin_ms, end_ms, 5):
        made.come(1_000_000 if at_ms == begin_ms else LONG_READ_BYTES, at_ms * MS)
        made.read(LONG_READ_BYTES, at_ms * MS)
        found.append(made.arrivals.is_standing)
    return found


def test_a_queue_stands_when_it_has_not_gone_for_long_and_until_it_has_been_gone_for_longer() -> None:
    made = MadeUpSocket()
    found = overloaded(made, 1_000, 1_200)
    assert not any(found[: 50 // 5])  # a burst
    assert all(found[60 // 5 + 1 :])
    assert sum(a != b for a, b in pairwise(found)) == 1
    made.read(made.all_bytes, 1_200 * MS)
    assert made.arrivals.is_standing  # gone this very moment
    made.come(LONG_READ_BYTES, 1_290 * MS)
    made.read(LONG_READ_BYTES, 1_290 * MS)
    assert made.arrivals.is_standing
    made.come(LONG_READ_BYTES, 1_310 * MS)
    made.read(LONG_READ_BYTES, 1_310 * MS)
    assert not made.arrivals.is_standing


def test_a_message_that_takes_long_to_read_is_no_queue_of_calls() -> None:
    for unfinished_bytes, stands in ((LONG_MESSAGES_BYTES + 1, False), (LONG_MESSAGES_BYTES, True)):
        arrivals, at_ms = Arrivals(lambda: 1_000_000), 0
        while at_ms < 1_000:
            arrivals.since_ns(LONG_READ_BYTES, at_ms * MS, unfinished_bytes)
            at_ms += 10
        assert arrivals.is_standing == stands


@pytest.fixture(params=[True, False], ids=["short way", "long way"])
def peer(request: pytest.FixtureRequest) -> Peer:
    return Peer(short_way=request.param)


def statuses(peer: Peer) -> dict[int, int]:
    return {stream_id: answer.status for stream_id, answer in answers(peer.read()).items()}


def test_a_call_that_has_waited_for_a_quarter_of_its_deadline_is_refused(peer: Peer) -> None:
    timeout = ("grpc-timeout", "100m")
    peer.send(peer.call(1, b"in time", ECHO, timeout), 25 * MS)
    peer.send(peer.call(3, b"late", ECHO, timeout) + peer.call(5, b"no deadline"), 26 * MS)
    peer.send(peer.call(7, b"light", HOLD) + peer.call(9, b"light", HOLD, timeout), 26 * MS)
    assert statuses(peer) == {1: 0, 3: Code.RESOURCE_EXHAUSTED, 5: 0}
    assert peer.messages == [b"in time", b"no deadline", b"light", b"light"]
    ledger = peer.host.account.calls
    assert (ledger.received, ledger.unread, ledger.ended[Code.RESOURCE_EXHAUSTED]) == (5, 1, 1)
    assert list(peer.connection.streams) == [7, 9]
    for number, milliseconds in enumerate((100, 101, 102)):  # deadlines that no cache knows
        peer.send(peer.call(11 + 2 * number, b"late", ECHO, ("grpc-timeout", f"{milliseconds}m")), 26 * MS)
    assert set(statuses(peer).values()) == {Code.RESOURCE_EXHAUSTED}


def test_a_call_that_is_refused_unread_is_told_of_by_its_id(peer: Peer) -> None:
    told: list[Refused] = []
    peer.connection.told = told.append
    peer.send(peer.call(1, b"late", ECHO, ("grpc-timeout", "100m"), ("x-request-id", "abc")), 26 * MS)
    answer = answers(peer.read())[1]
    assert (answer.status, answer.fields["x-request-id"]) == (Code.RESOURCE_EXHAUSTED, "abc")
    assert answer.fields["grpc-retry-pushback-ms"] == "10"
    assert [(each.path, each.request_id, each.code) for each in told] == [(ECHO, "abc", Code.RESOURCE_EXHAUSTED)]


def test_who_is_refused_unread_is_told_why_and_when_to_come_again(peer: Peer) -> None:
    peer.send(peer.call(1, b"late", ECHO, ("grpc-timeout", "10m"), ("x-request-id", "order-7")), 9 * MS)
    fields = answers(peer.read())[1].fields
    assert fields["x-request-id"] == "order-7"
    told = peer.refused.pop()
    assert (told.path, told.request_id, told.code) == (ECHO, "order-7", Code.RESOURCE_EXHAUSTED)
    assert not peer.refused
    assert fields["grpc-message"].startswith("This server has more to do than it can do in time")
    assert fields["grpc-retry-pushback-ms"] == "10"
    assert fields[":status"] == "200"


def test_in_a_rush_no_more_calls_are_taken_of_a_read_than_there_is_room_for(peer: Peer) -> None:
    timeout = ("grpc-timeout", "1S")
    peer.connection.is_in_rush = True
    peer.connection.room_calls = 1
    peer.send(peer.call(1, b"", ECHO, timeout) + peer.call(3, b"") + peer.call(5, b"", ECHO, timeout))
    peer.send(peer.call(7, b"", HOLD, timeout) + peer.call(9, b"") + peer.call(11, b"", ECHO, timeout))
    assert statuses(peer) == {1: 0, 3: 0, 5: Code.RESOURCE_EXHAUSTED, 9: 0, 11: Code.RESOURCE_EXHAUSTED}
    assert list(peer.connection.streams) == [7]


def test_a_long_call_is_not_refused_for_having_filled_its_own_socket() -> None:
    peer = Peer()
    peer.connection.room_calls = 0
    body = message(b"x" * (frames.FRAME_BYTES_DEFAULT + 1))
    for stream_id, waited_ns in ((1, 250 * MS), (3, 251 * MS)):
        fields = request_fields(ECHO, ("grpc-timeout", "1S"))
        peer.send(peer.headers(stream_id, fields) + peer.data(stream_id, body[:10_000], 0))
        peer.send(peer.data(stream_id, body[10_000:]), waited_ns)
    assert statuses(peer) == {1: 0, 3: Code.RESOURCE_EXHAUSTED}


def test_a_call_in_many_frames_is_refused_as_one_in_one_frame_is() -> None:
    peer = Peer()
    whole = peer.call(1, b"x" * 10_000, ECHO, ("grpc-timeout", "10m"))
    head, body = peer.headers(3), whole[-10_005:]
    head = whole[: whole.index(body) - 9].replace((1).to_bytes(4, "big"), (3).to_bytes(4, "big"), 1)
    pieces = b"".join(peer.data(3, body[at : at + 1_000], 0) for at in range(0, len(body), 1_000))
    peer.send(head + pieces)
    peer.host.seconds += 0.005
    peer.send(peer.data(3, b""), 4 * MS)
    assert statuses(peer) == {3: Code.RESOURCE_EXHAUSTED}
    assert peer.host.account.input_bytes == 0
    assert not peer.messages


def test_clients_that_reset_what_is_over_are_no_attackers() -> None:
    """All that clients do whose server is too late for them; the same of calls that might still be answered is not."""
    peer = Peer()
    for stream_id in range(1, 4 * NOISE_MAX, 2):
        peer.send(peer.call(stream_id, b"", HOLD, ("grpc-timeout", "50m")), 25 * MS)
        peer.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert goaway(peer.read()) is None
    assert peer.cancelled == len(peer.messages) == 2 * NOISE_MAX
    for stream_id in range(4 * NOISE_MAX + 1, 8 * NOISE_MAX, 2):
        peer.send(peer.call(stream_id, b"", HOLD, ("grpc-timeout", "50m")), 24 * MS)
        peer.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert goaway(peer.read()) == ErrorCode.ENHANCE_YOUR_CALM


def test_in_a_rush_a_reset_after_a_deadline_is_no_attack_however_soon_it_was_read() -> None:
    """What has waited in the socket for as long as its deadline is read together with its reset."""
    for is_in_rush, found in ((True, None), (False, ErrorCode.ENHANCE_YOUR_CALM)):
        peer = Peer()
        peer.connection.is_in_rush = is_in_rush
        for stream_id in range(1, 4 * NOISE_MAX, 2):
            peer.send(peer.call(stream_id, b"", HOLD, ("grpc-timeout", "50m")))
            peer.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
        assert goaway(peer.read()) == found


@pytest.mark.parametrize("times", [1, 2])
def test_a_reset_that_crosses_the_answer_is_no_attack_and_a_second_one_is(peer: Peer, times: int) -> None:
    """However many come at once, behind as many calls."""
    count = 2 * NOISE_MAX
    for stream_id in range(1, 2 * count, 2):
        peer.send(peer.call(stream_id, b"late", ECHO, ("grpc-timeout", "10m")), 9 * MS)
    for _ in range(times):
        for stream_id in range(1, 2 * count, 2):
            peer.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert goaway(peer.read()) == (None if times == 1 else ErrorCode.ENHANCE_YOUR_CALM)


def test_after_a_long_read_others_are_served_first() -> None:
    async def run() -> None:
        loop = Loop()
        protocol, sock = loop.connect()
        upload = Peer()
        protocol.data_received(upload.headers(1) + upload.data(1, b"\0" + (2**20).to_bytes(4, "big"), 0))
        assert (sock.pauses, sock.is_read) == (0, True)
        for count in range(1, 4):
            protocol.data_received(upload.data(1, bytes(16_000), 0) * 3)
            assert (sock.pauses, sock.is_read) == (count, False)
            while not sock.is_read:
                await asyncio.sleep(0)
            assert loop.engine.turns.taken == count
        protocol.data_received(upload.data(1, bytes(16_000), 0))
        assert sock.is_read
        await loop.close(protocol)

    asyncio.run(run())


def test_a_busy_server_refuses_calls_with_a_deadline_and_answers_those_without() -> None:
    """A real socket: 2 MB of calls, each of which takes a millisecond of the only thread, half of them with a deadline
    of 100 ms. However fast or slow the machine is, far from all can be done by then."""
    count = 600
    done: Counter[str] = Counter()

    def work(call: Call, message: Buffer) -> None:
        begun_ns = time.thread_time_ns()
        while time.thread_time_ns() < begun_ns + MS:
            pass
        done["with" if call.timeout_ns else "without"] += 1
        call.finish(b"")

    peer = Peer()
    pieces = [frames.PREFACE + frames.settings({4: 2**31 - 1}) + frames.SETTINGS_ACK]
    for number in range(count):
        more = [("grpc-timeout", "100m")] if number % 2 else []
        pieces.append(peer.call(2 * number + 1, bytes(3_300), ECHO, *more))

    async def run() -> Ledger:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        engine = await serve_native(Methods({ECHO: work}, {}, frozenset((ECHO,))), [listener], EngineLimits())
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        writer.write(b"".join(pieces))
        ledger = engine.account.calls
        while ledger.ended.total() < count:
            assert await reader.read(2**20)
        writer.close()
        await engine.close()
        return ledger

    ledger = uvloop.run(run())
    assert ledger.received == ledger.ended.total() == count
    assert ledger.ended[Code.RESOURCE_EXHAUSTED] == ledger.unread == count // 2 - done["with"] > 0
    assert (done["without"], ledger.ended[Code.OK]) == (count // 2, count // 2 + done["with"])
