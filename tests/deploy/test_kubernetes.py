"""deploy/kubernetes/. Always: what the manifests say of the server is so (settings, ports, paths, times), and the pods
meet the restricted standard. Where the tools are installed: kustomize puts both forms together, kubernetes-validate
takes every object strictly (but the Prometheus operator's, whose schema it has not got), and yamllint every file.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ringserve.config.table import SETTINGS
from ringserve.frontend.rest_routes import Action, Route, route
from ringserve.supervisor import _STOP_MS
from tests.deploy.real import needs

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
DEPLOYMENT = (FOLDER / "base/deployment.yaml").read_text()
ENVIRONMENT = dict(re.findall(r'\{name: (\w+), value: "?([^"}]*)"?\}', DEPLOYMENT))


def test_the_environment_is_settings_with_values_that_they_may_have() -> None:
    known = {row.environment for row in SETTINGS}
    named = {name for name in ENVIRONMENT if name.startswith("RINGSERVE_")}
    assert len(named) >= 6
    assert named <= known
    entrypoint = (ROOT / "deploy/tf_serving_entrypoint.sh").read_text()
    assert all(name in entrypoint for name in set(ENVIRONMENT) - named)


def test_a_pod_has_the_time_that_its_stop_may_take() -> None:
    (grace_s,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", DEPLOYMENT)
    stop_ms = int(ENVIRONMENT["RINGSERVE_LAME_DUCK_MS"]) + int(ENVIRONMENT["RINGSERVE_DRAIN_MS_MAX"])
    assert int(grace_s) * 1_000 >= stop_ms + sum(_STOP_MS.values())
    # The lame duck outlives the probes that have to notice it, and some time for endpoints to be told about.
    readiness = DEPLOYMENT.partition("readinessProbe")[2]
    period_s, _, failures = map(int, re.findall(r"(?:Seconds|Threshold): (\d+)", readiness))
    assert int(ENVIRONMENT["RINGSERVE_LAME_DUCK_MS"]) / 1_000 >= period_s * failures + 5


def test_probes_ask_for_what_is_there() -> None:
    paths = re.findall(r"httpGet: \{path: (\S+), port: metrics\}", DEPLOYMENT)
    assert paths == ["/healthz", "/healthz", "/readyz"]
    assert route("GET", "/healthz") == Route(Action.HEALTH)
    assert route("GET", "/readyz") == Route(Action.READY)
    assert f"containerPort: {ENVIRONMENT['RINGSERVE_METRICS_PORT']}}}" in DEPLOYMENT
    exposed = re.search(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == re.findall(r"containerPort: (\d+)", DEPLOYMENT)


def test_pods_are_restricted_and_kubernetes_sets_no_settings() -> None:
    wanted = (
        "enableServiceLinks: false", "runAsNonRoot: true", "type: RuntimeDefault", "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true", "drop: [ALL]", "automountServiceAccountToken: false",
    )  # fmt: skip
    assert [each for each in wanted if each not in DEPLOYMENT] == []
    user = re.search(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert f"runAsUser: {user[1]}\n" in DEPLOYMENT


def test_the_autoscalers_metric_is_made_of_one_of_ours() -> None:
    scaling = (FOLDER / "base/autoscaling.yaml").read_text()
    rules = (FOLDER / "adapter-rules.yaml").read_text()
    (name,) = re.findall(r"metric: \{name: (\w+)\}", scaling)
    assert f"name: {{as: {name}}}" in rules
    (series,) = re.findall(r"seriesQuery: '(\w+)\{", rules)
    assert f"| `{series}` | gauge |" in (ROOT / "docs/metrics.md").read_text()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs("kubectl", "kubernetes-validate")
@pytest.mark.parametrize("form", ["base", "overlays/digits"])
def test_every_object_is_valid(form: str, tmp_path: Path) -> None:
    made = _output("kubectl", "kustomize", form)
    file = tmp_path / "all.yaml"
    file.write_text(made)
    said = _output("kubernetes-validate", "-k", "1.35", "--strict", str(file))
    kinds = re.findall(r"^kind: (\w+)", made, re.MULTILINE)
    assert said.count(" passed for resource ") == len(kinds) - 1
    assert re.findall(r"schema for kind (\w+)", said) == ["ServiceMonitor"]
    # What selects pods selects these, and only these.
    assert made.count("app.kubernetes.io/name: ringserve") >= 2 * (len(kinds) - kinds.count("Namespace")) - 4
    assert "matchLabels: {}" not in made


@needs("yamllint")
def test_yamllint_has_nothing_to_say() -> None:
    assert _output("yamllint", "--strict", "-c", ".yamllint", ".") == ""
