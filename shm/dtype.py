"""TensorFlow's element types: number, display name, numpy type and bytes per element. One table, no behaviour.

Numbers are `tensorflow.DataType`'s and travel in messages. A type is carried when it stands in DTYPES; resources,
variants and reference types (100 + n) never leave a process and are refused by name.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

FLOAT: Final = 1
DOUBLE: Final = 2
INT32: Final = 3
UINT8: Final = 4
INT16: Final = 5
INT8: Final = 6
STRING: Final = 7
COMPLEX64: Final = 8
INT64: Final = 9
BOOL: Final = 10
QINT8: Final = 11
QUINT8: Final = 12
QINT32: Final = 13
BFLOAT16: Final = 14
QINT16: Final = 15
QUINT16: Final = 16
UINT16: Final = 17
COMPLEX128: Final = 18
HALF: Final = 19
RESOURCE: Final = 20
VARIANT: Final = 21
UINT32: Final = 22
UINT64: Final = 23
FLOAT8_E5M2: Final = 24
FLOAT8_E4M3FN: Final = 25
FLOAT8_E4M3FNUZ: Final = 26
FLOAT8_E4M3B11FNUZ: Final = 27
FLOAT8_E5M2FNUZ: Final = 28
INT4: Final = 29
UINT4: Final = 30
INT2: Final = 31
UINT2: Final = 32
FLOAT4_E2M1FN: Final = 33

#: 100 + n is the reference type of n.
REFERENCE_BASE: Final = 100


class DType(NamedTuple):
    """One element type. `numpy` is None and `itemsize` 0 for strings, whose records are self-describing."""

    number: int
    name: str
    numpy: np.dtype[Any] | None
    itemsize: int


#: Number -> (TensorFlow's display name, numpy type). Quantized types are their plain integers: the scale is the
#: model's business. The names at the end are those of ml_dtypes; types narrower than a byte take a whole one each.
_NAMED: Final[dict[int, tuple[str, str]]] = {
    FLOAT: ("float", "float32"),
    DOUBLE: ("double", "float64"),
    INT32: ("int32", "int32"),
    UINT8: ("uint8", "uint8"),
    INT16: ("int16", "int16"),
    INT8: ("int8", "int8"),
    COMPLEX64: ("complex64", "complex64"),
    INT64: ("int64", "int64"),
    BOOL: ("bool", "bool"),
    QINT8: ("qint8", "int8"),
    QUINT8: ("quint8", "uint8"),
    QINT32: ("qint32", "int32"),
    QINT16: ("qint16", "int16"),
    QUINT16: ("quint16", "uint16"),
    UINT16: ("uint16", "uint16"),
    COMPLEX128: ("complex128", "complex128"),
    HALF: ("half", "float16"),
    UINT32: ("uint32", "uint32"),
    UINT64: ("uint64", "uint64"),
}
_EXTENDED: Final[dict[int, str]] = {
    BFLOAT16: "bfloat16",
    FLOAT8_E5M2: "float8_e5m2",
    FLOAT8_E4M3FN: "float8_e4m3fn",
    FLOAT8_E4M3FNUZ: "float8_e4m3fnuz",
    FLOAT8_E4M3B11FNUZ: "float8_e4m3b11fnuz",
    FLOAT8_E5M2FNUZ: "float8_e5m2fnuz",
    INT4: "int4",
    UINT4: "uint4",
    INT2: "int2",
    UINT2: "uint2",
    FLOAT4_E2M1FN: "float4_e2m1fn",
}
_NOT_CARRIED: Final[dict[int, str]] = {0: "invalid", RESOURCE: "resource", VARIANT: "variant"}


def _table() -> dict[int, DType]:
    table = {STRING: DType(STRING, "string", None, 0)}
    for number, (name, numpy_name) in _NAMED.items():
        plain = np.dtype(numpy_name)
        table[number] = DType(number, name, plain, plain.itemsize)
    for number, name in _EXTENDED.items():
        # The oldest ml_dtypes that TensorFlow 2.18 accepts lacks the narrowest types; so does that TensorFlow.
        scalar = getattr(ml_dtypes, name, None)
        if scalar is not None:
            extended = np.dtype(scalar)
            table[number] = DType(number, name, extended, extended.itemsize)
    return dict(sorted(table.items()))


#: Every type that can be carried, by its number.
DTYPES: Final[dict[int, DType]] = _table()

_BY_NUMPY: Final[dict[np.dtype[Any], DType]] = {
    entry.numpy: entry
    for entry in DTYPES.values()
    if entry.numpy is not None and entry.number not in (QINT8, QUINT8, QINT32, QINT16, QUINT16)
}


def dtype_of(number: int) -> DType:
    """The type with this DataType number. ValueError, naming it, when it cannot be carried."""
    found = DTYPES.get(number)
    if found is None:
        raise ValueError(f"tensors of type {name_of(number)} (DataType {number}) cannot be carried")
    return found


def dtype_of_numpy(dtype: np.dtype[Any]) -> DType:
    """The type of an array: object and bytes arrays are strings, integers are never quantized. Else ValueError."""
    found = _BY_NUMPY.get(dtype)
    if found is None:
        if dtype.kind in "OS":
            return DTYPES[STRING]
        raise ValueError(f"arrays of numpy type {dtype} cannot be carried")
    return found


def name_of(number: int) -> str:
    """TensorFlow's display name in lower case, also of types that are not carried ("float_ref", "resource")."""
    if number > REFERENCE_BASE:
        return name_of(number - REFERENCE_BASE) + "_ref" if number < 2 * REFERENCE_BASE else "unknown"
    found = DTYPES.get(number)
    return found.name if found is not None else _NOT_CARRIED.get(number) or _EXTENDED.get(number) or "unknown"
