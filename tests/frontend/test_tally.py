"""Counting requests (spec 8.3): what ends up under which labels, for whom, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ringserve.broker.messages import Code, LaneSpec, VersionInfo, VersionState
from ringserve.config import metrics
from ringserve.config.metric_family import HISTOGRAM, Family
from ringserve.config.metric_file import MetricFile
from ringserve.config.metrics import UNKNOWN_MODEL
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.lanes import Lane
from ringserve.frontend.metric_scope import MetricScope
from ringserve.frontend.metric_sums import MetricSums
from ringserve.frontend.tally import GRPC, REST, Tally
from tests.frontend.fakes import catalog_of, version_info

LANE = Lane(LaneSpec("default", 123, "serving_default", (), ("y",), True))


def counted(folder: Path, family: Family) -> dict[tuple[str, ...], float]:
    """The family's cells of all processes: a number each, of histograms the count."""
    sums = MetricSums(str(folder))
    sums.read()
    return {
        cell.labels: sum(cell.values[:-1]) if family.kind == HISTOGRAM else cell.values[0]
        for cell in sums.cells(family)
    }


def buckets(folder: Path, family: Family, *labels: str) -> tuple[dict[str, float], float]:
    """A histogram's cell: the count in each bucket that has any, by its upper bound, and the sum."""
    sums = MetricSums(str(folder))
    sums.read()
    (values,) = (cell.values for cell in sums.cells(family) if cell.labels == labels)
    limits = (*family.limits, float("inf"))
    return {f"{limit:g}": count for limit, count in zip(limits, values[:-1], strict=True) if count}, values[-1]


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[..., Tally]:
    """A tally of one process that counts into tmp_path."""

    def make(process: str = "frontend-0", catalog: Catalog | None = None) -> Tally:
        sums = MetricSums(str(tmp_path))
        tally = Tally(MetricFile(str(tmp_path), process), MetricScope(catalog), sums=sums)
        tally.clock_ns = clock
        return tally

    return make


def test_8_3_a_successful_predict(make: Callable[..., Tally], clock: Clock, tmp_path: Path) -> None:
    tally = make()
    tally.run("Predict", "default", clock.now_ns - 9_999)
    tally.request(GRPC, "Predict", "default", Code.OK, clock.now_ns - 18_000, LANE)
    tally.flush()
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {("default", "OK"): 1}
    assert buckets(tmp_path, metrics.REQUEST_LATENCY, "default", "Predict", "GRPC") == ({"32.4": 1}, 18)
    assert buckets(tmp_path, metrics.RUNTIME_LATENCY, "default", "Predict", "TF1") == ({"10": 1}, 9.999)
    labels = ("default", "123", "serving_default", "predict", "GRPC")
    assert counted(tmp_path, metrics.REQUESTS) == {(*labels, "OK"): 1}
    assert buckets(tmp_path, metrics.REQUEST_DURATION, *labels) == ({"0.0001": 1}, 0.000018)


def test_8_3_only_successful_requests_have_a_latency(make: Callable[..., Tally], clock: Clock, tmp_path: Path) -> None:
    tally = make()
    tally.request(REST, "predict", "default", Code.UNAVAILABLE, clock.now_ns - 18_000, LANE)
    tally.request(REST, "", "", Code.INVALID_ARGUMENT, clock.now_ns)
    tally.flush()
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {("default", "UNAVAILABLE"): 1, ("", "INVALID_ARGUMENT"): 1}
    assert counted(tmp_path, metrics.REQUEST_LATENCY) == {}
    assert counted(tmp_path, metrics.REQUEST_DURATION) == {}
    assert counted(tmp_path, metrics.REQUESTS) == {
        ("default", "123", "serving_default", "predict", "REST", "UNAVAILABLE"): 1,
        ("", "", "", "", "REST", "INVALID_ARGUMENT"): 1,
    }


def test_8_3_multi_inference_counts_examples_only(make: Callable[..., Tally], tmp_path: Path) -> None:
    tally = make()
    for count in (1, 2, 3):
        tally.examples("default", count)
    tally.flush()
    assert counted(tmp_path, metrics.EXAMPLE_COUNT_TOTAL) == {("default",): 6}
    assert buckets(tmp_path, metrics.EXAMPLE_COUNTS, "default") == ({"2": 1, "4": 2}, 6)
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {}


def test_every_flush_adds_to_what_is_there(make: Callable[..., Tally], clock: Clock, tmp_path: Path) -> None:
    tally = make()
    for count in range(1, 4):
        for _ in range(count):
            tally.request(GRPC, "Predict", "default", Code.OK, clock.now_ns - count * 1_000_000, LANE)
        tally.flush()
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {("default", "OK"): 6}
    _, total_us = buckets(tmp_path, metrics.REQUEST_LATENCY, "default", "Predict", "GRPC")
    assert total_us == 14_000


