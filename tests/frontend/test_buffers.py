"""Goal: a block is never given to two at a time, is used again when nobody holds it, and is given back when nobody
wants it. Method: random takers that write, keep and drop views of what they took, beside a model of what they hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.frontend.buffers import LONG_BYTES, Buffers

MIB = 2**20


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(["take", "part", "drop", "tidy", "join"]), max_size=60))
def test_what_somebody_holds_keeps_its_bytes(seed: int, steps: list[str]) -> None:
    chance = random.Random(seed)
    buffers = Buffers(8 * MIB)
    held: list[tuple[memoryview, bytes]] = []
    for step in steps:
        if step == "take":
            view = buffers.take(chance.choice([1, 65_536, 70_000, 300_000, 3 * MIB]))
            if view is not None:
                mark = chance.randbytes(2)
                view[0], view[-1] = mark[0], mark[-1]
                held.append((view, bytes((view[0], view[-1]))))
        elif step == "join":
            pieces = [chance.randbytes(chance.choice([0, 10, 100_000])) for _ in range(3)]
            joined = buffers.join(pieces)
            assert bytes(joined) == b"".join(pieces)
            if len(joined) and isinstance(joined, memoryview):
                held.append((joined, bytes((joined[0], joined[-1]))))
        elif step == "part" and held:  # only a part of it stays in use
            view, mark = held.pop(chance.randrange(len(held)))
            if len(view) > 1:
                held.append((view[-1:], bytes((mark[1], mark[1]))))
        elif step == "drop" and held:
            held.pop(chance.randrange(len(held)))
        elif step == "tidy":
            buffers.tidy()
        assert [bytes((view[0], view[-1])) for view, _ in held] == [mark for _, mark in held]
        assert sum(len(view) for view, _ in held) <= buffers.allocated_bytes <= 8 * MIB
    view, mark = memoryview(b""), b""  # the names above hold a block, too
    joined = b""
    held.clear()
    buffers.tidy()
    assert not buffers.tidy()
    assert buffers.allocated_bytes == 0


def test_the_next_message_of_about_that_size_lies_where_the_last_one_did() -> None:
    buffers = Buffers(100 * MIB)
    for nbytes in (5_000_000, 4_900_000, 5_000_000, 3_000_000):
        view = buffers.take(nbytes)
        assert view is not None
        assert len(view) == nbytes
        del view
    assert buffers.allocated_bytes < 6_000_000
    small = buffers.take(100_000)
    assert small is not None
    assert buffers.allocated_bytes > 5_000_000, "a block is not wasted on what is much smaller"
    del small


def test_what_nobody_uses_makes_room() -> None:
    buffers = Buffers(10 * MIB)
    first = buffers.take(8 * MIB)
    assert first is not None
    assert buffers.take(4 * MIB) is None
    del first
    assert buffers.take(4 * MIB) is not None
    assert buffers.take(11 * MIB) is None
    assert buffers.join([bytes(11 * MIB)]) == bytes(11 * MIB)


def test_short_messages_are_joined_as_ever() -> None:
    assert Buffers(MIB).join([b"a" * (LONG_BYTES - 1)]).__class__ is bytes


def test_blocks_go_when_they_are_not_wanted_and_nothing_is_planned_after_that() -> None:
    planned: list[Callable[[], Any]] = []
    buffers = Buffers(100 * MIB, lambda seconds, call: planned.append(call))
    view = buffers.take(MIB)
    buffers.take(3 * MIB)
    assert len(planned) == 1
    looks = 0
    while planned:
        looks += 1
        if looks == 4:
            del view
        assert looks < 10
        planned.pop()()
        assert (buffers.allocated_bytes >= MIB) == (looks < 5)
    assert buffers.allocated_bytes == 0
    assert buffers.take(MIB) is not None
    assert len(planned) == 1
