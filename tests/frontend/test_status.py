"""The Code -> HTTP table and the cutting of gRPC texts."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import Code
from ringserve.frontend.status import HTTP_STATUS, code_name, grpc_text, http_status


def test_table_is_exhaustive() -> None:
    assert set(HTTP_STATUS) == set(Code)


@pytest.mark.parametrize(
    ("status", "codes"),
    [
        (200, {"OK"}),
        (400, {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"}),
        (401, {"UNAUTHENTICATED"}),
        (403, {"PERMISSION_DENIED"}),
        (404, {"NOT_FOUND"}),
        (409, {"ALREADY_EXISTS", "ABORTED"}),
        (429, {"RESOURCE_EXHAUSTED"}),
        (499, {"CANCELLED"}),
        (500, {"UNKNOWN", "INTERNAL", "DATA_LOSS"}),
        (501, {"UNIMPLEMENTED"}),
        (503, {"UNAVAILABLE"}),
        (504, {"DEADLINE_EXCEEDED"}),
    ],
)
def test_each_status_has_exactly_these_codes(status: int, codes: set[str]) -> None:
    assert {code.name for code in Code if http_status(code) == status} == codes


def test_numbers_that_are_no_code() -> None:
    assert http_status(99) == 500
    assert code_name(99) == "UNKNOWN"
    assert code_name(Code.NOT_FOUND) == "NOT_FOUND"


def test_grpc_text_is_cut_after_1024_bytes() -> None:
    assert grpc_text("a" * 5000) == "a" * 1024 + "...TRUNCATED"
    assert grpc_text("a" * 1024) == "a" * 1024
    assert grpc_text("a" * 1025) == "a" * 1024 + "...TRUNCATED"
    assert grpc_text("") == ""


def test_grpc_text_never_tears_a_character() -> None:
    assert grpc_text("€" * 400) == "€" * 341 + "...TRUNCATED"  # 341 * 3 = 1023 bytes; the 342nd does not fit
    assert grpc_text("€" * 341) == "€" * 341
