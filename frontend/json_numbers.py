"""Numbers as TF Serving writes them in JSON, for one value and for whole arrays.

A float or double is written as C's `%g` with 6 digits when that text parses back to the same value, else with 9 (float)
or 17 (double) significant digits; `.0` is appended when the text has neither `.` nor `e`. Not-a-number and the
infinities are the tokens `NaN`, `Infinity` and `-Infinity`, which strict JSON has not.

Few values are formatted in a loop. Arrays of float32 have a file of their own (`json_floats.py`). For doubles,
`double_formats` finds out which of the two texts each value needs without writing any: it returns one `%` format per
value, so that a tensor costs one string operation. `%` of Python and C agree: both round correctly.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ringserve.frontend.json_floats import single_texts

#: Significant digits that identify every double.
DOUBLE_DIGITS: Final = 17

#: Below this count a loop over the values beats a dozen numpy calls.
_LOOP_COUNT_MAX: Final = 96

#: Powers of ten that a double holds exactly; with them a product or quotient is rounded once, like a parsed text.
_EXACT_EXPONENT_MAX: Final = 22
_POWERS: Final[npt.NDArray[np.float64]] = np.array([float(f"1e{i}") for i in range(_EXACT_EXPONENT_MAX + 1)])

#: Formats of what is no number; `%.0s` takes the value and writes nothing of it.
_SPECIAL: Final = ("NaN%.0s", "Infinity%.0s", "-Infinity%.0s")


def number_text(value: float, *, single: bool) -> str:
    """One number. single: `value` is of type float (it must then be exactly representable as one)."""
    text = f"{value:.6g}"
    if value - value != 0.0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    back = array("f", (float(text),))[0] if single else float(text)
    if back != value:
        text = ("%.9g" if single else "%.17g") % value
    return text if "." in text or "e" in text else text + ".0"


def float_texts(values: Sequence[float], *, single: bool) -> list[str]:
    """The texts of few numbers."""
    if not values:
        return []
    texts = ("%.6g " * len(values) % tuple(values)).split()
    parsed = map(float, texts)
    backs: Sequence[float] = array("f", parsed) if single else list(parsed)
    long_format = "%.9g" if single else "%.17g"
    for i, value in enumerate(values):
        text = texts[i]
        if backs[i] != value:
            if value != value:
                texts[i] = "NaN"
                continue
            texts[i] = text = long_format % value
        if "." not in text and "e" not in text:
            texts[i] = text + ".0" if text[-1] != "f" else "Infinity" if value > 0 else "-Infinity"
    return texts


def double_formats(values: npt.NDArray[np.float64]) -> list[str]:
    """One format per value of a flat array, to be applied to `values.tolist()`."""
    with np.errstate(all="ignore"):
        absolute = np.abs(values)
        short, unsure = _short(values, absolute)
        whole = absolute == np.trunc(absolute)
        # %g writes a whole number as digits alone while its exponent is below the precision, and then wants `.0`.
        whole &= absolute < np.where(short, 1e6, float(f"1e{DOUBLE_DIGITS}"))
    kinds = whole.astype(np.int8) + np.where(short, np.int8(0), np.int8(2))
    finite = np.isfinite(values)
    if not finite.all():
        kinds[np.isnan(values)] = 4
        kinds[values == np.inf] = 5
        kinds[values == -np.inf] = 6
        unsure &= finite
    pieces = np.array(["%.6g", "%.6g.0", f"%.{DOUBLE_DIGITS}g", f"%.{DOUBLE_DIGITS}g.0", *_SPECIAL], dtype=object)
    formats: list[str] = pieces[kinds].tolist()
    for i in np.flatnonzero(unsure).tolist():
        formats[i] = number_text(float(values[i]), single=False) + "%.0s"  # the text, and the value unwritten
    return formats


def _short(
    values: npt.NDArray[np.float64], absolute: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which values six digits identify, and for which of them that was not decided.

    Six digits are an integer below 10^6 times a power of ten. While that power is exact in a double, one multiplication
    or division gives the same double as parsing the text does, so the comparison decides. The rounding to six digits
    may itself be off, but only for values near the middle between two such numbers, which neither of them identifies.
    """
    exponent = np.floor(np.log10(absolute))
    exponent[absolute == 0.0] = 0.0
    decided = np.abs(exponent - 5.0) <= _EXACT_EXPONENT_MAX - 1  # False for NaN and the infinities as well
    shift = np.where(decided, 5.0 - exponent, 0.0).astype(np.int64)
    down, up = _POWERS[np.maximum(shift, 0)], _POWERS[np.maximum(-shift, 0)]
    digits = np.rint(values * down / up)
    # log10 may be one off next to a power of ten; then there are seven digits or five, and the value is left undecided.
    decided &= (np.abs(digits) <= 999_999.0) & ((np.abs(digits) >= 100_000.0) | (digits == 0.0))
    return (digits * up / down == values) & decided, ~decided


#: Values formatted at a stretch: a fraction of a millisecond.
_PIECE_COUNT: Final = 2_048
#: How long a thread that writes many numbers steps aside after each piece.
_ASIDE_S: Final = 20e-6


def number_texts(values: npt.NDArray[Any], *, gently: bool = False) -> list[str]:
    """The texts of a flat array of any bool, integer or real floating type.

    half and bfloat16 are written as the float of the same value. gently: let other threads run now and then.
    """
    if values.size <= _PIECE_COUNT:
        return _texts(values)
    texts: list[str] = []
    for start in range(0, values.size, _PIECE_COUNT):
        texts += _texts(values[start : start + _PIECE_COUNT])
        if gently:
            time.sleep(_ASIDE_S)
    return texts


def _texts(values: npt.NDArray[Any]) -> list[str]:
    if values.dtype == np.bool_:
        return ["true" if value else "false" for value in values.tolist()]
    if values.dtype.kind in "iu":
        return list(map(str, values.tolist()))
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)
    if values.size <= _LOOP_COUNT_MAX:
        return float_texts(values.tolist(), single=values.dtype == np.float32)
    if values.dtype == np.float32:
        texts, unknown = single_texts(values)
        for index in unknown:
            texts[index] = number_text(float(values[index]), single=True)
        return texts
    formats = double_formats(values)
    return ("\n".join(formats) % tuple(values.tolist())).split("\n")
