"""What a frontend does with the broker's word about a lane's load: how long it is believed, what clients are told."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import Code, Failed, InputSpec, LaneSpec
from ringserve.frontend.lanes import Lane
from ringserve.frontend.shedding import Pressure, note, retry_after

MS = 1_000_000
NOW = 1_000 * MS


@pytest.mark.parametrize(
    ("wait_ms", "after_ms", "believed"),
    [(100, 0, True), (100, 4.9, True), (100, 5, False), (8, 1.9, True), (8, 2, False), (0, 0, False)],
)
def test_the_word_is_believed_for_a_part_of_the_wait(wait_ms: int, after_ms: float, believed: bool) -> None:
    pressure = Pressure()
    pressure.told(wait_ms * MS, NOW)
    assert pressure.is_believed(NOW + int(after_ms * MS)) == believed


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
