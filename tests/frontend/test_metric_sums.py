"""Summing up the metric files of all processes while they are written."""

from __future__ import annotations

import os
from pathlib import Path

from ringserve.config import metrics
from ringserve.config.metric_file import MetricFile
from ringserve.frontend.metric_sums import Cell, MetricSums


def test_sums_follow_the_files(tmp_path: Path) -> None:
    sums = MetricSums(str(tmp_path))
    sums.read()
    assert sums.cells(metrics.REQUEST_COUNT) == []
    first, second = MetricFile(str(tmp_path), "a"), MetricFile(str(tmp_path), "b")
    first.add(metrics.REQUEST_COUNT, ("y", "OK"), 2)
    sums.read()
    assert sums.cells(metrics.REQUEST_COUNT) == [Cell(("y", "OK"), [2])]
    first.add(metrics.REQUEST_COUNT, ("y", "OK"), 3)
    second.add(metrics.REQUEST_COUNT, ("x", "OK"), 7)
    second.add(metrics.REQUEST_COUNT, ("y", "OK"), 10)
    assert sums.cells(metrics.REQUEST_COUNT) == [Cell(("y", "OK"), [2])]
    sums.read()
    assert sums.cells(metrics.REQUEST_COUNT) == [Cell(("x", "OK"), [7]), Cell(("y", "OK"), [15])]


def test_a_histogram_has_every_bucket_and_its_sum(tmp_path: Path) -> None:
    file = MetricFile(str(tmp_path), "a")
    file.observe(metrics.EXAMPLE_COUNTS, ("m",), ((3, 2), (15, 1)), 50_000.5)
    sums = MetricSums(str(tmp_path))
    sums.read()
    (cell,) = sums.cells(metrics.EXAMPLE_COUNTS)
    assert cell.values == [0, 0, 0, 2, *[0] * 11, 1, 50_000.5]


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    file, other = MetricFile(str(tmp_path), "a"), MetricFile(str(tmp_path), "b")
    sums = MetricSums(str(tmp_path))
    for number in range(1200):
        file.add(metrics.REQUEST_COUNT, (f"model-{number:04}", "OK"), number)
    other.add(metrics.REQUEST_COUNT, ("model-1199", "OK"), 1)
    sums.read()
    assert len(sums.cells(metrics.REQUEST_COUNT)) == 1200
    file.forget(lambda _, labels: labels[0] < "model-1198")
    file.add(metrics.REQUEST_COUNT, ("new", "OK"), 5)
    sums.read()
    assert sums.cells(metrics.REQUEST_COUNT) == [
        Cell(("model-1198", "OK"), [1198]),
        Cell(("model-1199", "OK"), [1200]),
        Cell(("new", "OK"), [5]),
    ]


def test_files_of_nobody_we_know_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "counter_empty.db").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    file = MetricFile(str(tmp_path), "a")
    file.add(metrics.WRAPPED_RUN_COUNT, ())
    sums = MetricSums(str(tmp_path))
    sums.read()
    assert sums.cells(metrics.WRAPPED_RUN_COUNT) == [Cell((), [1])]


def test_where_others_write_nothing_is_opened(tmp_path: Path) -> None:
    """Whoever opened their pipe would wait for them."""
    file, sums = MetricFile(str(tmp_path), "a"), MetricSums(str(tmp_path))
    file.add(metrics.PROCESS_STARTS, ("a",))
    os.mkfifo(tmp_path / "counter_theirs.db")
    tmp_path.chmod(0o777)
    sums.read()
    assert sums.cells(metrics.PROCESS_STARTS) == []
