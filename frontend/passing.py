"""A request around a request: passes all on, and is told once how it ends. For the logs of calls, and traces.

And a client around the client, which sees what requests become.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ringserve.broker.messages import Result
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.handler import Buffer, Call
from ringserve.frontend.http1.exchange import JSON, Exchange, Head
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Reply
from ringserve.frontend.recorder import Recorder
from ringserve.frontend.rest_call import RestClient

#: In place of a code or a status: the client went away before there was one.
GONE: Final = -1


class PassedCall:
    """A gRPC call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._is_over = False

    def over(self, code: int, text: str) -> None:
        """It ends, right now: with this code and text, or GONE. Called once."""
        raise NotImplementedError

    @property
    def timeout_ns(self) -> int:
        return self._call.timeout_ns

    @property
    def metadata(self) -> Sequence[tuple[str, bytes]]:
        return self._call.metadata

    @property
    def peer(self) -> str:
        return self._call.peer

    @property
    def names(self) -> Sequence[str]:
        return self._call.names

    def finish(self, message: Buffer, made_id: str = "") -> None:
        self._end(0, "")
        self._call.finish(message, made_id)

    def fail(self, code: int, text: str, retry_ms: int = 0, made_id: str = "") -> None:
        self._end(code, text)
        self._call.fail(code, text, retry_ms, made_id)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        def gone() -> None:
            self._end(GONE, "")
            callback()

        self._call.on_cancel(gone)

    def _end(self, code: int, text: str) -> None:
        if not self._is_over:
            self._is_over = True
            self.over(code, text)


class PassedExchange:
    """A REST request."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._is_over = False

    def over(self, status: int) -> None:
        """It ends, right now: with this status, or GONE. Called once."""
        raise NotImplementedError

    @property
    def head(self) -> Head:
        return self._exchange.head

    @property
    def peer_is_local(self) -> bool:
        return self._exchange.peer_is_local

    @property
    def peer(self) -> str:
        return self._exchange.peer

    @property
    def names(self) -> Sequence[str]:
        return self._exchange.names

    @property
    def request_id(self) -> str:
        return self._exchange.request_id

    @property
    def upload_ns(self) -> int:
        return self._exchange.upload_ns

    @property
    def waited_ns(self) -> int:
        """See Exchange."""
        return self._exchange.waited_ns

    def take_body(self) -> bytes | bytearray:
        return self._exchange.take_body()

    def answer(
        self, status: int, body: bytes = b"", content_type: bytes = JSON, headers: bytes = b"", made_id: str = ""
    ) -> None:
        self._end(status)
        self._exchange.answer(status, body, content_type, headers, made_id)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        def gone() -> None:
            self._end(GONE)
            callback()

        self._exchange.on_cancel(gone)

    def _end(self, status: int) -> None:
        if not self._is_over:
            self._is_over = True
            self.over(status)


class WholeClient(RestClient, Protocol):
    """`client.Client`, as far as it is passed on and looked at."""

    @property
    def result(self) -> Result | None: ...


class PassedClient:
    """The client."""

    def __init__(self, client: WholeClient) -> None:
        self._client = client
        self.cancel = client.cancel
        self.ask = client.ask

    @property
    def catalog(self) -> Catalog:
        return self._client.catalog

    @property
    def connected(self) -> bool:
        return self._client.connected

    @property
    def result(self) -> Result | None:
        return self._client.result

    @property
    def recorder(self) -> Recorder | None:
        return self._client.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._client.recorder = recorder

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int:
        """See Client."""
        raise NotImplementedError
