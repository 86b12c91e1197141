"""The model directories: the only file that looks at them (`BASE/<version>/saved_model.pb`)."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Callable

from ringserve.broker.aspired import Listing, Policy, VersionDirectory, choose, names_of_versions, version_of_name
from ringserve.broker.stability import FileInfo, Snapshot

#: Entries of one version's directory that are looked at; a model has a handful, and vocabularies some more.
ENTRIES_MAX = 20_000

_statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
_AT_FDCWD = -100
_STATX_BTIME = 0x800
_STATX_BYTES = 256
#: Of struct statx, which os.stat leaves out: which fields are there (stx_mask), the time of birth (stx_btime).
_STATX = struct.Struct("=I76xqI")

#: What a version's directory says about batching, or None. Raises ValueError with what is wrong.
ReadBatching = Callable[[str], object | None]


def scan(
    name: str,
    base_path: str,
    policy: Policy,
    known: dict[int, int],
    *,
    wall_clock: Callable[[], int],
    read_batching: ReadBatching | None = None,
) -> Listing:
    """List a base path and look into the directories of the versions that the policy asks for. It may take as long as
    the file system pleases.

    known: version -> inode: directories that need no look inside. wall_clock: ns, of the clock that dates files.
    """
    try:
        with os.scandir(base_path) as children:
            # Whatever else lies there, perhaps by the million, is not kept.
            inodes = {child.name: child.inode() for child in children if version_of_name(child.name) is not None}
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        code = "NOT_FOUND" if missing else "UNAVAILABLE"
        return Listing(name, base_path, f"{code}: {base_path}; {error.strerror}", missing, (), {}, {})
    found = tuple(
        VersionDirectory(version, path, _identity(path, inodes[child]))
        for version, child in names_of_versions(inodes).items()
        for path in [os.path.join(base_path, child)]
    )
    snapshots = {}
    batching: dict[int, tuple[object | None, str]] = {}
    for version, path, inode in choose(found, policy):
        if known.get(version) == inode:
            continue
        snapshots[version] = snapshot(path, wall_clock)
        if read_batching is not None:
            try:
                batching[version] = (read_batching(path), "")
            except ValueError as error:
                batching[version] = (None, str(error))
    return Listing(name, base_path, "", False, found, snapshots, batching)


def _identity(path: str, inode: int) -> int:
    """Of a directory, whatever changes in it: its inode, and when that was made. File systems give a number again at
    once, so that a version removed and copied anew between two looks would have the same one."""
    about = ctypes.create_string_buffer(_STATX_BYTES)
    if _statx is None or _statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, about) != 0:
        return inode
    mask, seconds, nanoseconds = _STATX.unpack_from(about)
    return inode << 96 | (seconds * 1_000_000_000 + nanoseconds if mask & _STATX_BTIME else 0)


def snapshot(path: str, wall_clock: Callable[[], int]) -> Snapshot:
    """What is in a version's directory now. What cannot be read is left out, as is what goes while it is looked at."""
    files: list[FileInfo] = []
    changed_ns = 0
    #: A folder, and the folders that it lies in, by device and inode: links may lead back to one of them.
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending and len(files) < ENTRIES_MAX:
        folder, above = pending.pop()
        try:
            about = os.stat(os.path.join(path, folder))
            here = (about.st_dev, about.st_ino)
            if here in above:
                continue
            changed_ns = max(changed_ns, about.st_mtime_ns, about.st_ctime_ns)
            with os.scandir(os.path.join(path, folder)) as children:
                names = [child.name for child in children]
        except OSError:
            continue
        for name in names:
            inner = f"{folder}/{name}" if folder else name
            try:
                about = os.stat(os.path.join(path, inner))  # of what a link points to: that is what is loaded
            except OSError:
                continue
            changed_ns = max(changed_ns, about.st_mtime_ns, about.st_ctime_ns)
            if stat.S_ISDIR(about.st_mode):
                pending.append((inner, (*above, here)))
                files.append(FileInfo(inner, -1, 0))
            else:
                files.append(FileInfo(inner, about.st_size, about.st_mtime_ns))
    return Snapshot(tuple(sorted(files)), changed_ns, wall_clock())
