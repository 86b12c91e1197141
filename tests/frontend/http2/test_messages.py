"""Goal: messages come out whole, however the bytes are cut, and nothing larger than the limit is ever held or made.
Method: random messages cut at random points; and one test for each way a message can be bad.
"""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.frontend.http2.grpc_messages import MessageFault, MessageReader, decompress
from tests.frontend.http2.peer import message


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=50)), max_size=8), st.lists(st.integers(0, 300)))
def test_messages_come_out_whole(messages: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(message(body, flag) for flag, body in messages)
    reader = MessageReader("gzip", 100, 50)
    found = []
    points = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, stop in itertools.pairwise(points):
        found += reader.feed(data[start:stop])
    assert found == messages
    assert not reader.is_inside_message
    assert reader.held_bytes == 0


def test_a_long_message_is_joined_once() -> None:
    reader = MessageReader("", 10**9, 10**9)
    body = bytes(range(256)) * 1000
    data = message(body)
    pieces = [data[at : at + 100] for at in range(0, len(data), 100)]
    found = [read for piece in pieces for read in reader.feed(piece)]
    assert found == [(0, body)]


def test_what_is_held_is_counted_with_its_overhead() -> None:
    reader = MessageReader("", 1_000, 1_000)
    reader.feed(message(bytes(500))[:5])
    for _ in range(100):
        reader.feed(b"x")
    assert reader.held_bytes > 100 * 33  # the least that a bytes object takes


@pytest.mark.parametrize("nbytes", [5, 105])
def test_a_message_over_the_limit_is_refused_at_its_prefix(nbytes: int) -> None:
    reader = MessageReader("", 100, 100)
    with pytest.raises(MessageFault) as caught:
        reader.feed(message(bytes(101))[:nbytes])
    assert (caught.value.code, caught.value.text) == (8, "Received message larger than max (101 vs. 100)")
    assert MessageReader("", 100, 100).feed(message(bytes(100))) == [(0, bytes(100))]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_decompression(encoding: str, pack: object) -> None:
    assert callable(pack)
    body = b"abc" * 100
    packed = pack(body)
    assert decompress(encoding, packed, 300) == body
    for limit, data, code in ((299, packed, 8), (300, packed[:-1], 13), (300, b"x" + packed, 13), (300, b"", 13)):
        with pytest.raises(MessageFault) as caught:
            decompress(encoding, data, limit)
        assert caught.value.code == code


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(500 * 2**20), 9)
    with pytest.raises(MessageFault) as caught:
        decompress("deflate", bomb, 1_000)
    assert caught.value.code == 8
