"""Memory for long messages while they come or go: used again, and given back when it is not needed.

A block of megabytes that is allocated for each message is mapped, filled with zeros by the kernel page by page, and
unmapped again, which takes longer than the bytes do. A block here is used again by the next message of about its size.

A block belongs to whoever holds a view of it, or of a part of it: nobody has to give one back, so that none can be
given back too early. The interpreter's own count of references tells which ones nobody holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from ringserve.frontend.handler import Buffer
from ringserve.shm.block import private_block

#: Blocks differ by this at least, and by an eighth of their size at most, so that messages of about a size share them.
_STEP_BYTES_MIN: Final = 65_536
#: Blocks; looking through them must stay cheaper than one page fault.
_BLOCKS_MAX: Final = 64
#: How long what nobody takes is kept, at least: memory that comes and goes with each of a client's calls costs more
#: than their bytes (20 MB every 2.5 s: 41 ms a call where it goes after a second, 21 where it stays).
_TIDY_S: Final = 10.0


def _references(entry: list[Any]) -> int:
    return sys.getrefcount(entry[0])


#: Of a block that only the table holds.
_REFERENCES_WHEN_FREE: Final = _references([object()])


def _is_free(entry: list[Any]) -> bool:
    return _references(entry) == _REFERENCES_WHEN_FREE


#: From here on a message is worth a block.
LONG_BYTES: Final = 65_536


class Buffers:
    """The blocks of one event loop.

    bytes_max: of all blocks together, in use or not. call_later: plans the giving back (a loop's); None: whoever uses
    this calls `tidy` now and then, as long as it returns True.
    """

    def __init__(self, bytes_max: int, call_later: Callable[[float, Callable[[], object]], Any] | None = None) -> None:
        self._bytes_max = bytes_max
        self._call_later = call_later
        self._blocks: list[list[Any]] = []  # [block, whether it was taken since the last tidying]
        self._bytes = 0
        self._is_planned = False

    @property
    def allocated_bytes(self) -> int:
        """Of all blocks; of one that is new the system has given only what was written."""
        return self._bytes

    def take(self, nbytes: int) -> memoryview | None:
        """`nbytes` > 0 bytes with anything in them; None: there is no room for so many."""
        for entry in self._blocks:
            size = len(entry[0])
            if nbytes <= size <= 2 * nbytes + _STEP_BYTES_MIN and _is_free(entry):
                entry[1] = True
                return memoryview(entry[0])[:nbytes]
        step = max(_STEP_BYTES_MIN, 1 << max(0, nbytes.bit_length() - 4))
        size = -(-nbytes // step) * step
        if len(self._blocks) >= _BLOCKS_MAX or self._bytes + size > self._bytes_max:
            self._drop(_is_free)
            if len(self._blocks) >= _BLOCKS_MAX or self._bytes + size > self._bytes_max:
                return None
        block = private_block(size)
        if block is None:
            return None
        self._blocks.append([block, True])
        self._bytes += size
        self._plan()
        return memoryview(block)[:nbytes]

    def join(self, pieces: Sequence[Buffer]) -> Buffer:
        """`b"".join(pieces)`, which lies in a block if it is long."""
        nbytes = sum(map(len, pieces))
        place = self.take(nbytes) if nbytes >= LONG_BYTES else None
        if place is None:
            return b"".join(pieces)
        at = 0
        for piece in pieces:
            end = at + len(piece)
            place[at:end] = piece
            at = end
        return place

    def tidy(self) -> bool:
        """Gives back what nobody has taken since the last call. False: nothing is left."""
        self._drop(lambda entry: not entry[1] and _is_free(entry))
        for entry in self._blocks:
            entry[1] = not _is_free(entry)
        return bool(self._blocks)

    def _plan(self) -> None:
        if self._call_later is not None and not self._is_planned:
            self._is_planned = True
            self._call_later(_TIDY_S, self._tidy)

    def _tidy(self) -> None:
        self._is_planned = False
        if self.tidy():
            self._plan()

    def _drop(self, is_due: Callable[[list[Any]], bool]) -> None:
        kept = [entry for entry in self._blocks if not is_due(entry)]
        if len(kept) < len(self._blocks):
            self._blocks = kept
            self._bytes = sum(len(block) for block, _ in kept)
