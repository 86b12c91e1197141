"""What clients send compressed, decompressed: whole or not at all, and never to more than is allowed."""

from __future__ import annotations

import zlib
from typing import Final

#: What zlib calls `wbits`: which wrapper it expects around the data.
GZIP: Final = 16 + zlib.MAX_WBITS
ZLIB: Final = zlib.MAX_WBITS
EITHER: Final = 32 + zlib.MAX_WBITS


class DamagedError(Exception):
    """It is not what it says, or not whole. Its text says how."""


class TooLargeError(Exception):
    """It would become more than is allowed; that much was never made."""


def inflate(data: bytes | bytearray | memoryview, wrapper: int, bytes_max: int) -> bytes:
    """`data` decompressed. wrapper: GZIP, ZLIB or EITHER. What follows the end of the stream is ignored.

    Raises DamagedError or TooLargeError.
    """
    stream = zlib.decompressobj(wrapper)
    try:
        plain = stream.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise DamagedError(str(error)) from error
    if len(plain) > bytes_max:
        raise TooLargeError
    if not stream.eof:
        raise DamagedError("it is cut off")
    return plain
