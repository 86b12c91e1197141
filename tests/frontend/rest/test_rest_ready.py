"""/healthz, /readyz, /readyz/MODEL: when this server should get requests (spec 10: no health URL)."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import VersionState
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.rest_api import make_app
from tests.frontend.fakes import version_info
from tests.frontend.rest.served import RestLoopback, call, serve


def catalog(names: list[str] | None = None, *, starting: bool = False) -> Catalog:
    """good serves; bad has a version that failed; absent is configured and has none."""
    made = Catalog()
    versions = [version_info("good", 1), version_info("bad", 1, state=VersionState.END, error=(5, "no"))]
    made.update(versions, models=names if names is not None else ["good", "bad", "absent"], starting=starting)
    return made


READY: list[tuple[list[str], str, int, str]] = [
    # configured models, path, HTTP status, text
    (["good"], "/readyz", 200, "ready"),
    ([], "/readyz", 200, "ready"),
    (["good", "bad", "absent"], "/readyz", 503, "no available version of: absent, bad"),
    (["good", "bad", "absent"], "/readyz/good", 200, "ready"),
    (["good", "bad", "absent"], "/readyz/bad", 503, "no available version of: bad"),
    (["good", "bad", "absent"], "/readyz/absent", 503, "no available version of: absent"),
    (["good", "bad", "absent"], "/readyz/nope", 404, "no such model: nope"),
]


@pytest.mark.parametrize(("names", "path", "status", "text"), READY)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_readiness(names: list[str], path: str, status: int, text: str, method: str) -> None:
    response = call(make_app(RestLoopback(catalog(names))), method, path)
    assert (response.status, response.body) == (status, f"{text}\n".encode())
    assert response.headers == {"content-type": "text/plain; charset=utf-8"}


def test_while_the_models_are_not_known() -> None:
    app = make_app(RestLoopback(catalog(["good"], starting=True)))
    assert call(app, "GET", "/readyz").status == 503
    assert call(app, "GET", "/readyz/good").status == 200
    assert call(make_app(RestLoopback(Catalog())), "GET", "/readyz").status == 503


def test_without_a_broker_and_while_draining() -> None:
    client = RestLoopback(catalog(["good"]))
    app = make_app(client)
    client.connected = False
    for path in ("/readyz", "/readyz/good"):
        assert call(app, "GET", path).status == 503
    client.connected = True
    assert call(app, "GET", "/readyz").status == 200
    app.begin_drain()
    for path in ("/readyz", "/readyz/good"):
        response = call(app, "GET", path)
        assert (response.status, response.body) == (503, b"the server is shutting down\n")


def test_health_is_that_the_process_answers() -> None:
    app = serve()
    app.begin_drain()
    response = call(app, "GET", "/healthz")
    assert (response.status, response.body) == (200, b"ok\n")
