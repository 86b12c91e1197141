"""`python -m tests.e2e.export_models FOLDER [NAME ...]`: models of tests/exporters.py as FOLDER/NAME/1."""

from __future__ import annotations

import sys
from pathlib import Path

from tests import exporters

NAMES = (
    "mlp", "several", "half", "echo", "identities", "strings", "scalar", "table", "not_per_row", "counter", "picky",
    "slow", "ragged",
)  # fmt: skip


def main(folder: Path, names: list[str]) -> None:
    for name in names or NAMES:
        getattr(exporters, name)(folder / name / "1")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
