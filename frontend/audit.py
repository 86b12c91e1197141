"""What operators did: one log line for each of their calls, who it was, what, from where, and how it ended."""

from __future__ import annotations

import json
import logging
from typing import Final

from ringserve.config.process import of_request
from ringserve.frontend import request_ids
from ringserve.frontend.handler import Call
from ringserve.frontend.http1.exchange import Exchange
from ringserve.frontend.passing import GONE, PassedCall, PassedExchange
from ringserve.frontend.status import code_name

log: Final = logging.getLogger("ringserve.audit")
# These lines are wanted however quiet the rest is.
log.setLevel(logging.INFO)

_GONE_TEXT: Final = "client gone"


def note(who: str, what: str, where: str, outcome: str, request_id: str = "") -> None:
    """Write one line. `what` may hold anything that a client sent: it is quoted."""
    text = "admin: who=%s what=%s from=%s outcome=%s"
    log.info(text, json.dumps(who), json.dumps(what), where, outcome, extra=of_request(request_id))


class AuditedExchange(PassedExchange):
    """An operator's request over REST, whose answer is noted."""

    def __init__(self, exchange: Exchange, who: str) -> None:
        super().__init__(exchange)
        self._who = who
        self._where = exchange.peer  # which nobody can tell any more when the client has gone

    def over(self, status: int) -> None:
        head = self.head
        outcome = _GONE_TEXT if status == GONE else str(status)
        note(self._who, f"{head.method} {head.target}", self._where, outcome, head.request_id)


class AuditedCall(PassedCall):
    """An operator's call over gRPC; how it ends is noted."""

    def __init__(self, call: Call, who: str, method: str) -> None:
        super().__init__(call)
        self._who = who
        self._where = call.peer
        self._method = method

    def over(self, code: int, text: str) -> None:
        outcome = _GONE_TEXT if code == GONE else code_name(code)
        note(self._who, self._method, self._where, outcome, request_ids.sent(self.metadata))
