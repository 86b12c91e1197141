"""What `ringserve top` makes of two looks at the metrics."""

from __future__ import annotations

import json
import math

import click
import pytest

from ringserve.commands.top_view import as_json, parse, quantile, render, view

_FIRST = """\
# TYPE ringserve_requests_total counter
ringserve_requests_total{model="m",version="1",api="predict",entrypoint="REST",code="OK"} 100
ringserve_requests_total{model="m",version="1",api="predict",entrypoint="REST",code="INTERNAL"} 5
# TYPE ringserve_request_duration_seconds histogram
ringserve_request_duration_seconds_bucket{model="m",version="1",le="0.001"} 90
ringserve_request_duration_seconds_bucket{model="m",version="1",le="0.01"} 100
ringserve_request_duration_seconds_bucket{model="m",version="1",le="+Inf"} 100
ringserve_request_duration_seconds_count{model="m",version="1"} 100
ringserve_request_duration_seconds_sum{model="m",version="1"} 1
# TYPE ringserve_process_cpu_seconds_total counter
ringserve_process_cpu_seconds_total{process="worker-0"} 10
"""
_SECOND = """\
# TYPE ringserve_build_info gauge
ringserve_build_info{version="9.9"} 1
# TYPE ringserve_requests_total counter
ringserve_requests_total{model="m",version="1",api="predict",entrypoint="REST",code="OK"} 120
ringserve_requests_total{model="m",version="1",api="predict",entrypoint="REST",code="INTERNAL"} 6
ringserve_requests_total{model="n",version="",api="",entrypoint="REST",code="NOT_FOUND"} 4
# TYPE ringserve_request_duration_seconds histogram
ringserve_request_duration_seconds_bucket{model="m",version="1",le="0.001"} 90
ringserve_request_duration_seconds_bucket{model="m",version="1",le="0.01"} 120
ringserve_request_duration_seconds_bucket{model="m",version="1",le="+Inf"} 120
ringserve_request_duration_seconds_count{model="m",version="1"} 120
ringserve_request_duration_seconds_sum{model="m",version="1"} 1
# TYPE ringserve_batch_rows histogram
ringserve_batch_rows_bucket{model="m",version="1",signature="s",le="+Inf"} 5
ringserve_batch_rows_count{model="m",version="1",signature="s"} 5
ringserve_batch_rows_sum{model="m",version="1",signature="s"} 20
# TYPE ringserve_run_duration_seconds histogram
ringserve_run_duration_seconds_bucket{model="m",version="1",signature="s",le="+Inf"} 5
ringserve_run_duration_seconds_count{model="m",version="1",signature="s"} 5
ringserve_run_duration_seconds_sum{model="m",version="1",signature="s"} 3
# TYPE ringserve_queue_requests gauge
ringserve_queue_requests{model="m",version="1"} 7
# TYPE ringserve_queue_oldest_seconds gauge
ringserve_queue_oldest_seconds{model="m",version="1"} 0.5
# TYPE ringserve_model_version_state gauge
ringserve_model_version_state{model="m",version="1",state="AVAILABLE"} 1
ringserve_model_version_state{model="m",version="2",state="LOADING"} 1
ringserve_model_version_state{model="m",version="2",state="START"} 0
# TYPE ringserve_workers gauge
ringserve_workers{state="ready"} 3
ringserve_workers{state="loading"} 0
# TYPE ringserve_process_cpu_seconds_total counter
ringserve_process_cpu_seconds_total{process="worker-0"} 11
# TYPE ringserve_process_resident_bytes gauge
ringserve_process_resident_bytes{process="worker-0"} 2097152
# TYPE ringserve_process_proportional_bytes gauge
ringserve_process_proportional_bytes{process="worker-0"} 1048576
# TYPE ringserve_process_starts_total counter
ringserve_process_starts_total{process="worker-0"} 2
"""


def test_two_looks() -> None:
    shown = view(parse(_FIRST), parse(_SECOND), 2.0)
    assert (shown.version, shown.workers, shown.queued, shown.oldest_s) == ("9.9", {"ready": 3}, 7, 0.5)
    assert (shown.rate, shown.errors, shown.memory_bytes) == (12.5, 2.5, 1 << 20)
    new, old = shown.models
    assert (old.version, old.state, old.rate, old.errors, old.queued) == ("1", "AVAILABLE", 10.5, 0.5, 7)
    # All 20 of the interval lie between 1 and 10 ms.
    assert old.p50 == pytest.approx(0.0055)
    assert old.rows_per_batch == 4
    assert old.busy == 1.5
    assert (new.version, new.state, new.rate) == ("2", "LOADING", 0)
    assert math.isnan(new.p50)
    (process,) = shown.processes
    assert process == ("worker-0", 0.5, 1 << 20, 2 << 20, 2)


def test_a_counter_that_began_anew_counts_from_nothing() -> None:
    shown = view(parse(_SECOND), parse(_FIRST), 1.0)
    assert shown.rate == 105


def test_it_is_shown_and_told() -> None:
    shown = view(parse(_FIRST), parse(_SECOND), 2.0)
    text = click.unstyle("\n".join(render(shown, "http://h:1")))
    for part in ("ringserve 9.9 at http://h:1", "3 ready", "5.5 ms", "AVAILABLE", "150%", "1.0 MiB"):
        assert part in text
    told = json.loads(json.dumps(as_json(shown), allow_nan=False))
    assert told["models"][0]["p50"] is None
    assert told["processes"][0]["name"] == "worker-0"
    assert "no models" in "\n".join(render(view({}, {}, 1.0), "u"))


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({1.0: 10, 2.0: 10, math.inf: 10}, 0.5, 0.5),
        ({1.0: 0, 2.0: 10, math.inf: 10}, 0.5, 1.5),
        ({1.0: 0, 2.0: 0, math.inf: 10}, 0.5, 2.0),
        ({1.0: 5, 2.0: 10, math.inf: 10}, 1.0, 2.0),
    ],
)
def test_quantiles_are_prometheus_s(buckets: dict[float, float], share: float, expected: float) -> None:
    assert quantile(buckets, share) == expected


def test_no_observations_no_quantile() -> None:
    assert math.isnan(quantile({}, 0.5))
    assert math.isnan(quantile({1.0: 0, math.inf: 0}, 0.5))
