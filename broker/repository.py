"""The model directories: the only file that knows what they look like (`BASE/<version>/saved_model.pb`)."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

# TF Serving takes a directory's name for a version when it reads as an int64, blanks and leading zeros included.
_VERSION_NAME = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_INT64_MAX = 2**63 - 1


class VersionDirectory(NamedTuple):
    """One version of a model on disk."""

    version: int
    path: str


def version_of_name(name: str) -> int | None:
    """The version that a child of a base path stands for, or None when its name is no version.

    >>> version_of_name("00000123"), version_of_name("1.5"), version_of_name("latest")
    (123, None, None)
    """
    if not _VERSION_NAME.fullmatch(name):
        return None
    version = int(name)
    return version if 0 <= version <= _INT64_MAX else None


def list_versions(base_path: str) -> list[VersionDirectory]:
    """The versions under `base_path`, ascending. Raises OSError when the path cannot be read.

    Two names for one number (`1`, `001`): the lexically last one counts, as in TF Serving.
    """
    paths: dict[int, str] = {}
    for name in sorted(os.listdir(base_path)):
        version = version_of_name(name)
        if version is not None:
            paths[version] = os.path.join(base_path, name)
    return [VersionDirectory(version, paths[version]) for version in sorted(paths)]


def choose_versions(found: list[VersionDirectory], wanted: str | tuple[int, ...]) -> list[VersionDirectory]:
    """The versions to serve: `latest` (the highest), `all`, or those whose numbers are given."""
    if wanted == "latest":
        return found[-1:]
    if wanted == "all":
        return found
    return [directory for directory in found if directory.version in wanted]
