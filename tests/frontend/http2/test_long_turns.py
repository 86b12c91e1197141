"""Goal: where turns of the loop last too long for the calls in it, connections are read in groups that do not, each in
its turn, and what came meanwhile counts as having waited for a part of that; nowhere else is anybody read later.
Method: the decision by itself; turns taken by hand in a loop whose time is what reads are said to take; and an engine
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.frontend.http2.arrivals import Arrivals
from ringserve.frontend.http2.long_turns import PATIENCE_NS_MIN, WAITED_PART, LongTurns
from ringserve.frontend.http2.protocol import EngineProtocol
from ringserve.frontend.http2.turns import FEW, Turns
from tests.frontend.http2.test_lulls import Held, run_held
from tests.frontend.http2.test_turns import Socket

MS = 1_000_000


def turn(turns: LongTurns, began_ms: float, took_ms: float, patience_ms: float) -> int:
    """A turn, and the answer to a call behind it: when that was."""
    began_ns, end_ns = int(began_ms * MS), int((began_ms + took_ms) * MS)
    assert turns.reads(began_ns)
    assert not turns.reads(began_ns + 1)
    turns.ended(end_ns)
    turns.answered(int(patience_ms * MS), end_ns)
    return end_ns


@pytest.mark.parametrize(
    ("took_ms", "patience_ms", "is_long", "group_ms"),
    [
        (6, 12.5, False, 4 / 3),
        (6.5, 12.5, True, 12.5 / 3),
        (1_000, 0, False, 4 / 3),  # whose calls have no deadline
        (100, 250, False, 4 / 3),
        (130, 250, True, 250 / 3),
        (1.9, 0.1, False, 4 / 3),
        (2.1, 0.1, True, 4 / 3),  # no smaller groups: turns cost something, too, and everybody pays
    ],
)
def test_turns_are_long_where_calls_cannot_bear_them(
    took_ms: float, patience_ms: float, is_long: bool, group_ms: float
) -> None:
    turns = LongTurns()
    end_ns = turn(turns, 5_000, took_ms, patience_ms)
    assert turns.are_long(end_ns) == is_long
    assert turns.group_ns == pytest.approx(group_ms * MS, abs=1)


def test_a_turn_is_as_long_as_it_would_have_been_without_groups() -> None:
    turns = LongTurns()
    turns.grouped(2, 5)
    assert turns.are_long(turn(turns, 1_000, 2, 12.5))  # 7 ms for all of them
    turns = LongTurns()
    turns.grouped(2, 4)
    assert not turns.are_long(turn(turns, 1_000, 2, 12.5))
    assert not turns.are_long(turn(turns, 1_010, 6, 12.5))  # nobody waited any more


def test_turns_are_long_until_none_was_for_a_while() -> None:
    turns = LongTurns()
    assert not turns.are_long(0)
    turn(turns, 1_000, 10, 12.5)
    end_ns = turn(turns, 1_020, 10, 12.5)
    for ms in range(0, 100, 9):
        assert turns.are_long(end_ns + ms * MS)
        turn(turns, 1_030 + ms, 4, 12.5)
    assert turns.are_long(end_ns + 99 * MS)
    assert not turns.are_long(end_ns + 100 * MS)


@pytest.mark.parametrize(("patience_ms", "is_long"), [(12.5, True), (0, False), (25, False)])
def test_where_all_are_refused_for_their_age_turns_stay_long(patience_ms: float, is_long: bool) -> None:
    """Nobody is answered then: it goes by the last one who was."""
    turns = LongTurns()
    turn(turns, 1_000, 1, patience_ms)
    assert turns.reads(2_000 * MS)
    turns.ended(2_010 * MS)
    turns.refused(2_010 * MS)
    assert turns.are_long(2_010 * MS) == is_long


@given(st.lists(st.tuples(st.integers(0, 100 * MS), st.integers(0, 500 * MS)), max_size=20))
def test_a_group_is_never_longer_than_what_its_calls_bear(turns_taken: list[tuple[int, int]]) -> None:
    turns, now_ns = LongTurns(), 0
    for took_ns, patience_ns in turns_taken:
        now_ns += 1
        was_long, before_ns = turns.are_long(now_ns + took_ns), turns.group_ns
        turns.reads(now_ns)
        now_ns += took_ns
        turns.ended(now_ns)
        turns.answered(patience_ns, now_ns)
        if turns.are_long(now_ns) and not was_long:
            assert turns.group_ns <= max(PATIENCE_NS_MIN, patience_ns) // 2
            assert 0 < patience_ns < 2 * took_ns + 2
        elif turns.group_ns != before_ns:
            assert was_long


class Loop:
    """One whose turns are taken by hand: first what was called soon, then whoever may be read and has something."""

    def __init__(self, count: int, read_ns: int, patience_ns: int) -> None:
        self.now_ns = 5_000 * MS
        self.ready: list[Callable[[], None]] = []
        self.turns = Turns(cast(asyncio.AbstractEventLoop, self), lambda: self.now_ns)
        self.read_ns, self.patience_ns = read_ns, patience_ns
        self.clients = [Client(self) for _ in range(count)]

    def call_soon(self, callback: Callable[[], None], *_: Any) -> None:
        self.ready.append(callback)

    def turn(self) -> int:
        """How long it took."""
        began_ns = self.now_ns
        ready, self.ready = self.ready, []
        for each in ready:
            each()
        self.turns.long.answered(self.patience_ns, self.now_ns)
        for client in self.clients:
            if client.is_read:
                client.read()
        return self.now_ns - began_ns


class Client:
    """One that always has something to be read."""

    def __init__(self, loop: Loop) -> None:
        self.turn_ns = loop.read_ns
        self.is_read = True
        self.reads_count = 0
        self._loop = loop

    def read(self) -> None:
        loop = self._loop
        loop.turns.reads(loop.now_ns)
        self.reads_count += 1
        loop.now_ns += loop.read_ns
        if loop.turns.long.are_long(loop.now_ns):
            self.is_read = False
            loop.turns.ask(self)

    def take_turn(self) -> bool:
        self.is_read = True
        return False


def test_many_are_read_in_groups_that_their_calls_bear_each_in_its_turn() -> None:
    loop = Loop(400, read_ns=80_000, patience_ns=12_500_000)
    lengths = [loop.turn() for _ in range(40)]
    assert lengths[0] == lengths[1] == 400 * 80_000  # nothing was answered before
    bearable_ns = 12_500_000 // 3 + 80_000
    assert all(length_ns <= bearable_ns for length_ns in lengths[3:])
    counts = [client.reads_count for client in loop.clients]
    assert max(counts) - min(counts) <= 2  # within a group they are read in another order than they wait in
    assert sum(lengths[3:]) / len(lengths[3:]) >= 0.8 * bearable_ns
    assert loop.now_ns - 5_000 * MS > 200 * MS  # groups stay as long as they are needed


def test_groups_end_when_everybody_can_be_read_in_time() -> None:
    loop = Loop(400, read_ns=80_000, patience_ns=12_500_000)
    for _ in range(40):
        loop.turn()
    gone, loop.clients = loop.clients[20:], loop.clients[:20]
    for _ in range(100):
        loop.turn()
    assert not loop.turns.long.are_long(loop.now_ns)
    assert all(client.is_read for client in (*gone, *loop.clients))
    before = loop.turns.taken
    assert loop.turn() == 20 * 80_000
    assert loop.turns.taken == before


def test_few_and_those_without_deadlines_are_read_as_they_come() -> None:
    for loop in (Loop(FEW, 80_000, 12_500_000), Loop(400, 80_000, 0)):
        for _ in range(10):
            loop.turn()
        assert {client.reads_count for client in loop.clients} == {10}
        assert loop.turns.taken == 0


def long_engine(held: Held) -> None:
    turns = held.loop.engine.turns.long
    turns.reads(held.now_ns - 10 * MS)
    turns.ended(held.now_ns)
    turns.answered(12 * MS, held.now_ns)


def test_groups_end_where_all_but_a_few_have_left() -> None:
    """Turns are timed no more then: the last long one must not count for ever."""

    async def test(held: Held) -> None:
        one, sock = held.connect()
        one._arrivals = Arrivals(lambda: 0)
        long_engine(held)
        for passed_ms in range(0, 300, 10):
            held.now_ns += 10 * MS
            held.call(one, sock, 1, ("grpc-timeout", "48m"))
            assert sock.is_read == (passed_ms + 10 >= 190)
            await until_read(sock)
            held.calls.pop().finish(b"done")
            one.flush()
        one.connection_lost(None)

    run_held(test)


async def until_read(sock: Socket) -> None:
    async with asyncio.timeout(20):
        while not sock.is_read:
            await asyncio.sleep(0)


@pytest.mark.parametrize("count", [1, 60])  # a long read waits for its turn anyway
@pytest.mark.parametrize(("unread_bytes", "waited_ms"), [(1, 20 * WAITED_PART), (0, 0)])
def test_what_comes_while_a_group_is_waited_for_has_waited_for_a_part_of_that(
    unread_bytes: int, waited_ms: float, count: int
) -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        unread = 0
        one._arrivals = Arrivals(lambda: unread)
        long_engine(held)
        held.call(one, sock, count, size=700)
        assert (len(held.calls), sock.is_read) == (count, False)
        held.now_ns += 20 * MS
        unread = unread_bytes
        await until_read(sock)
        unread = 0
        held.call(one, sock, 1)
        assert held.calls[-1].timeout_ns == pytest.approx((100 - waited_ms) * MS)
        one.connection_lost(None)

    run_held(test)


@pytest.mark.parametrize(("took_ms", "is_long"), [(20, False), (30, True)])
def test_refusals_for_age_keep_groups_going(took_ms: float, is_long: bool) -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        long_engine(held)
        held.now_ns += 1_000 * MS
        turns = held.loop.engine.turns.long
        assert not turns.are_long(held.now_ns)
        turns.reads(held.now_ns - 10 * MS)
        turns.ended(held.now_ns)
        one._unread_ns = held.now_ns - int(took_ms * MS)
        held.call(one, sock, 1)
        assert (len(held.calls), held.loop.engine.turns.long.are_long(held.now_ns)) == (not is_long, is_long)
        one.connection_lost(None)

    run_held(test)


@pytest.mark.parametrize(("count", "is_watched"), [(FEW, False), (FEW + 1, True)])
def test_turns_are_timed_where_connections_are_many(count: int, is_watched: bool) -> None:
    """A look behind each turn costs the loop another one."""

    async def test(held: Held) -> None:
        protocols: list[EngineProtocol] = []
        socks: list[Socket] = []
        for _ in range(count):
            protocol, sock = held.connect()
            protocols.append(protocol)
            socks.append(sock)
        held.call(protocols[0], socks[0], 1, ("grpc-timeout", "48m"))
        held.now_ns += 7 * MS
        await asyncio.sleep(0)
        held.calls.pop().finish(b"done")
        protocols[0].flush()
        assert held.loop.engine.turns.long.are_long(held.now_ns) == is_watched
        held.call(protocols[1], socks[1], 1)
        assert socks[1].is_read != is_watched
        for protocol in protocols:
            protocol.connection_lost(None)

    run_held(test)
