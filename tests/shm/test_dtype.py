"""The table of element types against TensorFlow's own numbers and names."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ringserve.shm import dtype
from ringserve.shm.dtype import DTYPES, STRING, dtype_of, dtype_of_numpy, name_of

#: From TensorFlow's types.proto, written out again: number, name, bytes in memory.
EXPECTED = """
1 float 4 | 2 double 8 | 3 int32 4 | 4 uint8 1 | 5 int16 2 | 6 int8 1 | 7 string 0 | 8 complex64 8 | 9 int64 8
10 bool 1 | 11 qint8 1 | 12 quint8 1 | 13 qint32 4 | 14 bfloat16 2 | 15 qint16 2 | 16 quint16 2 | 17 uint16 2
18 complex128 16 | 19 half 2 | 22 uint32 4 | 23 uint64 8 | 24 float8_e5m2 1 | 25 float8_e4m3fn 1
26 float8_e4m3fnuz 1 | 27 float8_e4m3b11fnuz 1 | 28 float8_e5m2fnuz 1 | 29 int4 1 | 30 uint4 1
31 int2 1 | 32 uint2 1 | 33 float4_e2m1fn 1
"""
ROWS = [entry.split() for line in EXPECTED.strip().splitlines() for entry in line.split("|")]


@pytest.mark.parametrize(("number", "name", "itemsize"), [(int(a), b, int(c)) for a, b, c in ROWS])
def test_each_type_has_its_number_name_and_size(number: int, name: str, itemsize: int) -> None:
    if number not in DTYPES and not hasattr(ml_dtypes, name):
        pytest.skip(f"this ml_dtypes has no {name}")
    found = dtype_of(number)
    assert (found.number, found.name, found.itemsize) == (number, name, itemsize)
    assert getattr(dtype, name.upper()) == number
    assert name_of(number) == name
    if number == STRING:
        assert found.numpy is None
    else:
        assert found.numpy is not None
        assert found.numpy.itemsize == itemsize
        assert found.numpy.isnative


def test_nothing_else_is_carried() -> None:
    assert set(DTYPES) <= {int(row[0]) for row in ROWS}


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "invalid"), (20, "resource"), (21, "variant"), (101, "float_ref"), (107, "string_ref"), (34, "unknown"),
     (100, "unknown"), (-1, "unknown"), (999, "unknown"), (1 << 70, "unknown")],
)  # fmt: skip
def test_other_numbers_are_refused_by_name(number: int, name: str) -> None:
    with pytest.raises(ValueError, match=rf"of type {name} \(DataType {number}\)"):
        dtype_of(number)


def test_an_array_finds_its_type() -> None:
    for entry in DTYPES.values():
        if entry.numpy is not None:
            found = dtype_of_numpy(entry.numpy)
            assert found.numpy == entry.numpy
            assert found.name == entry.name.removeprefix("q")
    assert dtype_of_numpy(np.dtype(object)).number == STRING
    assert dtype_of_numpy(np.dtype("S5")).number == STRING
    for refused in ("datetime64[s]", "U3", "V4"):
        with pytest.raises(ValueError, match="cannot be carried"):
            dtype_of_numpy(np.dtype(refused))


def test_names_agree_with_the_official_message_classes() -> None:
    types_pb2 = pytest.importorskip("tensorflow.core.framework.types_pb2")
    official = {number: name.removeprefix("DT_").lower() for name, number in types_pb2.DataType.items() if number < 100}
    for number, entry in DTYPES.items():
        assert official.get(number, entry.name) == entry.name
