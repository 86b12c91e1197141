"""Trials of requests that are run alone and together, with models that are plain functions."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code, InputSpec, ModelOptions
from ringserve.workers.failures import RunFailure
from ringserve.workers.interface import Independence
from tests.workers.desk import rows_of
from tests.workers.functions import SPEC, ask, bench


def softmax(x: Any) -> Any:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


@pytest.mark.parametrize("frontends", [1, 2])
def test_what_agrees_shares_batches_soon(frontends: int) -> None:
    model, desk = bench(lambda x: x * 2, frontends=frontends)
    for _ in range(4):
        model.runs.clear()
        assert ask(desk, rows_of(1, 2), rows_of(3), rows_of(4)) == [[2, 4], [6], [8]]
        assert model.runs == [2, 1, 1, 4]
    model.runs.clear()
    assert ask(desk, rows_of(1, 2), rows_of(3), rows_of(4)) == [[2, 4], [6], [8]]
    assert model.runs == [4]


def test_what_differs_never_does_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model, desk = bench(softmax)
    for _ in range(5):
        model.runs.clear()
        assert ask(desk, rows_of(1), rows_of(3), rows_of(4)) == [[1], [1], [1]]
    assert model.runs == [1, 1, 1]
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert record.getMessage() == (
        "model m version 1, signature s: y differed between a request run alone and together with others, so its "
        'requests are run one by one from now on (row_independence = "assumed" has them share batches)'
    )


def test_nearly_equal_scores_that_change_places_once_condemn_nobody() -> None:
    batches = itertools.count()
    model, desk = bench(lambda x: x if len(x) == 1 or next(batches) else x[::-1])
    for _ in range(5):
        assert ask(desk, rows_of(1), rows_of(3)) == [[1], [3]]
    for _ in range(4):
        ask(desk, rows_of(1), rows_of(3))
    model.runs.clear()
    ask(desk, rows_of(1), rows_of(3))
    assert model.runs == [2]


@pytest.mark.parametrize("sides", [2, 1000])
def test_random_outputs_say_nothing_and_condemn_nobody(sides: int) -> None:
    random = np.random.default_rng(0)
    model, desk = bench(lambda x: random.integers(sides, size=len(x)))
    for _ in range(64):
        ask(desk, rows_of(1), rows_of(3))
    model.runs.clear()
    ask(desk, rows_of(1), rows_of(3))
    assert model.runs == [2]


def test_a_model_of_one_row_stays_alone_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def one_row(x: Any) -> Any:
        if len(x) > 1:
            raise RunFailure(Code.INVALID_ARGUMENT, "one row only")
        return x

    model, desk = bench(one_row)
    for _ in range(9):
        model.runs.clear()
        assert ask(desk, rows_of(1), rows_of(3)) == [[1], [3]]
    assert model.runs == [1, 1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_outputs_that_do_not_follow_the_rows_are_found_on_trial(caplog: pytest.LogCaptureFixture) -> None:
    model, desk = bench(lambda x: x[:1])
    for _ in range(2):
        model.runs.clear()
        assert ask(desk, rows_of(1), rows_of(3, 4)) == [[1], [3]]
    assert model.runs == [1, 2]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_requests_that_fail_are_left_out() -> None:
    def picky(x: Any) -> Any:
        if (x < 0).any():
            raise RunFailure(Code.INVALID_ARGUMENT, "negative")
        return x

    model, desk = bench(picky)
    for _ in range(8):
        model.runs.clear()
        good, bad, fine = ask(desk, rows_of(1), rows_of(-3), rows_of(4))
        assert (good, bad, fine) == ([1], (Code.INVALID_ARGUMENT, "negative"), [4])
        assert model.runs == [1, 1, 1, 2]
    ask(desk, rows_of(1), rows_of(4))
    assert model.runs[-1:] == [2]


def test_a_lone_request_proves_nothing_and_is_not_padded() -> None:
    """Beside copies of its own row nearly every model says what it says without."""
    for function in (softmax, lambda x: x - x.mean()):
        model, desk = bench(function, allowed_batch_rows={"m": [4]})
        for _ in range(65):
            ask(desk, rows_of(1, 1))
        assert model.runs == [2] * 65


def test_noise_is_no_other_answer() -> None:
    """Answers that differ by less than what is taken for rounding prove as little as those that are the same."""
    model, desk = bench(lambda x: 1 + x * 1e-6)
    for _ in range(70):
        ask(desk, rows_of(1), rows_of(2))
    assert model.runs == [1, 1, 2] * 70


def less_mean(x: Any) -> Any:
    return x - x.mean()


def test_requests_that_are_all_the_same_share_batches_and_prove_nothing() -> None:
    """A load test asks the same all the time. What comes after it is answered as if it came alone."""
    model, desk = bench(less_mean)
    for _ in range(4):
        assert ask(desk, *[rows_of(3, 5)] * 4) == [[-1, 1]] * 4
    assert model.runs == [2, 2, 2, 2, 8] * 4
    model.runs.clear()
    for _ in range(100):
        answers = ask(desk, *[rows_of(3, 5)] * 6)
        assert answers == [[-1, 1]] * 6
    assert model.runs.count(12) == 100
    assert len(model.runs) < 130
    for i in range(20):
        assert ask(desk, *(rows_of(j) for j in range(i + 2))) == [[0]] * (i + 2)


@pytest.mark.parametrize(
    "requests", [(rows_of(1), rows_of(1, 1)), (rows_of(1), rows_of(1), rows_of(2)), (rows_of(0.0), rows_of(-0.0))]
)
def test_requests_of_other_rows_are_no_copies(requests: tuple[Any, ...]) -> None:
    model, desk = bench(lambda x: x * 0)
    for _ in range(9):
        ask(desk, *requests)
    model.runs.clear()
    ask(desk, *requests)
    assert model.runs == [*(len(request["x"]) for request in requests), sum(len(each["x"]) for each in requests)]


def test_the_broker_hears_that_copies_may_come_together_and_others_may_not() -> None:
    _, desk = bench(lambda x: x * 0)
    for _ in range(4):
        ask(desk, rows_of(1), rows_of(1))
    for values, told in (([1] * 9, (0, 0)), ([1] * 8 + [2], (5, 4)), ([1] * 9, (0, 0))):
        batch = desk.start(SPEC, [desk.part(rows_of(value)) for value in values])
        desk.read(batch, SPEC, {})
        assert batch.done is not None
        assert (batch.done.parts_left, batch.done.parts_max) == told


def test_a_batch_runs_few_requests_one_by_one_and_leaves_the_others() -> None:
    """Nobody is answered before the batch is over, and its lease is for one run, whatever came together."""
    _, desk = bench(softmax)
    parts = [desk.part(rows_of(i)) for i in range(10)]
    for run in range(2):
        answers: dict[int, Any] = {}
        batch = desk.start(SPEC, parts[run * 4 :])
        desk.read(batch, SPEC, answers)
        assert batch.done is not None
        assert list(answers) == [part[1] for part in parts[run * 4 :][:4]]
        assert (batch.done.parts_left, batch.done.parts_max) == ((6, 4), (2, 1))[run]
    batch = desk.start(SPEC, parts[8:])
    assert batch.done is not None
    assert (len(batch.take_results()), batch.done.parts_left, batch.done.parts_max) == (1, 1, 1)


def test_the_broker_learns_what_a_shared_batch_takes_and_where_it_is_long_what_the_trial_took() -> None:
    """By the lone runs, which cost by the request, no batch would ever be larger than one."""
    for step_ns, run_ns in ((10, 10), (200_000_000, 1_000_000_000)):
        now_ns = itertools.count(step=step_ns)
        model, desk = bench(lambda x: x)
        desk.executor._clock_ns = lambda: next(now_ns)  # noqa: B023
        _, done = desk.run(SPEC, [desk.part(rows_of(i)) for i in range(4)])
        assert model.runs == [1] * 4 + [4]
        assert (done.run_ns, done.rows, done.parts_left) == (run_ns, 4, 0)


def test_a_batch_that_waited_for_room_is_not_compared() -> None:
    """Its first results are out, and whoever asked may have filled the requests' memory with others."""
    model, desk = bench(lambda x: x, result_bytes=4096)
    requests = [rows_of(*np.full(900, i)) for i in range(3)]
    assert [answer[0] for answer in ask(desk, *requests)] == [0, 1, 2]
    assert model.runs == [900] * 3