def test_two_frontends_are_summed_and_a_successor_goes_on(
    make: Callable[..., Tally], clock: Clock, tmp_path: Path
) -> None:
    for process in ("frontend-0", "frontend-1", "frontend-0"):
        tally = make(process)
        tally.request(GRPC, "Predict", "default", Code.OK, clock.now_ns - 18_000, LANE)
        tally.flush()
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {("default", "OK"): 3}
    assert buckets(tmp_path, metrics.REQUEST_LATENCY, "default", "Predict", "GRPC") == ({"32.4": 3}, 54)
    assert tally.count("/tensorflow/serving/request_count") == 3


def test_clients_cannot_make_time_series(make: Callable[..., Tally], clock: Clock, tmp_path: Path) -> None:
    tally = make(catalog=catalog_of(version_info()))
    for name in ("default", "", *(f"nope-{number}" for number in range(10_000))):
        tally.request(GRPC, "Predict", name, Code.NOT_FOUND, clock.now_ns)
        tally.run("Predict", name, clock.now_ns)
    tally.flush()
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {
        ("default", "NOT_FOUND"): 1,
        ("", "NOT_FOUND"): 1,
        (UNKNOWN_MODEL, "NOT_FOUND"): 10_000,
    }
    assert len(counted(tmp_path, metrics.RUNTIME_LATENCY)) == 3


def test_a_configured_model_without_versions_is_no_unknown_one(
    make: Callable[..., Tally], clock: Clock, tmp_path: Path
) -> None:
    catalog = Catalog()
    catalog.update([], {}, ["soon"])
    tally = make(catalog=catalog)
    tally.request(GRPC, "Predict", "soon", Code.UNAVAILABLE, clock.now_ns)
    tally.flush()
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {("soon", "UNAVAILABLE"): 1}


def test_versions_that_are_gone_do_not_pile_up(make: Callable[..., Tally], clock: Clock, tmp_path: Path) -> None:
    catalog = catalog_of(version_info(version=0))
    tally = make(catalog=catalog)
    for version in range(1, 1200):
        lane = Lane(LaneSpec("default", version, "serving_default", (), ("y",), True))
        infos = [version_info(version=version), version_info(version=version - 1, state=VersionState.END)]
        catalog.update(infos)
        tally.request(GRPC, "Predict", "default", Code.OK, clock.now_ns - 18_000, lane)
        tally.flush()
    assert 1 <= len(counted(tmp_path, metrics.REQUEST_DURATION)) < 600
    assert counted(tmp_path, metrics.REQUEST_COUNT) == {("default", "OK"): 1199}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2**20


def test_count_gives_the_first_cell_of_a_counter(make: Callable[..., Tally], clock: Clock) -> None:
    tally = make()
    assert tally.count("/tensorflow/serving/request_count") == 0
    for name in ("b", "a", "a"):
        tally.request(GRPC, "Predict", name, Code.OK, clock.now_ns)
    assert tally.count("/tensorflow/serving/request_count") == 2
    assert tally.count("/tensorflow/serving/request_latency") == 0
    assert tally.count("ringserve_requests_total") == 0
    assert tally.count("nonsense") == 0


def test_a_tally_without_a_file_counts_nothing_and_keeps_nothing() -> None:
    tally = Tally()
    for number in range(10_000):
        tally.request(GRPC, "Predict", f"model-{number}", Code.OK, tally.clock_ns())
        tally.run("Predict", f"model-{number}", tally.clock_ns())
        tally.examples("m", 1)
    assert tally.count("/tensorflow/serving/request_count") == 0
    assert not tally.flush_some()


async def test_it_flushes_by_itself_some_cells_at_a_time(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    tally = Tally(MetricFile(str(tmp_path), "p"), later=loop.call_later)
    for number in range(100):
        tally.request(GRPC, "Predict", f"model-{number}", Code.OK, tally.clock_ns())
    assert tally.flush_some()  # there is more than one turn's worth
    async with asyncio.timeout(30):
        while len(counted(tmp_path, metrics.REQUEST_COUNT)) < 100:
            await asyncio.sleep(0.01)  # polling for the tally's own timer, with a limit
    tally.request(GRPC, "Predict", "again", Code.OK, tally.clock_ns())
    async with asyncio.timeout(30):
        while ("again", "OK") not in counted(tmp_path, metrics.REQUEST_COUNT):
            await asyncio.sleep(0.01)  # likewise


def test_keys_that_are_always_busy_are_flushed_in_rounds_with_rests_between(tmp_path: Path) -> None:
    planned: list[tuple[float, Callable[[], None]]] = []
    tally = Tally(MetricFile(str(tmp_path), "p"), later=lambda s, call: planned.append((s, call)))
    rests_s = []
    for _ in range(60):
        for number in range(200):
            tally.request(GRPC, "Predict", f"model-{number}", Code.OK, tally.clock_ns())
        ((rest_s, call),) = planned
        planned.clear()
        rests_s.append(rest_s)
        call()
    assert rests_s == [0.05, *([0.0] * 12 + [0.2]) * 5][:60]
    assert len(counted(tmp_path, metrics.REQUEST_COUNT)) == 200


def test_infos_of_the_fakes_are_what_the_broker_sends() -> None:
    assert isinstance(version_info(), VersionInfo)
