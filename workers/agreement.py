"""Whether two runs answered the same, as far as rounding and near ties let one tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

#: A difference between sums that were added up in another order is no dependence: in parts of the value itself, and,
#: for values that others nearly cancelled, of one in the middle of them. (Of the largest one it must not be: beside a
#: masked score of -1e9 all others would be as good as equal.)
_TOLERANCE: Final = 0.02
#: Nor is one of few elements: scores that are nearly equal change places in a ranking when they are added up in
#: another order. Rows that depend on each other differ in all of their elements, or in most.
_PART_MAX: Final = 0.01


def differ(one: Any, other: Any) -> bool:
    """Whether more than a hundredth of the elements, and at least one, differ by more than rounding explains."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    return bool(np.count_nonzero(_differing(one, other)) > _PART_MAX * one.size)


def which_differ(ones: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """For each of several answers of one kind whether it differs from the other. One that is a single number says
    nothing of what rounding is: near zero it is as large as the number itself. So all of them are the measure."""
    alike = [one.shape == other.shape and one.dtype == other.dtype for one, other in zip(ones, others, strict=True)]
    pairs = [(one, other) for one, other, is_alike in zip(ones, others, alike, strict=True) if is_alike]
    if not pairs:
        return [True] * len(alike)
    mask = _differing(*(np.concatenate([one.reshape(-1) for one in side]) for side in zip(*pairs, strict=True)))
    ends = np.cumsum([one.size for one, _ in pairs])
    found = (np.count_nonzero(part) > _PART_MAX * part.size for part in np.split(mask, ends[:-1]))
    return [not is_alike or bool(next(found)) for is_alike in alike]


def _differing(one: Any, other: Any) -> Any:
    """Which elements do. One step of an 8-bit number is rounding, as quantized models round."""
    if one.dtype.names:  # a quantized type
        one, other = (each.view(one.dtype[0]) for each in (one, other))
    kind = one.dtype.kind
    if kind in "iu" and one.dtype.itemsize == 1:
        return np.abs(one.astype(np.int16) - other.astype(np.int16)) > 1
    if kind not in "fcV":
        return one != other
    wide = np.complex128 if kind == "c" else np.float64
    with np.errstate(all="ignore"):
        a, b = one.astype(wide), other.astype(wide)
        finite = np.isfinite(a) & np.isfinite(b)
        sizes = np.maximum(np.abs(a), np.abs(b))
        counted = sizes[finite & (sizes > 0)]
        middle = np.median(counted) if counted.size else 0.0
        close = np.abs(a - b) <= _TOLERANCE * (sizes + middle)
        same = (a == b) | (np.isnan(a) & np.isnan(b)) | (finite & close)
    return ~same
