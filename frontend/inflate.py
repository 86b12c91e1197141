"""What clients send compressed, decompressed: whole or not at all, and never to more than is allowed."""

from __future__ import annotations

import zlib
from typing import Final

#: What zlib calls `wbits`: which wrapper it expects around the data.
GZIP: Final = 16 + zlib.MAX_WBITS
ZLIB: Final = zlib.MAX_WBITS
EITHER: Final = 32 + zlib.MAX_WBITS

_MAGIC: Final = b"\x1f\x8b"
#: Each costs some microseconds, be it empty.
_MEMBERS_MAX: Final = 10_000
#: Of what follows a member zlib makes a copy, so it is given no more than this at a time.
_PIECE_BYTES: Final = 65_536


class DamagedError(Exception):
    """It is not what it says, or not whole. Its text says how."""


class TooLargeError(Exception):
    """It would become more than is allowed; that much was never made."""


def inflate(data: bytes | bytearray | memoryview, wrapper: int, bytes_max: int, *, members: bool = False) -> bytes:
    """`data` decompressed. wrapper: GZIP, ZLIB or EITHER. members: there may be several one behind another, as RFC 1952
    has it; else there is one alone, as TF Serving and gRPC's own libraries have it.

    Raises DamagedError or TooLargeError.
    """
    stream = zlib.decompressobj(wrapper)
    try:
        plain = stream.decompress(data, bytes_max + 1)
        if len(plain) > bytes_max:
            raise TooLargeError
        if not stream.eof:
            raise DamagedError("it is cut off")
        behind = len(stream.unused_data)
        if behind:
            view = memoryview(data)
            if not members or bytes(view[:2]) != _MAGIC:
                raise DamagedError("something follows its end")
            plain += _further(view[len(view) - behind :], bytes_max - len(plain))
    except zlib.error as error:
        raise DamagedError(str(error)) from error
    return plain


def _further(data: memoryview, bytes_left: int) -> bytes:
    """What the members behind the first become, together."""
    parts: list[bytes] = []
    position = 0
    for _ in range(_MEMBERS_MAX):
        if position == len(data):
            return b"".join(parts)
        if bytes(data[position : position + 2]) != _MAGIC:
            raise DamagedError("something follows its end")
        stream = zlib.decompressobj(GZIP)
        while not stream.eof:
            piece = data[position : position + _PIECE_BYTES]
            if not piece:
                raise DamagedError("it is cut off")
            parts.append(stream.decompress(piece, bytes_left + 1))
            bytes_left -= len(parts[-1])
            if bytes_left < 0:
                raise TooLargeError
            position += len(piece) - len(stream.unused_data)
    raise DamagedError(f"it has more than {_MEMBERS_MAX} members")
