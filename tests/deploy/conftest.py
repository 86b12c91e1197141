"""The model that these tests serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample model, `digits`, which others than its owner may read."""
    folder = tmp_path_factory.mktemp("models")
    # In a process of its own: TensorFlow takes 300 MB.
    subprocess.run([sys.executable, "-m", "ringserve", "sample-model", str(folder)], check=True, timeout=170)
    for path in (folder.parent, folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder
