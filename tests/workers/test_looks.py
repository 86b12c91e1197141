"""Requests that share batches are looked at again now and then: run alone, too, before anybody is answered."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, ModelOptions
from ringserve.workers.failures import RunFailure
from ringserve.workers.interface import Independence
from tests.workers.desk import rows_of
from tests.workers.functions import SPEC, ask, bench


@pytest.mark.parametrize("independence", [Independence.SHOWN, Independence.UNKNOWN])
@pytest.mark.parametrize("frontends", [1, 2])
def test_what_only_depends_later_is_found_before_anybody_is_answered_by_it(
    independence: Independence, frontends: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained values are below one, say, and then whole pictures come."""
    model, desk = bench(lambda x: x / 255 if x.max() > 1 else x, independence, frontends=frontends)
    while True:
        model.runs.clear()
        ask(desk, rows_of(0.25), rows_of(0.5), rows_of(1))
        if model.runs == [3, 1, 1, 1]:  # it is looked at: the first of the next batches that is comes after eight
            break
    for _ in range(7):
        ask(desk, rows_of(0.25), rows_of(0.5), rows_of(1))
    caplog.set_level(logging.INFO)
    for _ in range(3):
        model.runs.clear()
        assert ask(desk, rows_of(255), rows_of(0.5), rows_of(1)) == [[1], [0.5], [1]]
    assert model.runs == [1, 1, 1]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "until it is known whether that was chance" in caplog.records[0].getMessage()
    assert [found[:4] for found in desk.executor.trials.found] == [("m", 1, "s", ["y"])]


def test_a_large_batch_is_looked_at_in_a_few_of_its_requests_others_each_time() -> None:
    seen: list[float] = []

    def double(x: Any) -> Any:
        if len(x) == 1:
            seen.append(float(x[0]))
        return x * 2

    _, desk = bench(double, Independence.SHOWN)
    for _ in range(12):
        assert ask(desk, *(rows_of(i) for i in range(40))) == [[2 * i] for i in range(40)]
    assert seen == [1, 11, 21, 31, 2, 12, 22, 32]


def test_a_long_batch_is_looked_at_in_two_of_its_requests() -> None:
    now_ns = itertools.count(step=200_000_000)
    model, desk = bench(lambda x: x, Independence.SHOWN)
    desk.executor._clock_ns = lambda: next(now_ns) * 2
    for _ in range(4):
        ask(desk, *(rows_of(i) for i in range(8)))
    assert model.runs == [8] * 4 + [1, 1]


def test_a_lone_request_is_not_looked_at_and_a_failure_alone_says_nothing() -> None:
    def at_least_two(x: Any) -> Any:
        if len(x) < 2:
            raise RunFailure(Code.INVALID_ARGUMENT, "two rows at least")
        return x

    model, desk = bench(at_least_two, Independence.SHOWN)
    for _ in range(20):
        assert ask(desk, rows_of(1, 2)) == [[1, 2]]
    assert model.runs == [2] * 20
    for _ in range(20):
        assert ask(desk, rows_of(1), rows_of(2)) == [[1], [2]]


def test_random_outputs_are_looked_at_and_go_on_sharing_batches() -> None:
    random = np.random.default_rng(0)
    model, desk = bench(lambda x: random.random(len(x)), Independence.SHOWN)
    for _ in range(600):
        ask(desk, rows_of(1), rows_of(2))
    assert model.runs.count(2) == 600
    assert 7 * 2 < model.runs.count(1) < 7 * 4


def test_what_changes_its_state_or_is_assumed_is_never_run_again() -> None:
    for changes_state, assumed, runs in ((True, False, [1, 1]), (True, True, [1, 1]), (False, True, [2])):
        model, desk = bench(lambda x: x, Independence.SHOWN)
        desk.executor.set_options("m", ModelOptions("m", 8, [], False, False, assumed))
        plan = model.plan(SPEC)
        plan.changes_state = changes_state
        model.plan = lambda _, plan=plan: plan  # type: ignore[method-assign, misc]
        for _ in range(20):
            ask(desk, rows_of(1), rows_of(2))
        assert model.runs == runs * 20


