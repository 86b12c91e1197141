"""The access log: one line for each call of a client, or for those that `access_lines.Choice` takes.

    gRPC call, REST request ─▶ Record ─▶ LoggedCall, LoggedExchange ─▶ handler ─▶ LoggedClient.infer
                                             └─ its end ─▶ Choice ─▶ a line, and an id if it has none

Built around handlers and client like traces, inside of them. Health checks, metrics, the console, streams and what
operators ask are not in it; the last has a log of its own (`audit.py`). Without `[access_log] to` nothing of this is
there.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

from ringserve.broker.messages import Result
from ringserve.config import process
from ringserve.config.access_log import STDERR, AccessLog
from ringserve.frontend import request_ids
from ringserve.frontend.access_lines import Choice, LineMaker, error_of, status_of
from ringserve.frontend.handler import Buffer, Call, Methods, Refused, UnaryHandler
from ringserve.frontend.http1.exchange import JSON, Exchange, Handler, Head
from ringserve.frontend.lanes import Lane
from ringserve.frontend.log_file import LogFile
from ringserve.frontend.outputs import Reply
from ringserve.frontend.passing import PassedCall, PassedClient, PassedExchange, WholeClient
from ringserve.frontend.rest_routes import ADMIN, WATCHERS_V2, Route, is_api, is_of_watchers, is_open_inference, route
from ringserve.frontend.wire_walk import model_sent

GRPC: Final = "grpc"
REST: Final = "rest"

_SERVICES: Final = ("/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/GetModelStatus")
#: Over REST: how that begins which may be asked by those who watch a server. Others are not looked at more closely.
_WATCHED: Final = ("/healthz", "/readyz", "/metrics", ADMIN)
_FLUSH_S: Final = 0.1
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
_INTERNAL: Final = 13
#: How much of a message is searched for the name of a model, and how long an answer may be to be read for its error.
_HEAD_BYTES_MAX: Final = 4_096

#: The request that is being handled; tasks that a handler starts inherit it.
_current: ContextVar[Record | None] = ContextVar("record", default=None)


class Record:
    """What is known of one request until it ends.

    request_id: empty while it has none. made_id: the same where it is ours. is_running: it was handed to the client.
    message: over gRPC, as long as it is valid. error_body: JSON that says what went wrong.
    """

    __slots__ = (
        "began_ns", "error_body", "is_running", "key", "lane", "made_id", "message", "method", "model", "path", "peer",
        "protocol", "request_bytes", "request_id", "response_bytes", "rows", "trace", "version",
    )  # fmt: skip

    def __init__(self, protocol: str, method: str, path: str, peer: str, request_id: str, began_ns: int) -> None:
        self.protocol = protocol
        self.method = method
        self.path = path
        self.peer = peer
        self.request_id = request_id
        self.began_ns = began_ns
        self.made_id = ""
        self.key = ""
        self.trace = ""
        self.model = ""
        self.version: int | None = None
        self.lane: Lane | None = None
        self.rows: int | None = None
        self.is_running = False
        self.request_bytes = 0
        self.response_bytes = 0
        self.error_body = b""
        self.message: Buffer = b""

    def identified(self) -> str:
        """Its id, made now if it has none yet."""
        if not self.request_id:
            self.request_id = self.made_id = request_ids.make()
        return self.request_id


class AccessLogger:
    """The access log of one frontend. Owns the file.

    later: runs a function after so many seconds (call_later). count: told how many lines ended how. trace: the id of
    the trace that the present request belongs to. chance: see Choice.
    """

    def __init__(
        self,
        settings: AccessLog,
        maker: LineMaker,
        later: Callable[[float, Callable[[], None]], Any],
        count: Callable[[str, int], None],
        *,
        trace: Callable[[], str] = lambda: "",
        metrics_path: str = "",
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.clock_ns = time.monotonic_ns
        self._maker = maker
        self._choice = Choice(settings, chance)
        self._file = LogFile(settings.to)
        self._later = later
        self._count = count
        self._trace = trace
        self._metrics_path = metrics_path or None
        self._client: WholeClient | None = None
        self._lines: list[bytes] = []
        self._told_ns = 0
        self._is_planned = False
        self._plan()  # whether the file could be opened

    # ----------------------------------------------------------------------------------------------------- the ways in

    def asked(self, key: str) -> None:
        """Who the present request is from."""
        record = _current.get()
        if record is not None:
            record.key = key

    def methods(self, methods: Methods) -> Methods:
        """The gRPC methods, those that ask models logged."""
        logged = {path: self._unary(path, each) for path, each in methods.unary.items() if path.startswith(_SERVICES)}
        return replace(methods, unary=methods.unary | logged, refused=self._refused_call)

    def _unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:
        def logged(call: Call, message: Buffer) -> None:
            record = Record(GRPC, path, "", call.peer, request_ids.sent(call.metadata), self.clock_ns())
            record.request_bytes = len(message)
            record.message = message
            record.trace = self._trace()
            passed = LoggedCall(call, record, self)
            token = _current.set(record)
            try:
                handler(passed, message)
            except Exception:
                self.ended(record, _INTERNAL, "internal error")
                raise
            finally:
                _current.reset(token)
                record.message = b""

        return logged

    def rest(self, handler: Handler) -> Handler:
        """The REST application, requests logged."""

        def logged(exchange: Exchange) -> None:
            head = exchange.head
            path = head.target.partition("?")[0]
            may_be = path.startswith(_WATCHED) or path.endswith(WATCHERS_V2)
            if path == self._metrics_path or (may_be and is_of_watchers(head.method, path)):
                handler(exchange)
                return
            record = Record(REST, head.method, path, exchange.peer, head.request_id, self.clock_ns())
            record.trace = self._trace()
            token = _current.set(record)
            try:
                handler(LoggedExchange(exchange, record, self))
            finally:
                _current.reset(token)

        return logged

    def client(self, client: WholeClient) -> LoggedClient:
        """The client as logged handlers may have it."""
        self._client = client
        return LoggedClient(client)

    # ----------------------------------------------------------------------------------------------------------- lines

    def _refused_call(self, refused: Refused) -> None:
        record = Record(GRPC, refused.path, "", refused.peer, refused.request_id, self.clock_ns())
        self.ended(record, refused.code, refused.text, has_answer=True)

    def refused(self, status: int, text: str, head: Head | None, peer: str) -> None:
        """The REST server has refused what never came to the application. head: as far as there is one."""
        method, path, request_id = "", "", ""
        if head is not None:
            method, path, request_id = head.method, head.target.partition("?")[0], head.request_id
        self.ended(Record(REST, method, path, peer, request_id, self.clock_ns()), status, text, has_answer=True)

    def ended(self, record: Record, end: int, text: str, *, has_answer: bool = False) -> None:
        """A request has ended: with a gRPC code, an HTTP status, or GONE. Gives it an id if it is written.

        has_answer: it is too late for that.
        """
        now_ns = self.clock_ns()
        took_ns = now_ns - record.began_ns
        if not self._choice.takes(end, took_ns, now_ns):
            if any(self._choice.dropped):
                self._plan()
            return
        lane = record.lane
        if lane is None:
            _find_model(record)
        result = self._client.result if record.is_running and self._client is not None else None
        self._lines.append(
            self._maker.line(
                time.time(),
                {
                    "request_id": record.request_id if has_answer else record.identified(),
                    "protocol": record.protocol,
                    "method": record.method,
                    "path": record.path,
                    "model": lane.spec.model if lane is not None else record.model,
                    "version": lane.spec.version if lane is not None else record.version,
                    "status": status_of(end),
                    "duration_ms": round(took_ns / _NS_PER_MS, 3),
                    **_about_run(result),
                    "rows": record.rows,
                    "request_bytes": record.request_bytes,
                    "response_bytes": record.response_bytes,
                    "peer": record.peer,
                    "key": record.key,
                    "trace_id": record.trace,
                    "error": error_of(end, text or _error_in(record.error_body), ran=lane is not None),
                },
            )
        )
        self._plan()

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            self._later(_FLUSH_S, self._on_time)

    def _on_time(self) -> None:
        self._is_planned = False
        is_to_count = bool(self._lines) or not self._file.is_idle
        self.flush()
        if is_to_count or any(self._choice.dropped):
            self._plan()

    def flush(self, *, at_end: bool = False) -> None:
        """Hand over what has gathered, and count what became of what was handed over before."""
        now_ns = self.clock_ns()
        dropped = self._choice.dropped
        if any(dropped) and (at_end or now_ns - self._told_ns >= _NS_PER_S):
            self._told_ns = now_ns
            fields = {"left_out_failures": dropped[0], "left_out_others": dropped[1], "why": "lines_per_s_max"}
            self._lines.append(self._maker.line(time.time(), fields, "warning"))
            self._count("over_rate", sum(dropped))
            dropped[:] = [0, 0]
        if self._lines:
            lines, self._lines = self._lines, []
            self._file.write(lines)
        for end, count in self._file.take_counts()._asdict().items():
            if count:
                self._count(end, count)

    def close(self) -> None:
        """Write what is left, as far as that works at once."""
        self.flush(at_end=True)
        self._file.close()
        self.flush()


def make_maker(name: str, log_format: str, to: str) -> LineMaker:
    """What makes the lines of this process."""
    return LineMaker(name, log_format, for_journal=to == STDERR and process.goes_to_journal())


def _find_model(record: Record) -> None:
    """The model that a request names which came to no lane, as the client wrote it."""
    if record.protocol == GRPC:
        record.model = model_sent(bytes(record.message[:_HEAD_BYTES_MAX]))
    elif is_api(record.path) or is_open_inference(record.path):
        meant = route(record.method, record.path)
        if isinstance(meant, Route):
            record.model, record.version = meant.name, meant.version


def _about_run(result: Result | None) -> dict[str, Any]:
    """What is known of the batch that a request ended with."""
    if result is None or len(result.run) != 3:
        return {}
    began_ns, ended_ns, rows = result.run
    return {"run_ms": round((ended_ns - began_ns) / _NS_PER_MS, 3), "batch_rows": rows, "worker": result.worker_id}


class LoggedClient(PassedClient):
    """The client, which notes what logged requests run."""

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int:
        """See Client."""
        record = _current.get()
        if record is None:
            return self._client.infer(lane, rows, payloads, timeout_ns, reply)
        record.lane, record.rows = lane, rows
        request_id = self._client.infer(lane, rows, payloads, timeout_ns, reply)
        record.is_running = request_id >= 0
        return request_id


class LoggedCall(PassedCall):
    """A gRPC call that is logged when it ends."""

    def __init__(self, call: Call, record: Record, logger: AccessLogger) -> None:
        super().__init__(call)
        self._record = record
        self._logger = logger
        self.on_cancel(_nothing)

    def over(self, code: int, text: str) -> None:
        self._logger.ended(self._record, code, text)

    def finish(self, message: Buffer, made_id: str = "") -> None:
        self._record.response_bytes = len(message)
        self._end(0, "")
        self._call.finish(message, made_id or self._record.made_id)
        self._call.on_cancel(_nothing)  # lets go of us: no cycle of garbage

    def fail(self, code: int, text: str, retry_ms: int = 0, made_id: str = "") -> None:
        self._end(int(code), text)
        self._call.fail(code, text, retry_ms, made_id or self._record.made_id)
        self._call.on_cancel(_nothing)


class LoggedExchange(PassedExchange):
    """A REST request that is logged when it ends."""

    def __init__(self, exchange: Exchange, record: Record, logger: AccessLogger) -> None:
        super().__init__(exchange)
        self._record = record
        self._logger = logger
        self.on_cancel(_nothing)

    @property
    def request_id(self) -> str:
        return self._record.identified()

    def take_body(self) -> bytes | bytearray:
        body = self._exchange.take_body()
        self._record.request_bytes += len(body)
        return body

    def over(self, status: int) -> None:
        self._logger.ended(self._record, status, "")

    def answer(
        self, status: int, body: bytes = b"", content_type: bytes = JSON, headers: bytes = b"", made_id: str = ""
    ) -> None:
        self._record.response_bytes = len(body)
        if status >= 400 and content_type == JSON and len(body) <= _HEAD_BYTES_MAX:
            self._record.error_body = body
        self._end(status)
        self._exchange.answer(status, body, content_type, headers, made_id or self._record.made_id)


def _error_in(body: bytes) -> str:
    """What an answer says is wrong."""
    if not body:
        return ""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    return str(found.get("error", "")) if isinstance(found, dict) else ""


def _nothing() -> None:
    """For a handler that does not want to know that its client has gone: the log does."""
