"""The console without a browser: what it is made of, what its overview says, and what it keeps of failures.

Held here: the page and all its parts come with headers that forbid every foreign resource, and name none; nothing in
them reads text as HTML or code; the page is only where the console is on; who may see the overview; failures of all
frontends are shown together, bounded, newest first, and never with what a request held.
"""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from ringserve.broker.messages import Code, LaneSpec, VersionState
from ringserve.config import metrics
from ringserve.config.keys_file import RATE_SLOTS, Entry, digest_of, parse_scopes
from ringserve.config.metric_family import Family
from ringserve.frontend.access import Access
from ringserve.frontend.console import Overview, assets
from ringserve.frontend.console_failures import (
    ENTRIES_MAX,
    TEXT_CHARS_MAX,
    RecentFailures,
    recent_failures,
    shown_text,
)
from ringserve.frontend.lanes import Lane
from ringserve.frontend.metric_sums import Cell
from ringserve.frontend.rest_access import RestGuard
from ringserve.frontend.rest_api import RestApp, RestSettings, make_app
from ringserve.frontend.tally import GRPC, Tally
from tests.frontend.fakes import catalog_of, version_info
from tests.frontend.rest.served import RestLoopback, call, default_model

ASSETS = assets()
FILES = ("/", "/console.css", "/console.js", "/console.svg", "/console_charts.js")
OVERVIEW = "/ringserve/v1/overview"
STATE = {
    "generation": 3, "groups": [], "pool": True, "workers": [], "weights": [], "frontends": [1],
    "memory": {"limit_bytes": 7, "budgeted_bytes": 5}, "requests": {"queued": 2},
    "lanes": [
        {"model": "m", "oldest_s": wait, "inputs": [["x", 1, [-1, 3]]]} for wait in (0.25, *([0.0] * 150), 0.5)
    ],
}  # fmt: skip


class Written:
    """An overview that says where it came from."""

    async def write(self) -> bytes:
        return b'{"overview": true}'


def make(**settings: Any) -> RestApp:
    made: dict[str, Any] = {"admin": "local", "models": False} | settings
    return make_app(RestLoopback(model=default_model), RestSettings(**made), overview=Written())


def guarded() -> RestApp:
    keys = {"looks": "status", "operates": "admin", "runs": "predict"}
    access = Access([0] * RATE_SLOTS, lambda: 5)
    access.use([Entry(name, digest_of(name.encode()), "", parse_scopes([scope])) for name, scope in keys.items()])
    guard = RestGuard(access, lambda reason: None)
    settings = RestSettings(admin="all", models=False)
    return make_app(RestLoopback(model=default_model), settings, guard=guard, overview=Written())


# ------------------------------------------------------------------------------------------------------------- page


def test_the_page_has_these_files_and_no_others() -> None:
    assert set(ASSETS) == set(FILES)


@pytest.mark.parametrize("path", FILES)
def test_every_file_forbids_what_is_not_its_own(path: str) -> None:
    answer = call(make(), "GET", path)
    assert answer.status == 200
    assert answer.body == ASSETS[path].body
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert {value for name, value in policy.items() if name.endswith("-src")} == {"'none'", "'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-type"] == ASSETS[path].content_type.decode()


@pytest.mark.parametrize("path", FILES)
def test_no_file_names_another_place_or_makes_code_of_text(path: str) -> None:
    text = ASSETS[path].body.decode()
    without_names = text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nobody fetches
    assert not re.search(r"https?:|//[\w-]+\.\w|\bwss?:|@import|url\(", without_names)
    forbidden = r"\beval\b|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write|localStorage|\bcookie\b"
    assert not re.search(forbidden, text)
    assert not re.search(r"\son\w+=|<script>|<style|\sstyle=", text)


def test_the_page_loads_only_files_that_are_there() -> None:
    found = set()
    for asset in ASSETS.values():
        found |= set(re.findall(r"""(?:src|href|from)\s*=?\s*"(/[^"]*)\"""", asset.body.decode()))
    assert found == set(FILES) - {"/"}


def test_there_is_no_console_where_it_is_off() -> None:
    app = make_app(RestLoopback(model=default_model), RestSettings(admin="all"))
    for path in FILES:
        assert call(app, "GET", path).status == 404
    assert call(app, "GET", OVERVIEW).status == 404


def test_only_looking_is_possible() -> None:
    assert call(make(), "POST", "/").status == 404
    assert call(make(), "POST", OVERVIEW, headers={"Content-Type": "application/json"}).status == 404


