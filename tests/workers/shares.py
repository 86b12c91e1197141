"""Weights as an author writes them and as a worker maps them, in the process of the test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringserve.workers.weights import Weights

if TYPE_CHECKING:
    from ringserve.workers.author import Report


@contextlib.contextmanager
def memfd() -> Iterator[int]:
    """An empty file as the pool makes it."""
    fd = os.memfd_create("test-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield fd
    finally:
        os.close(fd)


def map_weights(fd: int) -> Weights:
    """As a worker maps them: from a descriptor that is open for reading only, and closed then."""
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Weights.map(reader)
    finally:
        os.close(reader)


def written(path: Path, name: str = "m") -> tuple[Report, Weights | None]:
    """What an author has to report of the version in `path`, and the weights, if there are any."""
    from ringserve.workers import author

    with memfd() as fd:
        report = author.write_weights(path, name, ("serve",), 1, fd)
        return report, map_weights(fd) if report.bytes_shared else None
