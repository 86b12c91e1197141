"""OpenTelemetry traces: a sampled request's way through frontend, queue, batch and TensorFlow, told from here alone.

    gRPC call, REST request ─▶ Trace (server span) ─▶ TracedClient.infer ─▶ TracedReply: queue and run spans
                                                                               └─ batch span, linked to all of them

Workers say in each Result when TensorFlow ran; clocks are the host's one monotonic clock. So neither broker nor workers
know of traces, and a request that is not sampled pays for the look at its headers. Without `[tracing] endpoint` nothing
of this is there, and OpenTelemetry is not imported.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

from ringserve.broker.messages import Result
from ringserve.config.tracing import Tracing
from ringserve.frontend.handler import Buffer, Call, Methods, UnaryHandler
from ringserve.frontend.http1.exchange import Exchange, Handler, Head
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output, Reply
from ringserve.frontend.passing import GONE, PassedCall, PassedClient, PassedExchange, WholeClient
from ringserve.frontend.rest_routes import WATCHERS_V2, is_of_watchers

_TRACEPARENT: Final = "traceparent"
_TRACESTATE: Final = "tracestate"
_HEADERS: Final = (_TRACEPARENT, _TRACESTATE)
#: Who gets more need not pass it on (W3C Trace Context, 3.3.1.5), and it would go out with each span.
_TRACESTATE_BYTES_MAX: Final = 512
#: What reads these headers writes what is wrong with them into the log, as they are.
_TALKATIVE: Final = "opentelemetry.trace"
_GONE_TEXT: Final = "the client has gone"


#: The trace of the request that is being handled; tasks that a handler starts inherit it.
_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def trace_id() -> str:
    """Of the request that is being handled; empty when it is not traced."""
    trace = _current.get()
    return trace.trace_id if trace is not None else ""


class Tracer:
    """Decides who is traced, and makes the spans. Owns the exporter, whose thread sends what has ended.

    later: runs a function at the end of the loop's turn (its call_soon). exporter: where spans go; None: by OTLP to the
    endpoint.
    """

    def __init__(
        self, settings: Tracing, process: str, later: Callable[[Callable[[], None]], Any], exporter: Any = None
    ) -> None:
        from opentelemetry import context, trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=settings.endpoint)
        about = {"service.name": settings.service_name, "service.instance.id": process}
        logging.getLogger(_TALKATIVE).setLevel(logging.CRITICAL)
        # Who is traced is decided here, before there is a span.
        self._provider = TracerProvider(ALWAYS_ON, Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ringserve")
        self._extract = TraceContextTextMapPropagator().extract
        self._otel = trace
        self._nowhere = context.Context()
        self._follows = settings.follow_clients
        self._share = settings.share
        self._later = later
        #: Monotonic to wall clock. Fixed, so that the spans of a trace never disagree.
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._batch: tuple[Result, Any] | None = None

    def begin(self, name: str, headers: Iterable[tuple[str, str]], attributes: dict[str, Any]) -> Trace | None:
        """The trace of a request that has just come; None when it is not sampled.

        headers: those of traceparent and tracestate that it has.
        """
        carrier = dict(headers)
        above = self._nowhere
        is_followed = False
        if _TRACEPARENT in carrier:
            if not self._follows:
                return None
            if len(carrier.get(_TRACESTATE, "")) > _TRACESTATE_BYTES_MAX:
                del carrier[_TRACESTATE]
            above = self._extract(carrier, above)
            caller = self._otel.get_current_span(above).get_span_context()
            is_followed = caller.is_valid
            if is_followed and not caller.trace_flags.sampled:
                return None
        if not is_followed and random.random() >= self._share:
            return None
        began_ns = self.wall_ns(time.monotonic_ns())
        kind = self._otel.SpanKind.SERVER
        return Trace(self, self._tracer.start_span(name, above, kind, attributes, start_time=began_ns))

    def wall_ns(self, monotonic_ns: int) -> int:
        """The same moment by the wall clock."""
        return monotonic_ns + self._offset_ns

    def ran(self, span: Any, submitted_ns: int, result: Result, lane: Lane) -> None:
        """A traced request was part of a batch: its queue and run spans, and its link from the batch's."""
        began_ns, ended_ns, rows = result.run
        began_ns, ended_ns, queued_ns = self.wall_ns(began_ns), self.wall_ns(ended_ns), self.wall_ns(submitted_ns)
        inside = self._otel.set_span_in_context(span, self._nowhere)
        self._tracer.start_span("queue", inside, start_time=queued_ns).end(max(began_ns, queued_ns))
        batch = self._batch_span(result, lane, rows)
        links = [self._otel.Link(batch.get_span_context())]
        self._tracer.start_span("run", inside, start_time=began_ns, links=links).end(ended_ns)
        batch.add_link(span.get_span_context())

    def _batch_span(self, result: Result, lane: Lane, rows: int) -> Any:
        """One for all traced requests of a batch that this frontend has."""
        if self._batch is not None and self._batch[0] is result:
            return self._batch[1]
        about: dict[str, Any] = {
            "ringserve.model": lane.spec.model,
            "ringserve.version": lane.spec.version,
            "ringserve.rows": rows,
            "ringserve.worker": result.worker_id,
            "ringserve.batch": result.batch_id,
        }
        began_ns, ended_ns, _ = result.run
        span = self._tracer.start_span("batch", self._nowhere, attributes=about, start_time=self.wall_ns(began_ns))
        self._batch = (result, span)

        def end() -> None:
            self._batch = None
            span.end(self.wall_ns(ended_ns))

        self._later(end)
        return span

    def ended(self, span: Any, error: str) -> None:
        """The request is answered; error: what it was told, if it failed."""
        if error:
            span.set_status(self._otel.StatusCode.ERROR, error)
        span.end(self.wall_ns(time.monotonic_ns()))

    # ----------------------------------------------------------------------------------------------------- the ways in

    def methods(self, methods: Methods) -> Methods:
        """The gRPC methods, unary ones traced."""
        return replace(methods, unary={path: self._unary(path, each) for path, each in methods.unary.items()})

    def _unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:
        name = path[1:]
        service, _, method = name.partition("/")
        about = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}

        def traced(call: Call, message: Buffer) -> None:
            found = [(key, value.decode("latin-1")) for key, value in call.metadata if key in _HEADERS]
            trace = self.begin(name, found, about)
            if trace is None:
                handler(call, message)
                return
            token = _current.set(trace)
            try:
                handler(TracedCall(call, trace), message)
            finally:
                _current.reset(token)

        return traced

    def rest(self, handler: Handler) -> Handler:
        """The REST application, requests of its API traced."""

        def traced(exchange: Exchange) -> None:
            head = exchange.head
            if not _is_traced(head):
                handler(exchange)
                return
            found = [(each, value.decode("latin-1")) for each in _HEADERS if (value := head.get(each.encode()))]
            about = {"http.request.method": head.method, "url.path": head.target.partition("?")[0]}
            trace = self.begin(f"{head.method} {head.target[:4].lower()}", found, about)
            if trace is None:
                handler(exchange)
                return
            token = _current.set(trace)
            try:
                handler(TracedExchange(exchange, trace))
            finally:
                _current.reset(token)

        return traced

    def client(self, client: WholeClient) -> TracedClient:
        """The client as traced handlers may have it."""
        return TracedClient(client)

    def close(self) -> None:
        """Send what has ended, as far as that works, and end the exporter's thread."""
        self._provider.shutdown()


