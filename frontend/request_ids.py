"""Request ids: what a client calls its request (`x-request-id`), if that may be told and logged, and ids of our own.

The engines tell a client the id that it sent: in the trailers over gRPC, as a header over REST, with every answer,
refusals included. Who logs a request that has none makes one, and has the engine tell it likewise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = "x-request-id"
CHARS_MAX: Final = 128

#: Printable ASCII without the space: nothing that begins another line, or another header, in whatever shows it.
_WELL_FORMED: Final = re.compile(rb"[!-~]{1,%d}" % CHARS_MAX)
_MADE_BITS: Final = 96


def well_formed(value: bytes) -> str:
    """The id that a client sent; empty where it is none that anybody should repeat."""
    return value.decode("ascii") if _WELL_FORMED.fullmatch(value) else ""


def sent(metadata: Iterable[tuple[str, bytes]]) -> str:
    """The first id in a gRPC call's metadata, likewise."""
    for name, value in metadata:
        if name == HEADER:
            return well_formed(value)
    return ""


def noted(path: str, metadata: Iterable[tuple[str, bytes]]) -> str:
    """Which gRPC call it is that a traceback is about."""
    return f"of {path}, request {sent(metadata) or '(without an id)'}"


def make() -> str:
    """A new one. Not secret, and most unlikely to be another's."""
    return f"{random.getrandbits(_MADE_BITS):0{_MADE_BITS // 4}x}"
