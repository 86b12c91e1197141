"""How often a bug is written down."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any

import pytest

from ringserve.frontend.bugs import BugRate
from ringserve.frontend.rest_api import make_app
from tests.frontend.rest.served import RestLoopback, call, default_model

Raised = tuple[type[BaseException], BaseException, TracebackType | None]


def raised() -> Raised:
    try:
        raise ValueError("a bug")
    except ValueError:
        found = sys.exc_info()
        assert found[0] is not None
        return found


def record(created_s: float, info: Raised | None) -> logging.LogRecord:
    made = logging.LogRecord("x", logging.ERROR, "", 0, "request for %r", ("100%s",), info)
    made.created = created_s
    return made


def test_some_a_second_pass_and_the_others_are_counted() -> None:
    rate, info = BugRate(), raised()

    def passed(created_s: float, times: int) -> list[str]:
        made = [record(created_s, info) for _ in range(times)]
        return [each.getMessage() for each in made if rate.filter(each)]

    assert passed(1_000.0, 1_000) == ["request for '100%s'"] * 10
    assert passed(1_000.9, 1) == []
    assert rate.filter(record(1_000.9, None)), "it is no exception"
    assert passed(1_001.0, 2) == ["request for '100%s'; 991 more were not written", "request for '100%s'"]
    assert passed(900.0, 20) == ["request for '100%s'"] * 10, "the clock was put back"


class BrokenClient(RestLoopback):
    """One whose every request is a bug."""

    def infer(self, *_: Any) -> int:
        raise ValueError("a bug")


def test_a_bug_that_a_client_causes_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(BrokenClient(model=default_model))
    for _ in range(500):
        answer = call(app, "POST", "/v1/models/default:predict", b'{"instances":[1.0]}')
        assert answer.status == 500
    assert 0 < len(caplog.records) < 400
