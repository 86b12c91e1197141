"""Goal: calls that lie one behind another and are alike come to their handler just as one by one, whatever is between
and behind them; and calls that are answered together are answered just as one by one. Method: random rows of calls,
with everything that ends a run among them, and random answers, through both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code
from ringserve.frontend.handler import Buffer, Call, EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.calls import UnaryCall
from ringserve.frontend.http2.frames import ErrorCode
from ringserve.frontend.http2.refusing import ALL_CALLS, WORK_AT_ONCE_MAX
from tests.frontend.http2.peer import ECHO, HOLD, Peer, answers, request_fields
from tests.frontend.http2.test_runs import KINDS, TIMEOUT, call

MS = 1_000_000


class SomeKind(NamedTuple):
    """A `handler.Kind`: of messages `al` ... `ke`."""

    size: int
    prefix: bytes = b"al"
    suffix: bytes = b"ke"


OTHER = ECHO[:-1] + "a"


class Many:
    """A `handler.Together` that does for each call what `handle` does, and notes how many it was given at once."""

    def __init__(self, handle: Callable[[Call, Buffer], None], fails_at: int = -1) -> None:
        self.counts: list[int] = []
        self._handle = handle
        self._fails_at = fails_at

    def kind(self, message: bytes) -> SomeKind | None:
        is_one = len(message) >= 4 and message[:2] == b"al" and message[-2:] == b"ke"
        return SomeKind(len(message)) if is_one else None

    def take(self, calls: Sequence[Call], kind: SomeKind, data: bytes, places: Sequence[int]) -> None:
        self.counts.append(len(calls))
        assert len(places) == len(calls)
        for number, (each, at) in enumerate(zip(calls, places, strict=True)):
            if number == self._fails_at:
                raise RuntimeError("bug")
            self._handle(each, data[at : at + kind.size])


def taking_peer(*, is_together: bool = True, fails_at: int = -1, holds: str = "", **limits: int) -> tuple[Peer, Many]:
    """holds: calls whose messages have one of these digits are not answered."""

    def echo(each: Call, data: Buffer) -> None:
        message = bytes(data)
        peer.messages.append(message)
        if message[2:3].decode("latin-1") not in holds or not holds:
            each.finish(message)

    def other(each: Call, data: Buffer) -> None:
        each.fail(3, "this is another method")

    peer = Peer(EngineLimits(**limits))
    peer.cache.methods.unary.update({ECHO: echo, OTHER: other})
    many = Many(echo, fails_at)
    if is_together:
        echo.together = many  # type: ignore[attr-defined]
    peer.connection.told = None
    peer.block(request_fields())  # the encoder's first one says the size of its table
    return peer, many


def one_of(peer: Peer, kind: str, stream_id: int) -> bytes:
    if kind == "reset":
        return frames.rst_stream(max(1, stream_id - 4), ErrorCode.CANCEL)
    if kind == "old reset":
        return frames.rst_stream(1, ErrorCode.CANCEL)
    if kind == "ping":
        return frames.ping(bytes(8), False)
    if kind == "late data":
        return peer.data(max(1, stream_id - 4), b"x" * 300)
    if kind == "no deadline":
        made = peer.call(stream_id, b"alike", ECHO, ("grpc-timeoux", "100m"))
    elif kind == "less patient":
        made = peer.call(stream_id, b"alike", ECHO, ("grpc-timeout", "079m"))
    elif kind == "other method":
        made = peer.call(stream_id, b"alike", OTHER, ("grpc-timeoux", "100m"))
    else:
        made = call(peer, kind, stream_id)
    return made.replace(b"alike", b"al%dke" % (stream_id % 10))


MORE_KINDS = [*KINDS, *["alike"] * 8, "old reset", "late data", "no deadline", "less patient", "other method"]


def outcome(
    kinds: list[tuple[str, int]], cut: int, holds: str, streams: int, waited_ns: int, room: int, *, is_together: bool
) -> object:
    peer, _ = taking_peer(is_together=is_together, holds=holds, concurrent_streams_max=streams)
    connection = peer.connection
    pieces, stream_id = [], 1
    for kind, count in kinds:
        for _ in range(count):
            pieces.append(one_of(peer, kind, stream_id))
            stream_id += 0 if kind in ("reset", "old reset", "ping", "late data") else 2
    data = b"".join(pieces)
    for part in (data[:cut], data[cut:]):
        connection.room_calls = room
        peer.send(part, waited_ns)
    calls = connection.calls
    state = (connection.last_stream_id, connection.is_closing, sorted(connection.streams), connection.held_bytes)
    books = (calls.received, calls.unread, calls.ended, connection.send_window, connection._received_bytes)
    return peer.read(), state, books, peer.messages, connection.room_calls if room != ALL_CALLS else 0


@settings(max_examples=800, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(MORE_KINDS), st.integers(1, 9)), max_size=8),
    st.integers(0, 900),
    st.sampled_from(["", "", "1", "137", "0123456789"]),
    st.sampled_from([2, 5, 1_000]),
    st.sampled_from([0, 20 * MS, 24 * MS, 30 * MS]),
    st.sampled_from([ALL_CALLS, 4, 11]),
)
def test_calls_are_taken_together_just_as_one_by_one(
    kinds: list[tuple[str, int]], cut: int, holds: str, streams_max: int, waited_ns: int, room: int
) -> None:
    together = outcome(kinds, cut, holds, streams_max, waited_ns, room, is_together=True)
    assert together == outcome(kinds, cut, holds, streams_max, waited_ns, room, is_together=False)


def test_resets_of_what_is_closed_end_no_run_and_those_of_its_own_calls_do() -> None:
    peer, many = taking_peer()
    peer.send(one_of(peer, "alike", 1))
    pieces = [one_of(peer, "alike", stream_id) for stream_id in range(3, 63, 2)]
    for number in (3, 4, 9):
        pieces[number] += frames.rst_stream(1, ErrorCode.CANCEL) * (number - 2)
    pieces[19] += frames.rst_stream(31, ErrorCode.CANCEL)
    peer.send(b"".join(pieces))
    assert many.counts == [20, 10]
    assert peer.messages == [b"al%dke" % (stream_id % 10) for stream_id in range(1, 63, 2)]


@pytest.mark.parametrize(
    ("usual", "kind"),
    [("alike", "no deadline"), ("alike", "less patient"), ("no deadline", "other method"), ("no deadline", "alike")],
)
def test_a_run_ends_where_another_rule_holds(usual: str, kind: str) -> None:
    """The other one is as long, and its headers are known."""
    peer, _ = taking_peer()
    call_bytes = len(one_of(peer, kind, 1))
    assert call_bytes == len(one_of(peer, usual, 1))
    kinds = [(kind, 1), (usual, 5), (kind, 1), (usual, 4)]
    together = outcome(kinds, 2 * call_bytes, "", 1_000, 20 * MS, 7, is_together=True)
    assert together == outcome(kinds, 2 * call_bytes, "", 1_000, 20 * MS, 7, is_together=False)


class Room:
    """A crowd for so many of each deadline."""

    path, prefix, suffix = ECHO, b"al", b"ke"

    def room(self, timeout_ns: int) -> float:
        return 3.0 if timeout_ns < 500 * MS else 5.0

    def comes(self, change: int) -> None:
        pass

    def refuse(self, count: int) -> tuple[int, str, int]:
        return 8, "full", 25


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["alike", "patient", "other deadline"]), min_size=1, max_size=6))
def test_of_a_crowd_those_are_taken_together_for_which_there_is_room(kinds: list[str]) -> None:
    def run(*, is_together: bool) -> object:
        peer, _ = taking_peer(is_together=is_together)
        peer.cache.methods.crowds[5] = [Room()]
        calls = [one_of(peer, kind, 1 + 2 * n) for n, kind in enumerate(each for kind in kinds for each in [kind] * 8)]
        peer.send(b"".join(calls))
        return peer.read(), peer.messages

    assert run(is_together=True) == run(is_together=False)


def test_what_is_alike_is_taken_in_one_go_up_to_what_others_can_wait_for() -> None:
    peer, many = taking_peer()
    ids = range(1, 601, 2)
    connection = peer.connection
    connection.receive(b"".join(peer.call(each, b"al%03dke" % each, ECHO, TIMEOUT) for each in ids))
    taken = [len(peer.messages)]
    while connection.has_rest:
        connection.go_on()
        taken.append(len(peer.messages))
    assert taken == [128, 256, 300]
    assert many.counts == [128, 128, 44]
    assert peer.messages == [b"al%03dke" % stream_id for stream_id in ids]
    assert [len(answers(peer.read())), peer.host.account.calls.ended[0]] == [300, 300]


def test_each_has_its_own_deadline() -> None:
    peer, many = taking_peer()
    seen: list[int] = []

    def take(calls: Sequence[Call], kind: SomeKind, data: bytes, places: Sequence[int]) -> None:
        seen.extend(each.timeout_ns // MS for each in calls)

    many.take = take  # type: ignore[method-assign]
    for first in (1, 21):  # the second time their headers are known
        calls = [
            peer.call(first + 2 * n, b"alike", ECHO, ("grpc-timeout", f"{100 + 7 * n if n % 3 else 90}m"))
            for n in range(10)
        ]
        peer.send(b"".join(calls))
    assert seen[-10:] == [100 + 7 * n if n % 3 else 90 for n in range(10)]


def test_many_unknown_deadlines_are_no_more_work_at_once_than_others_can_wait_for() -> None:
    peer, many = taking_peer()
    peer.send(peer.call(1, b"alike", ECHO, TIMEOUT) + peer.call(3, b"alike", ECHO, ("grpc-timeout", "101m")))
    count = 400
    calls = [peer.call(5 + 2 * n, b"alike", ECHO, ("grpc-timeout", f"{100_000 + n}u")) for n in range(count)]
    connection, parts = peer.connection, 1
    connection.receive(b"".join(calls), peer.host.clock_ns())
    while connection.has_rest:
        assert connection.work <= 2 * WORK_AT_ONCE_MAX
        connection.go_on()
        parts += 1
    assert parts > 1
    assert len(answers(peer.read())) == count + 2
    assert sum(many.counts) > count / 2


def test_a_bug_fails_the_calls_that_have_no_answer_and_is_told() -> None:
    peer, _ = taking_peer(fails_at=2)
    peer.send(b"".join(peer.call(stream_id, b"alike", ECHO, TIMEOUT) for stream_id in (1, 3, 5, 7)))
    told = answers(peer.read())
    assert [told[stream_id].status for stream_id in (1, 3, 5, 7)] == [0, 0, Code.INTERNAL, Code.INTERNAL]
    assert len(peer.host.bugs) == 1
    assert not peer.connection.streams


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["plain", "named", "reset", "failed"]), min_size=1, max_size=12),
    st.sampled_from([0, 1, 30, 20_000]),
    st.sampled_from([40, 300, 65_535]),
    st.sampled_from([3, 200, 65_535]),
)
def test_answers_together_are_the_same_as_one_by_one(
    kinds: list[str], body_bytes: int, connection_window: int, stream_window: int
) -> None:
    def run(*, is_together: bool) -> object:
        peer = Peer()
        peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: stream_window}))
        for number, kind in enumerate(kinds):
            more = [("x-request-id", "me")] if kind == "named" else []
            peer.send(peer.call(1 + 2 * number, b"x", HOLD, *more))
        calls: list[Any] = list(peer.held)
        for number, kind in enumerate(kinds):
            if kind == "reset":
                peer.send(frames.rst_stream(1 + 2 * number, ErrorCode.CANCEL))
            elif kind == "failed":
                calls[number].fail(3, "no")
        peer.read()
        connection = peer.connection
        connection.send_window = connection_window
        bodies = [bytes([number]) * body_bytes for number in range(len(kinds))]
        if is_together:
            UnaryCall.finish_together(calls, b"head", bodies, b"tail")
        else:
            for each, body in zip(calls, bodies, strict=True):
                each.finish(b"head" + body + b"tail")
        seen = peer.read()
        return seen, connection.send_window, sorted(connection.streams), connection.calls.ended, peer.host.wakes

    assert run(is_together=True) == run(is_together=False)


def test_answers_together_wake_each_connection_once_and_are_in_its_own_books() -> None:
    peers = [Peer(), Peer()]
    for peer in peers:
        peer.send(peer.call(1, b"x", HOLD) + peer.call(3, b"x", HOLD))
        peer.read()
    before = [peer.host.wakes for peer in peers]
    calls: list[Any] = [each for peer in peers for each in peer.held]
    UnaryCall.finish_together(calls, b"", [b"a", b"b", b"c", b"d"], b"")
    assert [peer.host.wakes - was for peer, was in zip(peers, before, strict=True)] == [1, 1]
    assert [len(answers(peer.read())) for peer in peers] == [2, 2]
    assert [peer.host.account.calls.ended[0] for peer in peers] == [2, 2]
