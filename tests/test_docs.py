"""The documentation keeps up with the code: references are complete, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from ringserve import __version__, cli
from ringserve.broker.messages import Code
from ringserve.config.table import SETTINGS
from tests import reference
from tests.reference import PAGES, ROOT

_PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("perf/*.md")])
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_FENCE = re.compile(r"```(?:sh|bash|console)\n(.*?)```", re.DOTALL)
_FLAG = re.compile(r"--([a-z][\w-]+)")


@pytest.mark.parametrize(("page", "make"), PAGES.items(), ids=PAGES)
def test_generated_pages_are_up_to_date(page: str, make: Callable[[], str]) -> None:
    assert (ROOT / page).read_text() == make(), "run python -m tests.reference"


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.flag)
def test_every_setting_is_documented(row: object) -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    assert f"| `{row.key}` | `--{row.flag}` | `{row.environment}` |" in text  # type: ignore[attr-defined]


def test_every_code_and_every_message_is_documented() -> None:
    failures = (ROOT / "docs/failures.md").read_text()
    assert all(f"| {code.name} | {int(code)} |" in failures for code in Code)
    messages = (ROOT / "docs/messages.md").read_text()
    assert all(f"### {name}\n" in messages for name in reference.message_names())
    assert reference.control_messages() <= set(reference.message_names())


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:\w+/)+[\w.]+\.(?:py|md|toml|service))(?::[^`]*)?`", text))
    assert len(named) > 10
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_functions_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"`((?:\w+/)+\w+\.py): (\w+(?:\.\w+)?)`", text)
    assert len(named) > 5
    for name, function in named:
        source = (ROOT / name).read_text()
        for part in function.split("."):
            assert re.search(rf"^\s*(async )?(def|class) {part}\b", source, re.MULTILINE), f"{name}: {function}"


def _known_flags() -> set[str]:
    flags: set[str] = set()
    groups: list[click.Command] = [cli.main]
    while groups:
        command = groups.pop()
        for parameter in command.params:
            flags.update(option.lstrip("-") for option in parameter.opts)
        if isinstance(command, click.Group):
            context = click.Context(command)
            groups += [each for name in command.list_commands(context) if (each := command.get_command(context, name))]
    return flags


@pytest.mark.parametrize("page", ["README.md"])
def test_flags_in_shell_examples_exist(page: str) -> None:
    known = _known_flags()
    for block in _FENCE.findall((ROOT / page).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if "ringserve " in line and "docker" not in line:
                for flag in _FLAG.findall(line):
                    assert flag.replace("-", "_") in known | {"version"}, f"{page}: {line}"


def test_the_test_command_of_the_readme_is_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"^\.venv/bin/pytest.*$", readme, re.MULTILINE)
    assert command is not None
    ci = (ROOT / ".ci/run").read_text()
    assert command[0].replace(".venv/bin/", '"$venv"/bin/') in ci


def test_the_changelog_has_this_version_or_says_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
