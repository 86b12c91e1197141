"""Number texts against a reference that follows TF Serving's rule one number at a time, in another way."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings

from ringserve.frontend.json_floats import single_texts
from ringserve.frontend.json_numbers import double_formats, float_texts, number_text, number_texts


def reference(value: Any) -> str:
    """`value` is a numpy scalar, float32 or float64; its own type parses the text back."""
    wide = float(value)
    if math.isnan(wide):
        return "NaN"
    if math.isinf(wide):
        return "Infinity" if wide > 0 else "-Infinity"
    text = f"{wide:g}"
    if type(value)(text) != value:
        text = f"{wide:.{9 if type(value) is np.float32 else 17}g}"
    return text if set(text) & {".", "e"} else f"{text}.0"


EXAMPLES = [
    (0.1, "0.1"),
    (1 / 3, "0.333333343"),
    (9000000, "9e+06"),
    (999999, "999999.0"),
    (123456789, "123456792.0"),
    (3e-5, "3e-05"),
    (-0.0, "-0.0"),
    (0.0, "0.0"),
    (1e10, "1e+10"),
    (16777217, "16777216.0"),
    (math.nan, "NaN"),
    (math.inf, "Infinity"),
    (-math.inf, "-Infinity"),
    (3.4028234663852886e38, "3.40282347e+38"),
    (1e-45, "1.4013e-45"),
]


@pytest.mark.parametrize(("value", "text"), EXAMPLES)
def test_the_examples(value: float, text: str) -> None:
    single = np.float32(value)
    assert number_text(float(single), single=True) == text
    assert number_texts(np.array([single])) == [text]
    assert number_texts(np.array([single] * 1000)) == [text] * 1000


def test_doubles() -> None:
    assert number_text(1 / 3, single=False) == "0.33333333333333331"
    assert number_text(1e17 + 16, single=False) == "1.0000000000000002e+17"
    assert number_text(12345678901234567.0, single=False) == "12345678901234568.0"


def all_ways(values: npt.NDArray[Any]) -> list[list[str]]:
    single = values.dtype == np.float32
    numbers = values.tolist()
    ways = [
        [number_text(number, single=single) for number in numbers],
        float_texts(numbers, single=single),
        number_texts(values),
        number_texts(values, gently=True),
    ]
    if single and numbers:
        texts, unknown = single_texts(values)
        for index in unknown:
            texts[index] = number_text(numbers[index], single=True)
        ways.append(texts)
    if not single:
        ways.append([one % number for one, number in zip(double_formats(values), numbers, strict=True)])
    return ways


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32), max_size=130))
@example([1e6, 999999.5, 999999.4375, 9999995.0, 0.0001, 0.00001, 1e5, 1e9, 16777216.0])
def test_floats(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    expected = [reference(value) for value in values]
    for texts in all_ways(values):
        assert texts == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats() | st.floats(-1e7, 1e7).map(lambda x: round(x, 3)), max_size=130))
@example([1e6, 999999.5, 999999.4375, 9999995.0, 0.0001, 0.00001, 1e17, 2.0**53, 1e22, 1e23, 5e-324])
def test_doubles_of_all_kinds(numbers: list[float]) -> None:
    values = np.array(numbers, np.float64)
    expected = [reference(value) for value in values]
    for texts in all_ways(values):
        assert texts == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_floats(dtype: Any) -> None:
    generator = np.random.default_rng(7)
    bits = np.dtype(dtype).itemsize * 8
    kinds = [
        generator.integers(0, 2**bits, 3000, dtype=f"u{bits // 8}").view(dtype),
        generator.random(1000).astype(dtype),
        np.array([float(f"{x:.4g}") for x in 10.0 ** generator.uniform(-30, 30, 1000)], dtype),
        generator.integers(-3_000_000, 3_000_000, 1000).astype(dtype),
        np.nextafter(np.array([float(f"1e{e}") for e in range(-37, 38)], dtype), dtype(0)),
        np.array([float(f"1e{e}") for e in range(-37, 38)], dtype),
    ]
    values = np.concatenate(kinds)
    assert number_texts(values) == [reference(value) for value in values]


def test_nearly_all_floats_are_known_without_formatting_them() -> None:
    generator = np.random.default_rng(11)
    for values in (generator.random(20_000), np.exp(-generator.random(20_000) * 80), generator.normal(size=20_000)):
        _, unknown = single_texts(values.astype(np.float32))
        assert len(unknown) <= 20


@pytest.mark.parametrize("count", [2047, 2048, 2049, 5000])
def test_pieces(count: int) -> None:
    values = np.random.default_rng(12).normal(size=count)
    for dtype in (np.float32, np.float64, np.float16):
        whole = number_texts(values.astype(dtype))
        assert whole == number_texts(values.astype(dtype), gently=True)
        single = values.astype(dtype).astype(np.float64 if dtype is np.float64 else np.float32)
        assert whole == [reference(value) for value in single]


def test_other_types() -> None:
    assert number_texts(np.array([True, False])) == ["true", "false"]
    assert number_texts(np.array([2**64 - 1], np.uint64)) == ["18446744073709551615"]
    assert number_texts(np.array([-128, 127], np.int8)) == ["-128", "127"]
    assert number_texts(np.array([0.5, 65504, np.inf], np.float16)) == ["0.5", "65504.0", "Infinity"]
    assert number_texts(np.array([], np.float32)) == []
