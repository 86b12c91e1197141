"""The models for the tests of faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.stage import export_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported once per test session."""
    folder = tmp_path_factory.mktemp("models")
    export_models(folder)
    return folder
