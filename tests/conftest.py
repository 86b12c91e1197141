"""What all tests have in common: nothing is compiled or looked through twice, the long files come first, and a test
that failed shows what the servers said that ran then."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

# Servers are started a hundred times here: what one process has compiled the next one need not compile again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_HERE = Path(__file__).parent
_LOG_CHARS_MAX = 10_000
#: Folders whose tests start servers, or TensorFlow, the longest first. The thousands of quick tests come last, and fill
#: the time until every process of the run is done.
_LONG_FIRST = ("perf", "faults", "docs", "e2e", "systemd", "workers", "deploy", "cli", "fuzz", "commands", "sim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _rank(item.path))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All that is there then lives to the end: with TensorFlow and the tests among it, each full look of the cyclic
    collector took up to a second in the middle of some test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A server that several tests share outlives the one that failed, so nobody else would print its log."""
    report = yield
    servers = sys.modules.get("tests.e2e.server")  # imported by whoever starts one
    if report.failed and servers is not None:
        for server in servers.Server.running:
            report.sections.append((f"server {server.process.pid}", server.log[-_LOG_CHARS_MAX:]))
    return report


def _rank(path: Path) -> int:
    folder = path.relative_to(_HERE).parts[0] if path.is_relative_to(_HERE) else ""
    return _LONG_FIRST.index(folder) if folder in _LONG_FIRST else len(_LONG_FIRST)
