"""What all processes of the server have counted: their metric files, summed up.

The files only grow at their end, so that a scrape parses the keys that are new since the last one and reads all other
values where they were.
"""

from __future__ import annotations

import glob
import os
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ringserve.config.metric_family import HISTOGRAM, Family
from ringserve.config.metric_file import HEAD_BYTES, SUFFIX, SUM, Labels, entries, read_key, used_bytes
from ringserve.config.rundir import is_private

_DOUBLE_BYTES: Final = 8


class Cell(NamedTuple):
    """A family's values for one set of labels: one number, or a histogram's count in each bucket and then its sum."""

    labels: Labels
    values: list[float]


class _Known:
    """What is known of one file: where its values lie (in doubles) and which totals they are part of."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.used = HEAD_BYTES
        self.sources = np.zeros(0, np.intp)
        self.targets = np.zeros(0, np.intp)

    def is_not(self, inode: int, data: bytes) -> bool:
        """Whether a file with these contents is another than the one that is known."""
        return inode != self.inode or len(data) < self.used


class MetricSums:
    """The sums over all metric files of a folder, as they were at the last `read`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._reset()

    def _reset(self) -> None:
        self._files: dict[str, _Known] = {}
        self._starts: dict[str, dict[Labels, int]] = {}  # family name -> labels -> where in the totals the cell begins
        self._size = 0
        self._totals: npt.NDArray[np.float64] = np.zeros(0)

    def read(self) -> None:
        """Look at the files now: at none in a folder that others may have put pipes into."""
        found = {}
        pattern = os.path.join(glob.escape(self._folder), f"*{SUFFIX}")
        for path in sorted(glob.glob(pattern)) if is_private(self._folder) else ():
            try:
                found[path] = _read(path)
            except OSError:
                continue
        if any(path not in found or known.is_not(*found[path]) for path, known in self._files.items()):
            self._reset()  # a process has forgotten some cells, and written its file anew
        for path, (inode, data) in found.items():
            known = self._files.get(path)
            if known is None:
                known = self._files[path] = _Known(inode)
            self._learn(known, data)
        totals = np.zeros(self._size)
        for path, known in self._files.items():
            if known.used > HEAD_BYTES:
                values = np.frombuffer(found[path][1], np.float64, known.used // _DOUBLE_BYTES)
                # Each value of a file has a target of its own, so plain indexing adds them all.
                totals[known.targets] += values[known.sources]
        self._totals = totals

    def cells(self, family: Family) -> list[Cell]:
        """The family's cells, in the order of their labels."""
        size = _size(family)
        starts = sorted(self._starts.get(family.name, {}).items())
        return [Cell(labels, self._totals[start : start + size].tolist()) for labels, start in starts]

    def _learn(self, known: _Known, data: bytes) -> None:
        """Take in the entries that are new at the file's end."""
        sources, targets = [], []
        for entry in entries(data, known.used):
            known.used = entry.end
            key = read_key(entry.key)
            if key is not None:
                slot = key.bucket if key.bucket != SUM else _size(key.family) - 1
                sources.append(entry.value_at // _DOUBLE_BYTES)
                targets.append(self._start(key.family, key.labels) + slot)
        if sources:
            known.sources = np.concatenate((known.sources, np.array(sources, np.intp)))
            known.targets = np.concatenate((known.targets, np.array(targets, np.intp)))

    def _start(self, family: Family, labels: Labels) -> int:
        starts = self._starts.setdefault(family.name, {})
        start = starts.get(labels)
        if start is None:
            start = starts[labels] = self._size
            self._size += _size(family)
        return start


def _size(family: Family) -> int:
    return len(family.limits) + 2 if family.kind == HISTOGRAM else 1


def _read(path: str) -> tuple[int, bytes]:
    """A file's inode, and as much of it as is in use."""
    with open(path, "rb") as file:
        used = used_bytes(file.read(HEAD_BYTES))
        file.seek(0)
        return os.fstat(file.fileno()).st_ino, file.read(used)
