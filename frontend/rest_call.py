"""One request of the REST API on its way: who asks, what for, and how its answer is sent and counted."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from ringserve.broker.messages import Code, Failure
from ringserve.config.process import of_request
from ringserve.frontend import request_ids
from ringserve.frontend.bugs import BUG_RATE
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.deadlines import TIMED_OUT
from ringserve.frontend.handler import TURNED_AWAY_RETRY_MS, Buffer
from ringserve.frontend.http1.exchange import JSON, Exchange
from ringserve.frontend.json_text import error_body
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Reply
from ringserve.frontend.recorder import Recorder
from ringserve.frontend.rest_timeout import TURNED_AWAY
from ringserve.frontend.shedding import retry_after
from ringserve.frontend.status import http_status
from ringserve.frontend.tally import REST, Tally

log = logging.getLogger(__name__)
log.addFilter(BUG_RATE)

_T = TypeVar("_T")

#: TF Serving's own, but for the headers that a page may send.
_CORS: Final = (
    b"Access-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Methods: POST, GET\r\n"
    b"Access-Control-Allow-Headers: Content-Type%b\r\n"
)
_SHOWN: Final = b", Authorization, X-Api-Key"
_LENGTH: Final = b"Inference-Header-Content-Length"
BUG: Final = Failure(Code.INTERNAL, "internal error; see the log of the server")

_TOO_LONG: Final = Failure(Code.DEADLINE_EXCEEDED, f"{TIMED_OUT}: the request's body was being read")
_OK: Final = int(Code.OK)
_SWITCH_S: Final = 0.0005


class RestClient(Protocol):
    """What the REST API needs of `client.Client`."""

    recorder: Recorder | None

    @property
    def catalog(self) -> Catalog: ...

    @property
    def connected(self) -> bool: ...

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int: ...

    def cancel(self, request_id: int) -> None: ...

    async def ask(self, verb: str, body: bytes = b"", timeout_s: float | None = None) -> tuple[int, str, bytes]: ...


@dataclass(frozen=True)
class RestSettings:
    """gunzip_bytes_max: largest request body after decompression. tensor_bytes_max: as in GrpcSettings.

    timeout_ms: time that a request may take when it has no X-Request-Timeout header; 0 for no limit.
    cors: allow browsers of any origin. check_method_name: enable_signature_method_name_check.
    admin: who may look at and change the server: `local`, `all` or `off`. metrics_path: of TF Serving's metrics page;
    empty for none. metrics: whether there are metrics at all. models: whether models can be asked here. console:
    whether its page is here.
    """

    gunzip_bytes_max: int = 100 * 2**20
    tensor_bytes_max: int = 2**30
    timeout_ms: int = 30_000
    cors: bool = False
    check_method_name: bool = False
    admin: str = "local"
    metrics_path: str = ""
    metrics: bool = True
    models: bool = True
    console: bool = False


def cors_lines(*, guarded: bool, is_v2: bool) -> bytes:
    """The header lines that let a page of any origin ask, and read the answer. guarded: it must show a key."""
    allowed = (_SHOWN if guarded else b"") + (b", " + _LENGTH if is_v2 else b"")
    exposed = b"Access-Control-Expose-Headers: %b\r\n" % _LENGTH if is_v2 else b""
    return _CORS % allowed + exposed


class RestCall:
    """One request under /v1, to be answered once. Counts it as TF Serving does.

    api: `predict`, `classify`, `regress`, or "" for the others. model: as the client sent it, "" when there is none.
    headers: further header lines of the answer. content_type: of the answer, unless it is a failure.
    """

    __slots__ = (
        "_exchange", "_headers", "_started_ns", "_tally", "_waited_ns",
        "api", "content_type", "is_over", "lane", "model",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, tally: Tally, headers: bytes, api: str, model: str) -> None:
        self._exchange = exchange
        self._tally = tally
        self._headers = headers
        self._started_ns = tally.clock_ns()
        self._waited_ns = 0
        self.api = api
        self.model = model
        self.content_type = JSON
        self.lane: Lane | None = None
        self.is_over = False

    def take_body(self) -> bytes | bytearray:
        """The request's body, once."""
        return self._exchange.take_body()

    def left_ns(self, timeout_ns: int, *, is_own: bool) -> int:
        """What is left of its time: 0 for no limit, negative when it is over. is_own: see `rest_predict.Ask`."""
        if not timeout_ns:
            return 0
        passed_ns = self._tally.clock_ns() - self._started_ns
        before_ns = max(self._exchange.upload_ns - self._waited_ns, 0) if is_own else 0
        return timeout_ns - passed_ns - before_ns or -1

    def is_late(self, patience_ns: int) -> bool:
        """Whether it waited for longer than that before it was read. From here on its time counts from when it came."""
        self._waited_ns = waited_ns = self._exchange.waited_ns
        self._started_ns -= waited_ns
        return waited_ns > patience_ns

    def turn_away(self) -> None:
        """Refuse what has waited for too long."""
        self.add_header(retry_after(int(TURNED_AWAY.code), TURNED_AWAY_RETRY_MS))
        self.fail(TURNED_AWAY)

    def finish(self, body: bytes) -> None:
        """Answer 200."""
        if not self.is_over:
            self.is_over = True
            self._exchange.answer(200, body, self.content_type, self._headers)
            self._tally.request(REST, self.api, self.model, _OK, self._started_ns, self.lane)

    def fail(self, failure: Failure, made_id: str = "") -> None:
        """Answer with the failure's status and text. made_id: see Exchange."""
        if not self.is_over:
            self.is_over = True
            code = int(failure.code)
            retry_ms = self.lane.pressure.retry_ms(code, self._tally.clock_ns()) if self.lane is not None else 0
            self._headers += retry_after(code, retry_ms)
            self._exchange.answer(http_status(code), error_body(failure.text), JSON, self._headers, made_id)
            self._tally.failure(REST, self.api, self.model, code, failure.text, self._started_ns, self.lane)

    def bug(self, text: str) -> None:
        """Answer that there is a bug; the log says more, under the id that the client is told. In an except clause."""
        made_id = "" if self._exchange.request_id else request_ids.make()
        log.exception("%s model %r", text, self.model, extra=of_request(self._exchange.request_id or made_id))
        self.fail(BUG, made_id)

    def answer(self, status: int, body: bytes, content_type: bytes, code: int) -> None:
        """Answer anything else. code: as which the request is counted."""
        if not self.is_over:
            self.is_over = True
            self._exchange.answer(status, body, content_type, self._headers)
            self._count(code)

    def add_header(self, line: bytes) -> None:
        """One more header line of the answer, with its end of line."""
        self._headers += line

    def settle(self, outcome: bytes | Failure) -> None:
        """Answer with a body, or with a failure."""
        if isinstance(outcome, Failure):
            self.fail(outcome)
        else:
            self.finish(outcome)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """`callback` runs if the client goes away before the answer; it is to call `cancel`."""
        self._exchange.on_cancel(callback)

    def cancel(self) -> None:
        """The client has gone: nobody waits for an answer."""
        if not self.is_over:
            self.is_over = True
            self._count(int(Code.CANCELLED))

    def _count(self, code: int) -> None:
        self._tally.request(REST, self.api, self.model, code, self._started_ns, self.lane)


