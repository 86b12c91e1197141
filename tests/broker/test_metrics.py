"""The broker's counts (spec 8.3, batching_session and load families), and what it costs nobody to have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringserve.broker.messages import Code, InputSpec, LaneSpec, Loaded
from ringserve.broker.metrics import BrokerMetrics, Memory, gauges
from ringserve.broker.statistics import Queue
from ringserve.config import metrics
from ringserve.config.metric_family import HISTOGRAM, Family
from ringserve.config.metric_file import MetricFile
from ringserve.frontend.metric_sums import MetricSums

_MS = 1_000_000
LANE_LABELS = ("m", "1", "s")


def lane_of(inputs: int = 1, *, batchable: bool = True) -> LaneSpec:
    specs = tuple(InputSpec(f"x{number}", 1, ()) for number in range(inputs))
    return LaneSpec("m", 1, "s", specs, ("y",), batchable)


def batch(
    counts: BrokerMetrics, lane: LaneSpec, rows: list[int], waits_ns: list[int], rows_run: int = 0, run_ns: int = 0
) -> None:
    """One batch of requests of so many rows each."""
    parts = [[1, number, count, 0, 64] for number, count in enumerate(rows)]
    counts.batch_done(lane, sum(rows), rows_run or sum(rows), parts, waits_ns, run_ns)


class Sums:
    """What the file says."""

    def __init__(self, folder: Path) -> None:
        self._sums = MetricSums(str(folder))

    def cells(self, family: Family) -> dict[tuple[str, ...], float]:
        """A number each, of histograms the count."""
        self._sums.read()
        return {
            cell.labels: sum(cell.values[:-1]) if family.kind == HISTOGRAM else cell.values[0]
            for cell in self._sums.cells(family)
        }

    def buckets(self, family: Family, *labels: str) -> tuple[dict[str, float], float]:
        """A histogram's buckets that have any, by upper bound, and its sum."""
        self._sums.read()
        (values,) = (cell.values for cell in self._sums.cells(family) if cell.labels == labels)
        limits = [f"{limit:g}" for limit in (*family.limits, float("inf"))]
        return {limit: count for limit, count in zip(limits, values[:-1], strict=True) if count}, values[-1]


@pytest.fixture
def sums(tmp_path: Path) -> Sums:
    return Sums(tmp_path)


@pytest.fixture
def counts(tmp_path: Path) -> BrokerMetrics:
    return BrokerMetrics(MetricFile(str(tmp_path), "broker"))


def test_8_3_a_batch(counts: BrokerMetrics, sums: Sums) -> None:
    lane = lane_of(inputs=2)
    batch(counts, lane, [1, 1, 4], [300_000, 200_000, 100_000], rows_run=8, run_ns=3 * _MS)
    counts.flush({})
    # Upper bounds are exclusive in TF Serving's families: 1 row counts below 2, 100 us below 120.
    assert sums.buckets(metrics.INPUT_BATCH_SIZE) == ({"2": 4, "8": 2}, 12)
    assert sums.buckets(metrics.PROCESSED_BATCH_SIZE) == ({"16": 1}, 8)
    assert sums.buckets(metrics.PADDING_SIZE, "8") == ({"4": 1}, 2)
    assert sums.buckets(metrics.QUEUING_LATENCY, "") == ({"120": 1, "207.36": 1, "358.318": 1}, 600)
    assert sums.cells(metrics.WRAPPED_RUN_COUNT) == {(): 1}
    assert sums.buckets(metrics.QUEUE_DURATION, *LANE_LABELS) == ({"0.0001": 1, "0.00025": 1, "0.0005": 1}, 0.0006)
    assert sums.buckets(metrics.BATCH_ROWS, *LANE_LABELS) == ({"8": 1}, 6)
    assert sums.cells(metrics.PADDING_ROWS) == {LANE_LABELS: 2}
    assert sums.buckets(metrics.RUN_DURATION, *LANE_LABELS) == ({"0.005": 1}, 0.003)


def test_a_lane_that_is_not_batched_is_none_of_the_batching_sessions(counts: BrokerMetrics, sums: Sums) -> None:
    lane = lane_of(batchable=False)
    batch(counts, lane, [1], [5 * _MS], run_ns=3 * _MS)
    counts.flush({})
    assert [family.name for family in metrics.TFS if sums.cells(family)] == []
    assert sums.cells(metrics.QUEUE_DURATION) == {LANE_LABELS: 1}
    assert sums.cells(metrics.RUN_DURATION) == {LANE_LABELS: 1}


def test_a_batch_that_did_not_run_is_no_run(counts: BrokerMetrics, sums: Sums) -> None:
    lane = lane_of()
    batch(counts, lane, [1], [0])
    counts.flush({})
    assert sums.cells(metrics.WRAPPED_RUN_COUNT) == {}
    assert sums.cells(metrics.BATCH_ROWS) == {LANE_LABELS: 1}


