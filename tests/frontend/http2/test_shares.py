"""Goal: a connection is barred when most of its calls are refused unread and their messages are worth it, and until few
are. Method: shares and sizes by hand, with time as an argument.
"""

from __future__ import annotations

import pytest

from ringserve.frontend.http2.shares import BARS_FROM, BARS_UNTIL, LOOK_NS, Shares


def after(shares: Shares, now_ns: int, share: float, calls: int = 1_000, call_bytes: int = 3_000) -> bool:
    refused = round(share * calls)
    return shares.bars(now_ns, calls * call_bytes, calls - refused, refused)


@pytest.mark.parametrize(("share", "bars"), [(0.0, False), (BARS_FROM, False), (BARS_FROM + 0.01, True), (1.0, True)])
def test_it_begins_when_most_are_refused(share: float, bars: bool) -> None:
    assert after(Shares(), LOOK_NS, share) is bars


@pytest.mark.parametrize(("share", "bars"), [(0.7, True), (BARS_UNTIL + 0.01, True), (BARS_UNTIL, False)])
def test_it_goes_on_until_few_are(share: float, bars: bool) -> None:
    shares = Shares()
    assert after(shares, LOOK_NS, 1.0)
    assert after(shares, 2 * LOOK_NS - 1, 0.0, 10)  # it is not looked at more often
    assert after(shares, 3 * LOOK_NS, share, call_bytes=40) is bars


def test_short_messages_are_no_matter() -> None:
    assert not after(Shares(), LOOK_NS, 1.0, call_bytes=900)


def test_few_calls_tell_nothing() -> None:
    shares = Shares()
    for number in range(1, 22):
        assert not after(shares, number * LOOK_NS, 1.0, 3)
    assert after(shares, 22 * LOOK_NS, 1.0, 3)


def test_calm_ends_it_at_once() -> None:
    shares = Shares()
    assert after(shares, LOOK_NS, 1.0)
    shares.calm()
    assert not after(shares, LOOK_NS + 1, 1.0, 1)
