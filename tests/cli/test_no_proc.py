"""A home without /proc (a bare chroot): nothing is started, and a line says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ALONE = ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"]
_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_it_says_that_proc_is_missing(command: str, tmp_path: Path) -> None:
    try:
        subprocess.run([*_ALONE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems may not be unmounted here")
    words = [sys.executable, "-m", "ringserve", command, "--model_name=m", f"--model_base_path={tmp_path}", "--port=0"]
    done = subprocess.run([*_ALONE, *words], cwd=_ROOT, capture_output=True, text=True, timeout=100)
    assert "/proc is not mounted" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "started broker" not in done.stderr
    assert done.returncode != 0