def test_a_batch_that_answered_nobody_is_a_run_and_nothing_else(counts: BrokerMetrics, sums: Sums) -> None:
    batch(counts, lane_of(), [], [], run_ns=3 * _MS)
    counts.flush({})
    assert sums.cells(metrics.WRAPPED_RUN_COUNT) == {(): 1}
    assert sums.cells(metrics.RUN_DURATION) == {LANE_LABELS: 1}
    for family in (metrics.BATCH_ROWS, metrics.QUEUE_DURATION, metrics.INPUT_BATCH_SIZE, metrics.PROCESSED_BATCH_SIZE):
        assert sums.cells(family) == {}


@pytest.mark.parametrize("count", [1, 2, 7, 128])
def test_waits_are_counted_one_by_one_however_they_are_spread(
    count: int, counts: BrokerMetrics, sums: Sums
) -> None:
    lane = lane_of()
    waits = [(number * 7919) % 1000 * 100_000 for number in range(count)]
    batch(counts, lane, [1] * count, waits)
    counts.flush({})
    expected: dict[str, int] = {}
    for wait in waits:
        limit = next((f"{limit:g}" for limit in metrics.QUEUING_LATENCY.limits if wait < limit * 1000), "inf")
        expected[limit] = expected.get(limit, 0) + 1
    found, total_us = sums.buckets(metrics.QUEUING_LATENCY, "")
    assert found == expected
    assert total_us == pytest.approx(sum(waits) / 1000)
    found, _ = sums.buckets(metrics.QUEUE_DURATION, *LANE_LABELS)
    assert sum(found.values()) == count


def test_execution_batch_sizes_do_not_make_series_without_end(counts: BrokerMetrics, sums: Sums) -> None:
    lane = lane_of()
    for rows in range(1, 5000):
        batch(counts, lane, [rows], [0])
    counts.flush({})
    sizes = sorted(int(labels[0]) for labels in sums.cells(metrics.PADDING_SIZE))
    assert sizes == [*range(1, 1025), 2048, 4096, 8192]


def test_it_flushes_some_lanes_a_turn_and_then_rests(counts: BrokerMetrics, sums: Sums) -> None:
    lanes = [lane_of()._replace(signature=f"s{number}") for number in range(20)]
    for lane in lanes:
        batch(counts, lane, [1], [0])
    now_ns = 10**12
    turns = 0
    while (wake_ns := counts.tick(now_ns, dict)) and turns < 100:
        assert wake_ns > now_ns
        now_ns = wake_ns
        turns += 1
    assert 2 < turns < 20
    assert len(sums.cells(metrics.BATCH_ROWS)) == 20
    batch(counts, lanes[0], [1], [0])
    assert counts.tick(now_ns, dict) == now_ns + 50 * _MS
    assert counts.tick(now_ns + 1, dict) == now_ns + 50 * _MS


def test_lanes_that_are_always_busy_are_flushed_in_rounds_with_rests_between(counts: BrokerMetrics, sums: Sums) -> None:
    lanes = [lane_of()._replace(signature=f"s{number}") for number in range(100)]
    rests_ms = []
    now_ns = 10**12
    for _ in range(60):
        for lane in lanes:
            batch(counts, lane, [1], [0])
        due_ns = counts.tick(now_ns, dict)
        rests_ms.append((due_ns - now_ns) // _MS)
        now_ns = due_ns
    assert rests_ms == [50, *([1] * 12 + [200]) * 5][:60]
    assert len(sums.cells(metrics.BATCH_ROWS)) == 100


def test_how_requests_end(tmp_path: Path, sums: Sums) -> None:
    for _ in range(2):  # a broker and its successor, who both begin to count at zero
        counts = BrokerMetrics(MetricFile(str(tmp_path), "broker"))
        now_ns = 10**12
        ends = {"done": 5, "refused": 1, "expired": 0, "retried": 2}
        for after_ms in (0, 500, 1000):
            counts.tick(now_ns + after_ms * _MS, ends.copy)
            ends["done"] += 1
        ends["retried"] = 3
        counts.flush(ends)
    assert sums.cells(metrics.BROKER_REQUESTS) == {("done",): 16, ("refused",): 2}
    assert sums.cells(metrics.BROKER_RETRIES) == {(): 6}


def test_8_3_loads_and_warm_ups(counts: BrokerMetrics, sums: Sums) -> None:
    good = Loaded("m", 1, 0, "", b"", load_ns=2_500_000, warmup_ns=18_000, warmup_records=3)
    counts.loaded("/m/1", good)
    counts.loaded("/m/1", good._replace(warmup_records=-1))
    counts.loaded("/m/1", good._replace(again=True))  # told to the next broker
    bad = Loaded("m", 2, int(Code.INVALID_ARGUMENT), "bad record", b"", load_ns=1_000, warmup_records=1)
    counts.loaded("/m/2", bad)
    counts.loaded("/m/3", Loaded("m", 3, int(Code.NOT_FOUND), "no files", b"", load_ns=1_000))
    assert sums.cells(metrics.LOAD_ATTEMPT_COUNT) == {
        ("/m/1", "success"): 2,
        ("/m/2", "fail"): 1,
        ("/m/3", "fail"): 1,
    }
    assert sums.cells(metrics.LOAD_LATENCY) == {("/m/1",): 5000, ("/m/2",): 1, ("/m/3",): 1}
    assert sums.buckets(metrics.WARMUP_LATENCY, "/m/1", "OK") == ({"32.4": 1}, 18)
    assert sums.cells(metrics.WARMUP_RECORDS) == {("/m/1", "OK"): 3, ("/m/2", "INVALID_ARGUMENT: bad record"): 1}


def test_paths_of_versions_do_not_pile_up(counts: BrokerMetrics, sums: Sums) -> None:
    for version in range(3000):
        counts.loaded(f"/m/{version}", Loaded("m", version, 0, "", b"", load_ns=1))
    paths = {labels[0] for labels in sums.cells(metrics.LOAD_LATENCY)}
    assert {f"/m/{version}" for version in range(2500, 3000)} <= paths
    assert len(paths) < 1500


def test_versions_that_are_gone_do_not_pile_up(counts: BrokerMetrics, sums: Sums) -> None:
    for version in range(1, 800):
        lane = lane_of()._replace(version=version)
        counts.serving([("m", version), ("other", 1)])
        batch(counts, lane, [1], [0], run_ns=3 * _MS)
        counts.flush({})
    versions = {labels[1] for labels in sums.cells(metrics.QUEUE_DURATION)}
    assert "799" in versions
    assert len(versions) < 400
    assert sums.cells(metrics.WRAPPED_RUN_COUNT) == {(): 799}


def test_gauges_of_all_lanes_of_a_version_together() -> None:
    lane = lane_of()
    queues = [
        Queue(lane, 3, 5, 40 * _MS, 1, 0),
        Queue(lane._replace(signature="t"), 1, 1, 90 * _MS, 2, 0),
        Queue(lane._replace(version=2), 0, 0, 0, 1, 0),
    ]
    memory = Memory([("m", 1, 300)], 5_000, 700)
    workers = {"ready": 2, "draining": 1}
    found = json.loads(gauges(queues, workers, 4, 9, {"default": (3, 2)}, memory, [("m", 2), ("idle", 1)]))
    assert {(name, tuple(labels)): value for name, labels, value in found} == {
        ("ringserve_generation", ()): 4,
        ("ringserve_lanes", ()): 9,
        ("ringserve_weights_shared_bytes", ("m", "1")): 300,
        ("ringserve_memory_limit_bytes", ()): 5_000,
        ("ringserve_memory_budgeted_bytes", ()): 700,
        ("ringserve_group_workers_wanted", ("default",)): 3,
        ("ringserve_group_workers_active", ("default",)): 2,
        ("ringserve_workers", ("ready",)): 2,
        ("ringserve_workers", ("draining",)): 1,
        ("ringserve_queue_requests", ("m", "1")): 4,
        ("ringserve_queue_rows", ("m", "1")): 6,
        ("ringserve_batches_running", ("m", "1")): 3,
        ("ringserve_queue_oldest_seconds", ("m", "1")): 0.09,
        ("ringserve_queue_requests", ("m", "2")): 0,
        ("ringserve_queue_rows", ("m", "2")): 0,
        ("ringserve_batches_running", ("m", "2")): 1,
        ("ringserve_queue_oldest_seconds", ("m", "2")): 0,
        # Served, with nothing to do: zeros, and not nothing.
        ("ringserve_queue_requests", ("idle", "1")): 0,
        ("ringserve_queue_rows", ("idle", "1")): 0,
        ("ringserve_batches_running", ("idle", "1")): 0,
        ("ringserve_queue_oldest_seconds", ("idle", "1")): 0,
    }


def test_authors_are_counted_by_how_they_ended(counts: BrokerMetrics, sums: Sums) -> None:
    for end in ("ok", "died", "ok"):
        counts.author_ended(end)
    assert sums.cells(metrics.AUTHORS) == {("ok",): 2, ("died",): 1}


def test_workers_that_died_are_counted_from_zero_on(counts: BrokerMetrics, sums: Sums) -> None:
    assert sums.cells(metrics.WORKERS_DIED)[("SIGKILL",)] == 0
    for status in (0, -9, -9, 3, -4):
        counts.worker_ended(status)
    died = sums.cells(metrics.WORKERS_DIED)
    assert {end: count for (end,), count in died.items() if count} == {"SIGKILL": 2, "failed": 1, "SIGILL": 1}
