"""Tests here that need more than a plain test run has: which of them run is said by the environment.

    TEST_REAL=image,haproxy     those are run; a tool that is missing is then a failure, and not a skip
    TEST_IMAGE=NAME             the image to try, built before (docs/container.md says how)
    TEST_PODMAN="podman ..."    the command that runs it, with its options; default: podman
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket

import pytest


def asked_for(name: str) -> pytest.MarkDecorator:
    """Skips unless TEST_REAL names it."""
    wanted = os.environ.get("TEST_REAL", "").split(",")
    return pytest.mark.skipif(name not in wanted, reason=f"slow, needs more than Python: TEST_REAL={name} runs it")


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skips where one of these commands is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def podman() -> list[str]:
    """The command that runs containers."""
    return shlex.split(os.environ.get("TEST_PODMAN", "podman"))


def free_port() -> int:
    """A TCP port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
