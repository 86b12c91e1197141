"""Access control over REST: what needs which key, how a refusal looks, what is written down of operators."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ringserve.broker.messages import Code
from ringserve.config.keys_file import RATE_SLOTS, Entry, digest_of, parse_anonymous, parse_scopes
from ringserve.frontend.access import Access
from ringserve.frontend.rest_access import RestGuard
from ringserve.frontend.rest_api import RestApp, RestSettings, make_app
from tests.frontend.rest.served import CountingTally, Response, RestLoopback, call, default_model

KEYS = {"runs": "predict:default", "runs-all": "predict", "looks": "status", "operates": "admin", "slow": "predict"}
BODY = b'{"instances": [1.0]}'
JSON = {"Content-Type": "application/json"}


class Pages:
    """Metrics pages without metrics."""

    async def render_tfs(self) -> bytes:
        return b"tfs"

    async def render(self) -> tuple[bytes, str]:
        return b"own", "text/plain"


class Guarded:
    """An application with access control. reasons: of refusals."""

    def __init__(self, *, anonymous: str = "", open_health: bool = True, **settings: Any) -> None:
        entries = [Entry(name, digest_of(name.encode()), "", parse_scopes([scopes])) for name, scopes in KEYS.items()]
        entries[-1] = entries[-1]._replace(requests_per_s=1 / 3600, burst=1)
        entries.append(Entry("certified", b"", "cn:client", parse_scopes(["predict"])))
        access = Access([0] * RATE_SLOTS, lambda: 5, parse_anonymous(anonymous))
        access.use(entries)
        self.reasons: list[str] = []
        self.tally = CountingTally()
        self.client = RestLoopback(model=default_model)
        self.client.told = {"rescan": (0, "", b"")}
        guard = RestGuard(access, self.reasons.append, open_health=open_health)
        made = {"admin": "all", "metrics_path": "/tfs/metrics"} | settings
        self.app: RestApp = make_app(
            self.client, RestSettings(**made), tally=self.tally, metrics=Pages(), guard=guard
        )

    def ask(self, method: str, target: str, token: str = "", headers: dict[str, str] | None = None) -> Response:
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        body = BODY if method == "POST" else b""
        return call(self.app, method, target, body, JSON | shown | (headers or {}))


@pytest.mark.parametrize(
    ("method", "target", "token", "status"),
    [
        ("POST", "/v1/models/default:predict", "runs", 200),
        ("POST", "/v1/models/default:predict", "runs-all", 200),
        ("POST", "/v1/models/default/versions/123:predict", "runs", 200),
        ("POST", "/v1/models/default:predict", "looks", 403),
        ("POST", "/v1/models/default:predict", "operates", 403),
        ("POST", "/v1/models/default:predict", "", 401),
        ("POST", "/v1/models/default:predict", "wrong", 401),
        ("POST", "/v1/models/echo_float:predict", "runs", 403),
        ("POST", "/v1/models/echo%5Ffloat:predict", "runs", 403),
        ("POST", "/v1/models/d%65fault:predict", "runs", 200),
        ("POST", "/v1/models/none:predict", "runs", 403),
        ("POST", "/v1/models/none:predict", "runs-all", 404),
        ("POST", "/v1/models/examples:classify", "runs", 403),
        ("POST", "/v1/models/examples:regress", "", 401),
        ("GET", "/v1/models/default", "runs", 200),
        ("GET", "/v1/models/default", "looks", 200),
        ("GET", "/v1/models/default", "", 401),
        ("GET", "/v1/models/two", "runs", 403),
        ("GET", "/v1/models/none", "runs", 403),
        ("GET", "/v1/models/two/metadata", "runs", 403),
        ("GET", "/v1/models/two/metadata", "operates", 200),
        ("GET", "/v1/nonsense", "", 400),
        ("GET", "/nonsense", "", 404),
        ("OPTIONS", "/v1/models/default:predict", "", 400),
        ("GET", "/metrics", "looks", 200),
        ("GET", "/metrics", "runs", 403),
        ("GET", "/metrics", "", 401),
        ("GET", "/tfs/metrics", "looks", 200),
        ("GET", "/tfs/metrics", "", 401),
        ("GET", "/tfs/metrics?x", "", 401),
        ("GET", "/healthz", "", 200),
        ("GET", "/readyz/default", "", 200),
        ("GET", "/ringserve/v1/models", "operates", 200),
        ("GET", "/ringserve/v1/models", "looks", 403),
        ("GET", "/ringserve/v1/models", "", 401),
        ("GET", "/ringserve/v1/nonsense", "", 401),
        ("POST", "/ringserve/v1/rescan", "operates", 200),
        ("POST", "/ringserve/v1/rescan", "runs-all", 403),
        ("HEAD", "/ringserve/v1/models", "", 401),
    ],
)
def test_who_may_do_what(method: str, target: str, token: str, status: int) -> None:
    guarded = Guarded()
    assert guarded.ask(method, target, token).status == status
    assert len(guarded.reasons) == (1 if status in (401, 403) else 0)
    assert not guarded.client.asks or (status == 200 and "rescan" in target)


def test_how_refusals_look() -> None:
    guarded = Guarded()
    target = "/v1/models/default:predict"
    missing, wrong = guarded.ask("POST", target), guarded.ask("POST", target, "wrong")
    assert missing.headers["www-authenticate"] == 'Bearer realm="ringserve"'
    assert wrong.headers["www-authenticate"] == 'Bearer realm="ringserve", error="invalid_token"'
    assert missing.error.startswith("no key was shown")
    assert wrong.error == "the key is not known"
    denied = guarded.ask("POST", target, "looks")
    assert denied.error == "the key looks may not use the model default"
    assert "www-authenticate" not in denied.headers
    assert guarded.ask("POST", target, "slow").status == 200
    late = guarded.ask("POST", target, "slow")
    assert (late.status, late.headers["retry-after"]) == (429, "3600")
    assert guarded.reasons == ["missing", "unknown", "scope", "rate"]
    codes = [(api, code) for _, api, _, code in guarded.tally.requests]
    assert codes == [("predict", code) for code in (16, 16, 7, 0, 8)]


def test_the_ways_to_show_a_key() -> None:
    target = "/v1/models/default"
    for headers, status in (
        ({"X-API-Key": "runs"}, 200),
        ({"X-API-Key": "Bearer runs"}, 200),
        ({"X-API-Key": "wrong"}, 401),
        ({"Authorization": "bearer runs"}, 200),
        ({"Authorization": "Basic runs"}, 401),
        ({"Authorization": "Bearer wrong", "X-API-Key": "runs"}, 401),
        ({"Authorization": "", "X-API-Key": "runs"}, 401),
        ({"Authorization": ""}, 401),
        ({"X-API-Key": ""}, 401),
    ):
        assert Guarded().ask("GET", target, headers=headers).status == status, headers


def test_what_is_open_may_be_closed_and_the_other_way_round() -> None:
    guarded = Guarded(open_health=False, anonymous="predict:two")
    assert guarded.ask("GET", "/healthz").status == 403
    assert guarded.ask("GET", "/readyz", "looks").status == 503
    assert guarded.ask("GET", "/v1/models/two").status == 200
    assert guarded.ask("GET", "/v1/models/default").status == 403
    assert guarded.ask("GET", "/v1/models/two", "wrong").status == 401


@pytest.mark.parametrize("headers", [{"Authorization": ""}, {"X-API-Key": ""}, {"Authorization": "", "X-API-Key": "x"}])
def test_an_empty_header_is_a_wrong_token(headers: dict[str, str]) -> None:
    guarded = Guarded(anonymous="predict")
    assert guarded.ask("GET", "/v1/models/default").status == 200
    assert guarded.ask("GET", "/v1/models/default", headers=headers).error == "the key is not known"
    assert guarded.reasons == ["unknown"]


def test_readiness_tells_strangers_no_names_that_they_did_not_say() -> None:
    guarded = Guarded()
    for target in ("/readyz", "/v2/health/ready"):
        told = guarded.ask("GET", target)
        assert told.status == 503
        assert re.search(rb"no available version of \d+ of the models", told.body)
    closed = Guarded(open_health=False)
    assert b"no available version of: " in closed.ask("GET", "/readyz", "looks").body


def test_a_port_without_models() -> None:
    guarded = Guarded(models=False)
    for method, target in (("POST", "/v1/models/default:predict"), ("GET", "/v1/models/default"), ("OPTIONS", "/v1/x")):
        assert guarded.ask(method, target, "runs-all").status == 404
    assert guarded.ask("GET", "/metrics", "looks").status == 200
    assert guarded.ask("GET", "/ringserve/v1/models", "operates").status == 200
    assert not guarded.tally.requests


def test_a_port_without_metrics() -> None:
    guarded = Guarded(metrics=False)
    for target in ("/metrics", "/tfs/metrics"):
        assert guarded.ask("GET", target, "looks").status == 404


def test_what_operators_do_is_written_down(caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded()
    with caplog.at_level(logging.INFO, "ringserve.audit"):
        guarded.ask("POST", "/ringserve/v1/rescan", "operates")
        guarded.ask("GET", '/ringserve/v1/models/"x%0a"', "operates")
        guarded.ask("POST", "/ringserve/v1/rescan", "runs")
        guarded.ask("POST", "/ringserve/v1/rescan")
        guarded.ask("POST", "/v1/models/default:predict", "runs")
    lines = [record.getMessage() for record in caplog.records if record.name == "ringserve.audit"]
    assert lines == [
        'admin: who="operates" what="POST /ringserve/v1/rescan" from=127.0.0.1:1 outcome=200',
        'admin: who="operates" what="GET /ringserve/v1/models/\\"x%0a\\"" from=127.0.0.1:1 outcome=404',
        'admin: who="(refused)" what="POST /ringserve/v1/rescan" from=127.0.0.1:1 outcome=403',
        'admin: who="(refused)" what="POST /ringserve/v1/rescan" from=127.0.0.1:1 outcome=401',
    ]


def test_it_is_written_down_without_access_control_too(caplog: pytest.LogCaptureFixture) -> None:
    client = RestLoopback()
    client.told = {"rescan": (int(Code.UNAVAILABLE), "no broker", b"")}
    with caplog.at_level(logging.INFO, "ringserve.audit"):
        for local in (True, False):
            call(make_app(client), "POST", "/ringserve/v1/rescan", b"{}", JSON, local=local)
    lines = [record.getMessage() for record in caplog.records if record.name == "ringserve.audit"]
    assert [re.sub(r".*outcome=", "", line) for line in lines] == ["503", "403"]


def test_a_head_that_is_remembered_is_judged_every_time(tmp_path: Path) -> None:
    """Heads of the same bytes share what they mean, not whether they may."""
    from tests.frontend.rest.served import FakeExchange, head_of

    guarded = Guarded()
    head = head_of("GET", "/v1/models/default")
    for names, status in (((), 401), (("cn:client",), 200), ((), 401), (("cn:other",), 401)):
        exchange = FakeExchange(head, b"")
        exchange.names = names
        guarded.app.handle(exchange)
        assert exchange.response is not None
        assert exchange.response.status == status


def test_it_is_written_down_at_any_log_level() -> None:
    code = (
        "from ringserve.config.process import set_up_log; from ringserve.frontend.audit import log, note;"
        "set_up_log('frontend-0', 'error', 'json'); note('k', 'GET /x\\n', '1.2.3.4:5', '200')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert found["logger"] == "ringserve.audit"
    assert found["text"] == 'admin: who="k" what="GET /x\\n" from=1.2.3.4:5 outcome=200'


@pytest.mark.parametrize("target", ["/v1/models/default:predict", "/v2/models/default/infer"])
def test_a_browsers_page_may_show_its_key(target: str) -> None:
    """A browser asks first which headers the page may send; its call, and its refusal, must be readable."""
    guarded = Guarded(cors=True)
    about = {"Origin": "https://app.example"}
    asks = about | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answers = [guarded.ask("OPTIONS", target, headers=asks), guarded.ask("POST", target, headers=about)]
    assert [answer.status for answer in answers] == [200, 401]
    length = "Inference-Header-Content-Length"
    for answer in answers:
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert allowed[:3] == ["Content-Type", "Authorization", "X-Api-Key"]
        assert allowed[3:] == ([length] if "/v2/" in target else [])
        assert answer.headers.get("access-control-expose-headers") == (length if "/v2/" in target else None)
        assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in Guarded().ask("POST", target, headers=about).headers
