"""URLs: what they mean and how they are refused."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import Failure
from ringserve.frontend.rest_routes import Action, Page, Route, route

MEANINGS: list[tuple[str, str, Route]] = [
    ("POST", "/v1/models/m:predict", Route(Action.PREDICT, "m")),
    ("POST", "/V1/MODELS/Mm:predict", Route(Action.PREDICT, "Mm")),
    ("POST", "/v1/models/m/versions/12:classify", Route(Action.CLASSIFY, "m", 12)),
    ("POST", "/v1/models/m/versions/0:regress", Route(Action.REGRESS, "m", 0)),
    ("POST", "/v1/models/m/VERSIONS/9223372036854775807:predict", Route(Action.PREDICT, "m", 2**63 - 1)),
    ("POST", "/v1/models/m/labels/a-b.c:predict", Route(Action.PREDICT, "m", None, "a-b.c")),
    ("POST", "/v1/models/a%2Fb%3Ac:predict", Route(Action.PREDICT, "a/b:c")),
    ("POST", "/v1/models/m/labels/%C3%A9%20:predict", Route(Action.PREDICT, "m", None, "é ")),
    ("POST", "/v1/models/a+b:predict", Route(Action.PREDICT, "a+b")),
    ("GET", "/v1/models/m", Route(Action.STATUS, "m")),
    ("GET", "/v1/models/m/versions/1", Route(Action.STATUS, "m", 1)),
    ("GET", "/v1/models/m/labels/L", Route(Action.STATUS, "m", None, "L")),
    ("GET", "/v1/models/m/metadata", Route(Action.METADATA, "m")),
    ("GET", "/v1/models/m/versions/1/metadata", Route(Action.METADATA, "m", 1)),
    ("GET", "/v1/models/m/labels/L/metadata", Route(Action.METADATA, "m", None, "L")),
    ("GET", "/v1/models/metadata", Route(Action.STATUS, "metadata")),
    ("GET", "/v1/models/m?x", Route(Action.STATUS, "m?x")),
    ("OPTIONS", "/v1/anything", Route(Action.OPTIONS)),
    ("GET", "/healthz", Route(Action.HEALTH)),
    ("HEAD", "/readyz", Route(Action.READY)),
]


@pytest.mark.parametrize(("method", "target", "meaning"), MEANINGS)
def test_meanings(method: str, target: str, meaning: Route) -> None:
    path, _, query = target.partition("?")
    assert route(method, path.encode(), query.encode()) == meaning


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/models/default:predict?a=1"),
        ("POST", "/v1/models/default:PREDICT"),
        ("POST", "/v1/models/default:Predict"),
        ("POST", "/v1/models/default"),
        ("POST", "/v1/models/default:explain"),
        ("POST", "/v1/models/m/versions/abc:predict"),
        ("POST", "/v1/models/m/versions/-1:predict"),
        ("POST", "/v1/models/m/versions/1/labels/L:predict"),
        ("POST", "/v1/models/m/versions/1:predict/"),
        ("POST", "/v1/models/:predict"),
        ("POST", "/v1/"),
        ("GET", "/v1/models/m/versions/1?x"),
        ("GET", "/v1/models/m/metadata?x=1"),
        ("GET", "/v1/models/m:predict"),
        ("GET", "/v1/models/m/"),
        ("GET", "/v1/config"),
        ("HEAD", "/v1/models/m"),
        ("PUT", "/v1/models/m"),
        ("DELETE", "/v1/models/m"),
        ("PATCH", "/v1/models/m:predict"),
    ],
)
def test_malformed(method: str, target: str) -> None:
    path, _, query = target.partition("?")
    refused = route(method, path.encode(), query.encode())
    assert isinstance(refused, Failure)
    assert refused.text == f"Malformed request: {method} {target}"


def test_a_missing_name() -> None:
    for path in (b"/v1/models", b"/v1/models/versions/5", b"/v1/models/labels/x/metadata"):
        refused = route("GET", path, b"")
        assert isinstance(refused, Failure)
        assert refused.text == "Missing model name in request."


def test_versions_beyond_64_bits() -> None:
    for version in ("9223372036854775808", "18446744073709551615", "9" * 5000):
        for method, end in (("POST", ":predict"), ("GET", ""), ("GET", "/metadata")):
            refused = route(method, f"/v1/models/m/versions/{version}{end}".encode(), b"")
            assert refused is Page.BAD_VERSION
    zeros = route("GET", b"/v1/models/m/versions/" + b"0" * 5000 + b"7", b"")
    assert zeros == Route(Action.STATUS, "m", 7)


def test_everything_else_is_a_page_of_libevent() -> None:
    for path in (b"/", b"/v1", b"/v2/models", b"/healthz/", b"", b"*"):
        assert route("GET", path, b"") is Page.NOT_FOUND
    assert route("GET", b"/healthz", b"x") is Page.NOT_FOUND
    assert route("POST", b"/healthz", b"") is Page.NOT_FOUND
    assert route("OPTIONS", b"/", b"") is Page.NOT_FOUND
    assert b"<H1>Not Found</H1>" in Page.NOT_FOUND.body
    for method in ("TRACE", "CONNECT", "PROPFIND"):
        assert route(method, b"/v1/models/m", b"") is Page.NOT_IMPLEMENTED
    assert Page.NOT_IMPLEMENTED.status == 501
    assert (Page.BAD_VERSION.status, Page.BAD_VERSION.body) == (400, b"")
