"""Many float32 values as TF Serving writes them, without formatting any by itself.

`json_numbers.number_text` says what the text of a value is: C's `%g` with 6 digits where these identify the value, else
with 9. Here the digits of all values come from one multiplication each, as integers, and are laid out by numpy.

A double holds a float32 times a power of ten with a relative error of 2^-52; so its 9 digits are known unless what was
cut off is nearer to one half than that error, and likewise whether 6 digits are enough. Values for which something is
not known, a few in a million, are formatted one by one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

#: Powers of ten, each rounded once: 10**k stands at k + _ZERO.
_ZERO: Final = 60
_POWERS: Final[npt.NDArray[np.float64]] = np.array([float(f"1e{k}") for k in range(-_ZERO, _ZERO + 1)])
#: What is lost in a product below 10**9 is less than this.
_LOSS: Final = 1e-6
#: Twice the relative error of a product.
_SPREAD: Final = 1e-15

_DIGITS: Final = 9
#: Columns of the table of texts: sign, then the longest text (-1.17549435e-38), then a comma.
_WIDTH: Final = 17
_COMMA: Final = ord(",")
_POINT: Final = ord(".")
_MINUS: Final = ord("-")

_Bytes = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.bool_]


def single_texts(values: npt.NDArray[np.float32]) -> tuple[list[str], list[int]]:
    """The text of each value, and the indices of those that are not known: zero, what is no number, and a few more."""
    with np.errstate(all="ignore"):
        wide = np.abs(values.astype(np.float64))
        known = np.isfinite(wide) & (wide > 0.0)
        wide[~known] = 1.0
        exponents, products = _normal(wide)
        digits = np.rint(products)
        # A float32 has 24 bits and 5**12 has 28: such products are exact, and so is what is known of a half.
        is_exact = (exponents <= 8) & (exponents >= -4)
        known &= is_exact | (np.abs(products - np.floor(products) - 0.5) > _LOSS)
        short_digits, is_short, is_sure = _short(wide, exponents)
    known &= is_sure
    digits[is_short] = short_digits[is_short] * 1000.0
    rounded_up = digits >= 1e9
    digits[rounded_up] = 1e8
    exponents += rounded_up
    table = _table(digits.astype(np.int64), exponents, is_short, np.signbit(values))
    # Columns that a text does not use hold zeros.
    texts = table.tobytes().translate(None, b"\0").decode("ascii").split(",")
    texts.pop()
    return texts, np.flatnonzero(~known).tolist()


def _normal(wide: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Decimal exponents, and the values as numbers of nine digits before the point."""
    exponents = np.floor(np.log10(wide)).astype(np.int64)
    products = wide * _POWERS[8 - exponents + _ZERO]
    # The logarithm may be one off next to a power of ten.
    wrong = (products >= 1e9).astype(np.int64) - (products < 1e8)
    if wrong.any():
        exponents += wrong
        products = wide * _POWERS[8 - exponents + _ZERO]
    return exponents, products


def _short(
    wide: npt.NDArray[np.float64], exponents: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], _Mask, _Mask]:
    """Six digits of each value, for which values they are enough, and for which of them that is sure."""
    digits = np.rint(wide * _POWERS[5 - exponents + _ZERO])
    back = digits * _POWERS[exponents - 5 + _ZERO]
    low, high = (back * (1.0 - _SPREAD)).astype(np.float32), (back * (1.0 + _SPREAD)).astype(np.float32)
    return digits, low == wide, low == high


def _table(
    digits: npt.NDArray[np.int64], exponents: npt.NDArray[np.int64], is_short: _Mask, is_negative: _Mask
) -> _Bytes:
    """One row of bytes for each value."""
    count = len(digits)
    # Each number has nine digits and a comma or, the last one, a bracket behind it.
    written = np.frombuffer(orjson.dumps(digits, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8)[1:]
    all_digits: _Bytes = written.reshape(count, _DIGITS + 1)[:, :_DIGITS]
    last = _DIGITS - np.argmax(all_digits[:, ::-1] != ord("0"), axis=1)
    kept: _Bytes = np.where(np.arange(_DIGITS) < last[:, np.newaxis], all_digits, np.uint8(0))
    table: _Bytes = np.zeros((count, _WIDTH), np.uint8)
    table[:, -1] = _COMMA
    table[is_negative, 0] = _MINUS
    # %g writes a number with an exponent when its own is below -4 or not below the precision.
    is_plain = (exponents >= -4) & (exponents < np.where(is_short, 6, _DIGITS))
    kinds = np.where(is_plain, exponents, exponents + 1000)
    for kind in np.unique(kinds).tolist():
        rows: Any = slice(None) if count == 1 else np.flatnonzero(kinds == kind)
        block: _Bytes = np.zeros((len(kept[rows]), _WIDTH - 2), np.uint8)
        if kind >= 100:
            _scientific(block, kept[rows], last[rows], kind - 1000)
        elif kind < 0:
            block[:, 0 : 1 - kind] = np.frombuffer(b"0." + b"0" * (-kind - 1), np.uint8)
            block[:, 1 - kind : 1 - kind + _DIGITS] = kept[rows]
        else:
            _with_point(block, all_digits[rows], kept[rows], kind + 1)
        table[rows, 1:-1] = block
    return table


def _scientific(block: _Bytes, kept: _Bytes, last: npt.NDArray[np.int64], exponent: int) -> None:
    """`d.ddde-05`, without a point where one digit is all."""
    block[:, 0] = kept[:, 0]
    block[:, 1] = np.where(last > 1, np.uint8(_POINT), np.uint8(0))
    block[:, 2 : 1 + _DIGITS] = kept[:, 1:]
    text = f"e{exponent:+03d}".encode()
    block[:, 1 + _DIGITS : 1 + _DIGITS + len(text)] = np.frombuffer(text, np.uint8)


def _with_point(block: _Bytes, digits: _Bytes, kept: _Bytes, before: int) -> None:
    """`ddd.ddd`, with at least one digit behind the point."""
    block[:, :before] = digits[:, :before]
    block[:, before] = _POINT
    if before < _DIGITS:
        block[:, before + 1] = digits[:, before]
        block[:, before + 2 : _DIGITS + 1] = kept[:, before + 1 :]
    else:
        block[:, before + 1] = ord("0")
