"""A server that is started without standard input, output and error: nothing of its own gets their numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]

#: Runs the command with a stand-in for the supervisor, which starts a child that writes down what it has.
_PROGRAM = """
import os, subprocess, sys
from ringserve import supervisor
def run(settings):
    with open(os.devnull) as file:
        assert file.fileno() > 2
    return subprocess.run([sys.executable, "-c", os.environ["CHILD"]]).returncode
supervisor.run = run
from ringserve.{module} import main
main()
"""
_CHILD = """
import json, os
links = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]
with open(os.environ["FOUND"], "w") as file:
    json.dump(links, file)
"""
_MODEL = ("--model_name=m", "--model_base_path=/m")


@pytest.mark.parametrize(("module", "arguments"), [("cli", ("serve", *_MODEL)), ("tfs_cli", _MODEL)])
def test_they_are_the_null_device_then(module: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    found_path = tmp_path / "found"
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = [*shell, sys.executable, "-c", _PROGRAM.format(module=module), *arguments]
    environment = {**os.environ, "CHILD": _CHILD, "FOUND": str(found_path)}
    assert subprocess.run(command, cwd=_ROOT, env=environment, timeout=60).returncode == 0
    assert json.loads(found_path.read_text()) == [os.devnull] * 3
