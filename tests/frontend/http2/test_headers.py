"""Goal: the quick ways of decoding header blocks give what the `hpack` library gives. Method: random blocks in every
representation through both; and the value of each header that the engine reads.
"""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman as reference_decode_huffman
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.frontend.handler import Buffer, Call, Methods
from ringserve.frontend.http2.frames import ConnectionFault, ErrorCode, literal, percent_encode
from ringserve.frontend.http2.headers import HeaderCache, HeaderDecoder
from ringserve.frontend.http2.huffman import BadHuffman, decode_huffman
from ringserve.frontend.http2.request import Request, build, judge, parse_timeout

PATH = "/test.Service/Echo"
_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def handler(call: Call, message: Buffer) -> None:
    raise AssertionError("never called")


METHODS = Methods({PATH: handler})


def decoder() -> HeaderDecoder:
    made = HeaderDecoder(HeaderCache(METHODS, 65_536))
    made.table_is_off()
    return made


def integer(value: int, mask: int, first: int) -> bytes:
    if value < mask:
        return bytes((first | value,))
    coded = [first | mask]
    value -= mask
    while value >= 128:
        coded.append(value & 127 | 128)
        value >>= 7
    return bytes([*coded, value])


def string(value: bytes, huffman: bool) -> bytes:
    if huffman:
        value = _huffman.encode(value)
    return integer(len(value), 127, 0x80 if huffman else 0) + value


def representation(name: bytes, value: bytes, first: int, name_huffman: bool, value_huffman: bool, index: int) -> bytes:
    """A literal in any of its forms: `first` says indexed, not or never; `index` names a static entry or is 0."""
    start = integer(index, 0x3F if first == 0x40 else 0x0F, first)
    return start + (b"" if index else string(name, name_huffman)) + string(value, value_huffman)


texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200).map(str.encode)
names = st.sampled_from([b"grpc-timeout", b"user-agent", b"x-trace", b"x-bytes-bin", b"te", b"X", b":path", b""])
names |= st.text("abc-", min_size=1, max_size=150).map(str.encode)
values = st.sampled_from([b"5S", b"100m", b"trailers", b"AAE=", b"", b"x\ny"]) | texts
literals = st.builds(
    representation,
    names,
    values,
    st.sampled_from([0x00, 0x10, 0x40]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, 4, 31, 58, 61]),
)
indexed = st.integers(1, 61).map(lambda index: bytes((0x80 | index,)))
USUAL = (
    b"\x83\x86"
    + literal(b":path", PATH.encode())
    + literal(b"content-type", b"application/grpc")
    + literal(b"te", b"trailers")
)
blocks = st.lists(literals | indexed, max_size=8).map(b"".join)
tails = st.lists(literals, max_size=4).map(b"".join)


def contents(request: Request) -> object:
    return request.unary, request.body_bytes, request.timeout_ns, request.metadata, request.details


def reference(block: bytes) -> object:
    """What the library makes of a block, or the word for an error."""
    library = hpack.Decoder()
    library.header_table_size = 0
    library.max_allowed_table_size = 0
    try:
        pairs = list(library.decode(block, raw=True))
    except hpack.HPACKError:
        return "error"
    return contents(build([judge(bytes(name), bytes(value)) for name, value in pairs], METHODS, 65_536))


def ours(made: HeaderDecoder, block: bytes) -> object:
    try:
        return contents(made.blocks.get(block) or made.decode(block))
    except ConnectionFault:
        return "error"


@settings(max_examples=400, deadline=None)
@given(st.booleans(), blocks, st.lists(tails, max_size=4))
def test_blocks_decode_as_the_library_does(usual: bool, start: bytes, ends: list[bytes]) -> None:
    made = decoder()
    prefix = USUAL if usual else start
    for end in [b"", *ends, *ends, start]:
        assert ours(made, prefix + end) == reference(prefix + end)


