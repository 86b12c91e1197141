"""What a process counted: read back by prometheus-client, by its successor, and after the file was cleared up."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from ringserve.config import metric_file, metrics
from ringserve.config.metric_file import MetricFile, entries, read_key, used_bytes
from ringserve.config.rundir import make_run_dir
from ringserve.frontend.metric_sums import MetricSums


def _samples(folder: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What prometheus-client's own collector makes of the files."""
    registry = CollectorRegistry()
    collector: Any = MultiProcessCollector
    collector(registry, str(folder))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_prometheus_clients_own_collector_reads_the_files(tmp_path: Path) -> None:
    first, second = MetricFile(str(tmp_path), "frontend-0"), MetricFile(str(tmp_path), "broker")
    labels = ("m", "1", "s", "predict", "GRPC", "OK")
    first.add(metrics.REQUESTS, labels, 2)
    second.add(metrics.REQUESTS, labels)
    first.observe(metrics.BATCH_ROWS, ("m", "1", "s"), ((0, 2), (1, 1)), 4)
    second.observe(metrics.BATCH_ROWS, ("m", "1", "s"), ((13, 1),), 5000)
    first.set(metrics.PENDING, ("frontend-0",), 7)
    first.set(metrics.PENDING, ("frontend-0",), 3)
    samples = _samples(tmp_path)
    lane = {"model": "m", "version": "1", "signature": "s"}

    def value(name: str, **more: str) -> float:
        return samples[name, tuple(sorted({**lane, **more}.items()))]

    assert value("ringserve_requests_total", api="predict", entrypoint="GRPC", code="OK") == 3
    assert value("ringserve_batch_rows_bucket", le="1.0") == 2
    assert value("ringserve_batch_rows_bucket", le="2.0") == 3
    assert value("ringserve_batch_rows_bucket", le="+Inf") == 4
    assert value("ringserve_batch_rows_sum") == 5004
    assert value("ringserve_batch_rows_count") == 4
    gauge = (("pid", "frontend-0"), ("process", "frontend-0"))
    assert samples["ringserve_requests_pending", gauge] == 3


def test_who_takes_the_place_of_a_process_goes_on_counting(tmp_path: Path) -> None:
    for _ in range(3):
        file = MetricFile(str(tmp_path), "frontend-0")
        file.add(metrics.PROCESS_STARTS, ("frontend-0",))
        file.observe(metrics.LOOP_LAG, ("frontend-0",), ((0, 1),), 0.5)
        file.close()
    samples = _samples(tmp_path)
    assert samples["ringserve_process_starts_total", (("process", "frontend-0"),)] == 3
    assert samples["ringserve_event_loop_lag_seconds_sum", (("process", "frontend-0"),)] == 1.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_frontend-0.db", "histogram_frontend-0.db"]


def test_a_file_grows_and_all_of_it_is_storage(tmp_path: Path) -> None:
    file = MetricFile(str(tmp_path), "p")
    for number in range(3000):
        file.add(metrics.REQUEST_COUNT, (f"model-{number}", "OK"), number)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size > 2**17
    assert path.stat().st_blocks * 512 >= path.stat().st_size  # a hole would end the process where the disk is full
    samples = _samples(tmp_path)
    assert all(
        samples[metrics.REQUEST_COUNT.exposed, (("model_name", f"model-{n}"), ("status", "OK"))] == n
        for n in range(3000)
    )


def test_a_full_disk_costs_counts_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricFile(str(tmp_path), "p")
    file.add(metrics.REQUEST_COUNT, ("m", "OK"))

    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    for number in range(3000):
        file.add(metrics.REQUEST_COUNT, (f"model-{number}", "OK"))
    file.set(metrics.PENDING, ("p",), 1)  # a file that is not there yet
    file.add(metrics.REQUEST_COUNT, ("m", "OK"))
    samples = _samples(tmp_path)
    assert samples[metrics.REQUEST_COUNT.exposed, (("model_name", "m"), ("status", "OK"))] == 2
    assert 100 < len(samples) < 3000


