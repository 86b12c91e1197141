"""A checkpoint's index (`variables.index`) without TensorFlow: which variables there are, and which shards hold them.

The index is a sorted table in LevelDB's format: data blocks of entries whose keys share prefixes, an index block that
says where they lie, and a footer of 48 bytes. Old TensorFlows compressed the blocks with Snappy. The empty key holds a
BundleHeader, every other key, the variable's name, a BundleEntry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from ringserve.config.protos import BundleEntry, BundleHeader

_FOOTER_BYTES: Final = 48
_MAGIC: Final = 0xDB4775248B80FB57
_TRAILER_BYTES: Final = 5
_INDEX_BYTES_MAX: Final = 2**30
_PLAIN: Final = 0
_SNAPPY: Final = 1


class BundleError(Exception):
    """This is no index that can be read; the text says why."""


class Variable(NamedTuple):
    """One entry. dtype: DataType number. offset and size: bytes in its shard."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size_bytes: int


class Bundle(NamedTuple):
    """A checkpoint, by its index. Variables by name."""

    shards: int
    variables: tuple[Variable, ...]

    def shard_bytes(self, shard: int) -> int:
        """So many bytes a shard's file has at least."""
        ends = [entry.offset + entry.size_bytes for entry in self.variables if entry.shard == shard]
        return max(ends, default=0)


def read_bundle(index_path: Path) -> Bundle:
    """Read an index. Raises BundleError, or OSError when the file cannot be read."""
    with index_path.open("rb") as file:
        data = file.read(_INDEX_BYTES_MAX)
    shards, variables = 0, []
    try:
        for key, value in _entries(data):
            if not key:
                header = BundleHeader.FromString(value)
                shards = header.num_shards
                if header.endianness != 0:
                    raise BundleError("its numbers are big-endian, which no server of today reads")
                continue
            entry = BundleEntry.FromString(value)
            shape = tuple(dim.size for dim in entry.shape.dim)
            name = key.decode(errors="replace")
            variables.append(Variable(name, entry.dtype, shape, entry.shard_id, entry.offset, entry.size))
    except (DecodeError, IndexError, struct.error) as error:
        raise BundleError(f"it is damaged: {error}") from error
    return Bundle(shards, tuple(variables))


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the whole table, in order."""
    if len(data) < _FOOTER_BYTES:
        raise BundleError("it is too short")
    footer = data[-_FOOTER_BYTES:]
    if struct.unpack_from("<Q", footer, _FOOTER_BYTES - 8)[0] != _MAGIC:
        raise BundleError("it does not end like an index: it is truncated, or something else")
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    for _, handle in _block(data, *index):
        place, _ = _handle(handle, 0)
        yield from _block(data, *place)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + _TRAILER_BYTES > len(data):
        raise BundleError("a block lies beyond its end: it is truncated")
    block = data[offset : offset + size]
    if data[offset + size] not in (_PLAIN, _SNAPPY):
        raise BundleError(f"its blocks are of an unknown kind ({data[offset + size]})")
    if data[offset + size] == _SNAPPY:
        block = _unsnapped(block)
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        value_bytes, at = _varint(block, at)
        if at + unshared + value_bytes > end:
            raise BundleError("an entry lies beyond its block: it is damaged")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + value_bytes]
        at += value_bytes


def _unsnapped(data: bytes) -> bytes:
    """A block without its Snappy compression: literals, and copies of what came before."""
    size, at = _varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:
            length = (tag >> 2) + 1
            if length > 60:
                extra = length - 60
                length = int.from_bytes(data[at : at + extra], "little") + 1
                at += extra
            out += data[at : at + length]
            at += length
            continue
        if kind == 1:
            length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at]
            at += 1
        else:
            width = 2 if kind == 2 else 4
            length, offset = (tag >> 2) + 1, int.from_bytes(data[at : at + width], "little")
            at += width
        if not 0 < offset <= len(out):
            raise BundleError("a compressed block is damaged")
        for _ in range(length):
            out.append(out[-offset])
    if len(out) != size:
        raise BundleError("a compressed block is damaged")
    return bytes(out)


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise BundleError("a number in it is too long: it is damaged")
