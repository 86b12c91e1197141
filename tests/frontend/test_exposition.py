"""The metrics pages: TF Serving's text to the letter (spec 8.2), and one that Prometheus's own parser reads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ringserve.broker.messages import Code, LaneSpec, VersionState
from ringserve.config import metrics
from ringserve.config.metric_family import COUNTER
from ringserve.config.metric_file import MetricFile
from ringserve.frontend.exposition import CONTENT_TYPE, Exposition, Found
from ringserve.frontend.lanes import Lane
from ringserve.frontend.metric_scope import MetricScope
from ringserve.frontend.metric_sums import Cell, MetricSums
from ringserve.frontend.tally import GRPC, REST, Tally
from tests.frontend.fakes import catalog_of, version_info

GOLDEN = """\
# TYPE :tensorflow:cc:saved_model:load_attempt_count counter
:tensorflow:cc:saved_model:load_attempt_count{model_path="/m/a \\"b\\" \\\\ c
d",status="success"} 12345678
# TYPE :tensorflow:cc:saved_model:load_latency counter
# TYPE :tensorflow:serving:batching_session:input_batch_size histogram
:tensorflow:serving:batching_session:input_batch_size_bucket{le="1"} 0
:tensorflow:serving:batching_session:input_batch_size_bucket{le="2"} 1
:tensorflow:serving:batching_session:input_batch_size_bucket{le="4"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="8"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="16"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="32"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="64"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="128"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="256"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="512"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="1024"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="2048"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="4096"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="8192"} 3
:tensorflow:serving:batching_session:input_batch_size_bucket{le="+Inf"} 4
:tensorflow:serving:batching_session:input_batch_size_sum{} 2.52873e+08
:tensorflow:serving:batching_session:input_batch_size_count{} 4
# TYPE :tensorflow:serving:batching_session:padding_size histogram
# TYPE :tensorflow:serving:batching_session:processed_batch_size histogram
# TYPE :tensorflow:serving:batching_session:queuing_latency histogram
# TYPE :tensorflow:serving:batching_session:wrapped_run_count counter
:tensorflow:serving:batching_session:wrapped_run_count{} 3
# TYPE :tensorflow:serving:mlmd_map gauge
# TYPE :tensorflow:serving:model_warmup_latency histogram
# TYPE :tensorflow:serving:model_warmup_records_read counter
# TYPE :tensorflow:serving:request_count counter
:tensorflow:serving:request_count{model_name="",status="INVALID_ARGUMENT"} 1
:tensorflow:serving:request_count{model_name="default",status="NOT_FOUND"} 1
:tensorflow:serving:request_count{model_name="default",status="OK"} 1
# TYPE :tensorflow:serving:request_example_count_total counter
# TYPE :tensorflow:serving:request_example_counts histogram
# TYPE :tensorflow:serving:request_latency histogram
# TYPE :tensorflow:serving:request_log_count counter
# TYPE :tensorflow:serving:runtime_latency histogram
"""


@pytest.fixture
def file(tmp_path: Path) -> MetricFile:
    return MetricFile(str(tmp_path), "frontend-0")


def _exposition(tmp_path: Path, file: MetricFile, **more: Any) -> tuple[Tally, Exposition]:
    sums = MetricSums(str(tmp_path))
    tally = Tally(file, sums=sums)
    return tally, Exposition(sums, tally, **more)


async def test_8_2_the_page_to_the_letter(tmp_path: Path, file: MetricFile) -> None:
    _, exposition = _exposition(tmp_path, file)
    file.add(metrics.LOAD_ATTEMPT_COUNT, ('/m/a "b" \\ c\nd', "success"), 12_345_678)
    file.add(metrics.WRAPPED_RUN_COUNT, (), 3)
    for name, status in (("default", "OK"), ("default", "NOT_FOUND"), ("", "INVALID_ARGUMENT")):
        file.add(metrics.REQUEST_COUNT, (name, status))
    file.observe(metrics.INPUT_BATCH_SIZE, (), ((1, 1), (2, 2), (14, 1)), 252_873_123)
    assert (await exposition.render_tfs()).decode() == GOLDEN


async def test_8_2_latencies_of_a_request(tmp_path: Path, file: MetricFile) -> None:
    tally, exposition = _exposition(tmp_path, file)
    tally.clock_ns = lambda: 1_000_000_000
    tally.request(REST, "predict", "default", Code.OK, 1_000_000_000 - 1_234_567)
    lines = (await exposition.render_tfs()).decode().splitlines()
    name, labels = ":tensorflow:serving:request_latency", 'model_name="default",API="predict",entrypoint="REST"'
    found = [line for line in lines if line.startswith(name)]
    assert len(found) == 34 + 2
    assert found[0] == f'{name}_bucket{{{labels},le="10"}} 0'
    assert found[4] == f'{name}_bucket{{{labels},le="104.976"}} 0'
    assert found[8:10] == [
        f'{name}_bucket{{{labels},le="1102"}} 0',
        f'{name}_bucket{{{labels},le="1983.59"}} 1',
    ]
    assert found[32:] == [
        f'{name}_bucket{{{labels},le="1.47476e+09"}} 1',
        f'{name}_bucket{{{labels},le="+Inf"}} 1',
        f"{name}_sum{{{labels}}} 1234.57",
        f"{name}_count{{{labels}}} 1",
    ]


def _fill(file: MetricFile) -> None:
    """Every family, with labels that need care."""
    for family in (*metrics.TFS, *metrics.OWN):
        for text in ('plain', 'a "quoted" \\ b'):
            labels = tuple(f"{label} {text}" for label in family.labels)
            if family.kind == COUNTER:
                file.add(family, labels, 5)
            elif family.kind == "gauge":
                file.set(family, labels, 1.5)
            else:
                file.observe(family, labels, [(0, 1), (len(family.limits), 2)], 7.25)


async def test_prometheus_reads_both_pages(tmp_path: Path, file: MetricFile) -> None:
    _fill(file)
    _, exposition = _exposition(tmp_path, file)
    whole, content_type = await exposition.render()
    assert content_type == CONTENT_TYPE
    for page, families in ((await exposition.render_tfs(), metrics.TFS), (whole, (*metrics.TFS, *metrics.OWN))):
        parsed = {family.name: family for family in text_string_to_metric_families(page.decode())}
        assert len(parsed) == len(families)
        for family in families:
            # The parser calls a counter's family by its name without _total, and its samples by that with it.
            name = family.exposed.removesuffix("_total") if family.kind == COUNTER else family.exposed
            read = parsed[name]
            assert read.type == family.kind
            labels = {label: f'{label} a "quoted" \\ b' for label in family.labels}
            values = {
                (sample.name.removeprefix(name).removeprefix("_total"), sample.labels.get("le", "")): sample.value
                for sample in read.samples
                if {name: value for name, value in sample.labels.items() if name != "le"} == labels
            }
            cells = 2 if not family.labels else 1  # without labels both fillings are one cell
            if family.kind == "histogram":
                assert len(values) == len(family.limits) + 3
                assert values["_bucket", "+Inf"] == values["_count", ""] == 3 * cells
                assert values["_sum", ""] == 7.25 * cells
            else:
                assert values == {("", ""): 5 * cells if family.kind == COUNTER else 1.5}


async def test_a_series_has_the_same_labels_on_both_pages(tmp_path: Path, file: MetricFile) -> None:
    _fill(file)
    _, exposition = _exposition(tmp_path, file)
    theirs = {line.rpartition(" ")[0] for line in (await exposition.render_tfs()).decode().splitlines()}
    ours = {line.rpartition(" ")[0] for line in (await exposition.render())[0].decode().splitlines()}
    # (Without labels TF Serving writes braces, and Prometheus none.)
    assert {line for line in theirs if not line.startswith("#") and not line.endswith("{}")} <= ours


async def test_every_family_has_help_and_type(tmp_path: Path, file: MetricFile) -> None:
    _, exposition = _exposition(tmp_path, file)
    lines = (await exposition.render())[0].decode().splitlines()
    assert lines[::2] == [f"# HELP {f.exposed} {f.why}" for f in (*metrics.OWN, *metrics.TFS)]
    assert lines[1::2] == [f"# TYPE {f.exposed} {f.kind}" for f in (*metrics.OWN, *metrics.TFS)]


async def test_what_is_looked_up_stands_beside_what_was_counted(tmp_path: Path, file: MetricFile) -> None:
    async def look() -> Found:
        file.set(metrics.PENDING, ("frontend-0",), 4)  # set at the scrape, so it must be on the page
        return {metrics.WORKERS.name: [Cell(("ready",), [2.0])], metrics.PROCESS_STARTS.name: [Cell(("pool",), [1.0])]}

    file.add(metrics.PROCESS_STARTS, ("frontend-0",), 3)
    _, exposition = _exposition(tmp_path, file, look=look)
    lines = (await exposition.render())[0].decode().splitlines()
    assert 'ringserve_workers{state="ready"} 2' in lines
    assert 'ringserve_requests_pending{process="frontend-0"} 4' in lines
    assert 'ringserve_process_starts_total{process="pool"} 1' in lines
    assert 'ringserve_process_starts_total{process="frontend-0"} 3' in lines


async def test_models_and_versions_that_are_gone_are_not_shown(tmp_path: Path, file: MetricFile) -> None:
    catalog = catalog_of(version_info(version=1, state=VersionState.END), version_info(version=2))
    tally, exposition = _exposition(tmp_path, file, scope=MetricScope(catalog))
    for model, version in (("default", 1), ("default", 2), ("removed", 1)):
        lane = Lane(LaneSpec(model, version, "s", (), ("y",), True))
        tally.request(GRPC, "Predict", model, Code.OK, tally.clock_ns(), lane)
    page = (await exposition.render())[0].decode()
    assert 'model="default",version="2"' in page
    assert 'model="default",version="1"' not in page
    assert "removed" not in page
    assert ':tensorflow:serving:request_count{model_name="default",status="OK"} 2' in page


async def test_a_long_page_lets_the_loop_go_on(tmp_path: Path, file: MetricFile) -> None:
    for number in range(200):
        labels = (f"model-{number}", "Predict", "GRPC")
        file.observe(metrics.REQUEST_LATENCY, labels, ((3, 1),), 5)
    _, exposition = _exposition(tmp_path, file)
    turns = 0
    page = asyncio.create_task(exposition.render_tfs())
    while not page.done():
        turns += 1
        await asyncio.sleep(0)
    assert len(page.result().splitlines()) > 200 * 36
    assert turns > 5
