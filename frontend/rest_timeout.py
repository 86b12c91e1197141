"""The header X-Request-Timeout: how long a REST client is willing to wait."""

from __future__ import annotations

import re
from typing import Final

from ringserve.broker.messages import Code, Failure

HEADER: Final = b"x-request-timeout"
BAD_TIMEOUT: Final = Failure(
    Code.INVALID_ARGUMENT,
    "X-Request-Timeout must be a number greater than 0, in seconds or with a unit: 2.5, 2.5s, 250ms or 900us",
)

_TIMEOUT: Final = re.compile(rb"((?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][+-]?\d{1,2})?)(us|ms|s)?")
_UNIT_NS: Final = {None: 1e9, b"s": 1e9, b"ms": 1e6, b"us": 1e3}
#: Longer ones are no timeouts but mistakes: 30 years.
_NS_MAX: Final = 1e18


def parse_timeout(value: bytes) -> int:
    """The timeout in ns, at least 1; -1 when the value makes no sense."""
    match = _TIMEOUT.fullmatch(value.strip(b" \t"))
    if match is None:
        return -1
    ns = float(match[1]) * _UNIT_NS[match[2]]
    return max(1, round(ns)) if 0.0 < ns <= _NS_MAX else -1
