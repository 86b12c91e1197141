"""The section [access_log]: which calls of clients are written down, a line each, and where."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from ringserve.config.setting import setting

STDERR: Final = "stderr"
ALL: Final = "all"
NONE: Final = "none"

#: gRPC's, but for OK.
CODES: Final = (
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


@dataclass(frozen=True)
class AccessLog:
    """One line for a call, of those that models are asked with."""

    to: str = setting(
        "", "file that calls are written to, a line each, or 'stderr'; empty: no access log", flag="access_log"
    )
    share: float = setting(
        1.0, "of all calls that are not written for another reason, this share is, 0 to 1", low=0, high=1,
        flag="access_log_share",
    )
    failures: str = setting(
        ALL, "calls that end so are always written: 'all', 'none', or codes such as 'INTERNAL, UNAVAILABLE'",
        flag="access_log_failures",
    )
    slow_ms: int = setting(1000, "calls that take this long are always written; 0: none are", flag="access_log_slow_ms")
    lines_per_s_max: int = setting(
        200, "lines of one frontend in one second, of failures and of others each; those beyond are counted", low=1,
        flag="access_log_lines_per_s_max",
    )


def codes_of(failures: str) -> tuple[str, ...]:
    """The codes that `failures` names."""
    if failures == ALL:
        return CODES
    return () if failures == NONE else tuple(word.strip() for word in failures.split(",") if word.strip())


def mistakes_of_access_log(settings: AccessLog) -> list[str]:
    """Why no such log can be written, if so."""
    wrong = [code for code in codes_of(settings.failures) if code not in CODES]
    found = [f"access_log failures: {code!r} is no code; there are {', '.join(CODES)}" for code in wrong]
    # Whether the file can be written is found out by whoever writes it: others may not even see its folder.
    if settings.to != STDERR and os.path.isdir(settings.to):
        found.append(f"access_log: {settings.to} is a folder")
    return found
