"""Orders for the processes of a server under test: where they are to fail, and when. hooks/sitecustomize.py obeys."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.server import wait_until

HOOKS = Path(__file__).parent / "hooks"


class Orders:
    """The folder of orders. `environment` makes a server look there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._count = 0
        path = os.pathsep.join(filter(None, (str(HOOKS), os.environ.get("PYTHONPATH", ""))))
        self.environment = {"RS_FAULTS": str(folder), "PYTHONPATH": path}

    def give(self, point: str, word: str, times: int = 1) -> None:
        """The first `times` processes (or calls) that come to this point from now on are to do that."""
        for _ in range(times):
            self._count += 1
            new = self._folder / f"new-{self._count}"
            new.write_text(word)
            new.rename(self._folder / f"{point}@{self._count:06}")

    def taken(self, point: str) -> list[int]:
        """Process ids of those that have taken orders of this point and are held, or were ended by it."""
        names = [path.name for path in self._folder.glob(f"taken-{point}@*")]
        return [int(name.rpartition("-")[2]) for name in sorted(names)]

    def wait_taken(self, point: str, times: int = 1) -> int:
        """Until so many orders of it have been taken; the last taker's process id."""
        found: list[int] = wait_until(
            lambda: taken if len(taken := self.taken(point)) >= times else [], f"{point} to be reached"
        )
        return found[-1]

    def tell_held(self, point: str, word: str) -> None:
        """Who was held there last obeys this in place of waiting."""
        path = max(self._folder.glob(f"taken-{point}@*"))
        new = self._folder / "new-word"
        new.write_text(word)
        new.rename(path)

    def release(self) -> None:
        """Let go whoever is held, and take back all orders."""
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)
