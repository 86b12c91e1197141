"""Goal: header blocks decode as RFC 7541 says, or the connection ends. Method: a table of blocks, named by the section,
sent to a connection whose client may still use the dynamic table (the library decodes) and to one whose client knows
that there is none (our scan decodes).
"""

from __future__ import annotations

import pytest

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import END_HEADERS, frame, literal
from ringserve.frontend.http2.frames import ErrorCode as E
from tests.frontend.http2.peer import ECHO, Frame, Peer, answers, goaway, message

#: A whole request; what a case adds stands behind it, or before it.
USUAL = (
    b"\x83\x86"
    + literal(b":path", ECHO.encode())
    + literal(b"content-type", b"application/grpc")
    + literal(b"te", b"trailers")
)
X = literal(b"x-name", b"value")
UPDATE_TO_0 = b"\x20"
NINES = b"\xff" * 9 + b"\x7f"

GOOD: dict[str, tuple[bytes, bytes]] = {
    # what stands before the usual request, what behind it
    "2.3.1 a static index": (b"", b"\x90"),
    "5.1 an integer with a needless byte": (b"", b"\x1f\x80\x00\x01v"),  # 15, then 0 in two bytes
    "5.2 an empty string": (b"", b"\x00\x01x\x00"),
    "5.2 a Huffman-coded string": (b"", b"\x00\x01x\x82\x1c\x64"),
    "5.2 a padding of seven bits": (b"", b"\x00\x01x\x81\x1f"),
    "6.2.1 with indexing": (b"", b"\x40\x06x-name\x01v"),
    "6.2.2 without indexing": (b"", b"\x00\x06x-name\x01v"),
    "6.2.3 never indexed": (b"", b"\x10\x06x-name\x01v"),
    "6.2.3 never indexed, indexed name": (b"", b"\x1f\x2b\x01v"),
    "6.3 a size update": (UPDATE_TO_0, b""),
    "4.2 two size updates": (UPDATE_TO_0 + UPDATE_TO_0, b""),
}
BAD: dict[str, tuple[bytes, bytes]] = {
    "2.3.3 an index beyond both tables": (b"", b"\xff\x00"),
    "2.3.3 a name beyond both tables": (b"", b"\x7f\x01\x01v"),
    "4.2 a size update behind a header": (b"", UPDATE_TO_0),
    "5.1 an integer that never ends": (b"", b"\xff" + b"\x80" * 5_000),
    "5.1 an integer beyond 64 bits": (b"", b"\xff" + NINES * 3),
    "5.1 a string's length beyond 64 bits": (b"", b"\x00\x7f" + NINES * 2),
    "5.1 an integer that is cut": (b"", b"\xff"),
    "5.2 a string longer than its block": (b"", b"\x00\x05abc"),
    "5.2 a name without a value": (b"", b"\x00\x01x"),
    "5.2 a padding of eight bits": (b"", b"\x00\x01x\x82\x1f\xff"),
    "5.2 a padding that is not of ones": (b"", b"\x00\x01x\x81\x18"),
    "5.2 EOS in a string": (b"", b"\x00\x01x\x84\xff\xff\xff\xff"),
    "5.2 EOS in a name": (b"", b"\x00\x84\xff\xff\xff\xff\x01v"),
    "6.1 index 0": (b"", b"\x80"),
    "6.1 index 0, first": (b"\x80", b""),
    "6.3 a table larger than allowed": (b"\x3f\xe2\x1f", b""),  # 4,097
    "6.3 a table of more than 64 bits": (b"\x3f" + NINES * 2, b""),
}


def connection(knows: bool) -> Peer:
    """knows: the client has acknowledged that there is no dynamic table."""
    peer = Peer(begun=False)
    peer.send(frames.PREFACE + frames.settings({}) + (frames.SETTINGS_ACK if knows else b""))
    peer.read()
    return peer


def ask(peer: Peer, block: bytes, stream_id: int = 1) -> list[Frame]:
    half = len(block) // 2 if len(block) > 16_384 else len(block)
    peer.send(frame(frames.HEADERS, END_HEADERS if half == len(block) else 0, stream_id, block[:half]))
    if half < len(block):
        peer.send(frame(frames.CONTINUATION, END_HEADERS, stream_id, block[half:]))
    if not peer.connection.is_closing:
        peer.send(peer.data(stream_id, message(b"hi")))
    return peer.read()


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("knows", [True, False])
def test_good_blocks(name: str, knows: bool) -> None:
    before, behind = GOOD[name]
    peer = connection(knows)
    for stream_id in (1, 3):  # the second time from what was remembered
        assert answers(ask(peer, before + USUAL + behind, stream_id))[stream_id].body == message(b"hi")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("learnt", [True, False])
def test_bad_blocks(name: str, knows: bool, learnt: bool) -> None:
    before, behind = BAD[name]
    peer = connection(knows)
    if learnt:  # a known prefix takes a way of its own
        ask(peer, USUAL + X)
    found = ask(peer, before + USUAL + X + behind, 3)
    assert goaway(found) == E.COMPRESSION_ERROR
    assert peer.connection.is_closing


def test_2_3_2_the_dynamic_table_works_until_the_client_knows_that_there_is_none() -> None:
    peer = connection(False)
    assert 1 in answers(ask(peer, USUAL + b"\x40\x06x-name\x01v"))
    assert answers(ask(peer, USUAL + b"\xbe", 3))[3].body == message(b"hi")
    peer.send(frames.SETTINGS_ACK)
    assert goaway(ask(peer, USUAL + b"\xbe", 5)) == E.COMPRESSION_ERROR


def test_4_3_entries_are_evicted() -> None:
    peer = connection(False)
    ask(peer, USUAL + b"\x40\x06x-name\x01v")
    filler = b"\x40\x01f\x7f\xbf\x1e" + b"f" * 4_030
    assert goaway(ask(peer, USUAL + filler, 3)) is None
    assert goaway(ask(peer, USUAL + b"\xbf", 5)) == E.COMPRESSION_ERROR, "the first entry is gone"


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("bomb", ["static", "dynamic", "literals"])
def test_7_3_a_small_block_never_becomes_a_large_list(bomb: str, knows: bool) -> None:
    """Decoding stops at four times the list that is allowed, however it is written."""
    limits = EngineLimits(header_list_bytes_max=4_096)
    peer = Peer(limits, begun=False)
    peer.send(frames.PREFACE + frames.settings({}) + (frames.SETTINGS_ACK if knows else b""))
    peer.read()
    entry = b"\x40\x01f\x7f\xa1\x1e" + b"f" * 4_000
    block = {"static": b"\x90" * 8_000, "dynamic": entry + b"\xbe" * 3_000, "literals": b"\x00\x01x\x00" * 2_000}[bomb]
    expected = E.COMPRESSION_ERROR if bomb == "dynamic" and knows else E.ENHANCE_YOUR_CALM
    assert goaway(ask(peer, USUAL + block)) == expected


def test_a_list_that_is_only_too_large_is_answered() -> None:
    peer = Peer(EngineLimits(header_list_bytes_max=4_096))
    found = ask(peer, USUAL + b"\x00\x01x\x7f\xa1\x1e" + b"v" * 4_000 + b"\x90" * 10)
    assert answers(found)[1].status == 8
    assert goaway(found) is None
