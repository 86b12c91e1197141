"""JSON values to tensors, with TF Serving's coercion rules and error texts.

Two ways lead to the same tensor. `regular_tensor` looks at all values of a level at once and gives up, giving no
reason, when anything is not as it should be. `Walk` then goes through the values one by one, in TF Serving's order,
and finds the first thing that is wrong.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from itertools import chain
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ringserve.broker.messages import Code, Failure
from ringserve.frontend.json_text import quoted, type_name
from ringserve.frontend.tensor_proto import Tensor
from ringserve.shm import dtype as dt
from ringserve.shm.dtype import STRING, dtype_of

#: TensorFlow's own bound.
RANK_MAX: Final = 254


class _Integer(NamedTuple):
    """Which integers a dtype takes. Narrow ones take what fits 32 bits and keep the low bits, as TF Serving does."""

    low: int
    high: int


_INT32_RANGE: Final = _Integer(-(2**31), 2**31 - 1)
_INTEGERS: Final[dict[int, _Integer]] = {
    **dict.fromkeys((dt.INT32, dt.INT16, dt.INT8, dt.UINT8), _INT32_RANGE),
    dt.INT64: _Integer(-(2**63), 2**63 - 1),
    dt.UINT16: _Integer(0, 2**16 - 1),
    dt.UINT32: _Integer(0, 2**32 - 1),
    dt.UINT64: _Integer(0, 2**64 - 1),
}
_FLOATS: Final = frozenset((dt.FLOAT, dt.DOUBLE, dt.HALF, dt.BFLOAT16))
_FLOAT_KINDS: Final = frozenset((int, float))
_STRING_KINDS: Final = frozenset((str, dict))

_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def type_text(dtype: int) -> str:
    """A dtype's display name."""
    try:
        return dtype_of(dtype).name
    except ValueError:
        return f"dtype {dtype}"


# -------------------------------------------------------------------------------------------------- the quick way


def regular_tensor(value: Any, dtype: int) -> Tensor | None:
    """The tensor of a scalar or of nested lists; None when the value is irregular or of other types."""
    shape: list[int] = []
    level = [value]
    kinds = {type(value)}
    while list in kinds:
        if len(kinds) != 1 or len(shape) == RANK_MAX:
            return None
        sizes = set(map(len, level)) if len(level) <= _PART else {len(each) for each in level}
        if len(sizes) != 1:
            return None
        shape.append(sizes.pop())
        level = level[0] if len(level) == 1 else _joined(level)
        kinds = _kinds(level)
    if level and not _takes(dtype, kinds):
        return None
    data = _packed(level, dtype)
    return None if data is None else Tensor(dtype, tuple(shape), data)


#: Values that one call of C code goes through: no other thread runs meanwhile. Between two calls they get their turn.
_PART: Final = 65_536


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + _PART] for start in range(0, len(values), _PART))


def _kinds(values: list[Any]) -> set[type]:
    if len(values) <= _PART:
        return set(map(type, values))
    kinds: set[type] = set()
    for part in _parts(values):
        kinds.update(map(type, part))
    return kinds


def _joined(values: list[list[Any]]) -> list[Any]:
    if len(values) <= _PART:
        return list(chain.from_iterable(values))
    joined: list[Any] = []
    for part in _parts(values):
        joined.extend(chain.from_iterable(part))
    return joined


def _array(values: list[Any], dtype: Any) -> npt.NDArray[Any]:
    if len(values) <= _PART:
        return np.array(values, dtype)
    array = np.empty(len(values), dtype)
    for index, part in enumerate(_parts(values)):
        array[index * _PART : index * _PART + len(part)] = part
    return array


def _takes(dtype: int, kinds: set[type]) -> bool:
    if dtype in _FLOATS:
        return kinds <= _FLOAT_KINDS
    if dtype in _INTEGERS:
        return kinds == {int}
    if dtype == STRING:
        return kinds <= _STRING_KINDS
    return dtype == dt.BOOL and kinds == {bool}


def _packed(leaves: list[Any], dtype: int) -> bytes | memoryview | list[bytes] | None:
    """The data of a tensor whose leaves have types that it takes; None when a value is out of range or no base64."""
    if dtype == STRING:
        strings: list[bytes] = []
        for leaf in leaves:
            value = leaf.encode("utf-8", "surrogateescape") if type(leaf) is str else base64(leaf)
            if isinstance(value, Failure):
                return None
            strings.append(value)
        return strings
    if not leaves:
        return b""
    if dtype == dt.BOOL:
        return _buffer(_array(leaves, np.bool_))
    if dtype in _FLOATS:
        with np.errstate(over="ignore"):
            return _buffer(_narrow(_array(leaves, np.float32 if dtype == dt.FLOAT else np.float64), dtype))
    low, high = _INTEGERS[dtype]
    if any(low > min(part) or max(part) > high for part in _parts(leaves)):
        return None
    return _buffer(_narrow(_array(leaves, np.uint64 if dtype == dt.UINT64 else np.int64), dtype))


