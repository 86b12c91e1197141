"""Prints what ringserve needs, one requirement a line: `python requirements.py gpu,tflite`, beside pyproject.toml.

For the image, which has these libraries in a layer that does not change with ringserve's own code.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: str, extras: str) -> list[str]:
    """The dependencies in the text of a pyproject.toml, with those of extras (names between commas).

    Raises KeyError for an extra that does not exist."""
    project = tomllib.loads(pyproject)["project"]
    wanted = [name.strip() for name in extras.split(",") if name.strip()]
    return [*project["dependencies"], *(line for name in wanted for line in project["optional-dependencies"][name])]


if __name__ == "__main__":
    text = (Path(__file__).resolve().parent / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(requirements(text, sys.argv[1] if len(sys.argv) > 1 else "")))
