"""Segments: made, sealed, mapped read-only, refused when foreign, closed when nobody looks, given back in parts."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ringserve.shm.dtype import UINT8
from ringserve.shm.layout import DATA_START, HEADER, HEADER_AT, LAYOUT_VERSION, MAGIC
from ringserve.shm.ring import RingWriter
from ringserve.shm.segment import Segment, SegmentError
from ringserve.shm.tensor import view

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
PAGE = mmap.PAGESIZE


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create("test-ring", 1 << 20)
    yield made
    made.close()


def memory_bytes(segment: Segment) -> int:
    """Memory that the system really spends on the segment."""
    return os.fstat(segment.fd).st_blocks * 512


def mapped(name: str) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"memfd:{name}" in line]


def resident_bytes(name: str) -> int:
    """Rss of this process's mappings of the memfd of that name."""
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = f"memfd:{name}" in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def forged(content: bytes, nbytes: int = DATA_START + PAGE, seals: int = SEALS) -> int:
    fd = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    os.pwrite(fd, content, 0)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def header(version: int = LAYOUT_VERSION, start: int = DATA_START, capacity: int = 100, magic: bytes = MAGIC) -> bytes:
    return magic + HEADER.pack(version, start, capacity, 1, 2)


# ------------------------------------------------------------------------------------------------ make and attach


def test_what_the_owner_writes_a_reader_sees(segment: Segment) -> None:
    reader = Segment.attach(segment.fd)
    assert len(segment.data) == segment.data_bytes == len(reader.data) == reader.data_bytes == 1 << 20
    assert (reader.owner_pid, reader.incarnation) == (os.getpid(), segment.incarnation)
    assert bytes(reader.data[:8]) == bytes(8)
    segment.data[:5] = b"first"
    segment.data[-4:] = b"last"
    assert bytes(reader.data[:5]) == b"first"
    assert bytes(reader.data[-4:]) == b"last"
    assert (segment.writable, reader.writable) == (True, False)
    assert (segment.fd >= 0, reader.fd) == (True, -1)
    reader.close()


def test_a_reader_can_write_by_no_way(segment: Segment) -> None:
    reader = Segment.attach(segment.fd)
    assert reader.data.readonly
    with pytest.raises(TypeError):
        reader.data[0] = 1
    assert not view(reader.data, 0, UINT8, (4,)).flags.writeable
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fd, DATA_START, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(segment.fd, b"x", 0)
    reader.close()


def test_the_data_is_aligned_for_tensorflow(segment: Segment) -> None:
    array = np.frombuffer(segment.data, np.uint8)
    assert array.ctypes.data % 64 == 0
    del array


def test_the_size_is_sealed(segment: Segment) -> None:
    assert fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS) == SEALS
    writable = os.open(f"/proc/self/fd/{segment.fd}", os.O_RDWR)
    for nbytes in (0, DATA_START, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(writable, nbytes)
    os.close(writable)


@pytest.mark.parametrize("nbytes", [1, 63, PAGE - 1, PAGE, PAGE + 1])
def test_any_capacity_is_kept_exactly(nbytes: int) -> None:
    with_owner = Segment.create("odd", nbytes)
    reader = Segment.attach(with_owner.fd)
    assert len(reader.data) == len(with_owner.data) == nbytes
    reader.close()
    with_owner.close()


def test_a_segment_needs_room_and_a_name_that_the_system_takes() -> None:
    for nbytes in (0, -1):
        with pytest.raises(SegmentError, match=f"at least 1, not {nbytes}"):
            Segment.create("none", nbytes)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SegmentError, match="cannot map"):
        Segment.create("endless", 1 << 70)
    with pytest.raises(SegmentError, match="cannot make a memfd"):
        Segment.create("x" * 300, 4096)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_two_segments_of_one_process_are_told_apart() -> None:
    first, second = Segment.create("twin", 1), Segment.create("twin", 1)
    assert first.incarnation != second.incarnation
    assert f"{first.incarnation:#x}" in repr(first)
    first.close()
    second.close()
    assert "closed" in repr(first)


# ------------------------------------------------------------------------------------------------ foreign segments


