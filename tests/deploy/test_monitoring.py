"""What Prometheus and Grafana are given. Always: every metric that a rule or a panel names is in docs/metrics.md with
those labels, every alert is tested and explained, and the dashboard is one that Grafana can show. Where promtool is
installed: the rules and the configuration are taken, the rules' tests pass, every expression of the dashboard can be
parsed, and a real server's page has nothing to complain about.

With TEST_REAL=prometheus (tests/deploy/real.py): a real Prometheus scrapes a real server, every rule is evaluated
without an error, and every query of the dashboard has an answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.config import metrics
from ringserve.config.metric_family import COUNTER, HISTOGRAM
from tests.deploy.real import asked_for, free_port, needs
from tests.e2e.server import Server, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = (PROMETHEUS / "rules.yml").read_text()
RULE_TESTS = (PROMETHEUS / "rules_test.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/ringserve.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
#: What has no sample before something went wrong, or with a model as small as this one.
RARE = (
    "ringserve_client_refusals_total", "ringserve_access_refused_total", "ringserve_ring_full_total",
    "ringserve_broker_retries_total", "ringserve_weights_shared_bytes",
)  # fmt: skip

_METRIC = re.compile(r"(?<![\w:.\"$])(:tensorflow:[\w:]+|ringserve_\w+)")
_SELECTOR = re.compile(r"(:tensorflow:[\w:]+|ringserve_\w+)\{([^}]*)\}")


def expressions() -> Iterator[tuple[str, str]]:
    """(panel, PromQL) of the dashboard, with Grafana's variables filled in."""
    for panel in PANELS:
        for target in panel.get("targets", ()):
            expression: str = target["expr"]
            for name, value in (("$__rate_interval", "30s"), ("$job", ".*"), ("$instance", ".*"), ("$model", ".*")):
                expression = expression.replace(name, value)
            assert "$" not in expression
            yield panel["title"], expression


def _labels_by_name() -> dict[str, set[str]]:
    """The labels of every series that docs/metrics.md promises."""
    documented = (ROOT / "docs/metrics.md").read_text()
    found: dict[str, set[str]] = {}
    for family in (*metrics.OWN, *metrics.TFS):
        assert f"| `{family.exposed}` |" in documented
        names = [family.exposed]
        if family.kind == HISTOGRAM:
            names = [f"{family.exposed}_{part}" for part in ("bucket", "sum", "count")]
        for name in names:
            found[name] = {*family.labels, *(("le",) if family.kind == HISTOGRAM else ())}
    return found


@pytest.mark.parametrize("where", ["rules", "rules' tests", "dashboard"])
def test_every_metric_exists_and_has_these_labels(where: str) -> None:
    dashboard = "\n".join(each for _, each in expressions())
    text = {"rules": RULES, "rules' tests": RULE_TESTS, "dashboard": dashboard}[where]
    known = _labels_by_name()
    recorded = set(re.findall(r"record: (\S+)", RULES))
    named = set(_METRIC.findall(text)) - recorded
    assert len(named) > 10
    assert not named - set(known)
    for name, selector in _SELECTOR.findall(text):
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert used <= known[name] | {"job", "instance"}, name


def test_rates_are_taken_of_counters_only() -> None:
    kinds = {family.exposed: family.kind for family in (*metrics.OWN, *metrics.TFS)}
    text = "\n".join([RULES, *(each for _, each in expressions())])
    for name in re.findall(r"(?:rate|increase)\((\w[\w:]*|:[\w:]+)[{\[]", text):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert kinds.get(name, kinds.get(base)) in (COUNTER, HISTOGRAM), name


def test_every_alert_is_tested_and_explained() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES)
    assert len(alerts) == len(set(alerts)) >= 12
    explained = (ROOT / "docs/monitoring.md").read_text()
    for alert in alerts:
        block = re.search(rf"alertname: {alert}\n\s+exp_alerts", RULE_TESTS)
        assert block is not None, f"{alert} never fires in rules_test.yml"
        assert f"### {alert}\n" in explained
    assert set(re.findall(r"^### (Ringserve\w+)$", explained, re.MULTILINE)) == set(alerts)


# --------------------------------------------------------------------------------------------------------- dashboard


def test_panels_are_whole() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        targets = panel["targets"]
        assert len({target["refId"] for target in targets}) == len(targets) > 0
        # A line without a name shows its labels in braces.
        assert panel["type"] != "timeseries" or all(target["legendFormat"] for target in targets)


def test_variables_are_declared() -> None:
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps(PANELS)
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}
    assert used == declared
    assert DASHBOARD["uid"]
    assert "id" not in DASHBOARD  # of one Grafana's database: an import with it may overwrite something


# ---------------------------------------------------------------------------------------------------------- promtool


def _promtool(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(
        ["promtool", *arguments], input=given, capture_output=True, text=True, timeout=120, check=False, cwd=PROMETHEUS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs("promtool")
def test_promtool_takes_the_files_and_the_rules_do_what_their_tests_say() -> None:
    assert "SUCCESS" in _promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in _promtool("check", "rules", "rules.yml")
    assert "SUCCESS" in _promtool("test", "rules", "rules_test.yml")


@needs("promtool")
def test_promtool_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"x{number}", "expr": each} for number, (_, each) in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    assert f"{len(rules)} rules found" in _promtool("check", "rules", str(file))


# -------------------------------------------------------------------------------------------------------------- live


def _get(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=60) as response:
        return json.load(response)


@asked_for("prometheus")
@needs("prometheus", "promtool")
@pytest.mark.timeout(600)
def test_a_real_prometheus_has_answers_for_the_whole_dashboard(models: Path, tmp_path: Path) -> None:
    flags = ["--model_name=digits", f"--model_base_path={models / 'digits'}", "--workers=1"]
    port = free_port()
    (tmp_path / "rules.yml").write_text(RULES)
    with Server(tmp_path, *flags) as server:
        server.wait_available("digits")
        body = json.dumps({"instances": [[0.0] * 64]}).encode()
        assert server.post("/v1/models/digits:predict", body)[0] == 200
        config = (PROMETHEUS / "prometheus.yml").read_text().replace("15s", "1s")
        config = config.replace("[10.0.0.11:8502, 10.0.0.12:8502]", f"['{server.rest_url.removeprefix('http://')}']")
        (tmp_path / "prometheus.yml").write_text(config)
        url = f"http://127.0.0.1:{port}/api/v1"
        with (tmp_path / "prometheus.log").open("wb") as log:
            prometheus = subprocess.Popen(
                [
                    "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            missing = dict.fromkeys(title for title, _ in expressions())

            def answered() -> bool:
                assert prometheus.poll() is None, (tmp_path / "prometheus.log").read_text()
                server.post("/v1/models/digits:predict", body)
                missing.clear()
                try:
                    for title, expression in expressions():
                        found = _get(f"{url}/query", query=expression)
                        assert found["status"] == "success", found
                        if not found["data"]["result"] and not any(name in expression for name in RARE):
                            missing[f"{title}: {expression}"] = None
                except urllib.error.URLError:
                    return False  # it has just been started
                return not missing

            try:
                wait_until(answered, "an answer to each query", 60)
            except AssertionError:
                pytest.fail(f"no answer to {list(missing)}")
            rules = [rule for group in _get(f"{url}/rules")["data"]["groups"] for rule in group["rules"]]
            assert len(rules) == RULES.count("- alert:") + RULES.count("- record:")
            assert not [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")]
            firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
            assert not firing
        finally:
            prometheus.terminate()
            prometheus.wait(60)
