"""Goal: calls that lie one behind another and must be refused are refused together just as one by one, whatever is
between and behind them; and in a rush the newest of them are taken. Method: random rows of calls, with everything that
ends a run among them, through both ways of the same connection; runs found by hand.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code
from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import ErrorCode
from ringserve.frontend.http2.noise import NOISE_MAX
from ringserve.frontend.http2.refusing import WORK_AT_ONCE_MAX
from tests.frontend.http2.peer import ECHO, HOLD, Frame, Peer, answers, goaway, request_fields

MS = 1_000_000
TIMEOUT = ("grpc-timeout", "100m")


def quiet_peer(short_way: bool = True, **limits: int) -> Peer:
    """Nobody wants to be told of each call that is refused, or all of them go one by one."""
    peer = Peer(EngineLimits(**limits), short_way=short_way)
    peer.connection.told = None
    peer.block(request_fields())  # the encoder's first one says the size of its table
    return peer


def call(peer: Peer, kind: str, stream_id: int) -> bytes:
    """A call, or what looks much like one."""
    if kind == "other deadline":
        return peer.call(stream_id, b"alike", ECHO, ("grpc-timeout", f"{70 + stream_id % 7}m"))
    if kind == "patient":
        return peer.call(stream_id, b"alike", ECHO, ("grpc-timeout", "900m"))
    if kind == "light":
        return peer.call(stream_id, b"alike", HOLD, TIMEOUT)
    if kind == "longer":
        return peer.call(stream_id, b"longer one", ECHO, TIMEOUT)
    if kind == "named":
        return peer.call(stream_id, b"alike", ECHO, TIMEOUT, ("x-request-id", "me"))
    if kind == "declared":
        return peer.call(stream_id, b"alike", ECHO, TIMEOUT, ("content-length", "11"))
    if kind == "unknown":
        return peer.call(stream_id, b"alike", "/no", TIMEOUT)
    if kind == "bad block":
        return peer.call(stream_id, b"alike", ECHO, TIMEOUT).replace(b"100m", b"1\x0000", 1)
    one = peer.call(stream_id, b"alike", ECHO, TIMEOUT)
    data_at = len(one) - 5 - 5 - 9
    changes = {
        "alike": (0, b""),
        "even stream": (8, bytes((stream_id + 1 & 255,))),
        "same stream": (5, (1).to_bytes(4, "big")),
        "high stream": (5, b"\x80"),
        "data elsewhere": (data_at + 8, b"\x01"),
        "open end": (data_at + 4, b"\x00"),
        "padded": (data_at + 4, b"\x09"),
        "compressed": (len(one) - 10, b"\x01"),
        "two messages": (len(one) - 6, b"\x02"),
        "no end of headers": (4, b"\x00"),
    }
    at, new = changes[kind]
    return one[:at] + new + one[at + len(new) :]


KINDS = ["alike"] * 5 + [
    "other deadline", "patient", "light", "longer", "named", "declared", "unknown", "bad block", "even stream",
    "same stream", "high stream", "data elsewhere", "open end", "padded", "compressed", "two messages",
    "no end of headers", "reset", "ping",
]  # fmt: skip


def outcome(kinds: list[tuple[str, int]], short_way: bool, cut: int, streams_max: int) -> object:
    peer = quiet_peer(short_way, concurrent_streams_max=streams_max)
    pieces, stream_id = [], 1
    for kind, count in kinds:
        for _ in range(count):
            if kind == "reset":
                pieces.append(frames.rst_stream(max(1, stream_id - 4), ErrorCode.CANCEL))
            elif kind == "ping":
                pieces.append(frames.ping(bytes(8), False))
            else:
                pieces.append(call(peer, kind, stream_id))
                stream_id += 2
    data = b"".join(pieces)
    for part in (data[:cut], data[cut:]):
        peer.send(part, 30 * MS)
    connection = peer.connection
    calls = connection.calls
    state = (connection.last_stream_id, connection.is_closing, sorted(connection.streams), connection.held_bytes)
    seen: list[Frame] = peer.read()
    return seen, state, calls.received, calls.unread, calls.ended, peer.messages, connection._received_bytes


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 5)), max_size=8),
    st.integers(0, 600),
    st.sampled_from([2, 1_000]),
)
def test_calls_are_refused_together_just_as_one_by_one(
    kinds: list[tuple[str, int]], cut: int, streams_max: int
) -> None:
    assert outcome(kinds, True, cut, streams_max) == outcome(kinds, False, cut, streams_max)


def test_a_run_is_one_piece_of_output() -> None:
    peer = quiet_peer()
    peer.send(b"".join(peer.call(stream_id, b"alike", ECHO, TIMEOUT) for stream_id in range(1, 101, 2)), 26 * MS)
    assert len(peer.connection.out) == 1
    told = answers(peer.read())
    assert [told[stream_id].status for stream_id in range(1, 101, 2)] == [Code.RESOURCE_EXHAUSTED] * 50
    assert told[99].fields["grpc-retry-pushback-ms"] == "10"
    ledger = peer.host.account.calls
    assert (ledger.received, ledger.unread, ledger.ended.total()) == (50, 50, 50)


def test_a_run_goes_on_over_deadlines_that_no_cache_knows_until_they_are_too_much_work() -> None:
    peer = quiet_peer()
    peer.send(peer.call(1, b"alike", ECHO, TIMEOUT) + peer.call(3, b"alike", ECHO, ("grpc-timeout", "101m")))
    peer.read()
    count = 400
    calls = [peer.call(5 + 2 * n, b"alike", ECHO, ("grpc-timeout", f"{100_000 + n}u")) for n in range(count)]
    connection, parts = peer.connection, 1
    connection.receive(b"".join(calls), peer.host.clock_ns() - 26 * MS)
    while connection.has_rest:
        assert connection.work <= 2 * WORK_AT_ONCE_MAX
        connection.go_on()
        parts += 1
    assert parts > 1
    assert len(connection.out) <= 2 * parts
    assert len(answers(peer.read())) == count == peer.host.account.calls.unread


def given_up(stream_ids: Iterable[int]) -> bytes:
    return b"".join(frames.rst_stream(stream_id, ErrorCode.CANCEL) for stream_id in stream_ids if stream_id > 0)


@pytest.mark.parametrize("resets", [1, 2, 5])
def test_resets_of_what_is_closed_end_no_run(resets: int) -> None:
    """Those of calls that were answered long ago, and of calls of this very run."""
    peer = quiet_peer()
    ids = range(101, 201, 2)
    peer.send(b"".join(peer.call(stream_id, b"alike", ECHO) for stream_id in range(1, 101, 2)))
    peer.read()
    pieces = [peer.call(stream_id, b"alike", ECHO, TIMEOUT) for stream_id in ids]
    for number, stream_id in enumerate(ids):
        if number % resets == 0:
            pieces[number] += given_up([stream_id, *range(stream_id - 100, stream_id - 100 + 2 * resets, 2)])
    peer.send(b"".join(pieces), 26 * MS)
    assert len(peer.connection.out) == 1
    assert [each.status for each in answers(peer.read()).values()] == [Code.RESOURCE_EXHAUSTED] * 50
    assert peer.host.account.calls.unread == 50


def test_the_reset_of_an_open_call_is_heard_in_a_run() -> None:
    peer = quiet_peer()
    peer.send(peer.call(1, b"alike", HOLD, TIMEOUT))
    calls = [peer.call(stream_id, b"alike", ECHO, TIMEOUT) for stream_id in range(3, 43, 2)]
    peer.send(b"".join([*calls[:10], given_up([1]), *calls[10:]]), 26 * MS)
    assert peer.cancelled == 1
    assert peer.host.account.calls.unread == 20


def test_whoever_resets_more_than_he_began_is_an_attacker_in_a_run_too() -> None:
    peer = quiet_peer()
    peer.send(peer.call(1, b"alike", ECHO))
    peer.read()
    pieces = [peer.call(stream_id, b"alike", ECHO, TIMEOUT) for stream_id in range(3, 63, 2)]
    peer.send((given_up([1]) * (NOISE_MAX // 20)).join(pieces), 26 * MS)
    assert goaway(peer.read()) == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("gives_up", [0, 2, 4, 6])
@pytest.mark.parametrize(("room", "calls"), [(0, 20), (3, 20), (20, 20), (30, 20), (1, 2)])
def test_in_a_rush_the_newest_are_taken(room: int, calls: int, gives_up: int) -> None:
    """gives_up: behind each call its client resets the one that it began so much earlier; 0: none."""
    peer = quiet_peer()
    peer.connection.is_in_rush, peer.connection.room_calls = True, room
    ids = range(1, 2 * calls, 2)
    peer.send(
        b"".join(
            peer.call(stream_id, b"%02d" % stream_id, ECHO, TIMEOUT)
            + given_up([stream_id - gives_up] if gives_up else [])
            for stream_id in ids
        )
    )
    told = answers(peer.read())
    taken = [stream_id for stream_id in ids if not told[stream_id].status]
    assert len(told) == calls
    if calls > 2:
        assert taken == list(ids)[max(0, calls - room) :]
    else:
        assert len(taken) == room  # as few as these go one by one
    assert peer.messages == [b"%02d" % stream_id for stream_id in taken]


def test_in_a_rush_who_has_waited_too_long_is_not_taken_for_being_the_newest() -> None:
    peer = quiet_peer()
    peer.connection.is_in_rush, peer.connection.room_calls = True, 3
    peer.send(b"".join(peer.call(stream_id, b"", ECHO, TIMEOUT) for stream_id in range(1, 41, 2)), 26 * MS)
    assert not peer.messages
    assert peer.host.account.calls.unread == 20


def test_headers_without_a_message_are_no_run() -> None:
    peer = quiet_peer()
    fields = request_fields(ECHO, TIMEOUT)
    peer.send(b"".join(peer.headers(stream_id, fields) for stream_id in (1, 3, 5, 7)), 30 * MS)
    assert sorted(peer.connection.streams) == [1, 3, 5, 7]
    assert goaway(peer.read()) is None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["late", "open", "idle", "even", "zero", "reserved", "flags", "long", "ping"]),
                       st.integers(1, 4)), max_size=12),
    st.integers(0, 400),
)  # fmt: skip
def test_resets_of_any_kind_mean_the_same_both_ways(kinds: list[tuple[str, int]], cut: int) -> None:
    told: list[tuple[list[Frame], int]] = []
    for short_way in (True, False):
        peer = quiet_peer(short_way)
        peer.send(b"".join(peer.call(one, b"hi", ECHO) for one in range(1, 200, 2)))
        peer.send(b"".join(peer.call(one, b"hi", HOLD) for one in range(201, 300, 2)))
        late, held = iter(range(1, 200, 2)), iter(range(201, 300, 2))
        data = b""
        for kind, count in kinds:
            for _ in range(count):
                plain = frames.rst_stream(next(late), ErrorCode.CANCEL)
                data += {
                    "late": plain,
                    "open": frames.rst_stream(next(held), ErrorCode.CANCEL),
                    "idle": frames.rst_stream(301, ErrorCode.CANCEL),
                    "even": frames.rst_stream(2, ErrorCode.CANCEL),
                    "zero": frames.rst_stream(0, ErrorCode.CANCEL),
                    "reserved": plain[:5] + b"\x80" + plain[6:],
                    "flags": plain[:4] + b"\xff" + plain[5:],
                    "long": frames.frame(frames.RST_STREAM, 0, 1, bytes(5)),
                    "ping": frames.ping(bytes(8), False),
                }[kind]
        peer.send(data[:cut])
        if not peer.connection.is_closing:
            peer.send(data[cut:])
        told.append((peer.read(), peer.cancelled))
    assert told[0] == told[1]


def test_resets_of_closed_streams_are_too_many_at_last_however_they_come() -> None:
    for per_read in (1, 400):
        peer = quiet_peer()
        peer.send(peer.call(1, b"hi", ECHO))
        one = frames.rst_stream(1, ErrorCode.CANCEL)
        sent = 0
        while not peer.connection.is_closing and sent < 20_000:
            peer.send(one * per_read)
            sent += per_read
        assert goaway(peer.read()) == ErrorCode.ENHANCE_YOUR_CALM
        assert NOISE_MAX < sent <= NOISE_MAX + 1 + per_read
