"""Goal: calls whose lane is full are refused without a look at their messages, the newest of them excepted for which
there is room, and nobody else is. Method: a crowd that is made up, and calls that are like it but for one thing.
"""

from __future__ import annotations

import asyncio
import time
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code
from ringserve.frontend.http2.arrivals import Arrivals
from tests.frontend.http2.peer import ECHO, HOLD, Peer, answers, request_fields
from tests.frontend.http2.test_runs import TIMEOUT, call, quiet_peer
from tests.frontend.http2.test_turns import Loop

MS = 1_000_000


class MadeUp:
    """A crowd of messages `a…e`."""

    path, prefix, suffix = ECHO, b"a", b"e"

    def __init__(self, room: float) -> None:
        self.left = room
        self.timeouts_ns: list[int] = []
        self.count = 0
        self.coming = 0

    def room(self, timeout_ns: int) -> float:
        self.timeouts_ns.append(timeout_ns)
        return self.left

    def comes(self, change: int) -> None:
        self.coming += change

    def refuse(self, count: int) -> tuple[int, str, int]:
        self.count += count
        return 8, "full", 25


def crowded(room: float, size: int = 5) -> tuple[Peer, MadeUp]:
    peer, crowd = quiet_peer(), MadeUp(room)
    peer.cache.methods.crowds[size] = [crowd]
    return peer, crowd


@pytest.mark.parametrize(("room", "calls"), [(-3.5, 1), (0.9, 20), (3.2, 20), (20, 20), (30, 20), (1, 2)])
def test_all_but_the_newest_for_which_there_is_room_are_refused(room: float, calls: int) -> None:
    peer, crowd = crowded(room)
    ids = range(1, 2 * calls, 2)
    peer.send(b"".join(peer.call(stream_id, b"a%03de" % stream_id, ECHO, TIMEOUT) for stream_id in ids))
    told = answers(peer.read())
    taken = [stream_id for stream_id in ids if not told[stream_id].status]
    assert taken == list(ids)[calls - min(calls, max(0, int(room))) :]
    assert peer.messages == [b"a%03de" % stream_id for stream_id in taken]
    assert crowd.count == calls - len(taken)
    assert len(crowd.timeouts_ns) == 1  # one look at all of them
    ledger = peer.host.account.calls
    assert (ledger.received, ledger.unread, ledger.ended.total()) == (calls, 0, calls)
    for stream_id in set(ids) - set(taken):
        assert told[stream_id].status == Code.RESOURCE_EXHAUSTED
        assert told[stream_id].fields["grpc-message"] == "full"
        assert told[stream_id].fields["grpc-retry-pushback-ms"] == "25"
    assert peer.connection.was_crowded == bool(crowd.count)


def test_in_a_rush_no_more_are_taken_than_of_others() -> None:
    peer, crowd = crowded(7)
    peer.connection.is_in_rush, peer.connection.room_calls = True, 3
    peer.send(b"".join(peer.call(stream_id, b"alike", ECHO, TIMEOUT) for stream_id in range(1, 41, 2)))
    assert len(peer.messages) == 3
    assert (crowd.count, peer.host.account.calls.unread) == (17, 0)


def test_what_is_left_of_the_timeouts_counts() -> None:
    peer, crowd = crowded(0)
    peer.send(peer.call(1, b"alike", ECHO, TIMEOUT), 20 * MS)
    assert crowd.timeouts_ns == [80 * MS]


def test_a_crowd_that_is_over_is_forgotten() -> None:
    peer, _ = crowded(inf)
    peer.send(b"".join(peer.call(stream_id, b"alike", ECHO, TIMEOUT) for stream_id in (1, 3)))
    assert peer.messages == [b"alike"] * 2
    assert not peer.cache.methods.crowds


def test_a_deadline_that_is_longer_is_another_question() -> None:
    peer, crowd = crowded(0)
    timeouts = ["100m", "104m", "300m", "99m"]
    peer.send(b"".join(peer.call(1 + 2 * n, b"alike", ECHO, ("grpc-timeout", one)) for n, one in enumerate(timeouts)))
    assert crowd.count == 4
    assert crowd.timeouts_ns == [100 * MS, 300 * MS]  # each is asked with the shortest of those that it stands for


