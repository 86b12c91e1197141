"""5.6: which failed loads are repeated, when, how often."""

from __future__ import annotations

import pytest

from ringserve.broker.messages import Code, Failure
from ringserve.broker.orders import Order
from ringserve.broker.retries import Retries

S = 1_000_000_000
ORDER = Order("m", 1, "/m/1")


def waits(retries: Retries, code: Code, count: int) -> list[int]:
    """Seconds until each next try; -1 when there is none."""
    found, now = [], 100 * S
    for _ in range(count):
        attempts = retries.failed(ORDER, Failure(code, "text"), now)
        found.append((attempts.retry_ns - now) // S if not attempts.over else -1)
        now = attempts.retry_ns or now
    return found


def test_waits_double_up_to_the_longest_and_end() -> None:
    assert waits(Retries(6, 8 * S), Code.UNAVAILABLE, 7) == [1, 2, 4, 8, 8, 8, -1]


@pytest.mark.parametrize(
    "code",
    [Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.DATA_LOSS, Code.UNIMPLEMENTED],
)
def test_what_lies_in_the_files_is_not_repeated(code: Code) -> None:
    assert waits(Retries(5, 60 * S), code, 1) == [-1]


def test_nor_is_what_the_caller_says_is_over() -> None:
    assert Retries(5, 60 * S).failed(ORDER, Failure(Code.INTERNAL, ""), 0, final=True).over


def test_no_retries_means_one_try() -> None:
    assert waits(Retries(0, 60 * S), Code.UNAVAILABLE, 1) == [-1]


def test_no_pause_is_a_pause_of_nothing() -> None:
    assert waits(Retries(2, 0), Code.UNAVAILABLE, 3) == [0, 0, -1]


def test_it_may_be_loaded_before_any_failure_when_its_time_has_come_and_never_when_it_is_over() -> None:
    retries = Retries(1, 60 * S)
    assert retries.may_load(ORDER, 0)
    retries.failed(ORDER, Failure(Code.ABORTED, ""), 100 * S)
    assert not retries.may_load(ORDER, 101 * S - 1)
    assert retries.wake_ns(100 * S) == 101 * S
    assert retries.may_load(ORDER, 101 * S)
    retries.failed(ORDER, Failure(Code.ABORTED, ""), 101 * S)
    assert not retries.may_load(ORDER, 10_000 * S)
    assert retries.wake_ns(101 * S) == 0


def test_what_changed_on_disk_begins_anew() -> None:
    retries = Retries(0, 60 * S)
    retries.failed(ORDER, Failure(Code.NOT_FOUND, ""), 0)
    assert retries.may_load(ORDER._replace(stamp=1), 0)
    retries.forget(ORDER)
    assert retries.may_load(ORDER, 0)
    assert retries.of(ORDER) is None


def test_only_what_is_still_wanted_of_a_model_is_remembered() -> None:
    retries = Retries(0, 60 * S)
    others = [ORDER, ORDER._replace(version=2), ORDER._replace(name="other")]
    for order in others:
        retries.failed(order, Failure(Code.NOT_FOUND, ""), 0)
    retries.keep_only("m", {ORDER})
    assert [retries.of(order) is not None for order in others] == [True, False, True]
