"""Records: what is written is read, at every position and shape; what was never a record is a TensorError."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringserve.shm.dtype import BFLOAT16, BOOL, DTYPES, FLOAT, INT64, RESOURCE, STRING, UINT8
from ringserve.shm.tensor import (
    TensorError,
    read_strings,
    string_count,
    string_record_bytes,
    tensor_bytes,
    view,
    write_array,
    write_strings,
)

NUMERIC = [entry for entry in DTYPES.values() if entry.numpy is not None]
strings = st.lists(st.binary(max_size=40), max_size=40)


def buffer(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


# ------------------------------------------------------------------------------------------------------- strings


@given(values=strings, offset=st.integers(0, 100), data=st.data())
def test_any_run_of_strings_reads_back(values: list[bytes], offset: int, data: st.DataObject) -> None:
    record_bytes = string_record_bytes(values)
    memory = buffer(offset + record_bytes)  # not a byte more
    assert write_strings(memory, offset, values) == record_bytes
    assert string_count(memory, offset) == len(values)
    first = data.draw(st.integers(0, len(values)))
    count = data.draw(st.integers(0, len(values) - first))
    assert read_strings(memory, offset, first, count) == values[first : first + count]
    assert bytes(memory[:offset]) == bytes(offset)


def test_the_layout_is_as_drawn() -> None:
    memory = buffer(64)
    assert write_strings(memory, 8, [b"ab", b"", b"cde"]) == 16 + 24 + 5
    assert bytes(memory[8:53]) == struct.pack("<QQQQQ", 45, 3, 2, 2, 5) + b"abcde"


def test_thousands_of_strings() -> None:
    values = [b"%d" % number * (number % 7) for number in range(20_000)]
    memory = buffer(string_record_bytes(values))
    write_strings(memory, 0, values)
    assert read_strings(memory, 0, 0, 20_000) == values
    assert read_strings(memory, 0, 19_999, 1) == values[-1:]


def test_a_record_that_does_not_fit_is_not_begun() -> None:
    values = [b"abc", b"de"]
    memory = buffer(string_record_bytes(values) - 1)
    with pytest.raises(TensorError, match="end at byte"):
        write_strings(memory, 0, values)
    with pytest.raises(TensorError):
        write_strings(memory, -16, [])
    assert bytes(memory) == bytes(len(memory))


@pytest.mark.parametrize(("first", "count"), [(0, 4), (3, 1), (4, 0), (-1, 1), (0, -1), (2, 1 << 70)])
def test_rows_that_a_record_does_not_have_are_refused(first: int, count: int) -> None:
    memory = buffer(200)
    write_strings(memory, 0, [b"a", b"b", b"c"])
    with pytest.raises(TensorError, match="of a record of 3"):
        read_strings(memory, 0, first, count)


@pytest.mark.parametrize("offset", [-1, -16, 185, 200, 1 << 70])
def test_a_record_outside_of_the_data_is_refused(offset: int) -> None:
    with pytest.raises(TensorError):
        string_count(buffer(200), offset)
    with pytest.raises(TensorError):
        read_strings(buffer(200), offset, 0, 0)


@pytest.mark.parametrize(
    ("total", "count", "ends"),
    [
        (1 << 63, 1, [1]),  # longer than the data
        (201, 1, [1]),
        (23, 1, [1]),  # too short for its own index
        (15, 0, []),
        (40, (1 << 64) - 1, [1]),
        (40, 1 << 61, [1]),  # 8 × count is 2^64
        (100, 1, [77]),  # past the record's end
        (100, 1, [(1 << 64) - 1]),
        (100, 3, [5, 4, 6]),  # out of order
        (100, 3, [(1 << 64) - 1, 4, 6]),
        (100, 3, [5, 1 << 63, 6]),
    ],
)
def test_a_hostile_string_record_is_refused(total: int, count: int, ends: list[int]) -> None:
    memory = buffer(200)
    struct.pack_into(f"<QQ{len(ends)}Q", memory, 0, total, count, *ends)
    with pytest.raises(TensorError):
        read_strings(memory, 0, 0, max(len(ends), 1))
    with pytest.raises(TensorError):
        read_strings(memory, 0, 0, count or 1)


@given(noise=st.binary(max_size=120), offset=st.integers(-10, 130), first=st.integers(-1, 9), count=st.integers(-1, 9))
@example(noise=struct.pack("<QQ", 16, 0), offset=0, first=0, count=0)
def test_random_bytes_read_as_strings_or_raise_tensor_error(noise: bytes, offset: int, first: int, count: int) -> None:
    try:
        found = read_strings(memoryview(noise), offset, first, count)
    except TensorError:
        return
    assert len(found) == count
    assert all(each in noise for each in found)


def test_a_record_damaged_anywhere_reads_as_strings_of_itself_or_raises_tensor_error() -> None:
    """Unlike noise, nearly right records get past the first checks."""
    chance = random.Random(3)
    raised = 0
    for _ in range(20_000):
        values = [chance.randbytes(chance.randrange(6)) for _ in range(chance.randrange(1, 8))]
        record_bytes = string_record_bytes(values)
        memory = buffer(256)
        memory[:] = chance.randbytes(256)
        write_strings(memory, 64, values)
        for _ in range(chance.randrange(1, 3)):
            memory[64 + chance.randrange(record_bytes)] = chance.choice((0, 1, 2, 8, 127, 255, chance.randrange(256)))
        before = bytes(memory)
        try:
            found = read_strings(memory, 64, 0, len(values))
        except TensorError:
            raised += 1
        else:
            total_bytes = struct.unpack_from("<Q", before, 64)[0]
            assert b"".join(found) in before[64 : 64 + total_bytes]
    assert 1000 < raised < 19_000  # both sides are really met


# ------------------------------------------------------------------------------------------------------- numbers


def sample(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Values that every type can hold and that differ from each other where it can."""
    flat = np.arange(np.prod(shape, dtype=int)) % 2 if dtype.itemsize == 1 else np.arange(np.prod(shape, dtype=int))
    return np.asarray(flat.reshape(shape).astype(dtype))