#: As in test_runs.py, and whether a crowd of `alike` is meant.
KINDS = {
    "alike": True, "other deadline": True, "patient": True, "declared": False, "light": False, "longer": False,
    "named": False, "unknown": False, "compressed": False,
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 5)), max_size=8), st.integers(0, 900))
def test_nobody_else_is_refused(kinds: list[tuple[str, int]], cut: int) -> None:
    peer, crowd = crowded(0)
    plain = quiet_peer()
    pieces, like_it, stream_id = [], set(), 1
    for kind, count in kinds:
        for _ in range(count):
            pieces.append(call(peer, kind, stream_id))
            if KINDS[kind]:
                like_it.add(stream_id)
            stream_id += 2
    data = b"".join(pieces)
    for part in (data[:cut], data[cut:]):
        peer.send(part)
        plain.send(part)
    told, usual = answers(peer.read()), answers(plain.read())
    refused = {one for one, answer in told.items() if answer.fields.get("grpc-retry-pushback-ms") == "25"}
    assert refused <= like_it
    assert crowd.count == len(refused)
    assert {one: answer for one, answer in told.items() if one not in refused} == {
        one: answer for one, answer in usual.items() if one not in refused
    }
    if cut == 0 or cut >= len(data):
        assert refused == like_it  # those that come whole


def test_who_wants_to_know_of_each_call_is_told_by_its_handler() -> None:
    peer, crowd = crowded(0)
    peer.connection.told = peer.refused.append
    peer.send(peer.call(1, b"alike", ECHO, TIMEOUT))
    assert peer.messages == [b"alike"]
    assert not crowd.count


def test_calls_without_a_deadline_and_of_light_methods_wait() -> None:
    peer, crowd = crowded(0)
    peer.send(peer.call(1, b"alike", ECHO) + peer.call(3, b"alike", HOLD, TIMEOUT))
    assert peer.messages[0] == b"alike"
    assert not crowd.count


@pytest.mark.parametrize("has_come", [True, False])
def test_whose_calls_were_refused_is_not_read_for_a_moment_and_what_comes_then_has_waited(has_come: bool) -> None:
    async def run() -> None:
        loop, crowd, clock_ns = Loop(), MadeUp(0), time.monotonic_ns
        loop.methods.crowds[5] = [crowd]
        clients = [loop.connect() for _ in range(3)]
        clients[0][0]._arrivals = Arrivals(lambda: 100 if has_come else 0)
        (one, sock), (two, other), (_, theirs) = clients
        peer = Peer()
        peer.block(request_fields())
        for protocol in (one, two):
            protocol.data_received(peer.call(1, b"alike", ECHO, TIMEOUT))
        paused_ns = clock_ns()
        assert (crowd.count, sock.is_read, other.is_read, theirs.is_read) == (2, False, False, True)
        two.connection_lost(None)
        other.closed = True  # as a transport is by then
        async with asyncio.timeout(20):
            while not sock.is_read:
                await asyncio.sleep(0.001)  # a pause is of real time
        at_ns = clock_ns()
        one.data_received(peer.call(3, b"alike", ECHO, TIMEOUT))
        if has_come:
            assert crowd.timeouts_ns[-1] <= 100 * MS - (at_ns - paused_ns)
        else:
            assert crowd.timeouts_ns[-1] >= 100 * MS - (clock_ns() - at_ns)
        assert (sock.pauses, other.pauses) == (2, 1)
        assert len(loop.messages) == 0
        one.data_received(peer.call(5, b"unlike", ECHO, TIMEOUT))
        assert (len(loop.messages), sock.pauses) == (1, 2)
        await loop.close(one, clients[2][0])

    asyncio.run(run())


def test_who_was_served_is_read_on() -> None:
    async def run() -> None:
        loop = Loop()
        loop.methods.crowds[5] = [MadeUp(9)]
        protocol, sock = loop.connect()
        peer = Peer()
        peer.block(request_fields())
        protocol.data_received(b"".join(peer.call(one, b"alike", ECHO, TIMEOUT) for one in (1, 3, 5)))
        assert (len(loop.messages), sock.is_read, sock.pauses) == (3, True, 0)
        await loop.close(protocol)

    asyncio.run(run())
