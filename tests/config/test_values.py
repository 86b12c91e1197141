"""Values of settings as text and as TOML has them: parsed, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.config.schema import GIB, MIB
from ringserve.config.table import SETTINGS, Setting
from ringserve.config.values import parse

_ROWS = {row.flag: row for row in SETTINGS}



@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4194304", 4 * MIB),
        ("4MiB", 4 * MIB),
        (" 1 gib ", GIB),
        ("2MB", 2_000_000),
        ("1048576B", MIB),
        (4 * MIB, 4 * MIB),
    ],
)
def test_sizes(text: Any, expected: int) -> None:
    assert parse(_ROWS["request_ring_bytes"], text) == expected


@pytest.mark.parametrize(("value", "expected"), [("0.25", 0.25), (".5", 0.5), (1, 1.0), ("1e-1", 0.1), (0.0, 0.0)])
def test_parts(value: Any, expected: float) -> None:
    assert parse(_ROWS["per_process_gpu_memory_fraction"], value) == expected


@pytest.mark.parametrize("value", ["half", "nan", "inf", "1.01", -0.5, True, None, 10**400])
def test_what_is_no_part(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a number from 0 to 1"):
        parse(_ROWS["per_process_gpu_memory_fraction"], value)


@given(st.one_of(st.text(), st.integers(), st.booleans(), st.floats(), st.none(), st.lists(st.integers())))
def test_any_value_is_parsed_or_refused_in_words(value: Any) -> None:
    for row in SETTINGS:
        try:
            parsed = parse(row, value)
        except ValueError as error:
            said = str(error)
            assert row.allowed in said
        else:
            assert type(parsed) is type(row.default)
            assert not row.choices or parsed in row.choices
            assert row.low is None or row.low <= parsed <= row.high


@pytest.mark.parametrize("row", [row for row in SETTINGS if row.low is not None], ids=lambda row: row.flag)
def test_bounds_are_allowed_and_one_beyond_is_not(row: Setting) -> None:
    assert row.low is not None
    assert parse(row, str(row.low)) == row.low
    assert parse(row, str(row.high)) == row.high
    for wrong in (row.low - 1, row.high + 1):
        with pytest.raises(ValueError, match="is not a number"):
            parse(row, str(wrong))