@pytest.mark.parametrize(
    ("independence", "batches", "runs"),
    [(Independence.UNKNOWN, 1, [1, 1, 2]), (Independence.SHOWN, 4, [2, 2, 2, 2, 1, 1])],
)
def test_nothing_keeps_a_ring_after_a_comparison(
    independence: Independence, batches: int, runs: list[int]
) -> None:
    model, desk = bench(lambda x: x, independence)  # the outputs are views of the feeds
    for _ in range(batches):
        ask(desk, rows_of(1), rows_of(2))
    assert model.runs == runs
    reader = desk.rings[1].reader
    desk.mapped.clear()
    reader.close()


def test_what_is_assumed_is_not_tried_and_trials_go_on_where_they_were() -> None:
    model, desk = bench(lambda x: x)
    for assumed, runs in ((False, [1, 1, 2]), (True, [2]), (False, [1, 1, 2])):
        desk.executor.set_options("m", ModelOptions("m", 8, [], False, False, assumed))
        model.runs.clear()
        ask(desk, rows_of(1), rows_of(2))
        assert model.runs == runs


def test_open_axes_are_compared_across_lanes_and_padded_lanes_share_batches_at_once() -> None:
    model, desk = bench(lambda x: x.sum(axis=tuple(range(1, x.ndim))))
    for width in range(1, 10):
        spec = SPEC._replace(inputs=(InputSpec("x", 1, (width,)),))
        ask(desk, *({"x": np.full((1, width), i, np.float32)} for i in (1, 2)), spec=spec)
    assert model.runs == [1, 1, 2] * 8 + [2]
    model, desk = bench(lambda x: x.sum(axis=1))
    spec = SPEC._replace(inputs=(InputSpec("x", 1, (-1,)),))
    parts = [desk.part({"x": np.ones((1, width), np.float32)}, spec=spec) for width in (1, 3)]
    answers, _ = desk.run(spec, parts)
    assert [answers[part[1]][0].tolist() for part in parts] == [[1], [3]]
    assert model.runs == [2]


def test_only_some_elements_of_an_answer_are_kept() -> None:
    from ringserve.workers.comparing import Answers

    answers = Answers()
    answers.keep([1, 5, 1, 0], [np.zeros((1, 1000, 1000), np.int8), np.zeros(3)])
    ((large, small),) = answers._samples.values()
    assert (4000 < large.elements.size <= 4096, small.elements.size) == (True, 3)


def test_an_output_that_follows_the_rows_by_chance_only_is_no_random_one() -> None:
    """Always four values: as many as rows where four requests came, and not the rows' own."""
    _, desk = bench(lambda x: np.arange(4.0) + x.sum())
    for _ in range(100):
        ask(desk, *(rows_of(value) for value in (1, 2, 3, 4)))
    assert ask(desk, rows_of(1)) == [[1, 2, 3, 4]]
    assert desk.executor.trials.found
