"""Goal: a rush lasts until all has been calm for a while; rounds that cost too much take fewer calls, down to a bound,
and those that cost little take more; what came first is refused while newer calls wait, but never for ever. Method:
times and bytes are made up.
"""

from __future__ import annotations

from ringserve.frontend.http2.arrivals import LONG_READ_BYTES
from ringserve.frontend.http2.rush import CALM_NS, PASSES_MAX, ROOM_MAX, ROOM_MIN, ROUND_NS, Round, Rush

READ = 4 * LONG_READ_BYTES


def test_a_rush_is_over_when_nothing_was_seen_for_a_while() -> None:
    rush = Rush()
    assert not rush.is_on(0)
    rush.seen(1_000)
    rush.seen(2_000)
    assert rush.is_on(2_000)
    assert rush.is_on(1_999 + CALM_NS)
    assert not rush.is_on(2_000 + CALM_NS)


def test_room_follows_what_rounds_cost() -> None:
    """A loop that spends 20 us on a call, with eight connections: rounds come to cost what they shall."""
    rush = Rush()
    for _ in range(400):
        rush.round_took(8 * rush.room_calls * 20_000)
    assert 0.8 * ROUND_NS <= 8 * rush.room_calls * 20_000 <= 1.2 * ROUND_NS


def test_room_has_bounds() -> None:
    rush = Rush()
    for _ in range(200):
        rush.round_took(100 * ROUND_NS)
    assert rush.room_calls == ROOM_MIN
    for _ in range(200):
        rush.round_took(0)
    assert rush.room_calls == ROOM_MAX


def test_what_came_first_is_refused_while_more_waits_a_few_times() -> None:
    one = Round(Rush())
    rooms = [one.room_calls(READ, READ, own_ns) for own_ns in range(PASSES_MAX + 2)]
    assert rooms == [0] * PASSES_MAX + [Rush().room_calls] * 2
    one.end(10)
    assert one.room_calls(READ, READ, 20) == 0  # a new round


def test_short_reads_and_those_that_leave_little_are_taken() -> None:
    one = Round(Rush())
    assert one.room_calls(READ, READ - 1, 0) == Rush().room_calls
    assert one.room_calls(LONG_READ_BYTES - 1, READ, 0) == Rush().room_calls


def test_a_round_lasts_from_its_first_read_to_its_end_and_counts_once() -> None:
    rush = Rush()
    one, like = Round(rush), Rush()
    one.room_calls(READ, READ, 1_000)
    one.room_calls(READ, 0, 2_000)
    one.end(1_000 + 2 * ROUND_NS)
    one.end(90 * ROUND_NS)
    like.round_took(2 * ROUND_NS)
    assert rush.room_calls == like.room_calls < Rush().room_calls


def test_a_round_that_is_forgotten_does_not_count() -> None:
    rush = Rush()
    one = Round(rush)
    one.room_calls(READ, 0, 1_000)
    one.forget()
    one.end(90 * ROUND_NS)
    assert rush.room_calls == Rush().room_calls
