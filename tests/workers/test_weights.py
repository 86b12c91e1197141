"""The file of a version's weights: what is written comes out again, and nothing else is taken for weights."""

from __future__ import annotations

import fcntl
import gc
import math
import mmap
import os
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from ringserve.shm import dtype as dtypes
from ringserve.workers.weights import Weights, WeightsError, WeightsWriter, is_sealed
from tests.workers.shares import map_weights, memfd

_NUMERIC = [number for number, kind in dtypes.DTYPES.items() if kind.numpy is not None]


@st.composite
def values(draw: Any) -> tuple[int, Any]:
    """A DataType number and an array of it, of any shape, in any memory order."""
    shape = draw(np_st.array_shapes(min_dims=0, min_side=0, max_side=4))
    count = math.prod(shape)
    if draw(st.booleans()):
        words = np.empty(count, object)
        words[:] = draw(st.lists(st.binary(), min_size=count, max_size=count))
        return dtypes.STRING, words.reshape(shape)
    number = draw(st.sampled_from(_NUMERIC))
    numpy = dtypes.dtype_of(number).numpy
    assert numpy is not None
    nbytes = count * numpy.itemsize
    array = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), numpy, count).reshape(shape)
    return number, array.T if draw(st.booleans()) else array


@given(st.dictionaries(st.text(min_size=1), values(), max_size=6))
def test_what_was_written_is_read(stored: dict[str, tuple[int, Any]]) -> None:
    with memfd() as fd:
        writer = WeightsWriter(fd)
        for name, (number, array) in stored.items():
            writer.add(name, number, array)
        nbytes = writer.finish([list(stored), True, b"\xff"])
        weights = map_weights(fd)
    assert weights.nbytes == nbytes
    assert weights.about == [list(stored), True, b"\xff"]
    assert [entry.name for entry in weights] == list(stored)
    for name, (number, array) in stored.items():
        read = weights.array(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tolist() == array.tolist() if number == dtypes.STRING else read.tobytes() == array.tobytes()


def test_values_lie_as_tensorflow_takes_them_without_a_copy() -> None:
    with memfd() as fd:
        writer = WeightsWriter(fd)
        small = [writer.add(f"small {i}", dtypes.INT8, np.ones(i, np.int8)) for i in range(1, 4)]
        large = writer.add("large", dtypes.FLOAT, np.ones((128, 128), np.float32))
        writer.finish([])
        weights = map_weights(fd)
    assert [entry.offset % 64 for entry in small] == [0, 0, 0]
    assert large.offset % mmap.PAGESIZE == 0
    array = weights.array("large")
    assert array.__array_interface__["data"][0] % mmap.PAGESIZE == 0
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 2.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.setflags(write=True)


def test_nobody_can_write_what_is_finished() -> None:
    with memfd() as fd:
        writer = WeightsWriter(fd)
        writer.add("a", dtypes.FLOAT, np.ones(3, np.float32))
        nbytes = writer.finish([])
        assert is_sealed(fd)
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 1),
            lambda: os.ftruncate(fd, nbytes + 1),
            lambda: mmap.mmap(fd, nbytes),
        ):
            with pytest.raises(PermissionError):
                change()


def test_arrays_keep_the_mapping_alive() -> None:
    with memfd() as fd:
        writer = WeightsWriter(fd)
        writer.add("a", dtypes.INT32, np.arange(70_000, dtype=np.int32))
        writer.finish([])
        array = map_weights(fd).array("a")
    gc.collect()
    assert int(array.sum()) == 70_000 * 69_999 // 2


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with memfd() as fd:
        writer = WeightsWriter(fd)
        with pytest.raises(WeightsError, match=r"a: an array of float64 where float32 is due"):
            writer.add("a", dtypes.FLOAT, np.ones(3))
        with pytest.raises(WeightsError, match=r"a: tensors of type resource"):
            writer.add("a", dtypes.RESOURCE, np.ones(3))
        writer.finish([])
        with pytest.raises(WeightsError, match="there is no value 'a'"):
            map_weights(fd).array("a")


def finished() -> tuple[bytearray, int]:
    """The bytes of a good file, and where its index begins."""
    with memfd() as fd:
        writer = WeightsWriter(fd)
        writer.add("a", dtypes.FLOAT, np.ones((2, 3), np.float32))
        words = np.empty(2, object)
        words[:] = [b"ab", b"c"]
        writer.add("words", dtypes.STRING, words)
        raw = bytearray(os.pread(fd, writer.finish([7]), 0))
    return raw, struct.unpack_from("<8sIIQ", raw)[3]


def mapped(raw: bytearray, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE) -> Weights:
    with memfd() as fd:
        os.pwrite(fd, raw, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return map_weights(fd)


def test_what_is_not_sealed_is_not_mapped() -> None:
    with pytest.raises(WeightsError, match="somebody may still write them"):
        mapped(finished()[0], fcntl.F_SEAL_SHRINK)
    with pytest.raises(WeightsError, match="cannot be mapped"), open(os.devnull) as file:
        Weights.map(file.fileno())


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, b"NOTMAGIC", "no weights, or never finished"),
        (0, bytes(8), "never finished"),
        (8, b"\x09\0\0\0", "format version is 9"),
        (16, b"\xff" * 8, "the index lies at"),
        (24, b"\xff" * 8, "the index lies at"),
        (32, b"\x00" * 8, "the index lies at"),
    ],
)
def test_a_damaged_head_is_named(at: int, value: bytes, text: str) -> None:
    raw, _ = finished()
    raw[at : at + len(value)] = value
    with pytest.raises(WeightsError, match=text):
        mapped(raw)


@given(st.data())
def test_a_damaged_index_is_an_error_or_reads_inside_the_file(data: st.DataObject) -> None:
    raw, start = finished()
    at = data.draw(st.integers(start, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    try:
        weights = mapped(raw)
        for entry in weights:
            weights.array(entry.name).tobytes()
    except WeightsError:
        pass


@given(st.integers(0, 5000))
def test_a_file_that_was_cut_is_no_file(kept: int) -> None:
    raw, _ = finished()
    with pytest.raises(WeightsError):
        mapped(raw[: min(kept, len(raw) - 1)])
