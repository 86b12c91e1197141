"""What a frontend does with the broker's word about a lane's load: how long it is believed, what clients are told."""

from __future__ import annotations

from math import inf

import pytest

from ringserve.broker.messages import Code, Failed, InputSpec, LaneSpec
from ringserve.frontend.lanes import Lane
from ringserve.frontend.shedding import Pressure, note, retry_after

MS = 1_000_000
NOW = 1_000 * MS


@pytest.mark.parametrize(
    ("rows", "row_bytes", "fades_ms"),
    [(0, 0, 20), (40, 0, 20), (100, 0, 50), (600, 0, 300), (9_000, 0, 300), (100, 10_000, 100), (4, 110_000, 24)],
)
def test_a_word_about_few_short_rows_fades_soon(rows: int, row_bytes: int, fades_ms: int) -> None:
    pressure = Pressure(row_bytes)
    pressure.told(40 * MS, NOW)
    pressure.taken(rows)
    assert pressure.is_crowded(NOW + fades_ms * MS - 1)
    assert not pressure.is_crowded(NOW + fades_ms * MS)


@pytest.mark.parametrize(
    ("rows", "timeout_ms", "after_ms", "room"),
    [
        (100, 40, 0, 0),  # what the broker has taken takes the time that it named
        (60, 40, 0, 40),
        (100, 20, 6, -44.9),
        (100, 80, 0, 104),
        (0, 1, 6, -1.05),  # a few rows are no queue, but they are not nothing
        (0, 2, 6, 1.91),
        (0, 39, 4, 0),  # the queue itself cannot be that much shorter yet
        (0, 39, 5, 108.67),
        (100, 40, 25, 104),  # the word has half faded
        (100, 1, 50, inf),
    ],
)
def test_there_is_room_for_what_fits_into_the_time(rows: int, timeout_ms: int, after_ms: int, room: float) -> None:
    pressure = Pressure()
    assert pressure.room(1, NOW) == inf
    pressure.told(40 * MS, NOW)
    pressure.taken(100)
    pressure.rows = rows
    assert pressure.room(timeout_ms * MS, NOW + after_ms * MS) == pytest.approx(room, abs=0.01)
    assert pressure.is_crowded(NOW + after_ms * MS) == (room < inf)


def test_who_is_patient_is_not_refused_for_the_rows_of_one_call_on_its_way() -> None:
    pressure = Pressure()
    pressure.told(3 * MS, NOW)
    pressure.taken(0)
    pressure.rows = 160_000
    assert pressure.room(30_000 * MS, NOW) == inf
    assert pressure.room(23 * MS, NOW) < 0  # his wait may be as long: the broker has not judged it yet


@pytest.mark.parametrize(("wait_ms", "believed_ms"), [(100, 5), (8, 2)])
def test_the_word_is_believed_for_a_part_of_the_wait(wait_ms: int, believed_ms: int) -> None:
    pressure = Pressure()
    pressure.told(wait_ms * MS, NOW)
    pressure.taken(1)
    assert pressure.room((wait_ms - 1) * MS, NOW + believed_ms * MS - 1) == 0
    assert pressure.room((wait_ms - 1) * MS, NOW + believed_ms * MS) > 0


@pytest.mark.parametrize(
    ("code", "wait_ms", "after_ms", "retry_ms"),
    [
        (Code.UNAVAILABLE, 60, 0, 60),
        (Code.RESOURCE_EXHAUSTED, 60, 900, 60),
        (Code.UNAVAILABLE, 0, 0, 10),  # not at once
        (Code.UNAVAILABLE, 30_000, 0, 1_000),  # there is room again long before
        (Code.UNAVAILABLE, 60, 1_001, 0),  # it is too long ago
        (Code.INVALID_ARGUMENT, 60, 0, 0),
        (Code.DEADLINE_EXCEEDED, 60, 0, 0),
    ],
)
def test_when_to_come_again(code: Code, wait_ms: int, after_ms: int, retry_ms: int) -> None:
    pressure = Pressure()
    assert pressure.retry_ms(code, NOW) == 0
    pressure.told(wait_ms * MS, NOW)
    assert pressure.retry_ms(code, NOW + after_ms * MS) == retry_ms


@pytest.mark.parametrize(
    ("code", "retry_ms", "line"),
    [
        (Code.UNAVAILABLE, 0, b"Retry-After: 1\r\n"),
        (Code.UNAVAILABLE, 1_000, b"Retry-After: 1\r\n"),
        (Code.RESOURCE_EXHAUSTED, 1, b"Retry-After: 1\r\n"),
        (Code.RESOURCE_EXHAUSTED, 0, b""),  # too large, say: trying again would not help
        (Code.NOT_FOUND, 1_000, b""),
    ],
)
def test_rest_is_told_in_seconds(code: Code, retry_ms: int, line: bytes) -> None:
    assert retry_after(code, retry_ms) == line


def test_only_the_lanes_named_are_under_pressure() -> None:
    lanes = [Lane(LaneSpec(name, 1, "s", (InputSpec("x", 1, (4,)),), ("y",), True)) for name in "ab"]
    note(Failed([[1, 14, "full"], [2, 4, "late"]], [[lanes[0].key, 40 * MS]]), lanes, NOW)
    assert [lane.pressure.wait_ns for lane in lanes] == [40 * MS, 0]
