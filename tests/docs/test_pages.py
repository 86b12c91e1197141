"""The pages for users hold what they say: texts that they quote exist, links and anchors lead somewhere, examples fit.

Held here: every error text in troubleshooting.md is one that the code can say; relative links of all pages lead to
files, and to headings that are there; shell examples use commands and flags that exist; TOML examples name settings
that exist; the index names every page.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import click
import pytest

from ringserve import cli
from ringserve.config.table import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("perf/*.md"), *ROOT.glob("deploy/**/*.md")])
WRITTEN = [ROOT / "docs" / name for name in ("tutorial.md", "how-to.md", "troubleshooting.md", "console.md")]
FOLDERS = ("broker", "config", "frontend", "ringserve", "workers")
SOURCES = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py")]

_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]*?)(?:#([^)\s]*))?\)")
_PLACEHOLDER = "\0"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# ------------------------------------------------------------------------------------------------------------ texts


def _text_of(node: ast.AST) -> str:
    """A string of the source with a sign in each place that is filled in; empty for all that is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(part) or _PLACEHOLDER for part in node.values)
    return ""


@functools.cache
def _said() -> tuple[str, ...]:
    """Every string in the sources that is no docstring."""
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        expressions = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [text for node in ast.walk(tree) if id(node) not in expressions and (text := _text_of(node))]
    return tuple(found)


def can_say(quoted: str) -> bool:
    """Whether one string of the sources has the parts between the `…` of a quotation, in their order."""
    pattern = re.compile(".*".join(re.escape(part) for part in quoted.split("…")), re.DOTALL)
    return any(pattern.search(text) for text in _said())


#: The operating system's words, which no source has.
_SYSTEM = ("No such file or directory", "Permission denied")


def quotations() -> list[str]:
    """What the first column of the tables quotes: texts of several words."""
    text = (ROOT / "docs/troubleshooting.md").read_text()
    rows = re.findall(r"^\| (.*?) \| ", text, re.MULTILINE)
    texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [text for text in texts if " " in text and text not in _SYSTEM]


def test_there_are_quotations() -> None:
    assert len(quotations()) > 40


@pytest.mark.parametrize("quoted", quotations())
def test_a_quoted_text_is_one_that_the_server_says(quoted: str) -> None:
    assert can_say(quoted)


def test_a_text_that_nobody_says_is_found_out() -> None:
    assert not can_say("Servable was not found for this request")
    assert not can_say("worker … has served no")


# ------------------------------------------------------------------------------------------------------------ links


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, by GitHub's rules."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*#*$", _FENCED.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number, unique = 0, anchor
        while unique in found:
            number += 1
            unique = f"{anchor}-{number}"
        found.add(unique)
    return found


@every_page
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", page.read_text()))
    for target, anchor in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file.read_text()), f"{page.name}: {target}#{anchor}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == {target for target, _ in _LINK.findall(index) if "/" not in target}


# --------------------------------------------------------------------------------------------------------- examples


def _command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words call, and what is left of them."""
    command: click.Command = cli.main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"ringserve has no command {words[0]}"
        command, words = found, words[1:]
    return command, words


def _shell_lines(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh[^\n]*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if re.match(r"\s*(until )?ringserve ", line)]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_and_flags_in_examples_exist(page: Path) -> None:
    inline = re.findall(r"`(ringserve [^`]+)`", _FENCED.sub("", page.read_text()))
    for line in [*_shell_lines(page), *inline]:
        words = re.split(r" [>|&]| #|;", line.removeprefix("until "))[0].split()[1:]
        command, rest = _command_of(words)
        known = {option.lstrip("-") for parameter in command.params for option in parameter.opts}
        known |= {option.lstrip("-") for parameter in command.params for option in parameter.secondary_opts}
        flags = [word[2:].partition("=")[0].replace("-", "_") for word in rest if re.match(r"--\w", word)]
        assert not [flag for flag in flags if flag not in known], f"{page.name}: {line}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_settings_in_examples_exist(page: Path) -> None:
    known = {(row.section, row.key) for row in SETTINGS}
    for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        for section, values in tomllib.loads(block).items():
            if isinstance(values, dict):
                assert not [key for key in values if (section, key) not in known], f"{page.name}: [{section}]"


def test_settings_in_the_table_of_batching_exist() -> None:
    text = (ROOT / "docs/how-to.md").read_text()
    keys = {row.key for row in SETTINGS}
    named = re.findall(r"`(\w+) = ", text)
    assert len(named) > 6
    assert not [key for key in named if key not in keys]
