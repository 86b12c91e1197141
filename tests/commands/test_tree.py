"""All commands together: each helps with an example, and what the documents say of them is so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ringserve.cli import main
from ringserve.commands.console import Status, duration_text, size_text, table
from ringserve.config.schema import SECTIONS
from tests.reference import ROOT
from tests.reference_cli import commands

_COMMANDS = dict(commands())


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_helps(name: str) -> None:
    done = CliRunner().invoke(main, [*name.split()[1:], "--help"])
    assert done.exit_code == 0
    command = _COMMANDS[name]
    if not isinstance(command, click.Group) or name == "ringserve models":
        assert f"  {name} " in done.output or f"  {name}\n" in done.output, "an example"
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, f"{name} {option.name}"


#: Who prints no result: one is a process that runs, one writes a shell's script.
_WITHOUT_JSON = {"ringserve serve", "ringserve completion"}


def test_every_command_can_speak_json() -> None:
    without = {
        name
        for name, command in _COMMANDS.items()
        if not isinstance(command, click.Group) and not any("--json" in option.opts for option in command.params)
    }
    assert without == _WITHOUT_JSON


def test_the_defaults_a_key_and_a_warm_up_file_as_json(tmp_path: Path) -> None:
    def told(*words: str) -> Any:
        done = CliRunner().invoke(main, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert told("config", "show")["server"]["rest_api_port"] == 8501
    keys = str(tmp_path / "keys.toml")
    new = told("keys", "new", "team-a", "--scope", "status", "--file", keys)
    assert (new["name"], new["scopes"]) == ("team-a", ["status"])
    assert len(new["token"]) > 20
    assert told("keys", "list", "--file", keys)[0]["name"] == "team-a"
    steps = told("systemd", "install", "--model", f"m={tmp_path}", "--root", str(tmp_path), "--dry-run")
    assert [step["of"] for step in steps if step["step"] == "write" and step["of"].endswith("ringserve.service")]
    assert not any(step["done"] for step in steps)


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    assert all(f"\n## {name}\n" in text for name in _COMMANDS)
    assert all(f"| {int(status)} | " in text for status in Status)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_RINGSERVE_COMPLETE" in done.output


@pytest.mark.parametrize(
    ("words", "meant"), [("modles", "models"), ("models lits", "list"), ("keys lst", "list"), ("config chek", "check")]
)
def test_a_misspelt_command_is_told_what_was_meant(words: str, meant: str) -> None:
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 2
    assert f"Did you mean {meant}?" in done.output


def test_config_check_tells_mistakes_as_json() -> None:
    done = CliRunner().invoke(main, ["config", "check", "--port=abc", "--json"])
    assert done.exit_code == Status.CONFIG
    assert "--port: 'abc' is not a number" in json.loads(done.stdout)["mistakes"][0]


def test_config_check_tells_every_value(tmp_path: Path) -> None:
    words = ["config", "check", f"--model_base_path={tmp_path}", "--workers=3"]
    told = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert told["workers"]["workers"] == 3
    assert told["models"][0]["base_path"] == str(tmp_path)
    assert told["server"]["frontends"] >= 1
    for name, section in SECTIONS.items():
        assert set(told[name]) == {field.name for field in dataclasses.fields(section)}
    text = CliRunner().invoke(main, [*words, "--all"]).output
    assert "* workers = 3" in text
    assert "  rest_api_port = 8501" in text


def test_words() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 150 << 20, 3 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "150 MiB", "3.0 TiB",
    ]  # fmt: skip
    assert [duration_text(value) for value in (0.0000012, 0.00123, 0.999, 2.5, float("nan"))] == [
        "1.2 µs", "1.23 ms", "999 ms", "2.5 s", "-",
    ]  # fmt: skip
    text = click.unstyle(table(("A", "N"), [(click.style("x", fg="red"), 5), ("long", 10)], right=(1,)))
    assert text.splitlines() == ["A      N", "x      5", "long  10"]
