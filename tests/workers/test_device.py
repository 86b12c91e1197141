"""Environment and core before TensorFlow is there: in processes of their own, which import none of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("TF_", "OMP_", "OPENBLAS_", "MKL_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


SHOW = "; print(*(os.environ.get(k) for k in ('TF_CPP_MIN_LOG_LEVEL', 'OMP_NUM_THREADS', 'TF_ENABLE_ONEDNN_OPTS')))"


def test_defaults_and_threads() -> None:
    code = "import os; from ringserve.workers import device; device.prepare(threads=3)" + SHOW
    assert run(code) == "2 3 None"


def test_what_the_user_set_stays() -> None:
    code = "import os; from ringserve.workers import device; device.prepare(threads=1)" + SHOW
    assert run(code, TF_CPP_MIN_LOG_LEVEL="0", TF_ENABLE_ONEDNN_OPTS="0", OMP_NUM_THREADS="5") == "0 5 0"


def test_pin() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    code = (
        f"import os; from ringserve.workers import device; device.pin([{allowed[-1]}]); "
        "print(os.sched_getaffinity(0), device.pin([]), device.pin([100000]), os.sched_getaffinity(0))"
    )
    assert run(code) == f"{{{allowed[-1]}}} True False {{{allowed[-1]}}}"


def test_device_imports_no_tensorflow() -> None:
    code = (
        "import sys; from ringserve.workers import device; print('tensorflow' in sys.modules, 'numpy' in sys.modules)"
    )
    assert run(code) == "False False"
