"""Models of tests/exporters.py on disk, each written once per test run, whichever of its processes needs it first."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def exported(factory: pytest.TempPathFactory, *names: str) -> Path:
    """A folder with these models, NAME/1 each, and maybe with others. For reading only: who changes one copies it."""
    folder = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # that of the whole run
    folder /= "exported"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            fresh = folder / "fresh"
            # In a process of its own: TensorFlow takes a second and 300 MB that the rest of the suite does not need.
            command = [sys.executable, "-m", "tests.e2e.export_models", str(fresh), *missing]
            subprocess.run(command, cwd=ROOT, check=True, timeout=170)
            for name in missing:
                (fresh / name).rename(folder / name)
    return folder
