"""What a scrape looks up: models, the broker's gauges, processes; and this frontend's own gauges."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import psutil

from ringserve.broker.messages import Code, VersionState
from ringserve.config import metrics
from ringserve.config.metric_file import MetricFile
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.metric_gauges import Gauges
from ringserve.frontend.metric_look import Look
from ringserve.frontend.metric_processes import ProcessUse, process_uses
from ringserve.frontend.metric_sums import MetricSums
from ringserve.shm.ring import RingWriter
from tests.frontend.fakes import version_info


class Broker:
    """Answers `Client.ask`."""

    def __init__(self, *answers: tuple[int, str, bytes]) -> None:
        self.answers = list(answers)
        self.verbs: list[str] = []

    async def __call__(self, verb: str, body: bytes, timeout_s: float | None) -> tuple[int, str, bytes]:
        assert timeout_s
        self.verbs.append(verb)
        return self.answers.pop(0)


class Uses:
    """Answers for /proc."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def __call__(self, *, proportional: bool) -> list[ProcessUse]:
        self.asked.append(proportional)
        return [ProcessUse("broker", 10, 7 if proportional else 0, 1.5, 1e9)]


def _catalog() -> Catalog:
    catalog = Catalog()
    infos = [
        version_info("a", 1, state=VersionState.END),
        version_info("a", 2),
        version_info("a", 3, state=VersionState.END, error=(3, "broken")),
        version_info("b", 1, state=VersionState.LOADING),
    ]
    catalog.update(infos, {}, ["a", "b", "c"])
    return catalog


def _values(found: dict[str, Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(name, cell.labels): cell.values[0] for name, cells in found.items() for cell in cells}


async def test_models_and_versions() -> None:
    values = _values(await Look(_catalog(), Broker((Code.UNAVAILABLE, "", b"")), Uses())())
    assert {labels: value for (name, labels), value in values.items() if name == metrics.MODEL_READY.name} == {
        ("a",): 1,
        ("b",): 0,
        ("c",): 0,
    }
    states = {labels for name, labels in values if name == metrics.VERSION_STATE.name}
    assert states == {("a", "2", "AVAILABLE"), ("a", "3", "END"), ("b", "1", "LOADING")}


async def test_the_brokers_gauges_and_what_is_left_without_it() -> None:
    body = json.dumps([["ringserve_workers", ["ready"], 2], ["ringserve_lanes", [], 7]]).encode()
    broker = Broker((Code.OK, "", body), (Code.UNAVAILABLE, "gone", b""))
    look = Look(_catalog(), broker, Uses())
    values = _values(await look())
    assert values["ringserve_broker_up", ()] == 1
    assert values["ringserve_workers", ("ready",)] == 2
    assert values["ringserve_lanes", ()] == 7
    values = _values(await look())
    assert values["ringserve_broker_up", ()] == 0
    assert ("ringserve_lanes", ()) not in values
    assert broker.verbs == ["metrics", "metrics"]


async def test_shares_of_memory_are_not_added_up_for_every_scrape() -> None:
    answer = (int(Code.UNAVAILABLE), "", b"")
    uses = Uses()
    look = Look(Catalog(), Broker(answer, answer, answer), uses)
    for _ in range(3):
        values = _values(await look())
        assert values["ringserve_process_resident_bytes", ("broker",)] == 10
        assert values["ringserve_process_proportional_bytes", ("broker",)] == 7
        assert values["ringserve_process_cpu_seconds_total", ("broker",)] == 1.5
        assert values["ringserve_process_start_time_seconds", ("broker",)] == 1e9
    assert uses.asked == [True, False, False]


def test_a_process_that_no_supervisor_started_tells_of_itself() -> None:
    (use,) = process_uses(proportional=True)
    resident_kib = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    assert abs(use.resident_bytes / 1024 - int(resident_kib[0].split()[1])) < 20_000
    assert 0 < use.proportional_bytes <= use.resident_bytes * 1.1
    times = os.times()
    assert 0 < use.cpu_s <= times.user + times.system + 1
    assert abs(use.started_s - psutil.Process().create_time()) < 2
    assert [use.proportional_bytes for use in process_uses(proportional=False)] == [0]


async def test_a_worker_and_its_successor_are_one_series_while_both_are_there() -> None:
    def uses(*, proportional: bool) -> list[ProcessUse]:
        return [ProcessUse("worker-0", 10, 5, 1.0, 100.0), ProcessUse("worker-0", 20, 6, 0.5, 200.0)]

    found = await Look(Catalog(), Broker((Code.UNAVAILABLE, "", b"")), uses)()
    values = _values(found)
    assert all(len(cells) == len({cell.labels for cell in cells}) for cells in found.values())
    assert values["ringserve_process_resident_bytes", ("worker-0",)] == 30
    assert values["ringserve_process_proportional_bytes", ("worker-0",)] == 11
    assert values["ringserve_process_cpu_seconds_total", ("worker-0",)] == 1.5
    assert values["ringserve_process_start_time_seconds", ("worker-0",)] == 200


class Watched:
    pending_count = 3

    def __init__(self) -> None:
        self.ring = RingWriter(1 << 16)

    def ring_statistics(self) -> Any:
        return self.ring.statistics()


async def test_gauges_of_this_frontend(tmp_path: Path) -> None:
    file, client = MetricFile(str(tmp_path), "frontend-0"), Watched()
    now_ns = 0
    gauges = Gauges(file, "frontend-0", client, lambda: {"grpc": 5, "rest": 1}, lambda: now_ns)
    sums = MetricSums(str(tmp_path))

    def value(family: Any, *labels: str) -> float:
        sums.read()
        return next(cell.values[0] for cell in sums.cells(family) if cell.labels == labels)

    client.ring.claim(1000)
    assert client.ring.claim(1 << 20) < 0
    gauges.update()
    gauges.update()
    assert value(metrics.PENDING, "frontend-0") == 3
    assert value(metrics.CONNECTIONS, "frontend-0", "grpc") == 5
    assert value(metrics.CONNECTIONS, "frontend-0", "rest") == 1
    assert value(metrics.RING_CAPACITY, "frontend-0") == 1 << 16
    assert value(metrics.RING_USED, "frontend-0") == 1024
    assert value(metrics.RING_FULL, "frontend-0") == 1
    assert client.ring.claim(1 << 20) < 0
    # The loop looks once a second by itself: when it comes to it the clock says it is 0.3 s late.
    now_ns = 1_300_000_000
    async with asyncio.timeout(30):
        while not sums.cells(metrics.LOOP_LAG):
            await asyncio.sleep(0.02)  # polling for that timer, with a limit
            sums.read()
    (lag,) = sums.cells(metrics.LOOP_LAG)
    assert lag.values[-1] == 0.3
    assert dict(zip(metrics.LOOP_LAG.limits, lag.values[:-1], strict=False))[0.5] == 1
    assert value(metrics.RING_FULL, "frontend-0") == 2
    gauges.close()
