"""Where a process keeps what it counted, so that all others can read it, and so that it survives the process.

prometheus-client's multi-process files: memory-mapped, one for each kind of metric and process, in the run directory.
They are named after the process's place (`counter_frontend-0.db`), not its pid: whoever takes the place of a process
that died goes on counting where it stopped. Any frontend sums all of them up for a scrape (`frontend/metric_sums.py`).

A histogram's buckets are written once something was counted in them; who reads takes the others for zero.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from ringserve.config.metric_family import COUNTER, GAUGE, HISTOGRAM, Family
from ringserve.config.metrics import BY_EXPOSED
from ringserve.config.rundir import is_private

log = logging.getLogger(__name__)

# It ships no type information.
_MmapedDict: Any = MmapedDict

SUFFIX: Final = ".db"
#: How prometheus-client names the files: the kind, for gauges also that every process's value counts by itself.
_PREFIX: Final = {COUNTER: "counter", GAUGE: "gauge_all", HISTOGRAM: "histogram"}

#: What a new file has, and what prometheus-client begins with.
_FILE_BYTES_MIN: Final = 1 << 16
#: A file is not rewritten for fewer entries than these.
_GONE_MIN: Final = 1_000

_INT: Final = struct.Struct("i")
#: Where the first entry begins; before it stands the number of bytes in use.
HEAD_BYTES: Final = 8
#: An entry's value and time stamp.
_VALUE_BYTES: Final = 16

#: The values of a family's labels, in the order of its `labels`.
Labels = tuple[str, ...]

#: The bucket that stands for a histogram's sum.
SUM: Final = -1


class MetricFile:
    """The counts of one process. One thread uses it. `process`: its name, without underscores.

    A file that cannot be had (no room is left for it) costs its counts and a line in the log, never the process.
    """

    def __init__(self, folder: str, process: str) -> None:
        self._folder = folder
        self._process = process
        self._files: dict[str, _File | None] = {}

    def add(self, family: Family, labels: Labels, amount: float = 1.0) -> None:
        """Add to a counter."""
        file = self._file(family.kind)
        if file is not None:
            file.add(family, labels, 0, amount)

    def set(self, family: Family, labels: Labels, value: float) -> None:
        """Set a gauge."""
        file = self._file(family.kind)
        if file is not None:
            file.add(family, labels, 0, value, afresh=True)

    def observe(self, family: Family, labels: Labels, buckets: Iterable[tuple[int, int]], total: float) -> None:
        """Add to a histogram: (bucket, count) pairs, and the sum of what was observed, in the family's unit."""
        file = self._file(family.kind)
        if file is not None:
            for bucket, count in buckets:
                file.add(family, labels, bucket, count)
            file.add(family, labels, SUM, total)

    def cells(self, family: Family) -> dict[Labels, float]:
        """What this process, and those before it in its place, have put down of a counter or gauge."""
        file = self._file(family.kind)
        return {} if file is None else file.cells(family)

    def forget(self, gone: Callable[[Family, Labels], bool]) -> None:
        """Give up the room of cells (a family's values for one set of labels) that are gone, once they are many."""
        for kind in _PREFIX:
            file = self._file(kind)
            if file is not None:
                file.forget(gone)

    def restore(self) -> None:
        """Make files anew that somebody has removed, with all that they held: one that is only mapped nobody can read.
        Call it about once a second."""
        gone = [file for file in self._files.values() if file is not None and file.is_removed()]
        if not gone or not is_private(self._folder):
            return
        for file in gone:
            file.restore()
        # What could not be made while the folder was missing can be now.
        self._files = {kind: file for kind, file in self._files.items() if file is not None}

    def close(self) -> None:
        """Close the files; they stay. What is counted afterwards is dropped."""
        for file in self._files.values():
            if file is not None:
                file.close()
        self._files = dict.fromkeys(_PREFIX)

    def _file(self, kind: str) -> _File | None:
        if kind not in self._files:
            path = os.path.join(self._folder, f"{_PREFIX[kind]}_{self._process}{SUFFIX}")
            try:
                self._files[kind] = _File(path)
            except OSError as error:
                log.error("cannot keep metrics in %s: %s", path, error)
                self._files[kind] = None
        return self._files[kind]


