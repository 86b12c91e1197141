"""Calls that the broker answers: HandleReloadConfigRequest and the profiler. They take seconds, so each is a task.

A call that ends early (its deadline passes, its client goes) ends here only: the broker goes on with what it began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import ReloadConfigRequest, ReloadConfigResponse
from ringserve.frontend.deadlines import ARRIVED_LATE_TEXT
from ringserve.frontend.grpc_models import parsed
from ringserve.frontend.grpc_reply import InferClient
from ringserve.frontend.handler import Buffer, Call, UnaryHandler
from ringserve.frontend.status import grpc_text
from ringserve.frontend.tally import Tally

PROFILER_METHODS: Final = ("Profile", "Terminate", "Monitor")

_WRONG_CONFIG: Final = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
)
_NS: Final = 1_000_000_000
#: What other processes have counted is known after so long, see `Tally.count`.
_COUNTS_LATE_S: Final = 0.15

#: (code, text, body) of what was asked for.
Told = tuple[int, str, bytes]


class _Tasks:
    """The calls that are being worked on. A task that nobody refers to may be collected while it runs."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which answers `call`. It is cancelled when the call's client goes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._over(done, call))
        call.on_cancel(lambda: _cancel(task))

    def _over(self, task: asyncio.Task[None], call: Call) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            call.fail(Code.INTERNAL, "internal error")
            task.get_loop().call_exception_handler({"message": "a gRPC handler raised", "exception": error})


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _ask(client: InferClient, call: Call, verb: str, body: bytes, still: str) -> Told:
    """Ask, no longer than the call may take. still: what goes on when that is too short."""
    timeout_ns = call.timeout_ns
    if timeout_ns < 0:
        return int(Code.DEADLINE_EXCEEDED), ARRIVED_LATE_TEXT, b""
    code, text, answer = await client.ask(verb, body, timeout_ns / _NS if timeout_ns else None)
    if code == Code.DEADLINE_EXCEEDED:
        text = f"{text}; {still}"
    return code, text, answer


def reload_method(client: InferClient, tally: Tally) -> UnaryHandler:
    """The handler of HandleReloadConfigRequest: the list of models is replaced; answered when all new ones are there.

    An error is the call's status: clients never see a response that tells of one.
    """
    tasks = _Tasks()

    async def work(call: Call, request: Any) -> None:
        before = {name: tally.count(name) for name in request.metric_names}
        still = "the reload itself goes on, see GetModelStatus"
        code, text, _ = await _ask(client, call, "reload", request.config.SerializeToString(), still)
        if code:
            call.fail(code, grpc_text(text))
            return
        response = ReloadConfigResponse()
        response.status.SetInParent()
        if before:
            await asyncio.sleep(_COUNTS_LATE_S)
        for name in request.metric_names:
            response.metric.add(name=name, int64_value_increase=tally.count(name) - before[name])
        call.finish(response.SerializeToString())

    def handle(call: Call, message: Buffer) -> None:
        request = parsed(ReloadConfigRequest, message)
        if not isinstance(request, Failure) and request.config.WhichOneof("config") != "model_config_list":
            request = Failure(Code.INVALID_ARGUMENT, _WRONG_CONFIG)
        if isinstance(request, Failure):
            call.fail(request.code, grpc_text(request.text))
        else:
            tasks.start(call, work(call, request))

    return handle


def profiler_methods(client: InferClient) -> dict[str, UnaryHandler]:
    """The handlers of tensorflow.ProfilerService, by path. Requests and answers pass as they are."""
    tasks = _Tasks()
    return {f"/tensorflow.ProfilerService/{name}": _profiler(client, tasks, name) for name in PROFILER_METHODS}


def _profiler(client: InferClient, tasks: _Tasks, name: str) -> Callable[[Call, Buffer], None]:
    async def work(call: Call, body: bytes) -> None:
        code, text, answer = await _ask(client, call, f"profile/{name}", body, "the worker finishes its profile")
        if code:
            call.fail(code, grpc_text(text))
        else:
            call.finish(answer)

    def handle(call: Call, message: Buffer) -> None:
        tasks.start(call, work(call, bytes(message)))

    return handle
