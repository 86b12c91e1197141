"""The pace of a queue: rows that left, and rows that came back."""

from __future__ import annotations

from ringserve.broker.pace import Pace
from ringserve.broker.policy import MILLISECOND_NS


def test_rows_that_come_back_did_not_leave() -> None:
    pace = Pace()
    for at in range(1, 40):
        pace.granted(100, at * MILLISECOND_NS, leaves_some=True)
    before_ns = pace.row_ns(40 * MILLISECOND_NS)
    for at in range(40, 140):
        pace.granted(100, at * MILLISECOND_NS, leaves_some=True)
        pace.returned(50)
    after_ns = pace.row_ns(140 * MILLISECOND_NS)
    assert 1.5 * before_ns < after_ns < 2.5 * before_ns
    pace.returned(10**9)
    assert pace.row_ns(140 * MILLISECOND_NS) <= 10 * after_ns
