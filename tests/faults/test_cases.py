"""The table of cases is whole: every cell is a case or has its reason, every class is one that is explained, and
docs/faults.md says what the table says."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.cases import CASES, CLASSES, FAULTS, HAVE, MOMENTS, ROLES, STORMS, cells, why_no_cell
from tests.faults.page import PAGE, page, times_of


@pytest.mark.parametrize("role", ROLES)
def test_every_cell_is_a_case_or_says_why_it_is_none(role: str) -> None:
    there = {case[:3] for case in CASES}
    for cell in cells():
        if cell[0] == role:
            assert (cell in there) != bool(why_no_cell(*cell)), f"{cell}: {why_no_cell(*cell)!r}"


def test_cases_are_of_words_that_are_explained() -> None:
    assert {case.role for case in CASES} == set(ROLES)
    assert {case.fault for case in CASES} == set(FAULTS)
    assert {case.moment for case in CASES} == set(MOMENTS)
    assert {case.sees for case in CASES} <= set(CLASSES)
    assert not [name for name, count in Counter(case.name for case in CASES).items() if count > 1]


def test_the_page_says_what_the_table_says() -> None:
    text = PAGE.read_text()
    measured = times_of(text)
    assert text == page(measured), "run python -m tests.faults"
    run = {case.name for case in CASES if not case.waits_for or case.waits_for in HAVE}
    assert not run - measured.cases.keys(), "run python -m tests.faults, with these names"
    assert [(row.name, row.failed) for row in measured.storms] == [(name, "0") for name in STORMS]