class _File:
    """One prometheus-client file that grows only where there is room: writing to a page that the file system cannot
    give would end the process (SIGBUS)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_full = False
        _remove(path + ".new")
        try:
            self._open()
        except (RuntimeError, ValueError, struct.error):
            # A machine that went down in the middle of a write: what it counted is lost with it.
            log.exception("starting the metrics file %s afresh", path)
            _remove(path)
            self._open()

    def _open(self) -> None:
        self._capacity = _allocate(self._path, _FILE_BYTES_MIN)
        self._values = _MmapedDict(self._path)
        self._inode = os.stat(self._path).st_ino
        self._used = HEAD_BYTES
        self._keys: dict[tuple[str, Labels, int], str] = {}
        for key, _, _ in self._values.read_all_values():
            self._used += _entry_bytes(key)
            entry = read_key(key)
            if entry is not None:
                self._keys[entry.family.name, entry.labels, entry.bucket] = key

    def add(self, family: Family, labels: Labels, bucket: int, amount: float, *, afresh: bool = False) -> None:
        """afresh: set the value in place of adding to it."""
        key = self._keys.get((family.name, labels, bucket))
        if key is None:
            key = _key(family, labels, bucket)
            if not self._make_room(key):
                return
            self._keys[family.name, labels, bucket] = key
        value = amount if afresh else self._values.read_value(key)[0] + amount
        self._values.write_value(key, value, 0.0)

    def cells(self, family: Family) -> dict[Labels, float]:
        found = {labels: key for (name, labels, _), key in self._keys.items() if name == family.name}
        return {labels: self._values.read_value(key)[0] for labels, key in found.items()}

    def forget(self, gone: Callable[[Family, Labels], bool]) -> None:
        cells = {(name, labels) for name, labels, _ in self._keys}
        dead = {cell for cell in cells if gone(_BY_NAME[cell[0]], cell[1])}
        keys = {key for (name, labels, _), key in self._keys.items() if (name, labels) in dead}
        if len(keys) < _GONE_MIN or 2 * len(keys) < len(self._keys):
            return
        try:
            self._rewrite(keys)
        except OSError as error:
            log.warning("the metrics file %s keeps what nobody needs: %s", self._path, error)

    def is_removed(self) -> bool:
        """Another file may lie there: one that was to grow."""
        try:
            return os.lstat(self._path).st_ino != self._inode
        except OSError:  # somebody else's directory, or file, may have its folder's name
            return True

    def restore(self) -> None:
        new = self._path + ".new"
        try:
            _remove(new)
            _allocate(new, self._capacity)
            values = _MmapedDict(new)
            for key, value, stamp in self._values.read_all_values():
                values.write_value(key, value, stamp)
            values.close()
            os.replace(new, self._path)
        except OSError as error:
            # What is counted goes on into the old one: all of it comes out when there is room again.
            log.warning("the metrics file %s was removed and cannot be made anew: %s", self._path, error)
            return
        self._values.close()
        self._open()

    def _rewrite(self, without: set[str]) -> None:
        with open(self._path, "rb") as file:
            data = file.read(self._used)
        kept = [data[entry.start : entry.end] for entry in entries(data) if entry.key not in without]
        used = HEAD_BYTES + sum(len(piece) for piece in kept)
        new = self._path + ".new"
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(b"".join((_INT.pack(used).ljust(HEAD_BYTES, b"\0"), *kept)))
            _allocate(new, max(_FILE_BYTES_MIN, 2 * used))
        except OSError:
            _remove(new)
            raise
        os.replace(new, self._path)
        self._values.close()
        self._open()

    def close(self) -> None:
        self._values.close()

    def _make_room(self, key: str) -> bool:
        """See to it that the file has room for one more key before that is mapped and written."""
        size = _entry_bytes(key)
        if self._is_full:
            return False
        if self._used + size > self._capacity:
            try:
                # As prometheus-client does when it has no room left, which it therefore never has to.
                self._capacity = _allocate(self._path, 2 * self._capacity)
            except OSError as error:
                log.error("the metrics file %s cannot grow, nothing new is counted: %s", self._path, error)
                self._is_full = True
                return False
        self._used += size
        return True


def _allocate(path: str, size: int) -> int:
    """Give the file `size` bytes of storage at least; returns how many it has. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        has = os.fstat(fd).st_size
        if has < size:
            os.posix_fallocate(fd, has, size - has)
    except OSError:
        if not has:
            os.unlink(path)  # nobody could read an empty one
        raise
    finally:
        os.close(fd)
    return max(has, size)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


# ---------------------------------------------------------------------------------------------------------- entries


class Entry(NamedTuple):
    """One value of a file: where it begins and ends, its key, and where the value (a double) lies; all in bytes."""

    start: int
    key: str
    value_at: int
    end: int


def entries(data: bytes, position: int = HEAD_BYTES) -> Iterator[Entry]:
    """The entries of a file (as much of it as is in use), from `position` on."""
    while position < len(data):
        key_at = position + _INT.size
        length = _INT.unpack_from(data, position)[0]
        value_at = _value_at(key_at, length)
        end = value_at + _VALUE_BYTES
        yield Entry(position, data[key_at : key_at + length].decode(), value_at, end)
        position = end


def used_bytes(head: bytes) -> int:
    """How much of a file is in use, by its first bytes."""
    used: int = _INT.unpack(head[: _INT.size])[0] if len(head) >= _INT.size else 0
    return used


def _value_at(key_at: int, length: int) -> int:
    """A key is padded, by one byte at least, so that its value lies at a multiple of eight."""
    return key_at + length + 8 - (key_at + length) % 8


def _entry_bytes(key: str) -> int:
    return _value_at(_INT.size, len(key.encode())) + _VALUE_BYTES


class Key(NamedTuple):
    """What an entry is a value of. bucket: a histogram's, or SUM; 0 for all other kinds."""

    family: Family
    labels: Labels
    bucket: int


_BY_NAME: Final = {family.name: family for family in BY_EXPOSED.values()}


def _key(family: Family, labels: Labels, bucket: int) -> str:
    name = family.exposed
    sample, names, values = name, family.labels, labels
    if family.kind == HISTOGRAM and bucket == SUM:
        sample += "_sum"
    elif family.kind == HISTOGRAM:
        le = repr(family.limits[bucket]) if bucket < len(family.limits) else "+Inf"
        sample, names, values = f"{name}_bucket", (*names, "le"), (*values, le)
    # prometheus-client calls a counter's family by its name without _total. The help text would stand in every key.
    metric = name.removesuffix("_total") if family.kind == COUNTER else name
    return mmap_key(metric, sample, list(names), list(values), "")


def read_key(key: str) -> Key | None:
    """What a key stands for; None when its family is not in the tables."""
    _, sample, labels, _ = json.loads(key)
    bucket = 0
    family = BY_EXPOSED.get(sample)
    if family is None and "le" in labels:
        family = BY_EXPOSED.get(sample.removesuffix("_bucket"))
        if family is not None:
            le = float(labels["le"])
            bucket = family.limits.index(le) if le in family.limits else len(family.limits)
    elif family is None:
        family, bucket = BY_EXPOSED.get(sample.removesuffix("_sum")), SUM
    if family is None:
        return None
    return Key(family, tuple(labels[name] for name in family.labels), bucket)
