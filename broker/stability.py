"""Pure: may a version's directory be loaded, or is somebody still writing it?

    complete, and unchanged for settle_ns          -> load it
    incomplete, and unchanged for incomplete_ns    -> load it all the same: the load's error says what is wrong
    else                                           -> wait

Complete means: there is a model file, and every shard of the variables' checkpoint that its own name announces.
Nobody has to write a marker file, and a directory that has lain there for long is loaded at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")
_INDEX = "variables/variables.index"
_SHARD = re.compile(r"variables/variables\.data-(\d{5})-of-(\d{5})")
#: Names that tools give to files while they write them (rsync, gsutil, browsers, our own `.tmp` habit).
_UNFINISHED = re.compile(r"(?:.*/)?(?:\..+\.[A-Za-z0-9]{6}|.*\.(?:tmp|part|partial|crdownload)|.*_\.gstmp)")


class FileInfo(NamedTuple):
    """One entry of a version's directory. path: relative, with `/`. size_bytes: -1 for a directory."""

    path: str
    size_bytes: int
    mtime_ns: int


class Snapshot(NamedTuple):
    """A version's directory at one moment. files: sorted by path. changed_ns, taken_ns: wall clock, of the newest
    change of anything in it (mtime or ctime), and of the look itself."""

    files: tuple[FileInfo, ...]
    changed_ns: int
    taken_ns: int


class Verdict(NamedTuple):
    """load: now. reason: why not yet; or, when it is to be loaded although incomplete, what is missing.

    again_ns: when the answer may change if nothing in the directory does; 0 when it is to be loaded.
    """

    load: bool
    reason: str
    again_ns: int


class Watched:
    """What has been seen of one directory so far. `trusted`: it was there when its base path was first looked at, so
    that the times of its files tell its age. Otherwise only what was seen counts: clocks of file servers go wrong."""

    def __init__(self, *, trusted: bool) -> None:
        self._trusted = trusted
        self._files: tuple[FileInfo, ...] | None = None
        self._same_since_ns = 0
        self._seen_ns = 0

    @property
    def seen(self) -> bool:
        """There was a look at all."""
        return self._files is not None

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """As of the last look; none before."""
        return self._files or ()

    @property
    def lacks(self) -> str:
        """What the directory lacks to be a model, as of the last look; empty when it is complete or was never seen."""
        return missing(self._files) if self._files is not None else ""

    def is_as_seen(self, snapshot: Snapshot) -> bool:
        """The same files as at the last look, as far as names, sizes and times tell."""
        return snapshot.files == self._files

    def see(self, snapshot: Snapshot, now_ns: int) -> bool:
        """Take a snapshot in. True when the directory is not as it was."""
        self._seen_ns = now_ns
        if snapshot.files == self._files:
            return False
        if self._files is not None:
            self._trusted = False
        self._files = snapshot.files
        age_ns = snapshot.taken_ns - snapshot.changed_ns if self._trusted else 0
        self._same_since_ns = now_ns - max(age_ns, 0)
        return True

    def judge(self, *, settle_ns: int, incomplete_ns: int) -> Verdict:
        """As of the last look; one came before. Never by time alone: what nobody has looked at may have changed."""
        assert self._files is not None
        lacking = missing(self._files)
        due_ns = self._same_since_ns + (max(settle_ns, incomplete_ns) if lacking else settle_ns)
        if self._seen_ns >= due_ns:
            return Verdict(True, lacking, 0)
        return Verdict(False, lacking or "its directory has changed a moment ago", due_ns)


def missing(files: Sequence[FileInfo]) -> str:
    """What a directory still lacks to be a model, in words; empty when it is complete."""
    paths = {file.path for file in files if file.size_bytes >= 0}
    for path in sorted(paths):
        if _UNFINISHED.fullmatch(path):
            return f"{path} is being written"
    if not paths.intersection(_MODEL_FILES):
        return "it has no saved_model.pb"
    if "model.tflite" in paths and not paths.intersection(_MODEL_FILES[:2]):
        return ""
    shards = {match[0]: int(match[2]) for path in paths if (match := _SHARD.fullmatch(path))}
    if _INDEX not in paths:
        return f"{_INDEX} is missing" if shards else ""
    if not shards:
        return "variables/variables.data is missing"
    count = max(shards.values())
    for number in range(count):
        name = f"variables/variables.data-{number:05d}-of-{count:05d}"
        if name not in paths:
            return f"{name} is missing"
    return ""
