"""Warm-up beyond the file: larger batches of what is at hand, and zeros for models that brought nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.workers.warm import predict


@pytest.mark.parametrize(
    ("rows_max", "allowed", "sizes"),
    [
        (8, [], [1, 2, 4, 8]),
        (10, [], [1, 2, 4, 8, 10]),
        (1, [], [1]),
        (100, [3, 50, 100], [3, 50, 100]),
    ],
)
def test_batch_sizes(tf: Any, rows_max: int, allowed: list[int], sizes: list[int]) -> None:
    from ringserve.broker.messages import ModelOptions
    from ringserve.workers.warmup import batch_sizes

    assert batch_sizes(ModelOptions("m", rows_max, allowed, False, False, False)) == sizes


def test_batches_are_those_that_the_model_will_be_given(version: Any, tf: Any) -> None:
    here = version("half")
    options = [100, [3, 6], False, False, False]
    assert here.open_as_it_is(options).notes == ["warmed up on zeros, batches of 3, 6 rows"]
    assert here.open(predict(tf, x=[1.0]), options=options).notes[0].endswith("batches of 3, 6 rows")


def test_rows_of_a_record_are_padded_as_the_executor_pads_them(tf: Any, served: Any) -> None:
    from ringserve.broker.messages import ModelOptions
    from ringserve.workers import warmup
    from ringserve.workers.warmup_runs import Feed, Run

    x = np.array([1.0, 2.0, 3.0], np.float32)
    lane = warmup.lane_of(served("half"), Run("serving_default", {"x": Feed(1, x)}, ("y",), lambda outputs: None))
    assert (lane.spec.batchable, lane.spec.inputs[0].shape) == (True, ())
    (fed,) = warmup.padded(lane, ModelOptions("half", 8, [2, 5], False, False, False))
    assert fed.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0]
    (fed,) = warmup.padded(lane, ModelOptions("half", 8, [2], False, False, False))
    assert fed.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("echo", "warmed up on zeros, batches of 1, 2, 4, 8 rows"),
        ("strings", "warmed up on zeros, batches of 1, 2, 4, 8 rows"),
        ("scalar", "warmed up on zeros"),
        ("counter", "warmed up on zeros; not warmed up: add, set (changes the model)"),
        ("slow", "not warmed up: serving_default (may loop for long)"),
        (
            "sparse",
            "warmed up on zeros, batches of 1, 2, 4, 8 rows; not warmed up: sparse (sparse or composite tensors)",
        ),
        (
            "identities",
            "warmed up on zeros, batches of 1, 2, 4, 8 rows; "
            "not warmed up: bfloat16, bool, complex128, complex64 and 11 more (an input of unknown rank)",
        ),
    ],
)
def test_zeros(version: Any, name: str, note: str) -> None:
    assert version(name).open_as_it_is().notes == [note]


def test_zeros_never_change_a_model(version: Any) -> None:
    from tests.workers.desk import lane

    opened = version("counter").open_as_it_is()
    plan = opened.model.plan(lane(opened.model, {}, ["output"], batchable=False, signature="get"))
    assert float(plan.run([])[0]) == 0.0


def test_zeros_that_fail(shared: Any) -> None:
    """Every signature with a declared rank takes Examples, which must have a feature."""
    opened = shared("saved_model_half_plus_two_mlmd/00000123").open_as_it_is()
    assert opened.notes == [
        "not warmed up: no signature runs on zeros; serving_default, regress_x2_to_y3 (an input of unknown rank)"
    ]


def test_zeros_switched_off(version: Any) -> None:
    opened = version("half").open_as_it_is(synthetic_warmup=False)
    assert opened.notes == ["not warmed up: it brings no warm-up file, and synthetic_warmup is off"]


def test_larger_batches_stop_where_time_or_memory_ends(tf: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ringserve.workers import synthetic, warmup

    lanes, reasons = synthetic.lanes(served("half"))
    assert reasons == ""
    sizes = [1, 2, 4, 8, 16]
    assert warmup.widen(lanes, sizes, itertools.count().__next__) == sizes
    # Each look at the clock finds a tenth of the time gone.
    tenth = warmup.WIDEN_NS_MAX // 10
    assert warmup.widen(lanes, sizes, itertools.count(0, tenth).__next__) == [1, 2]
    # A row of 4 bytes; then a process that grows by more than it may.
    monkeypatch.setattr(warmup, "_FEEDS_BYTES_MAX", 16)
    assert warmup.widen(lanes, sizes, itertools.count().__next__) == [1, 2, 4]
    monkeypatch.undo()
    peaks = itertools.count(0, warmup._GROWTH_BYTES_MAX * 6 // 10)
    monkeypatch.setattr(warmup, "_peak_bytes", peaks.__next__)
    assert warmup.widen(lanes, sizes, itertools.count().__next__) == [1]  # twice the rows would be too much
