"""Goal: who waits for a turn gets as much of the loop's time as all others together, and nobody waits for ever, however
many there are. Method: a loop whose turns are taken by hand, and whose time is what its turns are said to take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.frontend.http2.turns import TURN_NS, TURN_NS_MAX, Turns

MS = 1_000_000


class Loop:
    """Time passes where somebody has a turn, and where a test says so."""

    def __init__(self) -> None:
        self.now_ns = 5_000 * MS
        self.ready: list[Callable[[], None]] = []
        self.turns = Turns(cast(asyncio.AbstractEventLoop, self), lambda: self.now_ns)

    def call_soon(self, callback: Callable[[], None], *_: Any) -> None:
        self.ready.append(callback)

    def turn(self, others_ns: int = 0) -> None:
        """Others are read for so long, and then those who wait have their turn."""
        self.now_ns += others_ns
        ready, self.ready = self.ready, []
        for each in ready:
            each()


class Client:
    """One that only waits until it may be read again; or, with parts, one whose read has so many more of them."""

    def __init__(self, loop: Loop, turn_ns: int, parts: int = 0) -> None:
        self.turn_ns = turn_ns
        self.parts = parts
        self.taken = 0
        self._loop = loop
        loop.turns.ask(self)

    def take_turn(self) -> bool:
        self.taken += 1
        self._loop.now_ns += self.turn_ns if self.parts else 1_000  # letting it go on costs next to nothing
        self.parts = max(0, self.parts - 1)
        return self.parts > 0


def test_those_who_wait_get_as_long_as_the_others_had() -> None:
    loop = Loop()
    clients = [Client(loop, MS // 10) for _ in range(300)]
    counts: list[int] = []
    for others_ns in (1_000 * MS, 2 * MS, 2 * MS, MS // 2):
        loop.turn(others_ns)
        counts.append(sum(client.taken for client in clients) - sum(counts))
    assert counts == [TURN_NS_MAX // (MS // 10), 20, 20, 5]
    assert [client.taken for client in clients] == [1] * 145 + [0] * 155


def test_few_get_no_more_than_answers_may_wait_for() -> None:
    loop = Loop()
    clients = [Client(loop, TURN_NS // 4) for _ in range(8)]
    loop.turn(1_000 * MS)
    assert [client.taken for client in clients] == [1] * 4 + [0] * 4


def test_one_goes_on_however_little_the_others_had() -> None:
    loop = Loop()
    clients = [Client(loop, 50 * MS) for _ in range(3)]
    for count in range(1, 4):
        loop.turn()
        assert [client.taken for client in clients] == [1] * count + [0] * (3 - count)
    assert not loop.ready


@pytest.mark.parametrize("others_ns", [0, MS, 1_000 * MS])
def test_with_a_part_of_a_read_goes_nobody_else(others_ns: int) -> None:
    """However long the others had: for what comes meanwhile nobody waits longer than for one part."""
    loop = Loop()
    costly, plain = Client(loop, TURN_NS_MAX, parts=3), Client(loop, MS)
    loop.turn(others_ns)
    assert (costly.taken, plain.taken) == (1, 0)
    loop.turn(others_ns)  # the plain one, and then perhaps the next part, after which nobody goes on
    assert plain.taken == 1
    while loop.ready:
        before = costly.taken
        loop.turn(others_ns)
        assert costly.taken <= before + 1
    assert costly.taken == 3


@given(
    clients=st.lists(st.tuples(st.integers(0, 3 * TURN_NS_MAX), st.integers(0, 4)), min_size=1, max_size=40),
    others_ns=st.lists(st.integers(0, 30 * MS), min_size=1, max_size=5),
)
def test_nobody_waits_for_ever(clients: list[tuple[int, int]], others_ns: list[int]) -> None:
    """All go on, in their order, and at the latest when each one before has had a turn of the loop to itself."""
    loop = Loop()
    made = [Client(loop, turn_ns, parts) for turn_ns, parts in clients]
    expected = [max(1, parts) for _, parts in clients]
    turns = 0
    while loop.ready:
        loop.turn(others_ns[turns % len(others_ns)])
        turns += 1
        assert turns <= sum(expected)
    assert [client.taken for client in made] == expected
    assert loop.turns.taken == sum(expected)
