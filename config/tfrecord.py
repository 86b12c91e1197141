"""TFRecord framing, the format of warm-up files: length, checksum, data, checksum. Only bytes, no TensorFlow.

uint64 length | uint32 masked crc32c of these 8 bytes | data | uint32 masked crc32c of the data    (little endian)
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

import google_crc32c

#: Where TensorFlow Serving looks for a version's warm-up requests, below the version's directory.
WARMUP_FILE: Final = "assets.extra/tf_serving_warmup_requests"
#: It takes no more records than this.
WARMUP_RECORDS_MAX: Final = 1000

_LENGTH: Final = struct.Struct("<Q")
_CHECKSUM: Final = struct.Struct("<I")
_HEADER_BYTES: Final = _LENGTH.size + _CHECKSUM.size
_MASK_DELTA: Final = 0xA282EAD8


def write_record(data: bytes) -> bytes:
    """One framed record; records are joined by writing one behind the other."""
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CHECKSUM.pack(_masked(length)), data, _CHECKSUM.pack(_masked(data))))


def read_records(data: bytes) -> Iterator[bytes]:
    """The records in `data`, one after another. Raises ValueError where the framing is wrong."""
    return scan_records(io.BytesIO(data))


def scan_records(file: BinaryIO) -> Iterator[bytes]:
    """The records of a file from where it stands, one in memory at a time. Raises ValueError, naming the offset."""
    start = offset = file.tell()
    whole = file.seek(0, io.SEEK_END)
    file.seek(start)
    while header := file.read(_HEADER_BYTES):
        if len(header) < _HEADER_BYTES:
            raise ValueError(f"truncated record at {offset}")
        length = header[: _LENGTH.size]
        if _CHECKSUM.unpack_from(header, _LENGTH.size)[0] != _masked(length):
            raise ValueError(f"corrupted record at {offset}")
        (data_bytes,) = _LENGTH.unpack(length)
        # Before anything is read: a length may be right by its checksum and still promise what is not there.
        end = offset + _HEADER_BYTES + data_bytes + _CHECKSUM.size
        if end > whole:
            raise ValueError(f"truncated record at {offset}")
        data = file.read(data_bytes)
        if _CHECKSUM.unpack(file.read(_CHECKSUM.size))[0] != _masked(data):
            raise ValueError(f"corrupted record at {offset}")
        yield data
        offset = end


def _masked(data: bytes) -> int:
    """crc32c, rotated and shifted, so that the checksum of data that holds checksums is not degenerate."""
    checksum = int(google_crc32c.value(data))
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF
