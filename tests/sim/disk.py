"""The simulated disk of `life.py`: base paths and versions that come, change and go by chance."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ringserve.broker.aspired import Listing, VersionDirectory, choose
from ringserve.broker.lifecycle import Look
from ringserve.broker.orders import Order
from ringserve.broker.stability import FileInfo, Snapshot


@dataclass
class OnDisk:
    """A version's directory. kind: good, broken, deadly (ends whoever loads it), unlucky (fails now and then)."""

    kind: str
    inode: int
    complete: bool
    changed_ns: int
    writes: int = 0

    def files(self) -> tuple[FileInfo, ...]:
        files = [FileInfo("saved_model.pb", 100, 1000 * self.inode + self.writes), FileInfo("variables", -1, 0)]
        if self.complete:
            files.append(FileInfo("variables/variables.data-00000-of-00001", 9, 0))
        files.append(FileInfo("variables/variables.index", 9, 0))
        return tuple(sorted(files))


class Disk:
    """Base path -> version -> directory; None for a base path that is missing."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._bases: dict[str, dict[int, OnDisk] | None] = {}
        self._inode = 0

    def at(self, base: str) -> dict[int, OnDisk]:
        """The versions under a base path."""
        return self._bases.get(base) or {}

    def of(self, order: Order) -> OnDisk | None:
        """The directory that an order names, as it is now."""
        base, _, version = order.path.rpartition("/")
        return self.at(base).get(int(version))

    def listing(self, look: Look, now_ns: int, *, fails: bool) -> Listing:
        """What the watcher finds."""
        found = self._bases.get(look.base_path)
        if found is None:
            return Listing(look.name, look.base_path, "NOT_FOUND", True, (), {}, {})
        if fails:
            return Listing(look.name, look.base_path, "I/O error", False, (), {}, {})
        directories = tuple(
            VersionDirectory(version, f"{look.base_path}/{version}", found[version].inode) for version in sorted(found)
        )
        snapshots = {
            directory.version: Snapshot(found[directory.version].files(), found[directory.version].changed_ns, now_ns)
            for directory in choose(directories, look.policy)
            if look.known.get(directory.version) != directory.inode
        }
        return Listing(look.name, look.base_path, "", False, directories, snapshots, {})

    def copy(self, base: str, kind: str, now_ns: int) -> Callable[[int], None] | None:
        """A version appears, or takes another's place. Returns what ends the copying, None when it is whole at once."""
        found = self._bases.get(base)
        if found is None:
            found = self._bases[base] = {}
        self._inode += 1
        on_disk = OnDisk(kind, self._inode, self._rng.random() < 0.5, now_ns)
        found[self._rng.randint(1, 9)] = on_disk
        if on_disk.complete:
            return None

        def finish(now_ns: int) -> None:
            on_disk.complete, on_disk.changed_ns, on_disk.writes = True, now_ns, on_disk.writes + 1

        return finish

    def fix_version(self, now_ns: int) -> None:
        """Some bad ones become good."""
        for found in self._bases.values():
            for on_disk in (found or {}).values():
                if on_disk.kind != "good" and self._rng.random() < 0.5:
                    on_disk.kind, on_disk.changed_ns, on_disk.writes = "good", now_ns, on_disk.writes + 1

    def remove_version(self) -> None:
        for found in self._bases.values():
            if found and self._rng.random() < 0.5:
                del found[self._rng.choice(list(found))]

    def remove_base(self) -> Callable[[], None] | None:
        """A base path is not there any more. Returns what brings it back."""
        if not self._bases:
            return None
        base = self._rng.choice(list(self._bases))
        before, self._bases[base] = self._bases[base], None
        return lambda: self._bases.__setitem__(base, before)
