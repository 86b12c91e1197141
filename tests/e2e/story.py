"""A server whose only model gets one version after the other, for tests that go on from each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.e2e.server import Server
from tests.e2e.test_lifecycle_versions import put


class Story:
    """One server of model `m`. version: the last that was put.

    serve: starts the server of a base path in a folder; it has the first version.
    """

    def __init__(self, folder: Path, models: Path, serve: Callable[[Path, Path], Server]) -> None:
        self._models = models
        self._base = folder / "base"
        self._base.mkdir()
        self.version = 0
        self.put()
        self.server = serve(folder, self._base)

    def put(self) -> int:
        self.version += 1
        put(self._models, self._base, self.version)
        return self.version

    def move_in(self, made: Path) -> int:
        """That folder is the next version."""
        self.version += 1
        os.rename(made, self._base / str(self.version))
        return self.version