class Side:
    """Where that is done which would hold up the event loop.

    There is one thread for what C code does at hundreds of MB a second, and another for what takes Python a second or
    more per MB: such requests wait for each other, not others for them.
    """

    def __init__(self) -> None:
        # A thread that runs Python is asked to step aside after this long. With the usual 5 ms every turn of the event
        # loop could be as late while a slow body is read.
        sys.setswitchinterval(_SWITCH_S)
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="rest-side")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="rest-slow")
        self._tasks: set[asyncio.Task[None]] = set()

    async def quick(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run a function on the quick side thread."""
        return await asyncio.get_running_loop().run_in_executor(self._quick, function, *arguments)

    async def slow(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run a function on the slow side thread."""
        return await asyncio.get_running_loop().run_in_executor(self._slow, function, *arguments)

    def run(self, call: RestCall, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Go on with a call in a task of its own, which is to answer it."""
        task = self.spawn(self._answer(call, work))
        task.add_done_callback(lambda _: work.close())  # a task that is cancelled before its first step leaves it
        return task

    def run_for(self, call: RestCall, work: Coroutine[Any, Any, None], left_ns: int) -> None:
        """The same, but the task ends when the client goes or its time is over, and lets go of what it holds.

        left_ns: what is left of that time; 0 for no limit.
        """
        task = self.run(call, work)

        def cancel() -> None:
            call.cancel()
            task.cancel()

        def expire() -> None:
            call.fail(_TOO_LONG)
            task.cancel()

        call.on_cancel(cancel)
        if left_ns:
            # The loop's timers count whole milliseconds.
            late_ms = max(left_ns, 0) // 1_000_000 + 1
            timer = asyncio.get_running_loop().call_later(late_ms / 1000, expire)
            task.add_done_callback(lambda _: timer.cancel())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task that catches whatever it raises."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, call: RestCall, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            call.bug(f"a {call.api} request for")

    def close(self) -> None:
        """End the threads when their present work is done."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)