def _is_traced(head: Head) -> bool:
    """REST requests that are traced: all below /v1, whose letter case does not matter, and what asks for models below
    /v2; not health, metrics and operators' requests."""
    target = head.target
    if not target.startswith("/v2/models/"):
        return target[:4].lower() == "/v1/"
    path = target.partition("?")[0]
    return not (path.endswith(WATCHERS_V2) and is_of_watchers(head.method, path))


class Trace:
    """One sampled request. Ends once, with its answer."""

    __slots__ = ("_is_over", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._is_over = False

    def note(self, attributes: dict[str, Any]) -> None:
        """Add to what the server span says."""
        self._span.set_attributes(attributes)

    def ran(self, submitted_ns: int, result: Result | None, lane: Lane) -> None:
        """The request, or the last part of it, has been run in this batch."""
        if result is not None and len(result.run) == 3:
            self._tracer.ran(self._span, submitted_ns, result, lane)

    @property
    def trace_id(self) -> str:
        """As traceparent has it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def end(self, error: str = "") -> None:
        """The request is answered, or nobody waits for its answer any more."""
        if not self._is_over:
            self._is_over = True
            self._tracer.ended(self._span, error)


class TracedReply:
    """Waits for a traced request; passes its answer on. api: what the recorder looks for."""

    __slots__ = ("_client", "_lane", "_reply", "_submitted_ns", "_trace", "api")

    def __init__(self, reply: Reply, trace: Trace, client: WholeClient, lane: Lane) -> None:
        self._reply = reply
        self._trace = trace
        self._client = client
        self._lane = lane
        self._submitted_ns = time.monotonic_ns()
        self.api = getattr(reply, "api", "")

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        self._trace.ran(self._submitted_ns, self._client.result, self._lane)
        self._reply.answer(outputs, row_first, rows)

    def fail(self, code: int, text: str) -> None:
        self._trace.ran(self._submitted_ns, self._client.result, self._lane)
        self._reply.fail(code, text)


class TracedClient(PassedClient):
    """The client, which sees what becomes of traced requests."""

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int:
        """See Client."""
        trace = _current.get()
        if trace is not None:
            spec = lane.spec
            trace.note(
                {
                    "ringserve.model": spec.model,
                    "ringserve.version": spec.version,
                    "ringserve.signature": spec.signature,
                    "ringserve.request.rows": rows,
                }
            )
            reply = TracedReply(reply, trace, self._client, lane)
        return self._client.infer(lane, rows, payloads, timeout_ns, reply)


class TracedCall(PassedCall):
    """A gRPC call that ends its trace."""

    def __init__(self, call: Call, trace: Trace) -> None:
        super().__init__(call)
        self._trace = trace

    def over(self, code: int, text: str) -> None:
        if code == GONE:
            self._trace.end(_GONE_TEXT)
            return
        self._trace.note({"rpc.grpc.status_code": int(code)})
        self._trace.end(text)


class TracedExchange(PassedExchange):
    """A REST request that ends its trace."""

    def __init__(self, exchange: Exchange, trace: Trace) -> None:
        super().__init__(exchange)
        self._trace = trace

    def over(self, status: int) -> None:
        if status == GONE:
            self._trace.end(_GONE_TEXT)
            return
        self._trace.note({"http.response.status_code": status})
        self._trace.end(f"HTTP {status}" if status >= 400 else "")