@settings(max_examples=300, deadline=None)
@given(blocks, st.integers(0, 400), st.binary(max_size=3))
def test_damaged_blocks_decode_as_the_library_does(tail: bytes, at: int, damage: bytes) -> None:
    block = USUAL + literal(b"grpc-timeout", b"3S") + tail
    made = decoder()
    ours(made, block)  # learn the prefix first
    at %= len(block)
    for changed in (block[:at] + damage + block[at + len(damage) :], block[:at], block[:at] + damage + block[at:]):
        assert ours(made, changed) == reference(changed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_huffman(data: bytes) -> None:
    assert decode_huffman(_huffman.encode(data)) == data
    try:
        expected: object = reference_decode_huffman(data)
    except hpack.HPACKDecodingError:
        expected = "error"
    try:
        decoded: object = decode_huffman(data)
    except BadHuffman:
        decoded = "error"
    assert decoded == expected


def test_a_prefix_is_learnt_and_used() -> None:
    made = decoder()
    ours(made, USUAL + literal(b"grpc-timeout", b"1S"))
    assert made._from_prefix(USUAL + literal(b"grpc-timeout", b"2S")) is not None
    assert made._from_prefix(USUAL + literal(b"te", b"gzip")) is None  # would change more than the tail


def test_a_prefix_that_would_never_help_is_not_learnt() -> None:
    made = decoder()
    ours(made, b"\x83\x86" + literal(b"grpc-timeout", b"1S") + literal(b":path", PATH.encode()))
    ours(made, USUAL + literal(b"grpc-timeout", b"1S") + literal(b"content-length", b"5"))
    assert made._cache.prefixes == {}


def test_the_header_list_is_limited_on_every_way() -> None:
    made = HeaderDecoder(HeaderCache(METHODS, 1_000))
    made.table_is_off()
    tail = literal(b"grpc-timeout", b"1S") + literal(b"x", b"y" * 500)
    for _ in range(2):
        for more, allowed in ((b"", True), (literal(b"z", b"y" * 400), False)):
            request = made._from_prefix(USUAL + tail + more) or made._scan(USUAL + tail + more)
            assert (request.unary is handler) is allowed
            assert bool(request.details.refusal) is not allowed


LIKE_A_KNOWN_ONE = USUAL + literal(b"grpc-timeout", b"1S")


@pytest.mark.parametrize("first", [b"", LIKE_A_KNOWN_ONE])
@pytest.mark.parametrize("field", [b"\x90", literal(b"x", b"")], ids=["a byte each", "metadata"])
def test_a_block_of_too_many_fields_ends_the_connection(first: bytes, field: bytes) -> None:
    made = decoder()
    if first:
        made.decode(first)
    fits = USUAL + field * (512 - 5)
    assert made.decode(fits).unary is handler
    for beyond in (fits + field, fits + field * 20_000):
        assert made.alike(beyond) is None
        with pytest.raises(ConnectionFault) as caught:
            made.decode(beyond)
        assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("fields_count", [10, 100])
def test_a_list_beyond_the_limit_behind_a_known_prefix_is_refused(fields_count: int) -> None:
    made = decoder()
    made.decode(LIKE_A_KNOWN_ONE)
    field = literal(b"x", b"y" * (65_536 // fields_count))
    for _ in range(2):
        assert made.decode(USUAL + field * fields_count).details.refused == (8, "request headers are too large")


def test_long_ends_behind_a_known_prefix_are_read() -> None:
    made = decoder()
    made.decode(LIKE_A_KNOWN_ONE)
    for size in (8_000, 9_000, 60_000):
        request = made.decode(LIKE_A_KNOWN_ONE + literal(b"x", b"y" * size))
        assert (request.unary, request.timeout_ns, request.metadata) == (handler, 10**9, (("x", b"y" * size),))


@pytest.mark.parametrize("first", [b"", LIKE_A_KNOWN_ONE])
@pytest.mark.parametrize("more", [b"", b"\x20", b"\x00"], ids=["alone", "and a table update", "and a cut field"])
def test_a_damaged_huffman_code_ends_the_connection(first: bytes, more: bytes) -> None:
    made = decoder()
    if first:
        made.decode(first)
    coded = _huffman.encode(b"a" * 40_000)[:19_996] + b"\xff" * 4  # the end of the text, which no text has
    block = USUAL + b"\x00\x01x" + integer(20_000, 127, 0x80) + coded + more
    assert made.alike(block) is None
    with pytest.raises(ConnectionFault) as caught:
        made.decode(block)
    assert caught.value.code == ErrorCode.COMPRESSION_ERROR


@pytest.mark.parametrize("cut", [1, 4, 19_990])
def test_a_block_that_is_cut_short_ends_the_connection(cut: int) -> None:
    coded = _huffman.encode(b"a" * 40_000)
    block = LIKE_A_KNOWN_ONE + b"\x00\x01x" + integer(len(coded), 127, 0x80) + coded + literal(b"y", b"z")
    for first in (b"", LIKE_A_KNOWN_ONE, block):
        made = decoder()
        if first:
            assert made.decode(first).unary is handler
        assert made.alike(block[:-cut]) is None
        with pytest.raises(ConnectionFault) as caught:
            made.decode(block[:-cut])
        assert caught.value.code == ErrorCode.COMPRESSION_ERROR


def test_a_binary_field_of_too_many_values_is_refused() -> None:
    made = decoder()
    assert len(made.decode(USUAL + literal(b"x-bin", b"AA," * 511 + b"AA")).metadata) == 512
    refused = made.decode(USUAL + literal(b"x-bin", b"AA," * 512 + b"AA")).details.refused
    assert refused == (13, "malformed binary metadata")


def test_blocks_before_the_acknowledgement_use_the_dynamic_table() -> None:
    cache = HeaderCache(METHODS, 65_536)
    made = HeaderDecoder(cache)
    client = hpack.Encoder()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", PATH), ("content-type", "application/grpc")]
    for value in ("a", "a", "b"):
        request = made.decode(client.encode([*fields, ("x", value)]))
        assert (request.unary, request.metadata) == (handler, (("x", value.encode()),))
    assert cache.blocks == {}
    client.header_table_size = 0
    made.table_is_off()
    assert made.decode(client.encode(fields)).unary is handler


def test_a_client_that_ignores_the_table_size_but_never_reads_the_table_is_served() -> None:
    made = decoder()
    block = representation(b"", PATH.encode(), 0x40, False, False, 4)
    block += b"\x83\x86" + literal(b"content-type", b"application/grpc")
    assert made.decode(block).unary is handler
    assert made.blocks[block].unary is handler


def test_caches_are_bounded() -> None:
    cache = HeaderCache(METHODS, 65_536)
    made = HeaderDecoder(cache)
    made.table_is_off()
    for index in range(5_000):
        made.decode(USUAL + literal(b"x-%d" % index, b"y") + literal(b"grpc-timeout", b"%dm" % index))
        made.decode(USUAL + literal(b"user-agent", b"%d" % index) + literal(b"grpc-timeout", b"%dm" % index))
    made.decode(USUAL + literal(b"x", b"y" * 5_000))
    for kept in (cache.blocks, cache.fields, cache.prefixes):
        assert 0 < len(kept) <= 1_024
        assert max(map(len, kept)) <= 2_048


@pytest.mark.parametrize(
    ("value", "timeout_ns"),
    [
        (b"1n", 1),
        (b"0n", 1),
        (b"0S", 1),
        (b"17u", 17_000),
        (b"99999999m", 99_999_999_000_000),
        (b"3S", 3_000_000_000),
        (b"2M", 120_000_000_000),
        (b"1H", 3_600_000_000_000),
        (b"99999999M", 10**18),  # with a time added to it still a number of 64 bits
        (b"99999999H", 10**18),
        (b"", -1),
        (b"S", -1),
        (b"5", -1),
        (b"5s", -1),
        (b"-5S", -1),
        (b"+5S", -1),
        (b" 5S", -1),
        (b"5 S", -1),
        (b"100000000S", -1),
        ("٣S".encode(), -1),
    ],
)
def test_timeouts(value: bytes, timeout_ns: int) -> None:
    assert parse_timeout(value) == timeout_ns


@pytest.mark.parametrize(
    ("name", "value", "pairs"),
    [
        (b"x", b" a b\t", (("x", b"a b"),)),
        (b"x-bin", b"AAE=", (("x-bin", b"\0\1"),)),
        (b"x-bin", b"AAE", (("x-bin", b"\0\1"),)),
        (b"x-bin", b"AAE,AAI=, AAM", (("x-bin", b"\0\1"), ("x-bin", b"\0\2"), ("x-bin", b"\0\3"))),
        (b"x-bin", b"", (("x-bin", b""),)),
        (b"grpc-trace-bin", b"AA", (("grpc-trace-bin", b"\0"),)),
    ],
)
def test_metadata(name: bytes, value: bytes, pairs: object) -> None:
    assert judge(name, value).pairs == pairs


def test_percent_encoding() -> None:
    assert percent_encode("a%b\nü\x7f~") == b"a%25b%0A%C3%BC%7F~"
    assert len(percent_encode("x" * 100_000)) == 4_096
