"""Goal: while a connection is barred its client sends no message before it is let in, who is refused is told at once,
and nobody ever waits for a window that never comes. Method: a connection that is barred by hand; a client that keeps
the rules of flow control and nothing else, in random turns; both ways of the same connection over random rows of
calls. With real clients: `test_barring_sockets.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.barring import LET_IN_NS
from ringserve.frontend.http2.beginnings import NARROW_BYTES
from ringserve.frontend.http2.control import STREAM_WINDOW_BYTES
from ringserve.frontend.http2.frames import DATA, END_HEADERS, END_STREAM, PRIORITY_FLAG, ErrorCode, frame
from ringserve.frontend.http2.noise import NOISE_MAX
from ringserve.frontend.http2.refusing import ALL_CALLS
from tests.frontend.http2.peer import ECHO, HOLD, Frame, Peer, answers, goaway, message, request_fields
from tests.frontend.http2.test_beginnings import BODY, LONG, Client, crowded, headers, windows
from tests.frontend.http2.test_parts import noise
from tests.frontend.http2.test_runs import TIMEOUT, quiet_peer
from tests.frontend.http2.test_taking import taking_peer

MS = 1_000_000
REFUSED = (Code.RESOURCE_EXHAUSTED, ErrorCode.NO_ERROR)


def barred(room: int, short_way: bool = True) -> Peer:
    """A connection in a rush that takes so many calls of each read."""
    peer = quiet_peer(short_way)
    peer.connection.is_in_rush = True
    peer.connection.room_calls = room
    peer.connection.bar(True)
    assert windows(peer.read()) == ([0], {})
    return peer


def row(peer: Peer, first: int, count: int, path: str = ECHO) -> bytes:
    return b"".join(headers(peer, stream_id, path) for stream_id in range(first, first + 2 * count, 2))


def told(found: list[Frame]) -> dict[int, tuple[int, ErrorCode | None]]:
    return {stream_id: (answer.status, answer.reset) for stream_id, answer in answers(found).items()}


@pytest.mark.parametrize("short_way", [True, False])
def test_who_is_let_in_has_a_window_and_who_is_not_an_answer(short_way: bool) -> None:
    peer = barred(2, short_way)
    peer.send(row(peer, 1, 5))
    found = peer.read()
    taken = {7, 9} if short_way else {1, 3}  # of a run the newest
    assert windows(found) == ([], dict.fromkeys(taken, STREAM_WINDOW_BYTES))
    assert told(found) == dict.fromkeys({1, 3, 5, 7, 9} - taken, REFUSED)
    assert answers(found)[5].fields["grpc-retry-pushback-ms"] == "10"
    peer.connection.room_calls = 0
    for stream_id in sorted(taken):
        peer.send(peer.data(stream_id, message(b"hello")))
    assert told(peer.read()) == dict.fromkeys(taken, (0, None))
    ledger = peer.host.account.calls
    assert (ledger.received, ledger.unread, ledger.ended[0], ledger.ended[8]) == (5, 3, 2, 3)
    assert not peer.connection.let_in
    assert not peer.connection.streams


def test_who_has_given_up_already_takes_nobody_s_place() -> None:
    peer = barred(1)
    peer.send(row(peer, 1, 2) + headers(peer, 5) + frames.rst_stream(5, ErrorCode.CANCEL))
    found = peer.read()
    assert (told(found), windows(found)[1]) == ({1: REFUSED, 5: REFUSED}, {3: STREAM_WINDOW_BYTES})
    assert peer.connection.last_stream_id == 5


@pytest.mark.parametrize("room", [0, 5, ALL_CALLS])
def test_headers_that_no_cache_knows_are_refused_and_let_in_too(room: int) -> None:
    peer, count = barred(room), 600
    for first in range(1, 2 * count, 400):
        pieces = []
        for stream_id in range(first, min(first + 400, 2 * count), 2):
            fields = request_fields(ECHO, TIMEOUT, ("x-number", f"{stream_id:030}"))
            pieces.append(peer.headers(stream_id, fields))
        peer.connection.room_calls = room
        peer.send(b"".join(pieces))
    found = peer.read()
    let_in, refused = windows(found)[1], told(found)
    assert set(refused.values()) <= {REFUSED}
    assert sorted([*let_in, *refused]) == list(range(1, 2 * count, 2))
    assert len(let_in) >= min(room, 1_000) * 3 if room < count else len(let_in) == count
    assert not peer.host.bugs


def test_a_row_of_refusals_is_one_piece_of_output() -> None:
    peer = barred(0)
    peer.send(row(peer, 1, 200))
    assert len(peer.connection.out) == 1
    assert told(peer.read()) == dict.fromkeys(range(1, 400, 2), REFUSED)
    assert goaway(peer.read()) is None


def test_whose_clients_reset_what_was_refused_are_no_attackers() -> None:
    """Official clients reset a call that is answered before its message has gone."""
    peer, count = barred(0), NOISE_MAX + 100
    for stream_id in range(1, 2 * count, 2):
        peer.send(headers(peer, stream_id) + frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
    assert goaway(peer.read()) is None
    assert peer.host.account.calls.unread == count


@pytest.mark.parametrize("short_way", [True, False])
@pytest.mark.parametrize("kind", ["no deadline", "no work"])
def test_calls_that_are_never_refused_are_always_let_in(kind: str, short_way: bool) -> None:
    peer = barred(0, short_way)
    peer.send(headers(peer, 1, ECHO, ("x", "y")) if kind == "no deadline" else headers(peer, 1, HOLD))
    assert windows(peer.read()) == ([], {1: STREAM_WINDOW_BYTES})
    peer.send(peer.data(1, message(b"hello")))
    assert peer.messages == [b"hello"]


@pytest.mark.parametrize("how", ["named", "told", "priority"])
def test_whoever_goes_one_by_one_is_refused_too(how: str) -> None:
    peer = barred(1)
    more: Sequence[tuple[str, str]] = (TIMEOUT, ("x-request-id", "me")) if how == "named" else (TIMEOUT,)
    if how == "told":
        peer.connection.told = peer.refused.append
    for stream_id in (1, 3, 5):
        block = peer.block(request_fields(ECHO, *more))
        if how == "priority":
            peer.send(frame(frames.HEADERS, END_HEADERS | PRIORITY_FLAG, stream_id, bytes(5) + block))
        else:
            peer.send(frame(frames.HEADERS, END_HEADERS, stream_id, block))
    found = peer.read()
    assert windows(found) == ([], {1: STREAM_WINDOW_BYTES})
    assert told(found) == {3: REFUSED, 5: REFUSED}
    if how == "named":
        assert answers(found)[3].fields["x-request-id"] == "me"
    assert len(peer.refused) == (2 if how == "told" else 0)
    peer.send(peer.data(1, message(b"hello")))
    assert told(peer.read()) == {1: (0, None)}


def test_what_crosses_the_news_is_taken_or_passed_over() -> None:
    """A client that does not know yet that it must keep its messages sends them behind their headers, or later."""
    peer = barred(1)
    body = message(noise(1, 2_000))
    peer.send(headers(peer, 1) + peer.data(1, body) + headers(peer, 3) + peer.data(3, body) + headers(peer, 5))
    found = peer.read()
    assert (told(found), windows(found)[1]) == ({1: (8, None), 3: (8, None)}, {5: STREAM_WINDOW_BYTES})
    peer.send(peer.data(5, body) + headers(peer, 7) + peer.data(7, body[:10], 0))
    assert told(peer.read()) == {5: (0, None), 7: REFUSED}
    for _ in range(NOISE_MAX + 100):
        peer.send(peer.data(7, body, 0))
    peer.connection.bar(False)
    peer.connection.room_calls = 1
    assert windows(peer.read()) == ([STREAM_WINDOW_BYTES], {})
    peer.send(peer.data(7, body))  # it has come late, but nobody is to blame
    peer.send(headers(peer, 9))
    assert peer.read() == []
    peer.send(peer.data(9, message(b"hello")))
    assert told(peer.read()) == {9: (0, None)}
    peer.send(peer.data(9, b"more"))  # this client is
    assert told(peer.read()) == {9: (-1, ErrorCode.STREAM_CLOSED)}


def test_open_calls_keep_their_windows() -> None:
    peer = quiet_peer()
    peer.send(row(peer, 1, 2))
    peer.send(peer.call(5, b"held", HOLD))
    peer.connection.bar(True)
    peer.connection.bar(True)
    assert windows(peer.read()) == ([0], dict.fromkeys((1, 3), STREAM_WINDOW_BYTES))
    peer.connection.bar(False)
    assert windows(peer.read()) == ([STREAM_WINDOW_BYTES], {})


def test_a_narrow_connection_lets_in_beginnings_only() -> None:
    peer, crowd = crowded(0)
    peer.send(headers(peer, 1) + frame(DATA, 0, 1, message(BODY)[:NARROW_BYTES]))
    peer.connection.bar(True)
    peer.connection.room_calls = 1
    peer.read()
    peer.send(headers(peer, 3))
    assert windows(peer.read()) == ([], {3: NARROW_BYTES})
    crowd.left = 1
    peer.send(frame(DATA, 0, 3, message(BODY)[:NARROW_BYTES]))
    assert windows(peer.read()) == ([], {3: STREAM_WINDOW_BYTES})
    peer.connection.bar(False)
    assert windows(peer.read()) == ([NARROW_BYTES], {})


@pytest.mark.parametrize("short_way", [True, False])
@pytest.mark.parametrize("kept_ms", [37, 38])
def test_who_was_let_in_and_comes_too_late_is_refused(kept_ms: int, short_way: bool) -> None:
    peer = barred(1, short_way)
    peer.send(headers(peer, 1))  # its deadline is 100 ms
    peer.host.seconds += kept_ms / 1e3
    peer.send(peer.data(1, message(b"hello")))
    assert told(peer.read())[1] == ((0, None) if kept_ms == 37 else (Code.RESOURCE_EXHAUSTED, None))
    assert not peer.connection.let_in


def test_one_batch_at_a_time() -> None:
    peer = barred(8)
    connection, now_ns = peer.connection, peer.host.clock_ns()
    assert connection.room_left(8, now_ns) == 8
    peer.send(row(peer, 1, 3))
    assert connection.room_left(8, now_ns) == 1
    peer.send(row(peer, 7, 1))
    assert connection.room_left(8, now_ns) == 0
    assert connection.room_left(8, now_ns + LET_IN_NS) == 0
    assert connection.room_left(8, now_ns + LET_IN_NS + 1) == 8  # they are slow: nobody waits for them
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL) + peer.data(3, message(b"hello")))
    assert connection.room_left(8, now_ns) == 2
    peer.connection.disconnected()


KINDS = ["alike"] * 5 + ["deadline", "patient", "named", "other", "reset", "ping", "bad", "priority", "unknown"]


def rows(kinds: Sequence[tuple[str, int]], room: int, cut: int, short_way: bool) -> object:
    peer = barred(room, short_way)
    pieces, stream_id = [], 1
    for kind, count in kinds:
        for _ in range(count):
            more: tuple[tuple[str, str], ...] = (TIMEOUT,)
            if kind == "reset":
                if not room:  # who is let in one by one is gone; who is in a row has never been there
                    pieces.append(frames.rst_stream(max(1, stream_id - 4), ErrorCode.CANCEL))
                continue
            if kind == "ping":
                pieces.append(frames.ping(bytes(8), False))
                continue
            if kind == "deadline":
                more = (("grpc-timeout", f"{70 + stream_id % 7}m"),)
            elif kind == "patient":
                more = ()
            elif kind == "named":
                more = (TIMEOUT, ("x-request-id", "me"))
            path = {"other": HOLD, "unknown": "/no"}.get(kind, ECHO)
            block = peer.block(request_fields(path, *more))
            if kind == "bad":
                block = b"\x80" + block
            flags = END_HEADERS
            if kind == "priority":
                flags, block = flags | PRIORITY_FLAG, bytes(5) + block
            pieces.append(frame(frames.HEADERS, flags, stream_id, block))
            stream_id += 2
    data = b"".join(pieces)
    for part in (data[:cut], data[cut:]):
        peer.send(part, 10 * MS)
    connection = peer.connection
    seen = peer.read()
    for open_id in sorted(connection.streams):
        peer.send(peer.data(open_id, message(b"later")))
    seen += peer.read()
    calls = connection.calls
    state = (connection.last_stream_id, connection.is_closing, sorted(connection.streams), sorted(connection.let_in))
    return seen, state, calls.received, calls.unread, calls.ended, peer.messages, connection._received_bytes


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 5)), max_size=8),
    st.sampled_from([0, ALL_CALLS]),
    st.integers(0, 600),
)
def test_calls_are_refused_together_just_as_one_by_one(
    kinds: list[tuple[str, int]], room: int, cut: int
) -> None:
    assert rows(kinds, room, cut, True) == rows(kinds, room, cut, False)


STEPS = st.one_of(
    st.sampled_from(["bar", "bar", "free", "room", "none", "all", "listen", "listen", "one", "many", "crowd", "wide"]),
    st.integers(1_000, 200_000),
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEPS, max_size=40), short_way=st.booleans())
def test_whoever_keeps_the_rules_comes_through(steps: list[str | int], short_way: bool) -> None:
    peer, crowd = crowded(inf, short_way=short_way)
    client, connection = Client(peer), peer.connection
    connection.is_in_rush = True
    for step in steps:
        if step == "bar":
            connection.bar(True)
        elif step == "free":
            connection.bar(False)
        elif step in ("room", "none", "all"):
            connection.room_calls = {"room": 2, "none": 0, "all": ALL_CALLS}[str(step)]
        elif step == "listen":
            client.listen()
        elif step == "crowd":
            crowd.left = 0
            connection._crowds[LONG] = [crowd]
        elif step == "wide":
            crowd.left = inf
        elif isinstance(step, int):
            client.go_on(step)
        else:
            for _ in range(1 if step == "one" else 3):
                client.begin(BODY)
    connection.room_calls = ALL_CALLS
    client.come_through()
    assert not connection.let_in
    assert connection.held_bytes == 0
    assert goaway(peer.read()) is None


BODIES = ["alike"] * 4 + ["longer", "other end", "short", "flagged", "open", "nobody's", "reset", "ping", "late"]


def letters(kinds: Sequence[tuple[str, int]], is_together: bool, cut: int, fails_at: int) -> tuple[Any, list[int]]:
    """Messages of such kinds for calls that were let in: what comes of them, and how many were taken at once."""
    peer, many = taking_peer(is_together=is_together, fails_at=fails_at)
    connection = peer.connection
    connection.is_in_rush, connection.room_calls = True, ALL_CALLS
    connection.bar(True)
    count = sum(number for _, number in kinds)
    peer.send(row(peer, 1, count))
    assert len(connection.let_in) == count
    seen, pieces, stream_id = peer.read(), [], 1
    for kind, number in kinds:
        for _ in range(number):
            body = message(b"alike", 1) if kind == "flagged" else message(b"alikely" if kind == "longer" else b"alike")
            if kind == "other end":
                body = body[:-1] + b"x"
            elif kind == "short":
                body = body[:-1]
            at = stream_id + 2_000 if kind == "nobody's" else max(1, stream_id - 2) if kind == "late" else stream_id
            if kind == "reset":
                pieces.append(frames.rst_stream(stream_id, ErrorCode.CANCEL))
            elif kind == "ping":
                pieces.append(frames.ping(bytes(8), False))
            else:
                pieces.append(peer.data(at, body, 0 if kind == "open" else END_STREAM))
            stream_id += 2
    data = b"".join(pieces)
    for part in (data[:cut], data[cut:]):
        peer.send(part)
    seen += peer.read()
    calls = connection.calls
    state = (connection.is_closing, sorted(connection.streams), sorted(connection.let_in), connection._received_bytes)
    bugs = len(peer.host.bugs)
    return (seen, state, calls.received, calls.unread, calls.ended, peer.messages, bugs), many.counts


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(BODIES), st.integers(1, 5)), max_size=8), st.integers(0, 600))
def test_messages_are_taken_together_just_as_one_by_one(kinds: list[tuple[str, int]], cut: int) -> None:
    assert letters(kinds, True, cut, -1)[0] == letters(kinds, False, cut, -1)[0]


def test_a_row_of_messages_is_taken_at_once() -> None:
    assert letters([("alike", 100)], True, 0, -1)[1] == [100]
    assert letters([("alike", 3), ("ping", 1), ("alike", 4), ("longer", 1)], True, 0, -1)[1] == [3, 4]


def test_a_bug_in_the_middle_leaves_nobody_without_an_answer() -> None:
    (_, state, received, _, ended, *_, bugs), _counts = letters([("alike", 5)], True, 0, 2)
    assert (state, received, bugs) == ((False, [], [], 50), 5, 1)
    assert ended == {0: 2, Code.INTERNAL: 3}
