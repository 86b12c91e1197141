"""Batches that fail: who is to blame fails alone, the others are answered, and each batch remains one run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from tests.workers.desk import Desk, lane, rows_of

Load = Callable[..., Any]


@pytest.mark.parametrize("bad", range(8))
@pytest.mark.parametrize("frontends", [1, 3])
def test_one_bad_request_among_seven_good_ones(served: Load, bad: int, frontends: int) -> None:
    servable = served("picky")
    desk = Desk(servable, frontends=frontends)
    parts = [desk.part(rows_of(-1.0 if i == bad else float(i), 0.5), frontend_id=1 + i % frontends) for i in range(8)]
    answers, done = desk.run(lane(servable, rows_of(0.0), ["y"]), parts)
    for i, part in enumerate(parts):
        answer = answers[part[1]]
        if i == bad:
            assert answer[0] == Code.INVALID_ARGUMENT
            assert answer[1].startswith("assertion failed: [negative:] [-1 0.5]")
        else:
            assert answer[0].tolist() == [2.0 * i, 1.0]
    assert desk.batches <= 7  # each of them one run: eight, three times half of what is left, the bad one, the rest
    assert done.rows <= 2 * (8 + 4 + 2 + 1 + 7)


@pytest.mark.parametrize("settings", [{}, {"allowed_batch_rows": {"picky": [1, 4, 8]}}])
def test_a_batch_is_one_run_also_where_it_fails(served: Load, settings: dict[str, Any]) -> None:
    """Its lease is for one, and who is not to blame gets an answer as soon as it is known."""
    servable = served("picky")
    desk = Desk(servable, **settings)
    now_ns = itertools.count(step=1000)
    desk.executor._clock_ns = lambda: next(now_ns)
    spec = lane(servable, rows_of(0.0), ["y"])
    parts = [desk.part(rows_of(-1.0 if i == 5 else float(i))) for i in range(8)]
    told = []
    answered: list[int] = []
    while parts:
        batch = desk.start(spec, parts)
        answers: dict[int, Any] = {}
        desk.read(batch, spec, answers)
        done = batch.done
        assert done is not None
        assert done.run_ns == 1000
        told.append((done.rows, len(answers), done.parts_left, done.parts_max))
        answered += answers
        parts = parts[len(parts) - done.parts_left :]
    assert answered == list(range(1, 9))
    assert told == [(8, 0, 8, 4), (4, 4, 4, 4), (2, 0, 4, 4), (1, 1, 3, 4), (1, 1, 2, 4), (2, 2, 0, 0)]


def test_where_all_are_bad_each_runs_little_more_than_once(served: Load) -> None:
    servable = served("picky")
    desk = Desk(servable)
    answers, done = desk.run(lane(servable, rows_of(0.0), ["y"]), [desk.part(rows_of(-1.0)) for _ in range(200)])
    assert {answer[0] for answer in answers.values()} == {Code.INVALID_ARGUMENT}
    assert len(answers) == 200
    assert desk.batches < 250
    assert done.parts_max == 1


def test_suspicions_end_with_the_lanes(served: Load) -> None:
    servable = served("picky")
    desk = Desk(servable)
    spec = lane(servable, rows_of(0.0), ["y"])
    for _ in range(2):
        done = desk.start(spec, [desk.part(rows_of(-1.0)) for _ in range(8)]).done
        assert done is not None
        assert (done.rows, done.parts_left, done.parts_max) == (8, 8, 4)
        desk.executor.forget_lanes()


def test_a_bad_index(served: Load) -> None:
    servable = served("gather_rows")
    desk = Desk(servable)
    parts = [desk.part({"index": np.array([i], np.int32)}) for i in (3, 10, 7)]
    answers, _ = desk.run(lane(servable, {"index": np.zeros(1, np.int32)}, ["value"]), parts)
    assert [answers[part[1]][0] for part in (parts[0], parts[2])] == [3.0, 7.0]
    code, text = answers[parts[1][1]]
    assert code == Code.INVALID_ARGUMENT
    assert "10" in text