def test_rows_are_looked_at_in_the_sizes_that_they_are_padded_to() -> None:
    """XLA compiles for each size."""
    model, desk = bench(lambda x: x, Independence.SHOWN, allowed_batch_rows={"m": [8]})
    for _ in range(4):
        assert ask(desk, rows_of(1), rows_of(2)) == [[1], [2]]
    assert model.runs == [8] * 4 + [8, 8]


def test_an_answer_that_is_the_input_itself_is_not_lost_while_it_is_looked_at() -> None:
    _, desk = bench(lambda x: x, Independence.SHOWN, frontends=2, allowed_batch_rows={"m": [8]})
    for i in range(8):
        assert ask(desk, rows_of(i, 1), rows_of(2), rows_of(i + 2)) == [[i, 1], [2], [i + 2]]


def test_outputs_that_do_not_follow_the_rows_later_are_alone_for_good() -> None:
    sizes = itertools.chain([None] * 5, itertools.repeat(1))
    model, desk = bench(lambda x: x[: next(sizes)] if len(x) > 1 else x, Independence.SHOWN)
    for _ in range(12):
        assert ask(desk, rows_of(1), rows_of(2)) == [[1], [2]]
    assert model.runs == [2, 2, 2, 2, 1, 1, 2, 2, 1, 1] + [1, 1] * 6


@pytest.mark.parametrize("independence", [Independence.SHOWN, Independence.UNKNOWN])
def test_a_batch_whose_outputs_are_wider_than_those_before_is_looked_at_at_once(independence: Independence) -> None:
    """Texts of one word first, say, and then longer ones."""
    _, desk = bench(lambda x: np.arange(int(x.max())) < x[:, None], independence)
    widths = [1] * 8
    for batch in range(60):
        widths = [1, 1, 1, 1, 1, 3, 2, 1] if batch > 50 else widths
        for width, answer in zip(widths, ask(desk, *map(rows_of, widths)), strict=True):
            assert answer == [[1] * width]


def _as_size_rounds(x: Any) -> Any:
    """Rows are independent; a run of several rounds otherwise than one of a lone row, as kernels do."""
    return x + (1e-4 if len(x) > 1 else 0)


def test_what_the_size_of_a_run_rounds_is_no_dependence(caplog: pytest.LogCaptureFixture) -> None:
    """One number near zero tells nothing of what rounding is; the others beside it do."""
    model, desk = bench(_as_size_rounds, Independence.SHOWN)
    for _ in range(600):
        ask(desk, rows_of(1e-6), rows_of(1), rows_of(-1), rows_of(2))
    assert desk.executor.trials.of(SPEC).looked_count >= 7
    assert model.runs[-1] == 4
    assert not caplog.records


def test_a_near_tie_that_the_size_of_a_run_decides_is_no_dependence(caplog: pytest.LogCaptureFixture) -> None:
    model, desk = bench(lambda x: (_as_size_rounds(x) > 0).astype(np.int64), Independence.SHOWN)
    for _ in range(600):
        assert ask(desk, rows_of(-5e-5), rows_of(1), rows_of(-1), rows_of(2)) == [[1], [1], [0], [1]]
    assert model.runs[-1] == 4
    assert not caplog.records


def test_what_one_request_of_a_batch_gets_by_another_is_dependence_all_the_same() -> None:
    """Nobody else is in the run that has the size of the batch, so that it says what the request says alone."""
    _, desk = bench(lambda x: x * (x != -x.max()), Independence.SHOWN)
    for _ in range(300):
        ask(desk, rows_of(-2), rows_of(1), rows_of(0.5), rows_of(2))
    assert ask(desk, rows_of(-2), rows_of(1), rows_of(0.5), rows_of(2)) == [[-2], [1], [0.5], [2]]
    assert desk.executor.trials.found


def test_copies_share_batches_again_after_a_batch_of_them_that_failed() -> None:
    fails = False

    def function(x: Any) -> Any:
        if fails:
            raise RunFailure(Code.RESOURCE_EXHAUSTED, "no memory")
        return x

    model, desk = bench(function)
    alike = [rows_of(3) for _ in range(4)]
    while model.runs != [4]:
        model.runs.clear()
        ask(desk, *alike)
    fails = True
    ask(desk, *alike)
    fails = False
    model.runs.clear()
    assert ask(desk, *alike) == [[3]] * 4
    assert model.runs == [4]