@pytest.mark.parametrize(
    ("content", "nbytes", "seals", "complaint"),
    [
        (header(), DATA_START + PAGE, 0, "not sealed"),
        (header(), DATA_START + PAGE, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL, "not sealed"),
        (header(), DATA_START, SEALS, "4096 bytes are too few"),
        (b"", 0, SEALS, "0 bytes are too few"),
        (b"", DATA_START + PAGE, SEALS, "magic is .*never finished"),
        (header(magic=b"SOMEBODY"), DATA_START + PAGE, SEALS, "magic is b'SOMEBODY'"),
        (header(version=2), DATA_START + PAGE, SEALS, "layout version is 2, this process speaks 1"),
        (header(start=64), DATA_START + PAGE, SEALS, "header is 64 bytes, not 4096"),
        (header(capacity=PAGE + 1), DATA_START + PAGE, SEALS, f"capacity is {PAGE + 1} bytes, the file has room"),
        (header(capacity=(1 << 64) - 1), DATA_START + PAGE, SEALS, "capacity is 18446744073709551615"),
        (header(capacity=0), DATA_START + PAGE, SEALS, "capacity is 0"),
    ],
)
def test_a_foreign_segment_is_refused_by_what_is_wrong(content: bytes, nbytes: int, seals: int, complaint: str) -> None:
    fd = forged(content, nbytes, seals)
    with pytest.raises(SegmentError, match=complaint):
        Segment.attach(fd)
    os.close(fd)
    assert mapped("forged") == []


def test_a_good_forgery_is_taken_so_the_refusals_above_are_for_their_reason() -> None:
    fd = forged(header(capacity=PAGE))
    reader = Segment.attach(fd)
    os.close(fd)
    assert len(reader.data) == PAGE
    assert (reader.owner_pid, reader.incarnation) == (1, 2)
    reader.close()


def test_what_is_no_memfd_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(header() + bytes(2 * DATA_START))
    with path.open("rb") as file, pytest.raises(SegmentError, match="not a segment"):
        Segment.attach(file.fileno())
    reading, writing = os.pipe()
    with pytest.raises(SegmentError, match="not a segment"):
        Segment.attach(reading)
    os.close(reading)
    os.close(writing)
    for fd in (reading, -1):
        with pytest.raises(SegmentError, match=f"descriptor {fd} is not a segment"):
            Segment.attach(fd)


def test_the_header_is_as_drawn(segment: Segment) -> None:
    raw = os.pread(segment.fd, 48, 0)
    assert raw[:8] == b"RINGSEG\x00"
    assert struct.unpack_from("<IIQQQ", raw, HEADER_AT) == (1, 4096, 1 << 20, os.getpid(), segment.incarnation)


# --------------------------------------------------------------------------------------------------------- closing


def test_closing_unmaps_and_closing_again_is_nothing() -> None:
    made = Segment.create("closing", 4096)
    fd = made.fd
    reader = Segment.attach(fd)
    assert len(mapped("closing")) == 2
    for each in (reader, made, reader, made):
        each.close()
        assert each.closed
        assert len(each.data) == 0
    assert mapped("closing") == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_attach_leaves_the_descriptor_to_its_caller(segment: Segment) -> None:
    fd = os.dup(segment.fd)
    reader = Segment.attach(fd)
    os.close(fd)
    segment.data[:2] = b"ok"
    assert bytes(reader.data[:2]) == b"ok"
    reader.close()
    Segment.attach(segment.fd).close()  # still open


def test_close_says_which_views_are_held_and_can_be_repeated() -> None:
    made = Segment.create("held", 1 << 16)
    made.data[4096:4099] = b"abc"
    piece = made.data[4096:4196]
    held = [piece, view(made.data, 8192, UINT8, (50,))]
    with pytest.raises(SegmentError, match=r"pid \d+ is still viewed: .*100 bytes at 4096 \(held by list"):
        made.close()
    assert not made.closed
    assert bytes(made.data[4096:4099]) == b"abc"
    assert bytes(piece[:3]) == b"abc"
    held.clear()
    with pytest.raises(SegmentError, match="100 bytes at 4096"):
        made.close()
    del piece
    made.close()
    assert mapped("held") == []


def test_close_names_an_array_as_holder() -> None:
    made = Segment.create("array", 1 << 16)
    array = view(made.data[128:], 64, UINT8, (50,))
    with pytest.raises(SegmentError, match="an array or a variable"):
        made.close()
    assert array.sum() == 0
    del array
    made.close()


