"""The parts of a split request: joined in their order, once each, or not at all."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ringserve.frontend.joins import NOT_ALIKE_TEXT, Join
from ringserve.frontend.outputs import Output
from ringserve.shm.dtype import FLOAT, STRING
from ringserve.shm.tensor import string_record_bytes, write_strings


def floats(first: int, rows: int, width: int = 2) -> Output:
    values = np.arange(first * width, (first + rows) * width, dtype="<f4")
    return Output(FLOAT, (rows, width), memoryview(values.tobytes()), 0, True)


def texts(*values: bytes) -> Output:
    record = bytearray(string_record_bytes(values))
    write_strings(memoryview(record), 0, values)
    return Output(STRING, (len(values),), memoryview(record), 0, True)


def test_parts_are_joined_in_their_order() -> None:
    join = Join(5)
    complete = []
    # the second record has more rows than the part
    for outputs, row_first, rows, row_start in (
        ([floats(3, 2), texts(b"d", b"e")], 0, 2, 3),
        ([floats(-1, 4), texts(b"x", b"a", b"b", b"c")], 1, 3, 0),
    ):
        assert not join.add(outputs, row_first, rows, row_start)
        complete.append(join.complete)
    assert complete == [False, True]
    numbers, strings = join.outputs()
    assert numbers.shape == (5, 2)
    assert np.frombuffer(numbers.raw(0, 5), "<f4").tolist() == list(range(10))
    assert strings.strings(0, 5) == [b"a", b"b", b"c", b"d", b"e"]


def test_a_part_that_comes_twice_counts_once() -> None:
    join = Join(4)
    assert not join.add([floats(0, 2)], 0, 2, 0)
    assert not join.add([floats(0, 2)], 0, 2, 0)
    assert not join.complete


def test_a_part_that_failed_counts_as_run() -> None:
    join = Join(6)
    assert not join.add([floats(0, 2)], 0, 2, 0)
    join.fail(2, 2)
    assert not join.complete
    assert not join.add([floats(0, 3, width=5)], 0, 3, 3)  # nobody joins it any more
    assert join.complete


def cuts() -> st.SearchStrategy[list[tuple[int, int]]]:
    """Any parts of a request of twelve rows: where they begin, and how many rows they have."""
    part = st.integers(0, 11).flatmap(lambda start: st.tuples(st.just(start), st.integers(1, 12 - start)))
    return st.lists(part, max_size=12)


@given(cuts(), cuts())
def test_each_row_is_taken_once_however_often_the_request_was_cut_and_where(
    parts: list[tuple[int, int]], rest: list[tuple[int, int]]
) -> None:
    join = Join(12)
    here: set[int] = set()
    for start, rows in [*parts, *rest, (0, 5), (5, 7)]:
        assert join.complete == (len(here) == 12)
        if join.complete:
            break
        # In the record one row of another request lies before them.
        assert not join.add([floats(start - 1, rows + 1), texts(b"", *map(b"%d".__mod__, range(start, start + rows)))],
                        1, rows, start)  # fmt: skip
        here.update(range(start, start + rows))
    assert join.complete
    numbers, strings = join.outputs()
    assert np.frombuffer(numbers.raw(0, 12), "<f4").tolist() == list(range(24))
    assert strings.strings(0, 12) == [b"%d" % row for row in range(12)]


def test_6_5_parts_of_different_inner_shapes_are_not_joined() -> None:
    join = Join(4)
    assert not join.add([floats(0, 2)], 0, 2, 0)
    assert join.add([floats(2, 2, width=3)], 0, 2, 2) == NOT_ALIKE_TEXT
    assert not join.complete
