"""A version's weights as the bytes of one memfd: written once by an author, mapped read-only by every worker.

     byte 0                            4096
       │ head: magic, where the index is │ values, 64-byte aligned (large ones on pages) │ index (msgpack) │
                                                                                                       file end

    head     magic (8s), format version (u32), zero (u32), index's offset, index's bytes, file's bytes (u64 each)
    index    [about, [[name, DataType number, shape, offset, bytes], ...]]; `about` is whatever the author has to say

The head is written last, so that an author that died leaves nothing that reads as weights. Then the file is sealed
against every change, and each reader may trust what it has checked once. No TensorFlow here.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np

from ringserve.broker import wire
from ringserve.shm import dtype as dtypes
from ringserve.shm import tensor
from ringserve.shm.layout import align

_MAGIC: Final = b"RSWEIGHT"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sIIQQQ")
_DATA_START: Final = 4096
_PAGE_BYTES: Final = 4096
#: Values of this size and more start on a page of their own.
_LARGE_BYTES: Final = 1 << 16

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_SEALS_ADDED: Final = _SEALS | fcntl.F_SEAL_SEAL


class WeightsError(Exception):
    """These bytes are no weights, or not those of the model at hand. The text says what is wrong."""


class Entry(NamedTuple):
    """One value in the file. dtype: TensorFlow's DataType number. nbytes: of its record, from `offset` on."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class WeightsWriter:
    """Writes values one behind the other into `fd`, an empty memfd that may be sealed; it stays the caller's.

    Nothing is mapped and nothing is kept: a value's bytes go into the file and its array can be dropped.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = _DATA_START
        self._entries: list[Entry] = []

    def add(self, name: str, number: int, values: Any) -> Entry:
        """Append an array of DataType `number`: of its numpy type (of an integer for quantized), or objects: bytes.

        Raises WeightsError for a type that cannot be carried, OSError where the system has no room.
        """
        try:
            numpy = dtypes.dtype_of(number).numpy
        except ValueError as error:
            raise WeightsError(f"{name}: {error}") from None
        shape = tuple(int(size) for size in values.shape)
        if numpy is None:
            texts = values.reshape(-1).tolist()
            record = bytearray(tensor.string_record_bytes(texts))
            tensor.write_strings(memoryview(record), 0, texts)
            raw = memoryview(record)
        else:
            flat = np.ascontiguousarray(values).reshape(-1)
            if flat.dtype.itemsize != numpy.itemsize:
                raise WeightsError(f"{name}: an array of {values.dtype} where {numpy} is due")
            raw = flat.view(np.uint8).data if flat.size else memoryview(b"")
        offset = -(-self._at // _PAGE_BYTES) * _PAGE_BYTES if len(raw) >= _LARGE_BYTES else align(self._at)
        self._put(raw, offset)
        self._at = offset + len(raw)
        entry = Entry(name, number, shape, offset, len(raw))
        self._entries.append(entry)
        return entry

    def finish(self, about: Sequence[Any]) -> int:
        """Write index and head, and seal the file; returns its bytes. about: plain values, for the readers."""
        index = wire.pack_fields((about, self._entries))
        at = align(self._at)
        self._put(memoryview(index), at)
        file_bytes = at + len(index)
        os.ftruncate(self._fd, file_bytes)
        self._put(memoryview(_HEAD.pack(_MAGIC, _VERSION, 0, at, len(index), file_bytes)), 0)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS_ADDED)
        return file_bytes

    def _put(self, raw: memoryview, offset: int) -> None:
        while raw:  # the kernel takes 2 GiB at a time
            written = os.pwrite(self._fd, raw, offset)
            raw = raw[written:]
            offset += written


class Weights:
    """The weights in a file, mapped for reading; every array taken from it keeps the mapping alive by itself.

    about: as given to `finish`. nbytes: of the file. There is nothing to close: drop it, and the arrays.
    """

    def __init__(self, mapping: mmap.mmap, about: list[Any], entries: dict[str, Entry]) -> None:
        """Use `map`."""
        self._data = memoryview(mapping)
        self._entries = entries
        self.about = about
        self.nbytes = len(mapping)

    @classmethod
    def map(cls, fd: int) -> Self:
        """Map the file behind `fd`, which stays the caller's and may be closed. Raises WeightsError.

        fd: open for reading only; kernels before 6.7 do not map a writable one of a file that is sealed.
        """
        try:
            file_bytes = os.fstat(fd).st_size
            if not is_sealed(fd):
                raise WeightsError("they are not sealed: somebody may still write them")
            if file_bytes < _DATA_START:
                raise WeightsError(f"{file_bytes} bytes are too few")
            mapping = mmap.mmap(fd, file_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise WeightsError(f"descriptor {fd} cannot be mapped: {error}") from error
        about, entries = _read_index(mapping, file_bytes)
        return cls(mapping, about, entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Where a value lies, and what it is. Raises WeightsError."""
        entry = self._entries.get(name)
        if entry is None:
            raise WeightsError(f"there is no value {name!r}")
        return entry

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A value by name: a read-only view without a copy, or a new array of bytes objects. Raises WeightsError."""
        entry = self.entry(name)
        try:
            if entry.dtype != dtypes.STRING:
                return tensor.view(self._data, entry.offset, entry.dtype, entry.shape)
            texts = tensor.read_strings(self._data, entry.offset, 0, tensor.string_count(self._data, entry.offset))
            array = np.empty(len(texts), object)
            array[:] = texts
            return array.reshape(entry.shape)
        except (tensor.TensorError, ValueError) as error:
            raise WeightsError(f"{name}: {error}") from None


def is_sealed(fd: int) -> bool:
    """Whether the memfd behind `fd` can change no more. Raises OSError for a descriptor that has no seals."""
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS


def _read_index(mapping: mmap.mmap, file_bytes: int) -> tuple[list[Any], dict[str, Entry]]:
    magic, version, _, at, index_bytes, written_bytes = _HEAD.unpack_from(mapping)
    if magic != _MAGIC:
        raise WeightsError(f"magic is {magic!r}, not {_MAGIC!r}: no weights, or never finished")
    if version != _VERSION:
        raise WeightsError(f"format version is {version}, this process reads {_VERSION}")
    if written_bytes != file_bytes or at < _DATA_START or at + index_bytes > file_bytes:
        place = f"{at}..{at + index_bytes} of {written_bytes}"
        raise WeightsError(f"the index lies at {place} bytes, and there are {file_bytes}")
    try:
        about, rows = wire.unpack_fields(mapping[at : at + index_bytes])
        entries = [Entry(name, number, tuple(shape), *place) for name, number, shape, *place in rows]
        for entry in entries:
            _check(entry, at)
        return about, {entry.name: entry for entry in entries}
    except (wire.WireError, ValueError, TypeError) as error:
        raise WeightsError(f"the index is damaged: {error}") from error


def _check(entry: Entry, end: int) -> None:
    """Raises ValueError, TypeError for a value that does not lie whole before `end`."""
    if any(type(number) is not int for number in (entry.dtype, entry.offset, entry.nbytes, *entry.shape)):
        raise TypeError(f"{entry.name}: {list(entry)} are no whole numbers")
    if entry.offset < _DATA_START or entry.offset % 64 or entry.nbytes < 0 or entry.offset + entry.nbytes > end:
        raise ValueError(f"{entry.name} lies at {entry.offset}..{entry.offset + entry.nbytes}, the values end at {end}")
    if any(size < 0 for size in entry.shape):
        raise ValueError(f"{entry.name} has shape {list(entry.shape)}")
    kind = dtypes.dtype_of(entry.dtype)
    if kind.numpy is not None and tensor.tensor_bytes(entry.dtype, entry.shape) != entry.nbytes:
        raise ValueError(f"{entry.name} of {kind.name} {list(entry.shape)} in {entry.nbytes} bytes")