@pytest.mark.parametrize("straight", [False, True])
def test_an_abandoned_segment_lives_until_its_last_view_is_gone(straight: bool) -> None:
    made = Segment.create("abandoned", 4096)
    reader = Segment.attach(made.fd)
    made.data[64:69] = b"alive"
    array = view(reader.data, 64, UINT8, (5,)) if straight else view(reader.data[64:], 0, UINT8, (5,))
    reader.abandon()
    reader.abandon()
    reader.close()
    made.close()
    assert reader.closed
    assert array.tobytes() == b"alive"
    assert len(mapped("abandoned")) == 1
    del array
    assert mapped("abandoned") == []


# --------------------------------------------------------------------------------------------- memory that returns


def test_a_new_segment_costs_no_memory(segment: Segment) -> None:
    assert memory_bytes(segment) <= DATA_START
    big = Segment.create("big", 1 << 40)
    big.data[1 << 39] = 1
    assert memory_bytes(big) <= DATA_START + PAGE
    big.close()


def test_freed_pages_return_their_memory_and_read_as_zeros_everywhere() -> None:
    made = Segment.create("freed", 8 << 20)
    reader = Segment.attach(made.fd)
    made.data[:] = b"x" * (8 << 20)
    assert bytes(reader.data[::PAGE]) == b"x" * ((8 << 20) // PAGE)
    full_bytes = memory_bytes(made)
    assert full_bytes >= 8 << 20
    full_resident = resident_bytes("freed")
    assert full_resident >= 16 << 20  # two mappings of it
    assert made.free_pages(2 << 20, 6 << 20) == 6 << 20
    assert memory_bytes(made) <= full_bytes - (6 << 20)
    assert resident_bytes("freed") <= full_resident - (12 << 20)
    assert reader.data[(2 << 20) - 1] == reader.data[0] == ord("x")
    assert not any(reader.data[2 << 20 :])
    made.data[3 << 20] = 7  # and it is usable again
    assert reader.data[3 << 20] == 7
    reader.close()
    made.close()


def test_only_whole_pages_inside_the_range_are_freed() -> None:
    made = Segment.create("edges", 8 * PAGE)
    # Data starts one header after a page boundary, which is a page itself on most machines.
    shift = -DATA_START % PAGE
    for start, nbytes, freed in [
        (shift + 1, PAGE - 1, 0),
        (shift + 1, 2 * PAGE - 1, 1),
        (shift, PAGE, 1),
        (shift, PAGE - 1, 0),
        (shift + PAGE - 1, 2 * PAGE + 1, 2),
        (shift, 0, 0),
    ]:
        made.data[:] = b"x" * len(made.data)
        assert made.free_pages(start, nbytes) == freed * PAGE
        zeros = made.data.tobytes().count(0)
        assert zeros == freed * PAGE
        assert not made.data.tobytes()[start : start + nbytes].count(0) - zeros
    made.close()


@pytest.mark.parametrize(("start", "nbytes"), [(-1, 10), (0, -1), (0, (1 << 20) + 1), (1 << 20, 1)])
def test_pages_outside_of_the_data_are_not_freed(segment: Segment, start: int, nbytes: int) -> None:
    with pytest.raises(SegmentError, match="not inside"):
        segment.free_pages(start, nbytes)


def test_only_the_owner_of_an_open_segment_frees_pages() -> None:
    made = Segment.create("owner", 1 << 16)
    reader = Segment.attach(made.fd)
    with pytest.raises(SegmentError, match="only the owner"):
        reader.free_pages(0, PAGE)
    reader.close()
    made.close()
    with pytest.raises(SegmentError, match="only the owner"):
        made.free_pages(0, PAGE)


def test_a_ring_that_calms_down_gives_its_memory_back() -> None:
    made = Segment.create("calm", 32 << 20)
    ring = RingWriter(made.data_bytes)
    offsets = [ring.claim(1 << 20) for _ in range(24)]
    for offset in offsets:
        made.data[offset : offset + (1 << 20)] = b"y" * (1 << 20)
    assert memory_bytes(made) >= 24 << 20
    for offset in offsets:
        ring.release(offset)
    assert ring.take_shrunk() is None  # it was needed until just now
    shrunk = ring.take_shrunk()
    assert shrunk is not None
    assert made.free_pages(*shrunk) == shrunk[1]
    assert memory_bytes(made) <= (4 << 20) + 2 * PAGE
    made.close()
