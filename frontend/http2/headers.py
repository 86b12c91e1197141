"""From header-block bytes to requests: HPACK (RFC 7541), made cheap for the blocks that clients send a million times.

The server announces SETTINGS_HEADER_TABLE_SIZE = 0. Once the client has acknowledged it, a block depends on nothing
but its own bytes, so that
- equal bytes are the same request: one dictionary look-up (`HeaderCache.blocks`), shared by all connections;
- a block that differs only in its last fields, such as `grpc-timeout` or a trace identifier, is a known *prefix*
  followed by a few representations, each of which is a look-up or a short decode (`HeaderDecoder._from_prefix`);
- any other block is cut into representations (`HeaderDecoder._scan`) and leaves its prefix behind for the next.
With a dynamic table every new deadline would be a table entry that shifts all the others, and no two blocks of a
client with deadlines would be equal. The client pays about 200 more bytes per call, which both ends only copy.

What the scan does not understand, and everything before the acknowledgement, goes to the `hpack` library, which is
the reference that the scan is tested against.
"""

from __future__ import annotations

from typing import Final

import hpack
from hpack.table import HeaderTable

from ringserve.frontend.handler import Methods
from ringserve.frontend.http2.frames import HEADER_TABLE_BYTES_DEFAULT, ConnectionFault, ErrorCode
from ringserve.frontend.http2.huffman import BadHuffman, decode_huffman
from ringserve.frontend.http2.request import (
    ECHOED,
    FIELDS_MAX,
    IGNORED,
    MALFORMED,
    METADATA,
    TIMEOUT,
    Field,
    Request,
    build,
    echo_of,
    judge,
    patience_of,
)

#: Bounds of the caches: entries, and bytes of one key. A full cache is emptied; refilling it costs microseconds.
_ENTRIES_MAX: Final = 1_024
_KEY_BYTES_MAX: Final = 2_048
#: What may stand behind a known prefix; more of it is cut up whole before any of it is decoded.
_TAIL_BYTES_MAX: Final = 8_192
#: How many prefix lengths one connection tries: its methods, and clients behind one proxy connection.
_PREFIXES_MAX: Final = 4
#: Decoding stops at so many times the allowed header list: up to there the call is refused, beyond it the connection.
_DECODED_LISTS_MAX: Final = 4
_STATIC: Final = HeaderTable.STATIC_TABLE
_PLAIN_KINDS: Final = (IGNORED, METADATA, TIMEOUT, ECHOED)
#: First byte of a literal with a new name: not indexed, never indexed, indexed (all the same while the table is off).
_NEW_NAME: Final = frozenset((0x00, 0x10, 0x40))


class _NotPlain(Exception):
    """The scan met something that the library must judge."""


class HeaderCache:
    """What one engine has learnt about header blocks under an empty dynamic table."""

    __slots__ = ("blocks", "fields", "list_bytes_max", "methods", "prefixes")

    def __init__(self, methods: Methods, list_bytes_max: int) -> None:
        self.methods = methods
        self.list_bytes_max = list_bytes_max
        self.blocks: dict[bytes, Request] = {}
        #: The request, its header list's size, and how many fields that has.
        self.prefixes: dict[bytes, tuple[Request, int, int]] = {}
        self.fields: dict[bytes, Field] = {}

    def field(self, representation: bytes) -> Field:
        """The field of one representation that neither reads nor changes the dynamic table."""
        field = self.fields.get(representation)
        if field is None:
            field = judge(*_decode_representation(representation))
            if len(representation) <= _KEY_BYTES_MAX:
                if len(self.fields) >= _ENTRIES_MAX:
                    self.fields.clear()
                self.fields[representation] = field
        return field


