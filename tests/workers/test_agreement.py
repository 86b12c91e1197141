"""When two runs said the same."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ringserve.workers.agreement import differ

NAN, INF = np.nan, np.inf
QINT8 = np.dtype([("qint8", np.int8)])


@pytest.mark.parametrize(
    ("one", "other", "dtype", "differs"),
    [
        ([1.0, 2.0], [1.0, 2.01], np.float32, False),
        ([1.0, 2.0], [1.0, 2.1], np.float32, True),
        ([1.0, 2.0], [1.0, 2.01], ml_dtypes.bfloat16, False),
        ([1.0, 2.0], [2.0, 1.0], ml_dtypes.bfloat16, True),
        ([1.0, NAN, INF], [1.0, NAN, INF], np.float32, False),
        ([1.0, NAN, INF], [1.0, NAN, -INF], np.float32, True),
        ([1.0, NAN], [1.0, 2.0], np.float32, True),
        ([1 + 1j], [1 - 1j], np.complex64, True),
        ([1 + 1j], [1 + 1.001j], np.complex64, False),
        ([3, 4], [3, 5], np.int32, True),
        ([3, 255], [3, 254], np.uint8, False),
        ([3, 255], [3, 253], np.uint8, True),
        ([-128], [127], np.int8, True),
        ([True, False], [True, True], np.bool_, True),
        ([b"a", b"b"], [b"a", b"b"], object, False),
        ([b"a", b"b"], [b"a", b"c"], object, True),
        ([], [], np.float32, False),
    ],
)
def test_elements_differ_by_more_than_rounding(one: Any, other: Any, dtype: Any, differs: bool) -> None:
    assert differ(np.array(one, dtype), np.array(other, dtype)) is differs


def test_quantized_types_are_whole_numbers() -> None:
    one, near, far = (np.array([5, value], np.int8).view(QINT8) for value in (7, 8, 9))
    assert not differ(one, near)
    assert differ(one, far)


def test_one_in_a_hundred_may_be_another() -> None:
    """Near ties of a ranking; but of a few elements none may."""
    many = np.arange(200)
    swapped = many.copy()
    swapped[[10, 11]] = swapped[[11, 10]]
    assert not differ(many, swapped)
    swapped[50] = 0
    assert differ(many, swapped)
    assert differ(many[10:12], swapped[10:12])


def test_other_shapes_and_types_differ() -> None:
    assert differ(np.zeros(2), np.zeros(3))
    assert differ(np.zeros(2, np.float32), np.zeros(2, np.int32))


def test_one_large_value_hides_no_others() -> None:
    """A masked score, a time, an id beside what was computed."""
    one = np.array([-1e9, 0.5, 1.0, 1.5], np.float32)
    other = np.array([-1e9, 0.5, 1.4, 1.5], np.float32)
    assert differ(one, other)
    assert not differ(one, one * np.float32(1 + 1e-6))


def test_what_others_nearly_cancelled_is_no_other_value() -> None:
    one = np.array([1e-9, 1.0, -2.0, 3.0], np.float32)
    assert not differ(one, one + np.float32(1e-7))
