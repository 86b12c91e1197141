"""The one small model that these tests serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exported import exported


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with one version of `half` (y = x / 2 + 2)."""
    return exported(tmp_path_factory, "half") / "half"
