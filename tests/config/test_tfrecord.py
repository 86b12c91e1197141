"""TFRecord framing, against known bytes and against TensorFlow's own reader and writer."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.config.tfrecord import read_records, scan_records, write_record


def test_known_bytes() -> None:
    # Of RFC 3720's check value crc32c("123456789") = e3069283: ((crc >> 15 | crc << 17) + a282ead8) mod 2^32.
    framed = write_record(b"123456789")
    assert framed[:8] == b"\x09" + bytes(7)
    assert framed[12:21] == b"123456789"
    assert int.from_bytes(framed[21:], "little") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_what_is_written_is_read(records: list[bytes]) -> None:
    assert list(read_records(b"".join(map(write_record, records)))) == records


def test_tensorflow_reads_and_writes_the_same(tmp_path: Path) -> None:
    from tests import exporters

    tf = exporters.tensorflow()
    records = [b"", b"a", bytes(range(256)) * 100]
    theirs = tmp_path / "theirs"
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in records:
            writer.write(record)
    ours = b"".join(map(write_record, records))
    assert theirs.read_bytes() == ours
    (tmp_path / "ours").write_bytes(ours)
    assert list(tf.compat.v1.io.tf_record_iterator(str(tmp_path / "ours"))) == records


WHOLE = write_record(b"first") + write_record(b"second")


@pytest.mark.parametrize("kept_bytes", [1, 11, 12, 15, 20, len(WHOLE) - 1])
def test_a_file_cut_short(kept_bytes: int) -> None:
    records = read_records(WHOLE[:kept_bytes])
    offset = 0
    if kept_bytes > 20:
        assert next(records) == b"first"
        offset = 21
    with pytest.raises(ValueError, match=f"truncated record at {offset}"):
        list(records)


@pytest.mark.parametrize("place", [0, 7, 8, 11, 12, 16, 17, 20])
def test_a_flipped_bit(place: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= 1
    with pytest.raises(ValueError, match="corrupted record at 0"):
        next(read_records(bytes(damaged)))


def test_a_length_that_nothing_can_hold_takes_no_memory() -> None:
    huge = (2**62).to_bytes(8, "little")
    framed = write_record(huge)
    # The checksum of a length that is right, with nothing behind it.
    with pytest.raises(ValueError, match="truncated record at 0"):
        next(read_records(huge + framed[-4:] + b"x"))


def test_a_file_is_read_from_where_it_stands() -> None:
    file = io.BytesIO(b"head" + WHOLE)
    file.seek(4)
    assert list(scan_records(file)) == [b"first", b"second"]
