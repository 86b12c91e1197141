"""The models for the tests of faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exported import exported
from tests.faults.stage import MODELS


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported once per test run."""
    return exported(tmp_path_factory, *MODELS)
