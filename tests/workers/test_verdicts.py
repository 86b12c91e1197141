"""Trials: what so many batches that agreed, differed or failed say of a signature."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.broker.messages import Dependent, InputSpec, LaneSpec
from ringserve.workers.trial import Trial, Trials, Verdict


def trust(trial: Trial) -> int:
    """Let batches agree until it is trusted: how many that took."""
    for count in range(1000):
        if trial.verdict is Verdict.TRUSTED:
            return count
        trial.agreed(3)
    raise AssertionError


def looks(trial: Trial, count: int, others: int | None = 3) -> list[int]:
    """So many shared batches that agree: how many there were from one that is looked at to the next."""
    found = [0]
    for _ in range(count):
        found[-1] += 1
        if trial.is_due():
            trial.agreed(others)
            found.append(0)
    return found[:-1]


@pytest.mark.parametrize(("others", "batches"), [(3, 4), (1, 8), (None, 64)])
def test_a_few_batches_of_different_answers_are_enough_and_many_of_random_ones(
    others: int | None, batches: int
) -> None:
    trial = Trial()
    for _ in range(batches):
        assert trial.verdict is Verdict.ON_TRIAL
        trial.agreed(others)
    assert trial.verdict is Verdict.TRUSTED


def test_answers_that_are_all_the_same_help_and_never_decide() -> None:
    trial = Trial()
    for _ in range(1000):
        trial.agreed(0)
    assert (trial.verdict, trial.copies_agree) == (Verdict.ON_TRIAL, True)
    trial.agreed(1)
    assert trial.verdict is Verdict.TRUSTED


def test_what_shares_batches_is_looked_at_ever_more_rarely_but_always() -> None:
    assert looks(Trial(shown=True), 3000) == [4, 8, 16, 32, 64, 128, 256, 512, 512, 512, 512]
    assert looks(Trial(shown=True), 1000, None) == [4, 8, 16, 32, 64, 128, 256]
    assert looks(Trial(shown=True), 600, 0) == [4, 8, 16, 32, 64, 128, 128, 128]


def test_trust_that_was_lost_takes_twice_as_long_to_come_back() -> None:
    trial = Trial()
    counts = []
    for _ in range(7):
        counts.append(trust(trial))
        looks(trial, 100)
        trial.differed()
        assert (trial.verdict, trial.copies_agree, trial.lost_trust) == (Verdict.ON_TRIAL, False, True)
    assert counts == [4, 8, 16, 32, 64, 64, 64]
    trust(trial)
    assert looks(trial, 12) == [4, 8]


def test_a_second_difference_before_trust_is_back_decides_and_is_told_once() -> None:
    told: list[str] = []
    trial = Trial(shown=True, on_dependent=lambda: told.append("told"))
    trial.differed()
    trial.agreed(3)
    assert (trial.verdict, told) == (Verdict.ON_TRIAL, [])
    trial.differed()
    assert (trial.verdict, told) == (Verdict.DEPENDENT, ["told"])


def test_what_one_worker_finds_another_heeds() -> None:
    here, there = Trials(), Trials()
    spec = LaneSpec("m", 1, "s", (InputSpec("x", 1, ()),), ("b", "a"), True)
    trial, other = here.of(spec), there.of(spec, shown=True)
    trial.differed()
    trial.differed()
    (found,) = here.found
    assert found == Dependent("m", 1, "s", ["a", "b"])
    there.hear(found)
    for _ in range(9):
        other.agreed(3)
    assert (other.verdict, there.found) == (Verdict.DEPENDENT, [])


def test_one_batch_that_differs_may_be_chance_and_two_are_not() -> None:
    trial = Trial()
    trial.agreed(3)
    trial.differed()
    for _ in range(3):
        trial.agreed(3)  # what was said before the difference counts no more
    verdicts = [trial.verdict]
    trial.differed()
    assert [*verdicts, trial.verdict] == [Verdict.ON_TRIAL, Verdict.DEPENDENT]


def test_what_cannot_be_run_together_stays_alone() -> None:
    trial = Trial()
    for _ in range(8):
        assert trial.verdict is Verdict.ON_TRIAL
        trial.failed()
    assert trial.verdict is Verdict.ALONE


@given(st.lists(st.sampled_from(["agreed", "differed", "failed"]), max_size=40))
def test_nothing_that_differed_twice_is_trusted(events: list[str]) -> None:
    trial = Trial()
    for event in events:
        if trial.verdict is not Verdict.ON_TRIAL:
            break
        if event == "agreed":
            trial.agreed(3)
        else:
            getattr(trial, event)()
    assert trial.verdict is not Verdict.TRUSTED or events.count("differed") < 2 or events.count("agreed") >= 4


def test_lanes_of_other_shapes_share_a_trial_and_those_of_other_outputs_do_not() -> None:
    trials = Trials()
    wide, narrow = (LaneSpec("m", 1, "s", (InputSpec("x", 1, (size,)),), ("a", "b"), True) for size in (3, 4))
    trial = trials.of(wide)
    assert trials.of(narrow) is trial
    assert trials.of(wide._replace(outputs=("b", "a"))) is trial
    for other in (wide._replace(outputs=("a",)), wide._replace(version=2), wide._replace(signature="t")):
        assert trials.of(other) is not trial


def test_trials_are_bounded() -> None:
    trials = Trials()
    spec = LaneSpec("m", 1, "s", (), (), True)
    first = trials.of(spec)
    for version in range(2, 1026):
        trials.of(spec._replace(version=version))
    assert trials.of(spec) is not first
