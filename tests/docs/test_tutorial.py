"""The tutorial is true: all its commands run, in their order, in one shell and an empty folder, and print what it says.

A block marked `sh run` is run; one marked `NAME file=PATH` is written to that file before; one marked `text output` is
what the block before it prints, where `…` stands for anything, between lines or inside of one. Ports are free ones.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
PORTS = ("8500", "8501", "8503")
_BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MARK = "@@@ block"


class Block(NamedTuple):
    """A fenced block: its language, what else stands behind that, its lines; and the output that is shown after it."""

    language: str
    mark: str
    text: str
    output: str


def blocks_of(text: str) -> list[Block]:
    found: list[Block] = []
    for language, mark, body in _BLOCK.findall(text):
        if mark == "output":
            found[-1] = found[-1]._replace(output=body)
        else:
            found.append(Block(language, mark, body, ""))
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether the lines of `shown` are in `printed`, in this order; `…` is anything."""
    place = 0
    lines = printed.splitlines()
    for line in shown.splitlines():
        if line.strip() == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in line.split("…")))
        while place < len(lines) and not pattern.fullmatch(lines[place]):
            place += 1
        if place == len(lines):
            return False
        place += 1
    return True


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_outputs_are_compared_line_by_line() -> None:
    assert matches("a\n…\nb … d\n", "a\nx\nb c d\n")
    assert matches("b\n", "a\nb\n")
    assert not matches("b\na\n", "a\nb\n")
    assert not matches("a …\n", "a\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial calls curl")
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    text = PAGE.read_text()
    ports = free_ports(len(PORTS))
    for port, free in zip(PORTS, ports, strict=True):
        text = text.replace(port, free)
    blocks = blocks_of(text)
    folder, tools = tmp_path / "empty", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    for name, command in (("python", ""), ("ringserve", "-m ringserve")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (tools / name).chmod(0o755)
    script = ["set -e"]
    ran = [block for block in blocks if block.mark == "run"]
    for block in blocks:
        if block.mark.startswith("file="):
            (folder / block.mark.removeprefix("file=")).write_text(block.text)
    for number, block in enumerate(ran):
        script += [f"echo; echo '{_MARK} {number}'", block.text]
    path, url = f"{tools}:{os.environ['PATH']}", f"http://127.0.0.1:{ports[1]}"
    environment = {**os.environ, "PATH": path, "RINGSERVE_URL": url}
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(script)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        printed, complaints = process.communicate(timeout=840)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what is left of a server, if a command failed
        except ProcessLookupError:
            pass
    log = (folder / "server.log").read_text() if (folder / "server.log").exists() else "no server was started"
    assert process.returncode == 0, f"{printed}\n{complaints}\n{log}"
    parts = re.split(rf"^{_MARK} \d+\n", printed, flags=re.MULTILINE)[1:]
    assert len(parts) == len(ran) > 10
    for block, part in zip(ran, parts, strict=True):
        assert block.output, f"the tutorial does not show what this prints:\n{block.text}\n{part}"
        assert matches(block.output, part), f"{block.text}\nprints\n{part}\nand not\n{block.output}"


def test_the_blocks_that_are_not_run_are_files() -> None:
    blocks = blocks_of(PAGE.read_text())
    assert {block.language for block in blocks} == {"python", "sh"}
    assert all(block.mark == "run" or block.mark.startswith("file=") for block in blocks)
