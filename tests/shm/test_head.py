"""Heads of records: what is written is read, and nonsense is said to be nonsense."""

from __future__ import annotations

import numpy as np
import pytest

from ringserve.shm.head import HEAD_BYTES, RANK_MAX, pack_head, read_head, read_string_head
from ringserve.shm.layout import ALIGN
from ringserve.shm.tensor import TensorError, string_record_bytes, write_strings

SHAPES = [(1,), (3, 5), (2, 1, 7), (9, 8, 7, 6, 5, 4), (1 << 40, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_is_read(shape: tuple[int, ...]) -> None:
    data = memoryview(bytearray(b"x" * 64 + pack_head(shape) + b"y"))
    assert read_head(data, 64) == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_string_record_has_it_as_its_first_string(shape: tuple[int, ...]) -> None:
    values = [pack_head(shape), b"", b"abc"]
    data = memoryview(bytearray(string_record_bytes(values)))
    write_strings(data, 0, values)
    assert read_string_head(data, 0) == shape


def test_elements_behind_a_head_are_aligned() -> None:
    assert len(pack_head((1,))) == HEAD_BYTES
    assert HEAD_BYTES % ALIGN == 0


@pytest.mark.parametrize("shape", [(), (1,) * (RANK_MAX + 1)])
def test_other_ranks_have_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rank"):
        pack_head(shape)


@pytest.mark.parametrize("offset", [-64, -1, 1, 64, 1 << 40])
def test_no_head_outside_of_the_data(offset: int) -> None:
    with pytest.raises(TensorError):
        read_head(memoryview(pack_head((2, 3))), offset)


def test_stale_bytes_are_no_head() -> None:
    noise = np.random.default_rng(5).integers(7, 255, 4096, np.uint8).tobytes()
    for offset in range(0, 4096, 64):
        with pytest.raises(TensorError):
            read_head(memoryview(noise), offset)
    with pytest.raises(TensorError):
        read_head(memoryview(bytes(64)), 0)  # rank 0
    values = [b"not a head", b"a"]
    data = memoryview(bytearray(string_record_bytes(values)))
    write_strings(data, 0, values)
    with pytest.raises(TensorError):
        read_string_head(data, 0)
