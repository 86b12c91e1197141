"""Traces of a whole server, as an OpenTelemetry collector gets them."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.clients import make_request
from tests.e2e.server import Server, wait_until

pytest.importorskip("opentelemetry.sdk", reason="the extra 'otel' is not installed")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SERVER_KIND, ERROR = 2, 2


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP, and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def of(self, trace: str) -> dict[str, Any]:
        """The spans of this trace by name; each name once."""
        found = [span for span in self.spans if span.trace_id.hex() == trace]
        by_name = {span.name: span for span in found}
        assert len(by_name) == len(found), [span.name for span in found]
        return by_name

    def wait_for(self, trace: str, count: int) -> dict[str, Any]:
        wait_until(lambda: len(self.of(trace)) >= count, f"{count} spans of {trace}; there are {self.of(trace)}")
        return self.of(trace)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(models: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"
    arguments = ["--model_name", "mlp", "--model_base_path", str(models / "mlp"), "--workers", "1", "--frontends", "1"]
    # The exporter sends after so many ms; its default of 5 s would only make the tests slow.
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    arguments += ["--tracing_endpoint", endpoint, "--tracing_share", "0"]
    folder = tmp_path_factory.mktemp("server")
    arguments += ["--access_log", str(folder / "access.log"), "--log_format", "json"]
    with Server(folder, *arguments, environment=environment) as server:
        server.wait_available("mlp")
        yield server


def parent(trace: str, *, sampled: bool = True) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace}-{CALLER}-{'01' if sampled else '00'}"),)


def about(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def inside(outer: Any, inner: Any) -> bool:
    start, end = outer.start_time_unix_nano, outer.end_time_unix_nano
    return bool(start <= inner.start_time_unix_nano <= inner.end_time_unix_nano <= end)


def test_a_sampled_calls_way_through_the_server(stub: Any, collector: Collector) -> None:
    request = make_request("mlp", x=np.zeros((3, 784), np.float32))
    stub.Predict(request, timeout=60, metadata=parent(TRACE))
    spans = collector.wait_for(TRACE, 3)
    top = spans["tensorflow.serving.PredictionService/Predict"]
    assert top.kind == SERVER_KIND
    assert top.parent_span_id.hex() == CALLER
    told = about(top)
    assert (told["ringserve.model"], told["ringserve.version"], told["ringserve.request.rows"]) == ("mlp", 1, 3)
    assert told["rpc.method"] == "Predict"
    queue, run = spans["queue"], spans["run"]
    assert queue.parent_span_id == run.parent_span_id == top.span_id
    assert inside(top, queue)
    assert inside(top, run)
    assert queue.end_time_unix_nano <= run.start_time_unix_nano
    (link,) = run.links
    batch = wait_until(lambda: collector.of(link.trace_id.hex()).get("batch"), "the batch's span")
    assert batch.span_id == link.span_id
    assert [each.span_id for each in batch.links] == [top.span_id]
    assert about(batch)["ringserve.rows"] == 3


def test_calls_that_ran_together_are_linked_from_one_batch(stub: Any, collector: Collector) -> None:
    request = make_request("mlp", x=np.zeros((1, 784), np.float32))

    def call(number: int) -> str:
        trace = f"{number:032x}"
        stub.Predict(request, timeout=60, metadata=parent(trace))
        return trace

    with ThreadPoolExecutor(16) as threads:
        traces = list(threads.map(call, range(1, 129)))
    tops = {collector.wait_for(trace, 3)["tensorflow.serving.PredictionService/Predict"].span_id for trace in traces}
    wait_until(lambda: tops <= _linked(collector), "every call to be linked from a batch")
    shared = [span for span in collector.spans if span.name == "batch" and len(span.links) > 1]
    assert shared, "16 callers at once never shared a batch"
    assert all(about(span)["ringserve.rows"] >= len(span.links) for span in shared)


def _linked(collector: Collector) -> set[bytes]:
    return {link.span_id for span in collector.spans if span.name == "batch" for link in span.links}


def test_rest_requests_and_failures(server: Server, collector: Collector) -> None:
    good, bad = f"{10_001:032x}", f"{10_002:032x}"
    for trace, model in ((good, "mlp"), (bad, "nobody")):
        body = json.dumps({"instances": [[0.5] * 784]}).encode()
        server.post(f"/v1/models/{model}:predict", body, dict(parent(trace)))
    spans = collector.wait_for(good, 3)
    assert spans.keys() == {"POST /v1/", "queue", "run"}
    assert about(spans["POST /v1/"])["http.response.status_code"] == 200
    (failed,) = collector.wait_for(bad, 1).values()
    assert failed.status.code == ERROR
    assert about(failed)["http.response.status_code"] == 404
    assert about(failed)["url.path"] == "/v1/models/nobody:predict"


def test_who_does_not_ask_for_it_is_not_traced(server: Server, stub: Any, collector: Collector) -> None:
    unsampled, after = f"{20_001:032x}", f"{20_002:032x}"
    request = make_request("mlp", x=np.zeros((1, 784), np.float32))
    stub.Predict(request, timeout=60, metadata=parent(unsampled, sampled=False))
    stub.Predict(request, timeout=60)  # a share of 0
    stub.Predict(request, timeout=60, metadata=(("traceparent", "00-nonsense"),))
    urllib.request.urlopen(f"{server.rest_url}/healthz", timeout=30).close()
    stub.Predict(request, timeout=60, metadata=parent(after))
    collector.wait_for(after, 3)  # spans are sent in order
    assert not collector.of(unsampled)
    requests = [span for span in collector.spans if span.kind == SERVER_KIND]
    assert all(span.parent_span_id.hex() == CALLER for span in requests)


def test_the_access_log_names_the_trace(server: Server, stub: Any) -> None:
    request = make_request("mlp", x=np.zeros((1, 784), np.float32))
    for request_id, sampled in (("traced", True), ("untraced", False)):
        metadata = (*parent("9" * 32, sampled=sampled), ("x-request-id", request_id))
        stub.Predict(request, timeout=60, metadata=metadata)
    path = server.directory / "access.log"

    def lines() -> dict[str, Any]:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["request_id"]: line for line in found}

    found = wait_until(lambda: lines() if {"traced", "untraced"} <= {*lines()} else None, "both lines")
    assert found["traced"]["trace_id"] == "9" * 32
    assert "trace_id" not in found["untraced"]
