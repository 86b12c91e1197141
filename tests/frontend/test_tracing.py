"""Who is traced, and what becomes of the headers that say so: they are written by clients."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ringserve.config.tracing import Tracing

pytest.importorskip("opentelemetry.sdk", reason="the extra 'otel' is not installed")
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ringserve.frontend.http1.exchange import Head
from ringserve.frontend.tracing import Tracer
from tests.frontend.rest.served import FakeExchange

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"


def tracer_of(**settings: Any) -> tuple[Tracer, InMemorySpanExporter]:
    spans = InMemorySpanExporter()
    return Tracer(Tracing(endpoint="http://x", **settings), "frontend-0", lambda end: end(), spans), spans


def began(headers: dict[str, str], **settings: Any) -> Any:
    """The span of a request with these headers; None when it is not traced."""
    tracer, spans = tracer_of(**settings)
    trace = tracer.begin("GET /v1/", headers.items(), {})
    if trace is not None:
        trace.end()
    tracer.close()
    found = spans.get_finished_spans()
    return found[0] if found else None


@pytest.mark.parametrize(
    ("header", "share", "follows", "is_traced", "is_below"),
    [
        (SAMPLED, 0.0, True, True, True),
        (UNSAMPLED, 1.0, True, False, False),
        ("nonsense", 1.0, True, True, False),
        ("nonsense", 0.0, True, False, False),
        (SAMPLED, 1.0, False, False, False),
        ("", 1.0, False, True, False),
        ("", 0.0, True, False, False),
    ],
)
def test_who_is_traced(header: str, share: float, follows: bool, is_traced: bool, is_below: bool) -> None:
    headers = {"traceparent": header} if header else {}
    span = began(headers, share=share, follow_clients=follows)
    assert (span is not None) == is_traced
    assert (span is not None and span.parent is not None) == is_below


def test_a_tracestate_goes_on_unless_it_is_long() -> None:
    for size, kept in ((500, 1), (600, 0)):
        state = "a=" + "b" * 250 + ",c=" + "d" * (size - 255)
        span = began({"traceparent": SAMPLED, "tracestate": state})
        assert span.parent.span_id == 0xB7AD6B7169203331
        assert bool(span.context.trace_state) == bool(kept)


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize(
    "state", ["\x9b31mEVIL,x", "a=b,a=c", "x=" + "y" * 300, "=", ",".join(f"k{n}=v" for n in range(40))]
)
def test_nothing_of_these_headers_is_logged(caplog: pytest.LogCaptureFixture, state: str, follows: bool) -> None:
    caplog.set_level(logging.DEBUG)
    for header in (SAMPLED, UNSAMPLED, "\x9b31m", "00-" + "0" * 32 + "-b7ad6b7169203331-01"):
        began({"traceparent": header, "tracestate": state}, follow_clients=follows)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry.trace")]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/v1/models/m", "GET /v1/"),
        ("/V1/models/m", "GET /v1/"),
        ("/v2/models/m", "GET /v2/"),
        ("/v2/models/m/ready", None),
        ("/v2/models/m/versions/1/ready?x", None),
        ("/v2/health/ready", None),
        ("/healthz", None),
        ("/ringserve/v1/models", None),
    ],
)
def test_which_rest_requests_are_traced(target: str, name: str | None) -> None:
    tracer, spans = tracer_of(share=1.0)
    tracer.rest(lambda exchange: exchange.answer(200))(FakeExchange(Head("GET", target, ()), b""))
    tracer.close()
    assert [span.name for span in spans.get_finished_spans()] == ([name] if name else [])