class HeaderDecoder:
    """The decoding side of one connection.

    blocks: the cache to look into before calling `decode`; empty while the client may still use the dynamic table.
    read_bytes: how much the last `decode` had to read, of what no cache knew.
    """

    __slots__ = ("_cache", "_library", "_prefix_lengths", "_stateless", "blocks", "read_bytes")

    def __init__(self, cache: HeaderCache) -> None:
        self._cache = cache
        self._stateless = False
        self._prefix_lengths: list[int] = []
        self.blocks: dict[bytes, Request] = {}
        self.read_bytes = 0
        self._library: hpack.Decoder = hpack.Decoder(max_header_list_size=_DECODED_LISTS_MAX * cache.list_bytes_max)
        self._library.max_allowed_table_size = HEADER_TABLE_BYTES_DEFAULT

    def table_is_off(self) -> None:
        """The client has acknowledged our table size of 0.

        RFC 9113 4.3.1 asks for an error when its next block does not begin with a size update. Clients and proxies
        that never use the table do not send one, and an empty table cannot be misread, so none is asked for.
        """
        self._library.max_allowed_table_size = 0
        self._library.header_table_size = 0
        self._stateless = True
        self.blocks = self._cache.blocks

    def decode(self, block: bytes) -> Request:
        """The request of a block that is not in `blocks`. ConnectionFault: the block is not HPACK."""
        cache = self._cache
        self.read_bytes = len(block)
        if not self._stateless:
            return build(self._decode_by_library(block), cache.methods, cache.list_bytes_max)
        try:
            request = self._from_prefix(block) or self._scan(block)
        except BadHuffman as error:
            # The library would say so, too, when it had decoded all before it once more.
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"header block: {error} Huffman code") from error
        except IndexError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header block: truncated") from error
        except _NotPlain:
            # Table updates (at most once a connection) and damaged blocks. Never remembered: bytes with a table
            # update are no request of their own.
            return build(self._decode_by_library(block), cache.methods, cache.list_bytes_max)
        if len(block) <= _KEY_BYTES_MAX:
            if len(cache.blocks) >= _ENTRIES_MAX:
                cache.blocks.clear()
            cache.blocks[block] = request
        return request

    def alike(self, block: bytes) -> Request | None:
        """The request of a block of which all is known, or all but fields that leave the known ones as they are.

        None: `decode` has to tell; nothing has happened.
        """
        self.read_bytes = 0
        try:
            return self.blocks.get(block) or (self._from_prefix(block) if self._stateless else None)
        except (_NotPlain, BadHuffman, IndexError):
            return None

    def decode_trailers(self, block: bytes) -> bool:
        """Reads a block of request trailers. True when it is well-formed."""
        fields = self._decode_by_library(block)
        return not any(field.kind == MALFORMED or field.name[:1] == b":" for field in fields)

    def _from_prefix(self, block: bytes) -> Request | None:
        """The request of a block that begins with a known prefix and goes on with fields that leave it as it is."""
        cache = self._cache
        for length in self._prefix_lengths:
            known = cache.prefixes.get(block[:length])
            if known is not None:
                break
        else:
            return None
        request, list_bytes, fields_count = known
        if len(block) - length > _TAIL_BYTES_MAX:
            return None
        timeout_ns = 0
        echo = b""
        metadata: list[tuple[str, bytes]] = []
        fields = cache.fields
        at, end = length, len(block)
        while at < end:
            # The commonest representations in place, any other one by `_representation_end`: a literal with a new
            # name, indexed or not or never (the table is off, so all three are the same), both lengths below 127.
            stop = 0
            if block[at] in _NEW_NAME:
                stop = at + 2 + block[at + 1] % 128
                if block[at + 1] % 128 != 127 and block[stop] % 128 != 127:
                    stop += 1 + block[stop] % 128
                else:
                    stop = 0
            stop = stop or _representation_end(block, at)
            if stop > end:
                raise IndexError
            representation = block[at:stop]
            field = fields.get(representation) or cache.field(representation)
            kind = field.kind
            if kind == METADATA:
                metadata += field.pairs
            elif kind == TIMEOUT:
                timeout_ns = field.timeout_ns
            elif kind == ECHOED:
                metadata += field.pairs
                echo = echo or echo_of(field)
            elif kind != IGNORED:
                return None
            list_bytes += field.list_bytes
            fields_count += 1
            if list_bytes > cache.list_bytes_max or fields_count > FIELDS_MAX:
                return None  # how it is refused is for `_scan` to say
            at = stop
        self.read_bytes = end - length
        patience_ns = patience_of(timeout_ns, request.details.path, cache.methods)
        body_bytes, details = request.body_bytes, request.details
        return Request(request.unary, body_bytes, timeout_ns, tuple(metadata), details, echo, patience_ns)

    def _scan(self, block: bytes) -> Request:
        """The request of any block, representation by representation; leaves a prefix for its like."""
        cache = self._cache
        fields: list[Field] = []
        prefix_length, prefix_fields, list_bytes = 0, 0, 0
        plain_tail = True
        at = 0
        for stop in _cuts(block):
            field = cache.field(block[at:stop])
            if not prefix_length and field.kind in (METADATA, TIMEOUT, ECHOED):
                prefix_length, prefix_fields = at, len(fields)
            if prefix_length and field.kind not in _PLAIN_KINDS:
                plain_tail = False
            fields.append(field)
            list_bytes += field.list_bytes
            if list_bytes > _DECODED_LISTS_MAX * cache.list_bytes_max:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header list is far too large")
            at = stop
        if prefix_length and plain_tail:
            self._learn_prefix(block[:prefix_length], fields[:prefix_fields])
        return build(fields, cache.methods, cache.list_bytes_max)

    def _learn_prefix(self, prefix: bytes, fields: list[Field]) -> None:
        cache = self._cache
        if len(prefix) > _KEY_BYTES_MAX:
            return
        request = build(fields, cache.methods, cache.list_bytes_max)
        if request.details.malformed or request.details.refusal:
            return
        if len(cache.prefixes) >= _ENTRIES_MAX:
            cache.prefixes.clear()
        cache.prefixes[prefix] = (request, sum(field.list_bytes for field in fields), len(fields))
        if len(prefix) not in self._prefix_lengths:
            self._prefix_lengths = [len(prefix), *self._prefix_lengths][:_PREFIXES_MAX]

    def _decode_by_library(self, block: bytes) -> list[Field]:
        try:
            pairs = list(self._library.decode(block, raw=True))
        except hpack.OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from error
        except hpack.HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"header block: {error}") from error
        except Exception as error:  # a decoder that other clients' bytes can break must not end the process
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"header block: {error!r}") from error
        if len(pairs) > FIELDS_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"more than {FIELDS_MAX} headers")
        return [judge(bytes(name), bytes(value)) for name, value in pairs]


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """An HPACK integer at `at` (RFC 7541 5.1): its value and where it ends. `prefix` is the mask of the first byte."""
    value = block[at] & prefix
    at += 1
    if value < prefix:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 21:  # longer than any string we accept; the library has its own opinion
            raise _NotPlain


