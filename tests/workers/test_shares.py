"""What a frontend may hold of the result ring, and when it is no longer waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker.messages import Code
from ringserve.shm.ring import FULL, RingWriter
from ringserve.workers.shares import Shares
from tests.workers.desk import Desk, lane

S = 1_000_000_000
NOW = 1_000 * S
ALONE_NS = 24 * S
KIB = 1024


def shares_of(*frontends: int, kib: int = 64) -> Shares:
    return Shares(RingWriter(kib * KIB), frontends)


def fill(shares: Shares, frontend_id: int) -> list[int]:
    """Records of 1 KiB until there is no room; what it was given."""
    given: list[int] = []
    while (offset := shares.claim(frontend_id, KIB)) != FULL:
        given.append(offset)
    return given


def test_who_reads_nothing_does_not_fill_the_ring_while_there_are_others() -> None:
    shares = shares_of(1, 2, 3, 4)
    assert len(fill(shares, 1)) == 32
    assert len(fill(shares, 2)) == 16
    for _ in range(100):  # and whoever gives back goes on
        offset = shares.claim(3, KIB)
        assert offset != FULL
        shares.release(3, [offset])


def test_two_that_stand_still_have_a_third_each() -> None:
    shares = shares_of(1, 2, 3, kib=60)
    while FULL not in [shares.claim(1, KIB), shares.claim(2, KIB)]:
        pass
    assert len(fill(shares, 3)) >= 8


def test_a_frontend_alone_has_all_of_it() -> None:
    assert len(fill(shares_of(1), 1)) == 64


def test_one_that_holds_nothing_may_have_an_answer_of_any_size() -> None:
    shares = shares_of(1, 2)
    offset = shares.claim(1, 60 * KIB)
    assert offset != FULL
    assert shares.claim(1, KIB) == FULL
    shares.release(1, [offset])
    assert shares.claim(1, 64 * KIB) != FULL


def test_who_gives_nothing_back_is_silent_until_it_does() -> None:
    shares = shares_of(1, 2)
    given = fill(shares, 1)
    assert not shares.is_hopeless(1, KIB)
    assert not shares.look(NOW, ALONE_NS)
    assert not shares.look(NOW + 2 * S, ALONE_NS)
    assert shares.look(NOW + 2 * S + 1, ALONE_NS)
    assert not shares.look(NOW + 3 * S, ALONE_NS)  # it is known
    assert shares.is_hopeless(1, KIB)
    shares.end_wait()
    assert shares.is_hopeless(1, KIB)
    shares.release(1, given[:1])
    assert not shares.is_hopeless(1, KIB)


def test_who_gives_something_back_is_waited_for() -> None:
    """However little, and although another one does not."""
    shares = shares_of(1, 2)
    fill(shares, 1)
    given = fill(shares, 2)
    for second in range(9):
        shares.look(NOW + second * S, ALONE_NS)
        shares.release(2, given[second : second + 1])
    assert shares.is_hopeless(1, KIB)
    assert not shares.is_hopeless(2, KIB)


def test_a_frontend_alone_is_waited_for_as_long_as_the_lease_allows() -> None:
    shares = shares_of(1)
    fill(shares, 1)
    assert not shares.look(NOW, ALONE_NS)
    assert not shares.look(NOW + ALONE_NS, ALONE_NS)
    assert shares.look(NOW + ALONE_NS + 1, ALONE_NS)


def test_waits_that_ended_do_not_add_up() -> None:
    shares = shares_of(1, 2)
    shares.claim(1, KIB)  # by chance it is not read for long
    given = fill(shares, 2)
    shares.look(NOW, ALONE_NS)
    shares.release(2, given)
    assert shares.claim(2, KIB) != FULL
    assert not shares.look(NOW + 60 * S, ALONE_NS)
    assert not shares.is_hopeless(1, KIB)


def test_nobody_waits_for_what_those_who_read_cannot_give() -> None:
    shares = shares_of(1, 2)
    fill(shares, 1)
    given = [shares.claim(2, KIB) for _ in range(3)]
    assert not shares.is_hopeless(2, 40 * KIB)
    for second in (0, 3):
        shares.look(NOW + second * S, ALONE_NS)
        shares.release(2, [given.pop()])
    assert shares.is_hopeless(2, 40 * KIB)
    assert not shares.is_hopeless(2, 20 * KIB)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40_000)), max_size=60))
def test_the_sum_is_kept(steps: list[tuple[int, int]]) -> None:
    """nbytes 0: gives all back and leaves. Records of others, or unknown ones, are nobody's to give back."""
    ring = RingWriter(64 * KIB)
    shares = Shares(ring, (1, 2, 3))
    held: dict[int, list[int]] = {}
    for frontend_id, nbytes in steps:
        if not nbytes:
            shares.left(frontend_id)
            held.pop(frontend_id, None)
        elif (offset := shares.claim(frontend_id, nbytes)) != FULL:
            held.setdefault(frontend_id, []).append(offset)
            shares.release(frontend_id % 3 + 1, [offset, 77])
        assert ring.statistics().records_count == sum(map(len, held.values()))
    for frontend_id, offsets in held.items():
        shares.release(frontend_id, offsets)
    assert ring.empty
    assert shares.claim(1, 64 * KIB) != FULL


def test_only_those_who_stand_still_lose_their_answers(served: Callable[..., Any]) -> None:
    """The batch goes on to the answers of who reads, and says how long it did not."""
    servable = served("echo")
    desk = Desk(servable, frontends=2, result_bytes=8192)
    request = {"x": np.ones((1, 500), np.float32)}  # 2 KB, of which one frontend may hold two
    spec = lane(servable, request, ["y"], False)
    parts = [desk.part(request, False, frontend_id=i) for i in (1, 1, 1, 1, 2)]
    batch = desk.start(spec, parts)
    answers: dict[int, Any] = {}
    desk.read(batch, spec, answers, release=False)
    assert (list(answers), batch.waits_for_bytes) == ([1, 2], 2048)
    assert not desk.executor.shares.look(1_000, 10**12)
    batch.look(1_000)
    batch.look(2_000)
    assert not batch.proceed()
    batch.look(500_000_000)  # what it did between is no waiting
    batch.look(3_000_000_000)
    assert desk.executor.shares.look(3_000_000_000, 10**12)
    assert batch.proceed()
    desk.read(batch, spec, answers)
    assert [answers[request_id][0] for request_id in (3, 4)] == [Code.RESOURCE_EXHAUSTED] * 2
    assert np.array_equal(answers[5][0], request["x"] * 2)
    assert batch.done is not None
    assert (batch.done.rows, batch.done.waited_ns) == (5, 2_500_000_000 + 1_000)
    assert desk.run(spec, [desk.part(request, False)])[1].waited_ns == 0
