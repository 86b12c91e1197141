"""Goal: what gathers in a turn leaves once, in an order that the broker can rely on, and a long turn is cut so that no
worker waits for its end. Method: a loop that ends its turn when it is told to, and a link that keeps what it is given.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker import wire
from ringserve.broker.messages import Cancel, InputSpec, LaneSpec, Submit
from ringserve.frontend.direct import Direct
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outgoing import SUBMIT_MIN, Outgoing
from ringserve.shm import dtype as dtypes

LANES = [Lane(LaneSpec(name, 1, "s", (InputSpec("x", dtypes.FLOAT, (4,)),), ("y",), True)) for name in ("a", "b")]


class Loop:
    """A turn lasts until `end_turn`."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def call_soon(self, work: Any) -> None:
        self.soon.append(work)

    def end_turn(self) -> None:
        due, self.soon = self.soon, []
        for work in due:
            work()


class Link:
    """A broker, and no workers."""

    frontend_id = 7

    def __init__(self) -> None:
        self.workers: dict[int, Any] = {}
        self.sent: list[Any] = []

    def send(self, message: bytes) -> None:
        self.sent.append(wire.unpack(message))


class Bench:
    def __init__(self) -> None:
        self.loop, self.link = Loop(), Link()
        self.pending: dict[int, tuple[Any, ...]] = {}
        loop, link = cast(Any, self.loop), cast(Any, self.link)
        self.out = Outgoing(loop, link, Direct(loop, link, self.pending, lambda: 0), self.pending)

    def submit(self, request_id: int, lane: Lane = LANES[0]) -> None:
        request = [request_id, 1, 0, 64 * request_id]
        self.pending[request_id] = (object(), lane, 1, request, None)
        self.out.submit(lane, request)

    def groups(self) -> list[dict[bytes, list[int]]]:
        """The ids in each Submit."""
        return [{key: [one[0] for one in group] for key, group in each.groups}
                for each in self.link.sent if isinstance(each, Submit)]  # fmt: skip


@pytest.mark.parametrize(
    ("in_flight", "count", "sizes"),
    [
        (0, 1, [1]),
        (0, 7, [7]),
        (0, 8, [8]),
        (0, 128, [8, 32, 88]),  # nobody knows yet how many there will be
        (0, 200, [8, 32, 160]),
        (0, 201, [8, 32, 160, 1]),
        (64, 255, [255]),  # the workers have something to do
        (64, 256, [256]),
        (64, 257, [256, 1]),
        (1_000, 900, [900]),
    ],
)
def test_a_long_turn_is_cut(in_flight: int, count: int, sizes: list[int]) -> None:
    bench = Bench()
    bench.pending |= {-1 - number: () for number in range(in_flight)}
    for request_id in range(1, count + 1):
        bench.submit(request_id)
    bench.loop.end_turn()
    found = bench.groups()
    assert [len(each[LANES[0].key]) for each in found] == sizes
    assert [one for each in found for one in each[LANES[0].key]] == list(range(1, count + 1))
    assert not bench.loop.soon


def test_who_has_so_many_in_flight_again_and_again_has_them_in_halves() -> None:
    bench = Bench()
    sizes = []
    for count in (128, 128, 128, 20, 16, *[16] * 40):
        before = len(bench.link.sent)
        bench.pending.clear()
        for request_id in range(count):
            bench.submit(request_id)
        bench.loop.end_turn()
        sizes.append([len(each[LANES[0].key]) for each in bench.groups()[before:]])
    assert sizes[:5] == [[8, 32, 88], [64, 64], [64, 64], [20], [16]]
    assert sizes[-1] == [8, 8], "that there once were more is forgotten"


def test_the_first_half_does_not_wait_for_the_end_of_the_turn() -> None:
    bench = Bench()
    for request_id in range(1, SUBMIT_MIN + 1):
        assert not bench.link.sent
        bench.submit(request_id)
    assert len(bench.groups()) == 1
    bench.loop.end_turn()
    assert len(bench.link.sent) == 1, "and nothing empty follows"


STEPS = st.lists(
    st.one_of(st.tuples(st.just("submit"), st.integers(0, 1)), st.tuples(st.just("cancel"), st.integers(0, 200)),
              st.tuples(st.just("answered"), st.integers(0, 200)), st.just(("turn", 0))), max_size=200)  # fmt: skip


@given(steps=STEPS)
def test_each_request_leaves_once_and_before_its_cancel_or_known_as_cancelled(steps: list[tuple[str, int]]) -> None:
    """A cancel may come first only where its request has not left: then the request says so itself."""
    bench = Bench()
    cancelled: list[int] = []
    unsent_when_cancelled: set[int] = set()
    next_id = 1
    for what, number in steps:
        if what == "submit":
            bench.submit(next_id, LANES[number])
            next_id += 1
        elif what == "turn":
            bench.loop.end_turn()
        elif number in bench.pending:
            if what == "cancel":
                cancelled.append(number)
                sent = {one for each in bench.groups() for group in each.values() for one in group}
                if number not in sent:
                    unsent_when_cancelled.add(number)
                bench.out.cancel(bench.pending[number][1], number)
            elif number in {one for each in bench.groups() for group in each.values() for one in group}:
                del bench.pending[number]
    bench.loop.end_turn()
    left: list[int] = []
    told: list[int] = []
    for message in bench.link.sent:
        if isinstance(message, Submit):
            assert message.groups
            assert not message.again
            left += [one[0] for _, group in message.groups for one in group]
        else:
            assert isinstance(message, Cancel)
            for _, request_id in message.requests:
                told.append(request_id)
                assert request_id in left or request_id in unsent_when_cancelled
    assert sorted(left) == list(range(1, next_id))
    assert told == cancelled


def test_what_is_submitted_again_is_not_submitted_twice() -> None:
    bench = Bench()
    for request_id in (1, 2, 3):
        bench.submit(request_id, LANES[request_id % 2])
    bench.out.submit_again((entry[1], entry[3]) for entry in bench.pending.values())
    bench.loop.end_turn()
    (again,) = bench.link.sent
    assert again.again
    assert {key: [one[0] for one in group] for key, group in again.groups} == {LANES[1].key: [1, 3], LANES[0].key: [2]}
