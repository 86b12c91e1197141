"""A CUDA driver library without a GPU, for tests of who opens one, when, and what of the environment it sees."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Look(NamedTuple):
    """One line of its log. environment: CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER, TF_GPU_ALLOCATOR, or `unset`."""

    pid: int
    what: str  # opened, cuInit
    environment: tuple[str, ...]


class NoGpuDriver:
    """Made anew in `folder`; skips the test without a C compiler. environment: of processes that shall find it."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
        self._log = folder / "cuda.log"
        folders = filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH")))
        self.environment = {"LD_LIBRARY_PATH": os.pathsep.join(folders), "NO_GPU_DRIVER_LOG": str(self._log)}

    def looks(self) -> list[Look]:
        """What it has written down so far; skips the test where that is nothing."""
        if not self._log.exists():
            pytest.skip("this TensorFlow is built without CUDA")
        words = [line.split() for line in self._log.read_text().splitlines()]
        return [Look(int(pid), what, tuple(environment)) for pid, what, *environment in words]