def _narrow(array: npt.NDArray[Any], dtype: int) -> npt.NDArray[Any]:
    """To the dtype's own type: floats are rounded (beyond its range to infinity), integers keep their low bits."""
    target = dtype_of(dtype).numpy
    return array if array.dtype == target else array.astype(target)


def _buffer(array: npt.NDArray[Any]) -> memoryview:
    return array.view(np.uint8).data


def base64(value: dict[str, Any]) -> bytes | Failure:
    """The bytes of a `{"b64": text}` object.

    Like Abseil: white space is skipped, padding may be missing but not be wrong, and `.` is as good as `=`.
    """
    if not is_base64(value):
        return _invalid(f"JSON Value: {quoted(value)} not formatted correctly for base64 data")
    text = value["b64"].encode("utf-8", "surrogateescape").translate(None, b" \t\n\v\f\r")
    digits = text.rstrip(b"=.")
    padding, rest = len(text) - len(digits), len(digits) % 4
    if rest == 1 or padding not in (0, -len(digits) % 4) or digits.translate(None, _BASE64):
        return _invalid("Unable to base64 decode")
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def is_base64(value: Any) -> bool:
    """Whether a value is an object with the single key `b64` and a string for it."""
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def _invalid(text: str) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, text)


# -------------------------------------------------------------------------------------------------- one by one


class Walk:
    """Collects the leaves of one or more values of one dtype, in TF Serving's order of looking at them."""

    __slots__ = ("_leaves", "dtype")

    def __init__(self, dtype: int) -> None:
        self.dtype = dtype
        self._leaves: list[Any] = []

    @property
    def count(self) -> int:
        """Leaves collected so far."""
        return len(self._leaves)

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """The tensor of all leaves."""
        data = _packed(self._leaves, self.dtype)
        assert data is not None
        assert len(self._leaves) == prod(shape)
        return Tensor(self.dtype, shape, data)

    def add(self, value: Any) -> tuple[int, ...] | Failure:
        """Collect the leaves of one value; returns its shape, or what is wrong with it."""
        shape = _first_shape(value)
        rank = len(shape)
        rest = [iter((value,))]
        while rest:
            level = len(rest) - 1
            for child in rest[-1]:
                if type(child) is not list:
                    failure = self._leaf(child, level, rank)
                    if failure is not None:
                        return failure
                    continue
                if level >= rank:
                    return _invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
                if len(child) != shape[level]:
                    return _invalid(
                        f"Encountered list at unexpected size: {len(child)} at level: {level} "
                        f"expected size: {shape[level]}"
                    )
                if level == rank - 1 and self._all(child):
                    continue
                rest.append(iter(child))
                break
            else:
                rest.pop()
        return shape

    def _all(self, values: list[Any]) -> bool:
        """Collect a list of leaves at once if nothing about them needs a second look."""
        kinds = set(map(type, values))
        if values and (dict in kinds or not _takes(self.dtype, kinds)):
            return False
        limits = _INTEGERS.get(self.dtype)
        if values and limits is not None and (min(values) < limits.low or max(values) > limits.high):
            return False
        self._leaves += values
        return True

    def _leaf(self, value: Any, level: int, rank: int) -> Failure | None:
        dtype = self.dtype
        if level != rank:
            return _invalid(
                f"JSON Value: {quoted(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {rank}"
            )
        if type(value) is dict:
            if dtype != STRING:
                return _type_failure(value, dtype)
            decoded = base64(value)
            if isinstance(decoded, Failure):
                return decoded
        elif dtype not in _INTEGERS and dtype not in _FLOATS and dtype not in (STRING, dt.BOOL):
            return Failure(
                Code.UNIMPLEMENTED, f"Conversion of JSON Value: {quoted(value)} to type: {type_text(dtype)}"
            )
        elif not _takes(dtype, {type(value)}) or (
            dtype in _INTEGERS and not _INTEGERS[dtype].low <= value <= _INTEGERS[dtype].high
        ):
            return _type_failure(value, dtype)
        self._leaves.append(value)
        return None


def _type_failure(value: Any, dtype: int) -> Failure:
    return _invalid(
        f"JSON Value: {quoted(value)} Type: {type_name(value)} is not of expected type: {type_text(dtype)}"
    )


def _first_shape(value: Any) -> tuple[int, ...]:
    """The sizes of the first list of each level, to the first empty one."""
    shape: list[int] = []
    while type(value) is list and len(shape) < RANK_MAX:
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)
