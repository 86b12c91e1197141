"""/ringserve/v1: who may use it, what is asked of the broker, and what is answered."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from ringserve.broker.messages import Code, VersionInfo, VersionState
from ringserve.config.model_config import config_dict
from ringserve.config.protos import ModelConfig, ModelServerConfig
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.rest_api import RestSettings, make_app
from tests.frontend.fakes import version_info
from tests.frontend.rest.served import RestLoopback, call

JSON = {"Content-Type": "application/json; charset=utf-8"}
BASE = "/ringserve/v1/"


def client(told: dict[str, tuple[int, str, bytes]] | None = None) -> RestLoopback:
    made = RestLoopback()
    made.told = told or {}
    return made


def ask(
    loopback: RestLoopback,
    method: str,
    path: str,
    body: Any = b"",
    headers: dict[str, str] | None = None,
    admin: str = "local",
    local: bool = True,
) -> Any:
    app = make_app(loopback, RestSettings(admin=admin))
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return call(app, method, BASE + path, data, JSON if headers is None else headers, local=local)


# -------------------------------------------------------------------------------------------------------- who may

WHO: list[tuple[str, bool, dict[str, str], int]] = [
    # rest_admin, the client is on this host, headers, HTTP status
    ("local", True, {}, 200),
    ("local", True, {"Host": "localhost:8501"}, 200),
    ("local", True, {"Host": "127.0.0.1:8501"}, 200),
    ("local", True, {"Host": "[::1]:8501"}, 200),
    ("local", True, {"Host": "server.localhost"}, 200),
    ("local", True, {"Host": socket.gethostname()}, 200),
    ("local", False, {}, 403),
    ("local", False, {"Host": "localhost"}, 403),
    # a page that gave its own name this host's address
    ("local", True, {"Host": "evil.example:8501"}, 403),
    ("local", True, {"Host": ""}, 403),
    # a proxy on this host
    ("local", True, {"X-Forwarded-For": "10.0.0.1"}, 403),
    ("local", True, {"Forwarded": "for=10.0.0.1"}, 403),
    ("local", True, {"Via": "1.1 proxy"}, 403),
    ("all", False, {}, 200),
    ("all", False, {"Host": "server.example", "X-Forwarded-For": "10.0.0.1"}, 200),
    ("off", True, {}, 404),
    # a page of another site, of one that took an address of ours (DNS rebinding), and one of nowhere
    *(
        (admin, True, {"Host": host, "Origin": origin}, 403)
        for admin in ("local", "all")
        for host, origin in (
            ("127.0.0.1:8501", "http://evil.example"),
            ("evil.example:8501", "http://evil.example:8501"),
            ("127.0.0.1:8501", "http://127.0.0.1:8501"),
            ("127.0.0.1:8501", "null"),
        )
    ),
    ("all", False, {"Sec-Fetch-Site": "cross-site"}, 403),
    ("all", False, {"Sec-Fetch-Site": "same-origin"}, 403),
    # a person's own, from the address bar
    ("all", False, {"Sec-Fetch-Site": "none"}, 200),
]


@pytest.mark.parametrize(("admin", "local", "headers", "status"), WHO)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_may(admin: str, local: bool, headers: dict[str, str], status: int, method: str) -> None:
    loopback = client({"rescan": (0, "", b"")})
    path = "models" if method == "GET" else "rescan"
    response = ask(loopback, method, path, headers={**JSON, **headers}, admin=admin, local=local)
    assert response.status == status
    assert len(loopback.asks) == (1 if status == 200 and method == "POST" else 0)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "models/m"), ("PUT", "models/m/labels"), ("POST", "config"), ("POST", "rescan")]
)
def test_what_a_web_page_may_send_unasked_is_refused(content_type: str, method: str, path: str) -> None:
    loopback = client()
    headers = {"Content-Type": content_type} if content_type else {}
    assert ask(loopback, method, path, {}, headers).status == 415
    assert not loopback.asks


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "nothing", 404, None),
        ("GET", "", 404, None),
        ("GET", "models/a/b", 404, None),
        ("GET", "models?x", 404, None),
        ("PATCH", "models/m", 405, "DELETE, GET, PUT"),
        ("DELETE", "config", 405, "GET, POST"),
        ("GET", "models/m:record", 405, "POST"),
    ],
)
def test_paths_and_methods(method: str, path: str, status: int, allow: str | None) -> None:
    response = ask(client(), method, path, {})
    assert (response.status, response.headers.get("allow")) == (status, allow)
    assert response.error


# -------------------------------------------------------------------------------------------------------- looking


def test_one_model_in_full() -> None:
    response = ask(client(), "GET", "models/default")
    assert response.status == 200
    assert response.json == {
        "name": "default",
        "ready": True,
        "serving": 123,
        "versions": [
            {
                "version": 124,
                "state": "END",
                "error": {"code": "INTERNAL", "text": "no such file"},
                "notes": [],
            },
            {"version": 123, "state": "AVAILABLE", "error": None, "notes": []},
        ],
        "labels": {"stable": 123},
        "signatures": {
            "none": {
                "method_name": "tensorflow/serving/predict",
                "inputs": {},
                "outputs": {"y": {"dtype": "float", "shape": None}},
                "defaults": [],
            },
            "serving_default": {
                "method_name": "tensorflow/serving/predict",
                "inputs": {"x": {"dtype": "float", "shape": [-1]}},
                "outputs": {"y": {"dtype": "float", "shape": [-1]}},
                "defaults": [],
            },
        },
    }


def test_a_model_with_notes_and_one_without_versions() -> None:
    catalog = Catalog()
    info = VersionInfo(*version_info("noted", 3, state=VersionState.LOADING)[:-1], ["warmed up with 3 records"])
    catalog.update([info], models=["absent", "noted"])
    loopback = RestLoopback(catalog)
    noted = ask(loopback, "GET", "models/noted").json
    assert noted["versions"][0]["notes"] == ["warmed up with 3 records"]
    assert (noted["ready"], noted["serving"], noted["signatures"]) == (False, None, {})
    absent = ask(loopback, "GET", "models/absent").json
    assert (absent["ready"], absent["versions"]) == (False, [])
    assert [model["name"] for model in ask(loopback, "GET", "models").json["models"]] == ["absent", "noted"]
    missing = ask(loopback, "GET", "models/nope")
    assert (missing.status, missing.error) == (404, "no such model: nope")


def test_the_config() -> None:
    config = ModelServerConfig()
    config.model_config_list.config.add(name="m", base_path="/models/m", model_platform="tensorflow")
    loopback = client({"config": (0, "", config.SerializeToString())})
    response = ask(loopback, "GET", "config")
    assert (response.status, response.json) == (200, config_dict(config))
    assert response.json["model_config_list"]["config"][0]["base_path"] == "/models/m"
    assert ask(client({"config": (0, "", b"\xff")}), "GET", "config").status == 500
    assert ask(client({"config": (14, "none", b"")}), "GET", "config").status == 503


def test_the_state_is_passed_on() -> None:
    response = ask(client({"state": (0, "", b'{"generation": 7}')}), "GET", "state")
    assert (response.status, response.json) == (200, {"generation": 7})


# ------------------------------------------------------------------------------------------------------- changing


def test_a_model_is_added() -> None:
    loopback = client({"add": (0, "", b'{"models": {"a/b": "OK"}}')})
    wanted = {
        "base_path": "/models/m",
        "model_version_policy": {"specific": {"versions": [3, "4"]}},
        "version_labels": {"stable": 3},
        "batching": {"batch_rows_max": 64},
    }
    response = ask(loopback, "PUT", "models/a%2Fb", wanted)
    assert (response.status, response.json) == (200, {"models": {"a/b": "OK"}})
    ((verb, body, timeout_s),) = loopback.asks
    assert (verb, timeout_s) == ("add", None), "loading takes as long as it takes"
    told = config_dict(ModelConfig.FromString(body))
    assert told["name"] == "a/b"
    assert told["base_path"] == "/models/m"
    assert told["model_version_policy"] == {"specific": {"versions": ["3", "4"]}}
    assert told["version_labels"] == {"stable": "3"}
    assert told["batching"] == {"batch_rows_max": "64"}


BAD_BODIES: list[tuple[str, str, bytes]] = [
    ("PUT", "models/m", b"{"),
    ("PUT", "models/m", b'{"nonsense": 1}'),
    ("PUT", "models/m", b'{"name": "other"}'),
    ("PUT", "models/m", b"\xff"),
    ("PUT", "models/m", b"[1]"),
    ("PUT", "models/m/labels", b"[1]"),
    ("PUT", "models/m/labels", b"{"),
    ("PUT", "models/m/labels", b'{"stable": "3"}'),
    ("PUT", "models/m/labels", b'{"stable": true}'),
    ("PUT", "models/m/batching", b"1"),
    ("POST", "config", b'{"model_config_list": 1}'),
    ("POST", "config", b"model_config_list {"),
    ("POST", "models/default:record", b'{"count": 0}'),
    ("POST", "models/default:record", b'{"count": 1001}'),
    ("POST", "models/default:record", b'{"count": true}'),
    ("POST", "models/default:record", b'{"seconds": -1}'),
    ("POST", "models/default:record", b'{"seconds": 1e9}'),
    ("POST", "models/default:record", b'{"seconds": "3"}'),
]


@pytest.mark.parametrize(("method", "path", "body"), BAD_BODIES)
def test_bodies_that_make_no_sense(method: str, path: str, body: bytes) -> None:
    loopback = client()
    response = ask(loopback, method, path, body)
    assert response.status == 400
    assert response.error
    assert not loopback.asks


def test_labels_batching_removal_and_rescan() -> None:
    loopback = client(dict.fromkeys(("labels", "batching", "remove", "rescan"), (0, "", b"")))
    assert ask(loopback, "PUT", "models/m/labels", {"stable": 3, "canary": 4}).json == {}
    assert ask(loopback, "PUT", "models/m/batching", {"batch_rows_max": 8}).status == 200
    assert ask(loopback, "DELETE", "models/a%2Fb", headers={}).status == 200
    assert ask(loopback, "POST", "rescan").status == 200
    labels, batching, remove, rescan = loopback.asks
    assert (labels[0], json.loads(labels[1])) == ("labels", {"model": "m", "labels": {"stable": 3, "canary": 4}})
    assert (batching[0], json.loads(batching[1])) == ("batching", {"model": "m", "batching": {"batch_rows_max": 8}})
    assert remove[:2] == ("remove", b"a/b")
    assert rescan[:2] == ("rescan", b"")
    assert all(timeout_s is not None for _, _, timeout_s in loopback.asks)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model_config_list": {"config": [{"name": "m", "base_path": "/m", "model_platform": "tensorflow"}]}}',
        b'model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" } }',
    ],
    ids=["JSON", "text format"],
)
def test_the_whole_config_is_replaced(body: bytes) -> None:
    loopback = client({"reload": (0, "", b'{"models": {"m": "OK"}}')})
    response = ask(loopback, "POST", "config", body)
    assert (response.status, response.json) == (200, {"models": {"m": "OK"}})
    ((verb, sent, timeout_s),) = loopback.asks
    (model,) = ModelServerConfig.FromString(sent).model_config_list.config
    assert (verb, timeout_s, model.name, model.base_path) == ("reload", None, "m", "/m")


@pytest.mark.parametrize(
    ("code", "status"),
    [(Code.INVALID_ARGUMENT, 400), (Code.NOT_FOUND, 404), (Code.UNAVAILABLE, 503), (Code.UNKNOWN, 500), (99, 500)],
)
def test_refusals_of_the_broker(code: int, status: int) -> None:
    response = ask(client({"remove": (int(code), "why not", b"")}), "DELETE", "models/m")
    assert (response.status, response.error) == (status, "why not")
