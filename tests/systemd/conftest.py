"""The one small model that these tests serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with one version of `half` (y = x / 2 + 2)."""
    base = tmp_path_factory.mktemp("half")
    code = "import sys, pathlib; from tests import exporters; exporters.half(pathlib.Path(sys.argv[1]))"
    # In a process of its own: TensorFlow takes a second and 300 MB.
    subprocess.run([sys.executable, "-c", code, str(base / "1")], check=True, timeout=170)
    return base
