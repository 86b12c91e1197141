"""Inputs that are no text and that TensorFlow quotes when it refuses them: one request fails, in TensorFlow's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from tests.workers.desk import Desk, lane, words

Load = Callable[..., Any]


def example(x: float) -> bytes:
    """A serialized Example, as `parsed` takes it."""
    made = b"\x12\x06\x0a\x04" + np.float32(x).tobytes()  # a FloatList
    entry = b"\x0a\x01x\x12" + bytes((len(made),)) + made
    features = b"\x0a" + bytes((len(entry),)) + entry
    return b"\x0a" + bytes((len(features),)) + features


@pytest.mark.parametrize("bad", [0, 3])
def test_bytes_that_are_no_text_in_a_failure(served: Load, bad: int) -> None:
    servable = served("parsed")
    desk = Desk(servable)
    inputs = [{"examples": words(b"\xff\xfe" if i == bad else example(float(i)))} for i in range(4)]
    parts = [desk.part(each) for each in inputs]
    answers, _ = desk.run(lane(servable, inputs[0], ["y"]), parts)
    for i, part in enumerate(parts):
        if i == bad:
            code, text = answers[part[1]]
            assert code == Code.INVALID_ARGUMENT
            assert text.startswith("Could not parse example input, value: '\ufffd\ufffd'")
        else:
            assert answers[part[1]][0].tolist() == [2.0 * i]
