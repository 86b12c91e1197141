"""5.7: labels take effect when their version is available, move as one, and stay."""

from __future__ import annotations

import pytest

from ringserve.broker.labels import IsAvailable, Labels
from ringserve.broker.messages import Code


def available(*versions: tuple[str, int]) -> IsAvailable:
    return lambda name, version: (name, version) in versions


def test_those_of_the_start_take_effect_when_their_version_comes() -> None:
    """tensorflow/serving #1413: there, labels in the initial config keep the server from starting."""
    labels = Labels(allow_unavailable=False)
    labels.configure({"m": {"stable": 1, "canary": 2}})
    assert labels.assigned() == {}
    assert labels.settle(available(("m", 1)))
    assert labels.assigned() == {"m": {"stable": 1}}
    assert labels.settle(available(("m", 1), ("m", 2)))
    assert labels.assigned() == {"m": {"stable": 1, "canary": 2}}
    assert not labels.settle(available(("m", 1), ("m", 2)))


def test_a_label_stays_when_its_version_goes() -> None:
    labels = Labels(allow_unavailable=False)
    labels.configure({"m": {"stable": 1}})
    labels.settle(available(("m", 1)))
    labels.settle(available())
    assert labels.assigned() == {"m": {"stable": 1}}


def test_a_label_that_moves_keeps_its_version_until_the_new_one_is_there() -> None:
    labels = Labels(allow_unavailable=False)
    labels.configure({"m": {"stable": 1}})
    labels.settle(available(("m", 1)))
    labels.configure({"m": {"stable": 2}})
    assert labels.assigned() == {"m": {"stable": 1}}
    labels.settle(available(("m", 2)))
    assert labels.assigned() == {"m": {"stable": 2}}


def test_a_label_or_model_that_is_dropped_disappears_at_once() -> None:
    labels = Labels(allow_unavailable=False)
    labels.configure({"m": {"stable": 1, "canary": 1}, "n": {"x": 1}})
    labels.settle(lambda name, version: True)
    labels.configure({"m": {"stable": 1}})
    assert labels.assigned() == {"m": {"stable": 1}}
    assert labels.of("m") == {"stable": 1}
    assert labels.of("n") == {}


@pytest.mark.parametrize(
    ("allow", "before", "wanted", "refused"),
    [
        (False, {}, {"a": 1}, False),  # available
        (False, {}, {"a": 9}, True),
        (False, {"a": 9}, {"a": 9}, True),  # even unchanged, once its version is gone
        (True, {}, {"a": 9}, False),  # new
        (True, {"a": 9}, {"a": 9}, False),  # unchanged
        (True, {"a": 1}, {"a": 9}, True),  # moved
        (True, {"a": 1}, {"a": 1, "b": 9}, False),
    ],
)
def test_5_7_which_assignments_are_refused(
    allow: bool, before: dict[str, int], wanted: dict[str, int], refused: bool
) -> None:
    labels = Labels(allow_unavailable=allow)
    labels.configure({"m": before})
    labels.settle(lambda name, version: True)
    failure = labels.refusal("m", wanted, available(("m", 1)))
    assert (failure is not None) == refused
    if failure is not None:
        assert failure == (
            Code.FAILED_PRECONDITION,
            "Request to assign label to version 9 of model m, which is not currently available for inference",
        )


def test_5_7_with_the_flag_a_new_label_takes_effect_before_its_version_is_there() -> None:
    labels = Labels(allow_unavailable=True)
    labels.configure({"m": {"stable": 7}})
    assert labels.assigned() == {"m": {"stable": 7}}