@pytest.mark.parametrize("entry", NUMERIC, ids=lambda entry: entry.name)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5, 7), (2, 1, 3, 2)])
def test_every_type_and_shape_reads_back(entry: Any, shape: tuple[int, ...]) -> None:
    values = sample(entry.numpy, shape)
    memory = buffer(64 + values.nbytes)
    assert write_array(memory, 64, values) == values.nbytes == tensor_bytes(entry.number, shape)
    assert bytes(memory[64:]) == values.tobytes()
    found = view(memory, 64, entry.number, shape)
    assert found.dtype == entry.numpy
    assert found.shape == shape
    assert found.tobytes() == values.tobytes()
    assert not found.flags.writeable


def test_a_view_is_no_copy_and_cannot_be_written() -> None:
    memory = buffer(64)
    found = view(memory, 8, FLOAT, (2, 3))
    memory[8:12] = struct.pack("<f", 2.5)
    assert found[0, 0] == 2.5
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        view(memory.toreadonly(), 8, FLOAT, (2, 3)).flags.writeable = True


@pytest.mark.parametrize(
    ("offset", "number", "shape"),
    [
        (0, FLOAT, (17,)),  # 68 of 64 bytes
        (1, UINT8, (64,)),
        (64, UINT8, (1,)),
        (65, UINT8, (0,)),
        (-1, UINT8, (1,)),
        (1 << 70, UINT8, (1,)),
        (0, UINT8, (-1,)),
        (0, UINT8, (-1, -1)),
        (0, UINT8, (1 << 63,)),
        (0, UINT8, (1 << 70,)),
        (0, INT64, (1 << 32, 1 << 32)),
        (0, INT64, (0, 1 << 62, 1 << 62)),
        (0, UINT8, (1,) * 65),
        (0, STRING, (1,)),
        (0, RESOURCE, (1,)),
        (0, 0, (1,)),
        (0, 4000, (1,)),
        (0, UINT8, (1.5,)),
        (0, UINT8, ("a",)),
    ],
)
def test_a_tensor_that_is_not_there_is_refused(offset: int, number: int, shape: tuple[Any, ...]) -> None:
    with pytest.raises(TensorError):
        view(buffer(64), offset, number, shape)


@given(
    offset=st.integers(-100, 300),
    number=st.integers(-1, 40),
    shape=st.lists(st.one_of(st.integers(-2, 9), st.integers(-(1 << 66), 1 << 66)), max_size=5),
)
@settings(max_examples=300)
def test_no_descriptor_reads_outside_of_the_data(offset: int, number: int, shape: list[int]) -> None:
    try:
        found = view(buffer(200), offset, number, shape)
    except TensorError:
        return
    assert offset >= 0
    assert offset + found.nbytes <= 200
    assert found.nbytes == tensor_bytes(number, shape)


def test_arrays_of_any_layout_are_written_row_major_and_little_endian() -> None:
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    for values in (base.T, base[::2, ::-1], base.astype(">i4"), np.asfortranarray(base)):
        memory = buffer(values.nbytes)
        write_array(memory, 0, values)
        assert bytes(memory) == np.ascontiguousarray(values).astype("<i4").tobytes()


def test_bools_and_bfloat16_keep_their_bits() -> None:
    memory = buffer(16)
    write_array(memory, 0, np.array([True, False, True]))
    assert bytes(memory[:3]) == b"\x01\x00\x01"
    assert view(memory, 0, BOOL, (3,)).tolist() == [True, False, True]
    memory[:4] = b"\x80\x3f\x20\xc0"
    assert view(memory, 0, BFLOAT16, (2,)).astype(float).tolist() == [1.0, -2.5]


@pytest.mark.parametrize("values", [np.zeros(9, np.int64), np.array([b"a"], object), np.array(["2020"], "M8[D]")])
def test_an_array_without_a_place_is_refused(values: np.ndarray[Any, Any]) -> None:
    memory = buffer(64)
    with pytest.raises(TensorError):
        write_array(memory, 0, values)
    with pytest.raises(TensorError):
        write_array(memory, -8, np.zeros(1, np.int64))
    assert bytes(memory) == bytes(64)


@pytest.mark.parametrize(("number", "shape"), [(STRING, (1,)), (UINT8, (-1,)), (0, ())])
def test_only_numeric_tensors_have_a_size(number: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(TensorError):
        tensor_bytes(number, shape)
