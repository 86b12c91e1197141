"""Decompression: whole or not at all, within one limit for all members together."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from ringserve.frontend import inflate as inflating
from ringserve.frontend.inflate import EITHER, GZIP, ZLIB, DamagedError, TooLargeError, inflate

TEXT = random.Random(1).randbytes(300_000)
ONE = gzip.compress(TEXT)
MANY = b"".join(gzip.compress(TEXT[start : start + 70_000]) for start in range(0, len(TEXT), 70_000))


def test_one_stream() -> None:
    assert inflate(ONE, GZIP, len(TEXT)) == inflate(zlib.compress(TEXT), ZLIB, len(TEXT)) == TEXT
    assert inflate(ONE, EITHER, len(TEXT), members=True) == TEXT


def test_several_members_are_one_text() -> None:
    for body in (MANY, gzip.compress(b"") + MANY, MANY + gzip.compress(b"")):
        assert inflate(body, EITHER, len(TEXT), members=True) == TEXT
        assert inflate(memoryview(bytearray(body)), GZIP, len(TEXT), members=True) == TEXT


def test_their_limit_is_one() -> None:
    for members in (ONE, MANY, gzip.compress(b"") + ONE):
        with pytest.raises(TooLargeError):
            inflate(members, GZIP, len(TEXT) - 1, members=True)


@pytest.mark.parametrize("body", [ONE + b"x", ONE + b"\0" * 8, MANY + b"\x1f\x8c", zlib.compress(TEXT) + ONE])
def test_what_follows_is_not_dropped(body: bytes) -> None:
    for members in (False, True):
        with pytest.raises(DamagedError, match="something follows its end"):
            inflate(body, EITHER, len(TEXT), members=members)


def test_one_alone_where_there_may_be_no_others() -> None:
    with pytest.raises(DamagedError, match="something follows its end"):
        inflate(MANY, GZIP, len(TEXT))


@pytest.mark.parametrize(
    "body", [MANY[:-1], MANY[:-30_000], MANY + b"\x1f\x8b", ONE[:-8] + bytes(8), MANY[:-8] + bytes(8)]
)
def test_what_is_damaged_is_refused(body: bytes) -> None:
    with pytest.raises(DamagedError):
        inflate(body, GZIP, len(TEXT), members=True)


def test_members_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflating, "_MEMBERS_MAX", 100)
    assert inflate(gzip.compress(b"a") * 100, GZIP, 100, members=True) == b"a" * 100
    with pytest.raises(DamagedError, match="more than 100 members"):
        inflate(gzip.compress(b"") * 200, GZIP, 100, members=True)
