"""A segment: anonymous shared memory (memfd) with one writing process, its creator, and readers that map it read-only.

The creator seals the size, so no reader can be killed (SIGBUS) by a file that shrinks under its mapping, and hands out
a descriptor that is open for reading only, so no reader can write by accident. Nothing has a name in the file system:
the memory lives as long as somebody maps it or holds a descriptor, and nobody has to clean up after the dead.

`multiprocessing.shared_memory` is not used: its resource tracker unlinks a segment when a process that merely attached
to it exits.
"""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
from typing import Final, Self

import numpy as np

from ringserve.shm.layout import DATA_START, HEADER, HEADER_AT, LAYOUT_VERSION, MAGIC

#: F_SEAL_FUTURE_WRITE would forbid every other writable mapping too, but it also forbids giving pages back.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SegmentError(Exception):
    """A segment cannot be made, mapped or closed. The text names what is wrong; for `attach` the peer is to blame."""


class Segment:
    """One mapping of a segment; make it with `create` (the owner) or `attach` (a reader).

    fd: for the owner, a descriptor open for reading only, to be sent to readers; owned by this object. -1 for readers.
    data: the data bytes, after the header; offset 0 is the first. Writable for the owner only. Take slices of it as
    views; every view, numpy arrays included, must be gone before `close`.
    data_bytes: the capacity, as asked of `create`.
    owner_pid, incarnation: who made it, and which one of theirs it is.
    """

    __slots__ = ("_map", "data", "data_bytes", "fd", "incarnation", "owner_pid", "writable")

    def __init__(
        self, mapping: mmap.mmap, fd: int, data_bytes: int, owner_pid: int, incarnation: int, writable: bool
    ) -> None:
        self._map: mmap.mmap | None = mapping
        self.fd = fd
        self.data_bytes = data_bytes
        self.owner_pid = owner_pid
        self.incarnation = incarnation
        self.writable = writable
        self.data = memoryview(mapping)[DATA_START : DATA_START + data_bytes]

    @classmethod
    def create(cls, name: str, data_bytes: int) -> Self:
        """A new segment of `data_bytes`, all zero, without memory behind it until it is written.

        name: shown in /proc/<pid>/maps, for people; it need not be unique. SegmentError: the system refuses.
        """
        if data_bytes < 1:
            raise SegmentError(f"segment {name!r}: data_bytes must be at least 1, not {data_bytes}")
        pages = -(-(DATA_START + data_bytes) // mmap.PAGESIZE)
        incarnation = int.from_bytes(os.urandom(8), "little")
        try:
            writable_fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (OSError, ValueError) as error:
            raise SegmentError(f"segment {name!r}: cannot make a memfd: {error}") from error
        try:
            os.ftruncate(writable_fd, pages * mmap.PAGESIZE)
            mapping = mmap.mmap(writable_fd, pages * mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            header = HEADER.pack(LAYOUT_VERSION, DATA_START, data_bytes, os.getpid(), incarnation)
            mapping[HEADER_AT : HEADER_AT + len(header)] = header
            mapping[:HEADER_AT] = MAGIC
            fcntl.fcntl(writable_fd, fcntl.F_ADD_SEALS, _SEALS)
            # A new open file description, not a duplicate: the mode cannot be changed on one that exists.
            fd = os.open(f"/proc/self/fd/{writable_fd}", os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError, OverflowError) as error:
            raise SegmentError(f"segment {name!r}: cannot map {data_bytes} bytes: {error}") from error
        finally:
            os.close(writable_fd)  # the mapping keeps the memory
        return cls(mapping, fd, data_bytes, os.getpid(), incarnation, True)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map the segment behind `fd`, as received from its owner, for reading.

        `fd` stays the caller's and may be closed as soon as this returns or raises. SegmentError names what is wrong
        with it: a peer may hand over anything.
        """
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            file_bytes = os.fstat(fd).st_size
        except (OSError, ValueError) as error:
            raise SegmentError(f"descriptor {fd} is not a segment: {error}") from error
        if seals & _SEALS != _SEALS:
            raise SegmentError(f"descriptor {fd} is not a segment: its size is not sealed (seals {seals:#x})")
        if file_bytes <= DATA_START:
            raise SegmentError(f"descriptor {fd} is not a segment: {file_bytes} bytes are too few for header and data")
        try:
            mapping = mmap.mmap(fd, file_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise SegmentError(f"descriptor {fd}: cannot map {file_bytes} bytes: {error}") from error
        try:
            data_bytes, owner_pid, incarnation = _read_header(mapping, file_bytes)
        except SegmentError as error:
            mapping.close()
            raise SegmentError(f"descriptor {fd}: {error}") from None
        return cls(mapping, -1, data_bytes, owner_pid, incarnation, False)

    @property
    def closed(self) -> bool:
        return self._map is None

    def free_pages(self, start: int, nbytes: int) -> int:
        """Give the memory of data bytes [start, start + nbytes) back to the system; returns the bytes given back.

        Only whole pages inside the range go. They read as zeros from then on, in every mapping, and cost memory again
        when they are written. The owner only, and only where no record lives. SegmentError otherwise.
        """
        if self._map is None or not self.writable:
            raise SegmentError("only the owner of an open segment can give its pages back")
        if start < 0 or nbytes < 0 or start + nbytes > self.data_bytes:
            raise SegmentError(f"bytes {start}..{start + nbytes} are not inside the {self.data_bytes} of this segment")
        page = mmap.PAGESIZE
        first = -(-(DATA_START + start) // page) * page
        last = (DATA_START + start + nbytes) // page * page
        if last <= first:
            return 0
        self._map.madvise(mmap.MADV_REMOVE, first, last - first)
        return last - first

    def close(self) -> None:
        """Unmap. Closing twice is nothing.

        SegmentError names the views that are still held. The segment stays open then; take `data` anew, an old copy of
        it is released.
        """
        mapping = self._map
        if mapping is None:
            return
        try:
            self.data.release()
            mapping.close()
        except BufferError:
            self.data = memoryview(mapping)[DATA_START : DATA_START + self.data_bytes]
            raise SegmentError(self._who_holds(mapping)) from None
        self._forget()

    def abandon(self) -> None:
        """Close without waiting for views: the memory stays mapped until the last of them is gone. Never raises."""
        mapping = self._map
        if mapping is None:
            return
        try:
            self.data.release()
        except BufferError:
            pass  # an array made straight from `data`; it holds the mapping by itself
        self._forget()

    def _forget(self) -> None:
        self._map = None
        self.data = memoryview(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _who_holds(self, mapping: mmap.mmap) -> str:
        """A sentence about the views that keep `mapping` from closing. Slow: it looks at every object there is."""
        base = np.frombuffer(mapping, np.uint8, 1).__array_interface__["data"][0] + DATA_START
        views: list[memoryview] = []
        for each in gc.get_objects():
            # type(), not isinstance(): the latter asks __class__ of objects that may be proxies of something dead
            if type(each) is memoryview and each is not self.data:
                try:
                    if each.obj is mapping:
                        views.append(each)
                except ValueError:
                    pass  # a released view
        parts = []
        for index in range(min(len(views), 8)):
            view = views[index]  # by index: a slice would be one more holder
            where = np.frombuffer(view, np.uint8).__array_interface__["data"][0] - base if view.nbytes else 0
            holders = sorted({type(each).__name__ for each in gc.get_referrers(view) if each is not views})
            parts.append(f"{view.nbytes} bytes at {where} (held by {', '.join(holders) or 'an array or a variable'})")
        more = f" and {len(views) - 8} more" if len(views) > 8 else ""
        return f"the segment of pid {self.owner_pid} is still viewed: {'; '.join(parts) or 'no Python object'}{more}"

    def __repr__(self) -> str:
        state = "closed" if self._map is None else "writable" if self.writable else "read-only"
        return f"<Segment {self.data_bytes} bytes of pid {self.owner_pid}, incarnation {self.incarnation:#x}, {state}>"


def _read_header(mapping: mmap.mmap, file_bytes: int) -> tuple[int, int, int]:
    """(data bytes, owner's pid, incarnation) of a mapped header; SegmentError names the field that is wrong."""
    magic = mapping[:HEADER_AT]
    if magic != MAGIC:
        raise SegmentError(f"magic is {magic!r}, not {MAGIC!r}: not a segment, or its header was never finished")
    version, data_start, data_bytes, owner_pid, incarnation = HEADER.unpack_from(mapping, HEADER_AT)
    if version != LAYOUT_VERSION:
        raise SegmentError(f"layout version is {version}, this process speaks {LAYOUT_VERSION}")
    if data_start != DATA_START:
        raise SegmentError(f"header is {data_start} bytes, not {DATA_START}")
    if not 1 <= data_bytes <= file_bytes - DATA_START:
        raise SegmentError(f"capacity is {data_bytes} bytes, the file has room for {file_bytes - DATA_START}")
    return data_bytes, owner_pid, incarnation
