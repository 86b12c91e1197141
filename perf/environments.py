"""A virtual environment for each server that is compared with, made once, below `perf/build/peers/`.

Each sees this interpreter's packages behind its own, by a `.pth` file: TensorFlow is half a gigabyte, and the same for
all. What a server needs is installed into its own environment only, also where it needs another version of a package
that is here already.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from perf.loadgen import PERF

INSTALL_S_MAX = 600.0
_COMPLETE = "complete"


class InstallError(Exception):
    """pip could not install it; the text is what pip said last."""


def python_of(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of the environment with these, pinned, requirements; installs them the first time.

    Raises InstallError.
    """
    words = [sys.version, sys.prefix, *requirements]
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]
    folder = PERF / "build" / "peers" / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if (folder / _COMPLETE).exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)  # an installation that was cut short
    create(folder)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-input",
               "--disable-pip-version-check", *requirements]  # fmt: skip
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX)
    except subprocess.TimeoutExpired:
        raise InstallError(f"pip needed more than {INSTALL_S_MAX:.0f} s") from None
    if outcome.returncode:
        said = [line for line in outcome.stderr.splitlines() if line.strip()]
        raise InstallError("; ".join(said[-3:]) or f"pip ended with {outcome.returncode}")
    (folder / _COMPLETE).touch()
    return python


def create(folder: Path) -> None:
    """A virtual environment without packages of its own, behind which this interpreter's are found."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    (own,) = folder.glob("lib/python*/site-packages")
    paths = sysconfig.get_paths()
    (own / "outer.pth").write_text("".join(f"{each}\n" for each in dict.fromkeys((paths["purelib"], paths["platlib"]))))


def installed_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """What that interpreter would import."""
    program = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
    outcome = subprocess.run([str(python), "-c", program, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, outcome.stdout.split(), strict=True))
