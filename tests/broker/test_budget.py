"""What versions need of memory, from their files, and whether that fits."""

from __future__ import annotations

import pytest

from ringserve.broker.budget import Budget, Limits, Need, Share, Weight, weigh
from ringserve.broker.messages import Code
from ringserve.broker.orders import Order
from ringserve.broker.stability import FileInfo

MIB = 1024 * 1024


def order_of(name: str, version: int = 1) -> Order:
    return Order(name, version, f"/{name}/{version}")


def budget_of(limits: Limits, workers: int = 2) -> Budget:
    """Models are in the group of their first letter."""
    return Budget(limits, lambda name: Share(name[0], workers))



def test_files_weigh() -> None:
    checkpoint = [FileInfo(f"variables/variables.data-0000{shard}-of-00002", 100 + shard, 1) for shard in (0, 1)]
    rest = [
        FileInfo("variables", -1, 0),
        FileInfo("variables/variables.index", 7, 1),
        FileInfo("saved_model.pb", 20, 1),
        FileInfo("assets/vocabulary", 5_000, 1),
    ]
    assert weigh([*checkpoint, *rest], prefer_tflite=False) == Weight(201, 20)
    lite = FileInfo("model.tflite", 33, 1)
    assert weigh([*checkpoint, *rest, lite], prefer_tflite=False) == Weight(201, 20)
    assert weigh([*checkpoint, *rest, lite], prefer_tflite=True) == Weight(0, 33)
    assert weigh([lite], prefer_tflite=False) == Weight(0, 33)
    assert weigh([], prefer_tflite=False) == Weight(0, 0)


def test_shared_weights_count_once_and_private_ones_for_each_worker() -> None:
    budget = budget_of(Limits(1_000, "x", fixed_bytes=100), workers=4)
    budget.put(order_of("a"), Need(200, 50))
    assert budget.used_bytes == 500
    assert budget.refusal(order_of("b"), Need(100, 100)) is None
    assert budget.refusal(order_of("b"), Need(101, 100)) is not None
    budget.put(order_of("a"), Need(100, 0))
    assert budget.used_bytes == 200
    budget.drop(order_of("a"))
    assert budget.used_bytes == 100


def test_what_is_counted_already_does_not_count_twice() -> None:
    budget = budget_of(Limits(1_000, "x"))
    budget.put(order_of("a"), Need(900, 0))
    assert budget.refusal(order_of("a"), Need(1_000, 0)) is None
    assert budget.refusal(order_of("a"), Need(1_001, 0)) is not None


def test_a_group_has_its_own_limit() -> None:
    limits = Limits(10_000, "x", group_bytes={"a": 500}, group_fixed_bytes={"a": 100})
    budget = budget_of(limits)
    assert budget.refusal(order_of("a"), Need(400, 0)) is None
    assert budget.refusal(order_of("b"), Need(4_000, 0)) is None
    refusal = budget.refusal(order_of("a"), Need(401, 0))
    assert refusal is not None
    assert "memory_bytes_max of the worker group 'a'" in refusal.text


def test_no_limit_refuses_nothing() -> None:
    assert budget_of(Limits()).refusal(order_of("a"), Need(10**15, 10**15)) is None


def test_a_refusal_says_what_is_needed_what_is_left_and_which_setting_changes_that() -> None:
    budget = budget_of(Limits(1_000 * MIB, "memory_bytes_max", fixed_bytes=300 * MIB))
    budget.put(order_of("a"), Need(400 * MIB, 0))
    assert budget.refusal(order_of("b", 2), Need(250 * MIB, 60 * MIB)) == (
        Code.RESOURCE_EXHAUSTED,
        "Loading {name: b version: 2} takes about 370 MiB of memory (250 MiB that workers share and 60 MiB in each of "
        "2 workers), and 300 MiB of 1000 MiB are left; the limit is memory_bytes_max",
    )


@pytest.mark.parametrize(
    ("change", "freed"),
    [
        (lambda budget: budget.put(order_of("a"), Need(50, 0)), True),
        (lambda budget: budget.put(order_of("a"), Need(150, 0)), False),
        (lambda budget: budget.drop(order_of("a")), True),
        (lambda budget: budget.drop(order_of("z")), False),
        (lambda budget: budget.set_limits(Limits(2_000, "x")), True),
        (lambda budget: budget.set_limits(Limits(1_000, "x")), False),
    ],
)
def test_it_is_known_when_there_is_more_room(change: object, freed: bool) -> None:
    budget = budget_of(Limits(1_000, "x"))
    budget.put(order_of("a"), Need(100, 0))
    assert not budget.freed
    change(budget)  # type: ignore[operator]
    assert budget.freed == freed
