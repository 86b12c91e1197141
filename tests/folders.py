"""Folders that processes write to while tests remove them."""

from __future__ import annotations

import shutil
from pathlib import Path


def removed(folder: Path) -> bool:
    """Remove a folder and what is in it. False: a file was made in it anew meanwhile; try again."""
    try:
        shutil.rmtree(folder)
    except OSError:
        return False
    return True