@pytest.mark.parametrize("damage", [b"\xff\xff\xff\x7f", b"\x40\0\0\0"])
def test_a_damaged_file_is_started_afresh(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "counter_p.db"
    path.write_bytes(damage + b"\0\0\0\0\x77\0\0\0[1," + b"x" * 2000)
    file = MetricFile(str(tmp_path), "p")
    file.add(metrics.WRAPPED_RUN_COUNT, (), 2)
    assert _samples(tmp_path) == {(metrics.WRAPPED_RUN_COUNT.exposed, ()): 2}


def test_what_is_gone_is_forgotten_once_it_is_most_of_the_file(tmp_path: Path) -> None:
    file = MetricFile(str(tmp_path), "p")
    for number in range(1500):
        file.add(metrics.REQUEST_COUNT, (f"model-{number}", "OK"), number)
    gone = {f"model-{number}" for number in range(600)}
    file.forget(lambda _, labels: labels[0] in gone)
    assert len(_samples(tmp_path)) == 1500
    gone = {f"model-{number}" for number in range(1400)}
    file.forget(lambda _, labels: labels[0] in gone)
    file.add(metrics.REQUEST_COUNT, ("model-1400", "OK"), 1)
    file.add(metrics.REQUEST_COUNT, ("model-0", "OK"), 5)
    samples = {labels[0][1]: value for (_, labels), value in _samples(tmp_path).items()}
    assert samples == {"model-0": 5, "model-1400": 1401, **{f"model-{n}": n for n in range(1401, 1500)}}
    file.close()
    again = MetricFile(str(tmp_path), "p")
    again.add(metrics.REQUEST_COUNT, ("model-0", "OK"))
    assert {labels[0][1]: value for (_, labels), value in _samples(tmp_path).items()}["model-0"] == 6


def test_every_key_says_what_it_is_a_value_of(tmp_path: Path) -> None:
    file = MetricFile(str(tmp_path), "p")
    expected = set()
    for family in (*metrics.TFS, *metrics.OWN):
        labels = tuple(f'{label} "\\ é' for label in family.labels)
        if family.kind == "histogram":
            buckets = range(len(family.limits) + 1)
            file.observe(family, labels, [(bucket, 1) for bucket in buckets], 1)
            expected |= {(family.name, labels, bucket) for bucket in (*buckets, metric_file.SUM)}
        else:
            (file.add if family.kind == "counter" else file.set)(family, labels, 1)
            expected.add((family.name, labels, 0))
    found = set()
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        for entry in entries(data[: used_bytes(data)]):
            key = read_key(entry.key)
            assert key is not None
            found.add((key.family.name, key.labels, key.bucket))
    assert found == expected


def test_keys_of_other_families_are_left_alone() -> None:
    assert read_key('["x", "x", {}, ""]') is None
    assert read_key('["x", "x_bucket", {"le": "1.0"}, ""]') is None
    assert read_key('["x", "x_sum", {}, ""]') is None


def test_a_run_directory_may_hold_them_and_a_new_server_begins_at_zero(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    file = MetricFile(str(folder), "broker")
    file.add(metrics.WRAPPED_RUN_COUNT, ())
    file.close()
    (folder / "counter_broker.db.new").write_bytes(b"left behind")
    run_dir = make_run_dir(str(folder))
    assert [path.name for path in folder.iterdir()] == ["lock"]
    os.close(run_dir.lock_fd)


def test_files_that_were_removed_come_back_with_all_that_they_held(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    file = MetricFile(str(folder), "p")
    sums = MetricSums(str(folder))
    for number in range(3000):
        file.add(metrics.REQUEST_COUNT, (f"model-{number}", "OK"), number)
    file.set(metrics.PENDING, ("p",), 7)
    sums.read()
    shutil.rmtree(folder)
    file.restore()
    assert not folder.exists(), "whose the folder is, is for others to see to"
    folder.mkdir(0o700)
    file.add(metrics.PROCESS_STARTS, ("p",))
    for number in range(3000, 9000):  # it has to grow
        file.add(metrics.REQUEST_COUNT, (f"model-{number}", "OK"), number)
    file.restore()
    for amount in (1, 2):
        file.add(metrics.REQUEST_COUNT, ("model-0", "OK"), amount)
    sums.read()
    after = sums.cells(metrics.REQUEST_COUNT)
    assert [cell.values for cell in after if cell.labels[0] == "model-0"] == [[3.0]]
    assert {cell.labels: cell.values for cell in after if cell.labels[0] != "model-0"} == {
        (f"model-{number}", "OK"): [number] for number in range(1, 9000)
    }
    assert [cell.values for cell in sums.cells(metrics.PENDING)] == [[7.0]]
    assert [cell.values for cell in sums.cells(metrics.PROCESS_STARTS)] == [[1.0]]


def test_they_are_not_made_where_others_write(tmp_path: Path) -> None:
    file = MetricFile(str(tmp_path), "p")
    file.add(metrics.PROCESS_STARTS, ("p",))
    (path,) = tmp_path.iterdir()
    path.unlink()
    tmp_path.chmod(0o777)
    file.restore()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_somebody_elses_now_ends_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    file = MetricFile(str(folder), "p")
    file.add(metrics.PROCESS_STARTS, ("p",))
    shutil.rmtree(folder)
    folder.write_text("a file in its place, of which no file in it can be looked at")
    file.restore()
    file.add(metrics.PROCESS_STARTS, ("p",))
    folder.unlink()
    folder.mkdir(mode=0o700)
    file.restore()
    assert len(list(folder.iterdir())) == 1


def test_a_file_that_cannot_be_made_anew_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricFile(str(tmp_path), "p")
    file.add(metrics.PROCESS_STARTS, ("p",))
    (path,) = tmp_path.iterdir()
    path.unlink()
    with monkeypatch.context() as full:
        full.setattr(metric_file, "_allocate", _refuse)
        file.restore()
    file.add(metrics.PROCESS_STARTS, ("p",))
    file.restore()
    assert file.cells(metrics.PROCESS_STARTS) == {("p",): 2.0}
    assert path.exists()


def _refuse(path: str, _: int) -> int:
    raise OSError(28, "No space left on device", path)
