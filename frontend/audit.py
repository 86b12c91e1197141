"""What operators did: one log line for each of their calls, who it was, what, from where, and how it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Final

from ringserve.frontend.handler import Call
from ringserve.frontend.http1.exchange import JSON, Exchange, Head
from ringserve.frontend.status import code_name

log: Final = logging.getLogger("ringserve.audit")
# These lines are wanted however quiet the rest is.
log.setLevel(logging.INFO)


def note(who: str, what: str, where: str, outcome: str) -> None:
    """Write one line. `what` may hold anything that a client sent: it is quoted."""
    log.info("admin: who=%s what=%s from=%s outcome=%s", json.dumps(who), json.dumps(what), where, outcome)


class AuditedExchange:
    """An operator's request over REST; passes everything on, and notes the answer."""

    def __init__(self, exchange: Exchange, who: str) -> None:
        self._exchange = exchange
        self._who = who
        self._where = exchange.peer
        self._is_over = False

    @property
    def head(self) -> Head:
        return self._exchange.head

    @property
    def peer_is_local(self) -> bool:
        return self._exchange.peer_is_local

    @property
    def peer(self) -> str:
        return self._where

    @property
    def names(self) -> Sequence[str]:
        return self._exchange.names

    @property
    def upload_ns(self) -> int:
        return self._exchange.upload_ns

    def take_body(self) -> bytes | bytearray:
        return self._exchange.take_body()

    def answer(self, status: int, body: bytes = b"", content_type: bytes = JSON, headers: bytes = b"") -> None:
        self._note(str(status))
        self._exchange.answer(status, body, content_type, headers)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        def gone() -> None:
            self._note("client gone")
            callback()

        self._exchange.on_cancel(gone)

    def _note(self, outcome: str) -> None:
        if not self._is_over:
            self._is_over = True
            head = self._exchange.head
            note(self._who, f"{head.method} {head.target}", self._where, outcome)


class AuditedCall:
    """An operator's call over gRPC; passes everything on, and notes how it ends."""

    def __init__(self, call: Call, who: str, method: str) -> None:
        self._call = call
        self._who = who
        self._method = method
        self._is_over = False
        self.timeout_ns = call.timeout_ns
        self.metadata = call.metadata
        self.peer = call.peer
        self.names = call.names

    def finish(self, message: bytes) -> None:
        self._note("OK")
        self._call.finish(message)

    def fail(self, code: int, text: str, retry_ms: int = 0) -> None:
        self._note(code_name(code))
        self._call.fail(code, text, retry_ms)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        def gone() -> None:
            self._note("client gone")
            callback()

        self._call.on_cancel(gone)

    def _note(self, outcome: str) -> None:
        if not self._is_over:
            self._is_over = True
            note(self._who, self._method, self.peer, outcome)
