"""Huffman decoding (RFC 7541 5.2) a byte at a time over `hpack`'s table, which steps by half bytes.

The steps are computed when they first occur: a full table would hold 65,536, clients use a few hundred.
"""

from __future__ import annotations

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

#: state << 8 | byte -> next state << 8, the bytes decoded by this step, whether a string may end after it.
_steps: dict[int, tuple[int, bytes, bool]] = {}


class BadHuffman(ValueError):
    """Not a Huffman-coded string."""


def decode_huffman(raw: bytes) -> bytes:
    """The text of a Huffman-coded string. BadHuffman: it is none."""
    state = 0
    may_end = True
    decoded = []
    for byte in raw:
        step = _steps.get(state | byte) or _learn(state | byte)
        state, symbols, may_end = step
        decoded.append(symbols)
    if not may_end:
        raise BadHuffman("incomplete")
    return b"".join(decoded)


def _learn(key: int) -> tuple[int, bytes, bool]:
    state, flags = key >> 8, 0
    symbols = bytearray()
    for half in (key >> 4 & 15, key & 15):
        state, flags, symbol = HUFFMAN_TABLE[state * 16 + half]
        if flags & HUFFMAN_FAIL:
            raise BadHuffman("invalid")
        if flags & HUFFMAN_EMIT_SYMBOL:
            symbols.append(symbol)
    step = _steps[key] = (state << 8, bytes(symbols), bool(flags & HUFFMAN_COMPLETE))
    return step
