"""Pure: which children of a base path are versions, and which of those a model's policy asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ringserve.broker.stability import Snapshot

# TF Serving takes a directory's name for a version when it reads as an int64, blanks and leading zeros included.
_VERSION_NAME = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_INT64_MAX = 2**63 - 1

#: A model's policy: "latest" (the highest), "latest:N" (the N highest), "all", or these numbers.
Policy = str | tuple[int, ...]


class VersionDirectory(NamedTuple):
    """One version of a model on disk. inode: tells it from a directory that has taken its name since; 0 = unknown."""

    version: int
    path: str
    inode: int = 0


class Listing(NamedTuple):
    """What one look at a base path found.

    error: why it could not be read, empty when it could. missing: that was because there is no such directory.
    found: its versions, ascending. snapshots: of those that were looked into. batching: by version, what its directory
    says about batching, where that was asked for: (the parameters or None, what is wrong with them).
    """

    name: str
    base_path: str
    error: str
    missing: bool
    found: tuple[VersionDirectory, ...]
    snapshots: dict[int, Snapshot]
    batching: dict[int, tuple[object | None, str]]


def version_of_name(name: str) -> int | None:
    """The version that a child of a base path stands for, or None when its name is no version.

    >>> version_of_name("00000123"), version_of_name("1.5"), version_of_name("latest")
    (123, None, None)
    """
    if not _VERSION_NAME.fullmatch(name):
        return None
    version = int(name)
    return version if 0 <= version <= _INT64_MAX else None


def names_of_versions(names: Iterable[str]) -> dict[int, str]:
    """Version -> the child's name, ascending. Two names of one number (`1`, `001`): the lexically last one counts, as
    in TF Serving."""
    found: dict[int, str] = {}
    for name in sorted(names):
        version = version_of_name(name)
        if version is not None:
            found[version] = name
    return {version: found[version] for version in sorted(found)}


def choose(found: Sequence[VersionDirectory], policy: Policy) -> list[VersionDirectory]:
    """Those of `found` (ascending) that the policy asks for, ascending."""
    if isinstance(policy, tuple):
        return [directory for directory in found if directory.version in policy]
    if policy == "all":
        return list(found)
    _, _, count = policy.partition(":")
    return list(found[-max(int(count or 1), 1) :])