def _cuts(block: bytes) -> list[int]:
    """Where each representation of a whole block ends. Found before any is decoded: what the library has to judge
    would be decoded twice. IndexError: the block is cut short. ConnectionFault: there are too many."""
    cuts: list[int] = []
    at, end = 0, len(block)
    while at < end:
        at = _representation_end(block, at)
        if at > end:
            raise IndexError
        if len(cuts) == FIELDS_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"more than {FIELDS_MAX} headers")
        cuts.append(at)
    return cuts


def _representation_end(block: bytes, at: int) -> int:
    """Where the representation that begins at `at` ends. May lie behind the block's end."""
    first = block[at]
    if first >= 0x80:
        index, at = _integer(block, at, 0x7F)
        if not 0 < index <= len(_STATIC):
            raise _NotPlain
        return at
    if first & 0xE0 == 0x20:
        raise _NotPlain
    index, at = _integer(block, at, 0x3F if first & 0x40 else 0x0F)
    if index > len(_STATIC):
        raise _NotPlain
    if not index:
        length, at = _integer(block, at, 0x7F)
        at += length
    length, at = _integer(block, at, 0x7F)
    return at + length


def _decode_representation(representation: bytes) -> tuple[bytes, bytes]:
    """Name and value of one whole representation that `_representation_end` has measured."""
    first = representation[0]
    if first in _NEW_NAME and representation[1] < 127:
        # The commonest: a literal whose name is plain and short, and its value too.
        at = 2 + representation[1]
        if representation[at] < 127:
            return representation[2:at], representation[at + 1 :]
    if first >= 0x80:
        return _STATIC[_integer(representation, 0, 0x7F)[0] - 1]
    index, at = _integer(representation, 0, 0x3F if first & 0x40 else 0x0F)
    if index:
        name = _STATIC[index - 1][0]
    else:
        name, at = _string(representation, at)
    return name, _string(representation, at)[0]


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    length, at = _integer(block, at, 0x7F)
    raw = block[at : at + length]
    return (decode_huffman(raw) if coded else raw), at + length
