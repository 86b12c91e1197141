"""The books: what is in flight, what a killed process had in flight, and books that are wrong. On both gRPC engines and
on HTTP/1.1 they are held to real clients by tests/faults/test_counters.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringserve.config import metrics
from ringserve.config.metric_family import Family
from ringserve.config.metric_file import MetricFile
from ringserve.frontend import ledger
from ringserve.frontend.exposition import Exposition
from ringserve.frontend.ledger import Books, Ledger
from ringserve.frontend.metric_gauges import Gauges
from ringserve.frontend.metric_sums import MetricSums
from ringserve.frontend.tally import Tally
from tests.frontend.test_metric_look import Watched


def _gauges(folder: Path, calls: Ledger, in_flight: int) -> Gauges:
    books = {"grpc": [Books(calls, lambda: in_flight)]}
    return Gauges(MetricFile(str(folder), "frontend-0"), "frontend-0", Watched(), dict, lambda: 0, dict, lambda: books)


def _values(folder: Path, family: Family) -> dict[str, float]:
    """By the last label."""
    sums = MetricSums(str(folder))
    sums.read()
    return {cell.labels[-1]: cell.values[0] for cell in sums.cells(family)}


async def test_what_a_killed_process_had_in_flight_is_lost_and_its_successor_goes_on(tmp_path: Path) -> None:
    calls = Ledger()
    calls.received = 10
    calls.ended.update({0: 6, ledger.CANCELLED: 1})
    gauges = _gauges(tmp_path, calls, 3)
    gauges.update()
    assert _values(tmp_path, metrics.CALLS_UNBALANCED) == {"grpc": 0}
    # Killed here: it closes nothing. The next one in its place begins with empty books.
    following = Ledger()
    following.refuse()
    gauges = _gauges(tmp_path, following, 0)
    gauges.close()
    assert _values(tmp_path, metrics.CALLS_RECEIVED) == {"grpc": 11}
    assert _values(tmp_path, metrics.CALLS_ENDED) == {"OK": 6, "CANCELLED": 1, "LOST": 3, "REFUSED": 1}
    assert _values(tmp_path, metrics.CALLS_UNBALANCED) == {"grpc": 0}


async def test_one_that_ended_in_order_leaves_nothing_to_lose(tmp_path: Path) -> None:
    calls = Ledger()
    gauges = _gauges(tmp_path, calls, 0)
    gauges.update()
    calls.received = 2
    calls.ended.update({0: 1, 14: 1})
    gauges.close()
    _gauges(tmp_path, Ledger(), 0).close()
    assert _values(tmp_path, metrics.CALLS_ENDED) == {"OK": 1, "UNAVAILABLE": 1}


@pytest.mark.parametrize(("in_flight", "off"), [(3, 0), (2, 1), (4, -1)])
async def test_books_that_are_wrong_show(tmp_path: Path, in_flight: int, off: int) -> None:
    calls = Ledger()
    calls.received = 4
    calls.ended[200] += 1
    _gauges(tmp_path, calls, in_flight).close()
    assert _values(tmp_path, metrics.CALLS_UNBALANCED) == {"grpc": off}


async def test_the_page_tells_what_is_in_flight(tmp_path: Path) -> None:
    calls = Ledger()
    calls.received = 4
    calls.ended[200] += 1
    _gauges(tmp_path, calls, 3).close()
    page, _ = await Exposition(MetricSums(str(tmp_path)), Tally()).render()
    assert b'ringserve_calls_in_flight{process="frontend-0",protocol="grpc"} 3\n' in page


def test_ends_have_names() -> None:
    names = [ledger.name_of(end) for end in (0, 14, 404, ledger.CANCELLED, ledger.REFUSED, ledger.LOST, 99)]
    assert names == ["OK", "UNAVAILABLE", "404", "CANCELLED", "REFUSED", "LOST", "CODE_99"]
