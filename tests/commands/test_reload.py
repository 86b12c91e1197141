"""`ringserve reload` with a server that answers what the test says. Real ones: tests/systemd/test_real.py."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ringserve.cli import main

FAILED = "1 model(s) did not become available: {...}"
FILE = 'model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" } }'
LIST = {"model_config_list": {"config": [{"name": "m", "base_path": "/m", "model_platform": "tensorflow"}]}}

Reload = Callable[[str], Result]
Posts = list[tuple[str, object]]


@pytest.fixture
def posts() -> Posts:
    """What the server was sent: (verb, body)."""
    return []


@pytest.fixture
def answers() -> dict[str, tuple[int, str]]:
    return {"config": (200, '{"models": {"m": "OK"}}'), "rescan": (200, "{}")}


@pytest.fixture
def reload(
    posts: Posts, answers: dict[str, tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Reload:
    """Runs the command with this model_config_file, or with [[models]] when there is no text."""

    def call(socket_path: str, method: str, path: str, body: bytes, timeout_s: float) -> tuple[int, str]:
        verb = path.rpartition("/")[2]
        posts.append((verb, json.loads(body)))
        return answers[verb]

    def run(text: str) -> Result:
        path, listed = tmp_path / "server.toml", tmp_path / "models.config"
        listed.write_text(text)
        table = '[[models]]\nname = "m"\nbase_path = "/m"\n'
        path.write_text(f'[lifecycle]\nmodel_config_file = "{listed}"\n' if text else table)
        return CliRunner().invoke(main, ["reload", "--config", str(path), "--socket", "/s"])

    monkeypatch.setattr("ringserve.canary.call", call)
    return run


def test_a_model_config_file_is_sent_so_that_its_models_are_waited_for(reload: Reload, posts: Posts) -> None:
    result = reload(FILE)
    assert (result.exit_code, result.output) == (0, "reloaded: m\n")
    # And looked at afterwards: what the server knows of the file is what was just applied.
    assert posts == [("config", LIST), ("rescan", {})]


@pytest.mark.parametrize("text", [FILE, ""])
def test_a_change_that_fails_is_told(
    reload: Reload, posts: Posts, answers: dict[str, tuple[int, str]], text: str
) -> None:
    answers["config"] = (500, json.dumps({"error": FAILED}))
    result = reload(text)
    assert result.exit_code == 1
    assert FAILED in result.output
    assert [verb for verb, _ in posts] == ["config"]


def test_a_list_in_the_toml_file_is_sent_alone(reload: Reload, posts: Posts) -> None:
    assert reload("").exit_code == 0
    ((verb, body),) = posts
    assert verb == "config"
    assert isinstance(body, dict)
    assert [model["name"] for model in body["model_config_list"]["config"]] == ["m"]


def test_an_empty_file_is_no_list_of_no_models(reload: Reload, posts: Posts) -> None:
    assert reload("# nothing yet").exit_code == 0
    assert posts == [("config", {}), ("rescan", {})], "which the server refuses"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (TimeoutError("timed out"), 1, "no answer within 600 s: the change may go on"),
        (http.client.RemoteDisconnected("closed"), 1, "ended before it had answered: the change may go on"),
        (FileNotFoundError(2, "No such file or directory"), 69, "nobody answers at /s"),
    ],
)
def test_what_no_answer_means(
    reload: Reload, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, text: str
) -> None:
    def call(*_: object) -> tuple[int, str]:
        raise error

    monkeypatch.setattr("ringserve.canary.call", call)
    result = reload("")
    assert result.exit_code == status
    assert text in result.output
