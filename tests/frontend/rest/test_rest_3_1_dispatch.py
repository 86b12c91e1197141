"""Spec 3.1: what a method and a URL mean, and how others are refused."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.rest_api import error_page
from ringserve.frontend.rest_routes import Action, Page, Route, is_api, route
from tests.frontend.rest.served import call, golden, serve

MEANINGS: list[tuple[str, str, Route]] = [
    # POST: name, version or label, verb
    ("POST", "/v1/models/m:predict", Route(Action.PREDICT, "m")),
    ("POST", "/v1/models/m/versions/12:classify", Route(Action.CLASSIFY, "m", 12)),
    ("POST", "/v1/models/m/versions/0:regress", Route(Action.REGRESS, "m", 0)),
    ("POST", "/v1/models/m/labels/a-b.c:predict", Route(Action.PREDICT, "m", None, "a-b.c")),
    # letter case is ignored in all but the verb and the names
    ("POST", "/V1/MODELS/Mm:predict", Route(Action.PREDICT, "Mm")),
    ("POST", "/v1/models/m/VERSIONS/9223372036854775807:predict", Route(Action.PREDICT, "m", 2**63 - 1)),
    # percent-decoding comes after matching
    ("POST", "/v1/models/a%2Fb%3Ac:predict", Route(Action.PREDICT, "a/b:c")),
    ("POST", "/v1/models/m/labels/%C3%A9%20:predict", Route(Action.PREDICT, "m", None, "é ")),
    ("POST", "/v1/models/a+b:predict", Route(Action.PREDICT, "a+b")),
    # the docs' limit of labels to word characters is not in the code
    ("POST", "/v1/models/m/labels/a!b~c:predict", Route(Action.PREDICT, "m", None, "a!b~c")),
    # GET
    ("GET", "/v1/models/m", Route(Action.STATUS, "m")),
    ("GET", "/v1/models/m/versions/1", Route(Action.STATUS, "m", 1)),
    ("GET", "/v1/models/m/labels/L", Route(Action.STATUS, "m", None, "L")),
    ("GET", "/v1/models/m/metadata", Route(Action.METADATA, "m")),
    ("GET", "/v1/models/m/versions/1/metadata", Route(Action.METADATA, "m", 1)),
    ("GET", "/v1/models/m/labels/L/metadata", Route(Action.METADATA, "m", None, "L")),
    ("GET", "/v1/models/metadata", Route(Action.STATUS, "metadata")),
    # a query is part of what is matched
    ("GET", "/v1/models/m?x", Route(Action.STATUS, "m?x")),
    ("GET", "/v1/models/m?", Route(Action.STATUS, "m?")),
    ("OPTIONS", "/v1/anything", Route(Action.OPTIONS)),
    # ours
    ("GET", "/healthz", Route(Action.HEALTH)),
    ("GET", "/healthz?verbose=1", Route(Action.HEALTH)),
    ("HEAD", "/readyz", Route(Action.READY)),
    ("GET", "/readyz/a%2Fb", Route(Action.READY, "a/b")),
    ("GET", "/metrics", Route(Action.METRICS)),
    ("PUT", "/ringserve/v1/models/m", Route(Action.ADMIN)),
]


@pytest.mark.parametrize(("method", "target", "meaning"), MEANINGS)
def test_rest_3_1_meanings(method: str, target: str, meaning: Route) -> None:
    assert route(method, target) == meaning


MALFORMED = [
    ("POST", "/v1/models/default:predict?a=1"),
    ("POST", "/v1/models/default:predict?"),
    ("POST", "/v1/models/default:predict#f"),
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
    ("GET", "/v1/models/m/versions/1/labels/L"),
    ("GET", "/v1/models/m:predict"),
    ("GET", "/v1/models/m/"),
    ("GET", "/v1/config"),
    ("HEAD", "/v1/models/m"),
    ("PUT", "/v1/models/m"),
    ("DELETE", "/v1/models/m"),
    ("PATCH", "/v1/models/m:predict"),
]


@pytest.mark.parametrize(("method", "target"), MALFORMED)
def test_rest_3_1_malformed(method: str, target: str) -> None:
    assert route(method, target) == Failure(Code.INVALID_ARGUMENT, f"Malformed request: {method} {target}")
    response = call(None, method, target)
    assert (response.status, response.error) == (400, f"Malformed request: {method} {target}")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/versions/5", "/v1/models/labels/x/metadata"])
def test_rest_3_1_missing_model_name(path: str) -> None:
    response = call(None, "GET", path)
    assert (response.status, response.error) == (400, "Missing model name in request.")


@pytest.mark.parametrize("version", ["9223372036854775808", "18446744073709551615", "9" * 5000])
@pytest.mark.parametrize(("method", "end"), [("POST", ":predict"), ("GET", ""), ("GET", "/metadata")])
def test_rest_3_1_a_version_beyond_int64_is_400_without_a_body(version: str, method: str, end: str) -> None:
    target = f"/v1/models/m/versions/{version}{end}"
    assert route(method, target) is Page.BAD_VERSION
    response = call(None, method, target)
    assert (response.status, response.body) == (400, b"")


def test_rest_3_1_leading_zeros_of_a_version() -> None:
    assert route("GET", "/v1/models/m/versions/" + "0" * 5000 + "7") == Route(Action.STATUS, "m", 7)


@pytest.mark.parametrize("path", ["/", "/v1", "/v3/models", "/healthz/", "/readyz/a/b", "", "*", "/ringserve/v1"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_rest_3_1_everything_else_is_libevents_404_page(path: str, method: str) -> None:
    response = call(None, method, path)
    assert (response.status, response.body) == (404, golden("not_found.html"))
    assert response.headers["content-type"] == "text/html; charset=ISO-8859-1"


@pytest.mark.parametrize("path", ["/v1/models/m", "/healthz", "/"])
@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND"])
def test_rest_3_1_methods_that_libevent_does_not_know_are_501(path: str, method: str) -> None:
    assert call(None, method, path).status == 501


def test_rest_3_1_what_is_the_api() -> None:
    assert is_api("/v1/x")
    assert is_api("/V1/")
    assert not is_api("/v1")
    assert not is_api("/ringserve/v1/models")


def test_post_to_pages_of_ours() -> None:
    assert call(None, "POST", "/healthz").status == 404
    assert call(None, "GET", "/metrics").status == 404  # nobody writes any


def test_the_servers_own_refusals_look_like_tf_servings() -> None:
    assert error_page(400, "no HTTP") == (Page.BAD_REQUEST.body, b"text/html; charset=ISO-8859-1")
    assert error_page(501, "no method") == (Page.NOT_IMPLEMENTED.body, b"text/html; charset=ISO-8859-1")
    assert error_page(413, "too long") == (b'{\n    "error": "too long"\n}', b"application/json")


def test_a_bug_is_answered() -> None:
    class Broken:
        async def render_tfs(self) -> bytes:
            raise ValueError("a bug")

        async def render(self) -> tuple[bytes, str]:
            raise ValueError("a bug")

    assert call(serve(metrics=Broken()), "GET", "/metrics").status == 500