def test_the_overview_is_for_this_host_under_its_own_names() -> None:
    answer = call(make(), "GET", OVERVIEW)
    assert (answer.status, answer.json, answer.headers["cache-control"]) == (200, {"overview": True}, "no-store")
    assert call(make(), "GET", OVERVIEW, local=False).status == 403
    assert call(make(), "GET", OVERVIEW, headers={"Host": "rebound.example"}).status == 403
    assert call(make(), "GET", OVERVIEW, headers={"X-Forwarded-For": "10.0.0.1"}).status == 403


@pytest.mark.parametrize(
    ("key", "status"), [("", 401), ("wrong", 401), ("runs", 403), ("looks", 200), ("operates", 200)]
)
def test_with_keys_the_page_is_open_and_the_overview_needs_one(key: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    assert call(guarded(), "GET", "/", headers=headers).status == 200
    assert call(guarded(), "GET", OVERVIEW, headers=headers).status == status


# --------------------------------------------------------------------------------------------------------- overview


class Cells:
    """Metrics: one cell of requests."""

    async def cells(self, families: Iterable[Family]) -> dict[str, list[Cell]]:
        labels = ("m", "1", "s", "predict", "REST", "OK")
        return {family.name: [Cell(labels, [5.0])] for family in families if family == metrics.REQUESTS}


def written(folder: Path, code: int) -> Any:
    async def ask(verb: str, body: bytes, timeout_s: float | None) -> tuple[int, str, bytes]:
        assert (verb, body) == ("state", b"")
        return code, "", orjson.dumps(STATE) if code == Code.OK else b""

    catalog = catalog_of(version_info("m", 1, {}, state=VersionState.AVAILABLE))
    return orjson.loads(asyncio.run(Overview(str(folder), catalog, ask, Cells()).write()))


def test_the_overview_says_everything(tmp_path: Path) -> None:
    found = written(tmp_path, Code.OK)
    assert [model["name"] for model in found["models"]] == ["m"]
    assert found["broker"]["memory"] == {"limit_bytes": 7, "budgeted_bytes": 5}
    lanes = found["broker"]["lanes"]
    assert [lane["oldest_s"] for lane in lanes[:3]] == [0.5, 0.25, 0.0]
    assert (len(lanes), lanes[0]["inputs"]) == (100, ["x float[-1, 3]"])
    requests = found["metrics"]["ringserve_requests_total"]
    assert requests["labels"] == ["model", "version", "signature", "api", "entrypoint", "code"]
    assert requests["cells"] == [[["m", "1", "s", "predict", "REST", "OK"], [5.0]]]
    assert found["metrics"]["ringserve_request_duration_seconds"]["limits"][0] == 0.0001
    assert found["host"]["usable_bytes"] >= found["host"]["available_bytes"] > 0


def test_the_overview_without_a_broker_still_has_the_models(tmp_path: Path) -> None:
    found = written(tmp_path, Code.UNAVAILABLE)
    assert (found["broker"], len(found["models"])) == (None, 1)


# --------------------------------------------------------------------------------------------------------- failures


class Later:
    """call_later without a loop: what was planned runs when a test says so."""

    def __init__(self) -> None:
        self.planned: list[Callable[[], None]] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        self.planned.append(function)

    def run(self) -> None:
        planned, self.planned = self.planned, []
        for function in planned:
            function()


def what(text: str, model: str = "m") -> tuple[str, str, str, str, str, str]:
    return ("REST", "predict", model, "1", "INTERNAL", text)


def test_failures_of_all_frontends_are_shown_together_the_last_first(tmp_path: Path) -> None:
    later = Later()
    first, second = (RecentFailures(str(tmp_path), f"frontend-{number}", later) for number in (0, 1))
    first.note(what("a"), 10.0)
    first.note(what("a"), 30.0)
    second.note(what("a"), 5.0)
    second.note(what("b"), 20.0)
    assert len(later.planned) == 2
    later.run()
    found = recent_failures(str(tmp_path))
    assert [(entry["text"], entry["count"], entry["first_s"], entry["last_s"]) for entry in found] == [
        ("a", 3, 5.0, 30.0),
        ("b", 1, 20.0, 20.0),
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_frontend_that_is_replaced_keeps_what_failed_before(tmp_path: Path) -> None:
    later = Later()
    RecentFailures(str(tmp_path), "frontend-0", later).note(what("a"), 10.0)
    later.run()
    RecentFailures(str(tmp_path), "frontend-0", later).note(what("a"), 11.0)
    later.run()
    assert [entry["count"] for entry in recent_failures(str(tmp_path))] == [2]


def test_the_list_is_bounded_and_the_oldest_leave(tmp_path: Path) -> None:
    later = Later()
    failures = RecentFailures(str(tmp_path), "frontend-0", later)
    for number in range(3 * ENTRIES_MAX):
        failures.note(what("x" * number), float(number))
        failures.note(what("again"), float(number))
    later.run()
    texts = [entry["text"] for entry in recent_failures(str(tmp_path))]
    assert len(texts) == ENTRIES_MAX
    assert {"again", "x" * (3 * ENTRIES_MAX - 1)} <= set(texts)
    assert "x" not in texts


def test_texts_that_differ_in_numbers_and_names_are_one_kind(tmp_path: Path) -> None:
    later = Later()
    failures = RecentFailures(str(tmp_path), "frontend-0", later)
    for number in range(200):
        failures.note(what(f"full; currently {number} requests with {number / 2} rows enqueued"), float(number))
        failures.note(what(f"Servable not found for request: Latest(random-{number})", "(unknown)"), float(number))
    later.run()
    assert {(entry["text"], entry["count"]) for entry in recent_failures(str(tmp_path))} == {
        ("full; currently 199 requests with 99.5 rows enqueued", 200),
        ("Servable not found for request: Latest(random-199)", 200),
    }


def test_a_file_that_is_damaged_or_cannot_be_written_costs_the_list_only(tmp_path: Path) -> None:
    (tmp_path / "failures_frontend-0.json").write_text('[{"what"')
    assert recent_failures(str(tmp_path)) == []
    failures = RecentFailures(str(tmp_path / "gone"), "frontend-0", Later())
    failures.note(what("a"), 1.0)
    failures.flush()


SECRETS = ("4711.5", "secret")


@pytest.mark.parametrize(
    ("code", "ran", "text", "kept"),
    [
        (Code.UNAVAILABLE, True, "No worker has served model m for 1.5 s; it's being replaced", None),
        (Code.NOT_FOUND, False, "Servable not found for request: Latest(m)", None),
        (Code.INVALID_ARGUMENT, False, 'JSON Value: "secret" Is not object', "JSON Value: …"),
        (
            *(Code.INVALID_ARGUMENT, False),
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: 4711.5 Type: ...",
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: …",
        ),
        (Code.INVALID_ARGUMENT, False, "Malformed request: GET /v1/models/secret", "Malformed request: …"),
        (Code.INVALID_ARGUMENT, True, "{{function_node f}} assertion failed: [x] [4711.5 1]", "assertion failed …"),
        (Code.INVALID_ARGUMENT, True, "could not convert string: secret", "could not convert string …"),
        (Code.OUT_OF_RANGE, True, "indices[0] = 4711.5 is not in [0, 3)", "indices …"),
        (Code.UNKNOWN, True, "'secret' is no word", "…"),
        (Code.INTERNAL, True, "Running this request ended two worker processes; …", None),
    ],
)
def test_texts_are_cut_before_they_quote(code: int, ran: bool, text: str, kept: str | None) -> None:
    """kept: None for the whole text."""
    found = shown_text(code, text, ran=ran)
    assert found == (text if kept is None else kept)
    assert not any(secret in found for secret in SECRETS)


def test_texts_are_short() -> None:
    assert len(shown_text(Code.UNAVAILABLE, "x" * 10_000, ran=False)) == TEXT_CHARS_MAX


def test_a_tally_notes_failures_and_only_these(tmp_path: Path) -> None:
    later = Later()
    tally = Tally(failures=RecentFailures(str(tmp_path), "frontend-0", later))
    lane = Lane(LaneSpec("m", 7, "serving_default", (), ("y",), True))
    tally.request(GRPC, "Predict", "m", Code.OK, tally.clock_ns(), lane)
    assert not later.planned
    for _ in range(5):
        tally.failure(GRPC, "Predict", "m", Code.UNAVAILABLE, "no worker", tally.clock_ns(), lane)
    later.run()
    tally.failure(GRPC, "Predict", "m", Code.UNAVAILABLE, "no worker", tally.clock_ns(), lane)
    later.run()
    (entry,) = recent_failures(str(tmp_path))
    shown = {name: entry[name] for name in ("entrypoint", "api", "model", "version", "code", "text", "count")}
    assert shown == {
        "entrypoint": "GRPC", "api": "Predict", "model": "m", "version": "7", "code": "UNAVAILABLE",
        "text": "no worker", "count": 6,
    }  # fmt: skip
