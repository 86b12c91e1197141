"""Who waits for one request on behalf of a gRPC call: what Predict, Classify and Regress have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.handler import Buffer, Call
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output, Reply
from ringserve.frontend.status import grpc_text
from ringserve.frontend.tally import GRPC, Tally

#: Plain ints: a member of the enum costs more to pass on than the rest of a call that counts it.
_OK: Final = int(Code.OK)
_CANCELLED: Final = int(Code.CANCELLED)


class InferClient(Protocol):
    """What the methods need of `client.Client`."""

    @property
    def catalog(self) -> Catalog: ...

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int: ...

    def cancel(self, request_id: int) -> None: ...

    async def ask(self, verb: str, body: bytes = b"", timeout_s: float | None = None) -> tuple[int, str, bytes]: ...


class GrpcReply:
    """Waits for one request of one call, answers the call and counts it. Subclasses encode, and have `answer`.

    Make one right before the request is handed to the client. It lets go of its call when it is over, so that the two
    form no cycle of garbage. started_ns: when the call's bytes were there, by `tally.clock_ns`.
    """

    __slots__ = ("call", "client", "lane", "request_id", "run_ns", "started_ns", "tally")

    #: How the call is counted: `Predict`.
    api: str

    def __init__(self, call: Call, client: InferClient, lane: Lane, tally: Tally, started_ns: int) -> None:
        self.call: Call | None = call
        self.client = client
        self.lane = lane
        self.tally = tally
        self.started_ns = started_ns
        self.run_ns = tally.clock_ns()
        self.request_id = -1

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        """See Reply."""
        raise NotImplementedError

    def finish(self, message: bytes) -> None:
        """Answer with this response, if anybody waits for it still."""
        call = self.call
        if call is not None:
            self.call = None
            call.finish(message)
            self.tally.request(GRPC, self.api, self.lane.spec.model, _OK, self.started_ns, self.lane)

    def fail(self, code: int, text: str) -> None:
        call = self.call
        if call is not None:
            self.call = None
            self._refuse(call, code, text)

    def _refuse(self, call: Call, code: int, text: str) -> None:
        retry_ms = self.lane.pressure.retry_ms(code, self.tally.clock_ns())
        if retry_ms:
            call.fail(code, grpc_text(text), retry_ms)
        else:
            call.fail(code, grpc_text(text))
        self.tally.failure(GRPC, self.api, self.lane.spec.model, int(code), text, self.started_ns, self.lane)

    def cancel(self) -> None:
        """The client of the call has gone."""
        if self.call is not None:
            self.call = None
            self.client.cancel(self.request_id)
            self.tally.request(GRPC, self.api, self.lane.spec.model, _CANCELLED, self.started_ns, self.lane)


def refuse(call: Call, failure: Failure, tally: Tally, api: str, model: str, started_ns: int) -> None:
    """Answer a call that has come to no lane, and count it. model: as the client sent it."""
    call.fail(failure.code, grpc_text(failure.text))
    tally.failure(GRPC, api, model, int(failure.code), failure.text, started_ns)
