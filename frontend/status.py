"""Failure codes as clients see them: the one table Code -> HTTP status, and how a gRPC error text is cut."""

from __future__ import annotations

from typing import Final

from ringserve.broker.messages import Code

#: TF Serving's mapping; 499 is nginx's "client closed request", which has no registered number.
HTTP_STATUS: Final[dict[Code, int]] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

GRPC_TEXT_BYTES_MAX: Final = 1024
_TRUNCATED: Final = "...TRUNCATED"


def http_status(code: int) -> int:
    """The HTTP status of an outcome; 500 for a number that is no Code (the model's own run time may invent one)."""
    try:
        return HTTP_STATUS[Code(code)]
    except ValueError:
        return 500


def code_name(code: int) -> str:
    """`INVALID_ARGUMENT` and so on, as texts and metrics quote statuses; UNKNOWN for a number that is no Code."""
    try:
        return Code(code).name
    except ValueError:
        return Code.UNKNOWN.name


def grpc_text(text: str) -> str:
    """`text` as a gRPC status carries it: at most 1024 bytes of UTF-8, then `...TRUNCATED`.

    TF Serving cuts inside a character; we leave the torn character out, so that clients can decode the text.
    """
    if len(text) <= GRPC_TEXT_BYTES_MAX // 4:
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= GRPC_TEXT_BYTES_MAX:
        return text
    return encoded[:GRPC_TEXT_BYTES_MAX].decode("utf-8", "ignore") + _TRUNCATED
