"""Messages survive the wire; anything else is a WireError."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker import wire
from ringserve.broker.messages import (
    Cancel,
    Done,
    Execute,
    Failed,
    InputSpec,
    LaneSpec,
    Release,
    Result,
    Submit,
)

INTS = st.integers(min_value=-(2**63), max_value=2**64 - 1)


@pytest.mark.parametrize(
    "message",
    [
        Submit(7, [[b"key", [[1, 2, 0, 64], [2, 1, 99, 128]]]]),
        Submit(7, [], True),
        Cancel(7, [[b"key", 1]]),
        Execute(2**63, b"key", [[7, 1, 2, 0, 64]]),
        Result(8, 1, b"key", 640, [[1, [2, 10], 640]], [[1, 0, 2, 0]], [[2, 3, "bad input", 1, 0]]),
        Done(8, 1, 12345, 2, 99, 0, 0),
        Release(7, [640, 704]),
        Failed([[1, 4, "Timed out waiting for notification"]], [[b"lane", 5_000_000]]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_hot_message_comes_back_equal_and_of_its_type(message: wire.HotMessage) -> None:
    back = wire.unpack(wire.pack(message))
    assert back == message
    assert type(back) is type(message)


@given(st.lists(st.lists(INTS, min_size=3, max_size=6)))
def test_submit_carries_any_integers(requests: list[list[int]]) -> None:
    assert wire.unpack(wire.pack(Submit(1, [[b"k", requests]]))) == Submit(1, [[b"k", requests]])


LANE = LaneSpec("m", 3, "serving_default", (InputSpec("x", 1, (784,)), InputSpec("n", 7, ())), ("y", "z"), True)


def test_a_lane_key_is_equal_for_equal_specs_and_unpacks_to_the_spec() -> None:
    same = LaneSpec(*LANE)
    assert wire.pack_lane(same) == wire.pack_lane(LANE)
    assert wire.unpack_lane(wire.pack_lane(LANE)) == LANE


@pytest.mark.parametrize(
    "other",
    [
        LANE._replace(model="n"),
        LANE._replace(version=4),
        LANE._replace(signature="s"),
        LANE._replace(outputs=("z", "y")),
        LANE._replace(batchable=False),
        LANE._replace(inputs=(InputSpec("x", 1, (785,)), InputSpec("n", 7, ()))),
    ],
)
def test_lane_keys_differ_when_any_part_of_the_spec_does(other: LaneSpec) -> None:
    assert wire.pack_lane(other) != wire.pack_lane(LANE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([]),
        msgpack.packb([99, 1]),
        msgpack.packb([1]),
        msgpack.packb([5, 1, 2]),
        msgpack.packb({"a": 1}),
        wire.pack(Done(1, 2, 3, 4, 5, 0, 0)) + b"x",
        wire.pack(Done(1, 2, 3, 4, 5, 0, 0))[:-1],
    ],
)
def test_what_is_no_message_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.unpack(data)


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    for read in (wire.unpack, wire.unpack_lane, wire.unpack_fields):
        try:
            read(data)
        except wire.WireError:
            pass
