"""The header X-Request-Timeout: how long a REST client is willing to wait."""

from __future__ import annotations

import re
from typing import Final

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.handler import PATIENCE_PART, TIMEOUT_NS_MAX, TURNED_AWAY_TEXT

HEADER: Final = b"x-request-timeout"
BAD_TIMEOUT: Final = Failure(
    Code.INVALID_ARGUMENT,
    "X-Request-Timeout must be a number greater than 0, in seconds or with a unit: 2.5, 2.5s, 250ms or 900us",
)

_TIMEOUT: Final = re.compile(rb"((?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][+-]?\d{1,2})?)(us|ms|s)?")
_UNIT_NS: Final = {None: 1e9, b"s": 1e9, b"ms": 1e6, b"us": 1e3}
#: A look at how long a request has waited costs a system call, so nobody looks where it may wait for longer than
#: anybody waits for a process that has not stopped.
_PATIENCE_NS_MAX: Final = 1_000_000_000
TURNED_AWAY: Final = Failure(Code.RESOURCE_EXHAUSTED, TURNED_AWAY_TEXT)


def patience_of(timeout_ns: int) -> int:
    """A request that waited for longer before it was read is refused; 0: nobody looks. timeout_ns: 0 for none."""
    patience_ns = max(timeout_ns, 0) // PATIENCE_PART
    return patience_ns if patience_ns < _PATIENCE_NS_MAX else 0


def parse_timeout(value: bytes) -> int:
    """The timeout in ns, at least 1; -1 when the value makes no sense, as one of thirty years does not."""
    match = _TIMEOUT.fullmatch(value.strip(b" \t"))
    if match is None:
        return -1
    ns = float(match[1]) * _UNIT_NS[match[2]]
    return max(1, round(ns)) if 0.0 < ns <= TIMEOUT_NS_MAX else -1
