"""Workers: every move of the table and every move that is not in it; who serves what."""

from __future__ import annotations

import itertools

import pytest

from ringserve.broker.fleet import MOVES, Fleet, IllegalMoveError, Worker, WorkerState, preference
from ringserve.broker.messages import ModelVersion

M1, M2 = ModelVersion("m", 1), ModelVersion("m", 2)


def fleet_of(*loaded: set[tuple[str, int]]) -> tuple[Fleet, list[Worker]]:
    fleet = Fleet(2)
    workers = []
    for index, versions in enumerate(loaded):
        worker = fleet.joined(10 + index, index, [])
        fleet.ready(worker, versions)
        workers.append(worker)
    return fleet, workers


def put_into(state: WorkerState) -> tuple[Fleet, Worker]:
    fleet = Fleet(2)
    worker = fleet.joined(10, 0, [])
    if state is not WorkerState.JOINING:
        fleet.ready(worker, {M1})
    if state is WorkerState.DRAINING:
        fleet.drain(worker)
    if state is WorkerState.GONE:
        fleet.left(worker)
    return fleet, worker


@pytest.mark.parametrize(("before", "after"), list(itertools.product(WorkerState, WorkerState)))
def test_moves(before: WorkerState, after: WorkerState) -> None:
    fleet, worker = put_into(before)

    def move() -> None:
        match after:
            case WorkerState.JOINING:
                fleet.workers[10] = worker
                fleet.joined(10, 0, [])
            case WorkerState.READY:
                fleet.ready(worker, {M1})
            case WorkerState.DRAINING:
                fleet.drain(worker)
            case WorkerState.GONE:
                fleet.left(worker)

    if after in MOVES[before]:
        move()
        assert worker.state is after
    else:
        with pytest.raises(IllegalMoveError):
            move()
        assert worker.state is before


@pytest.mark.parametrize("state", list(WorkerState))
def test_only_ready_and_draining_workers_serve(state: WorkerState) -> None:
    fleet, worker = put_into(state)
    serves = state in (WorkerState.READY, WorkerState.DRAINING)
    assert fleet.serving(M1) == ([worker] if serves else [])
    assert fleet.has_room() == serves
    assert (10 in fleet.workers) == (state is not WorkerState.GONE)


def test_a_draining_worker_is_the_last_resort() -> None:
    fleet, (old, new) = fleet_of({("m", 1), ("m", 2)}, {("m", 2)})
    fleet.drain(old)
    assert (fleet.serving(M1), fleet.serving(M2)) == ([old], [new])
    assert fleet.alone(old) == {M1}
    fleet.left(new)
    assert fleet.serving(M2) == [old]
    assert fleet.alone(old) == {M1, M2}


def test_a_retired_worker_is_no_resort_at_all() -> None:
    fleet, (worker,) = fleet_of({("m", 1)})
    fleet.drain(worker)
    fleet.retire(worker)
    assert fleet.serving(M1) == []
    assert not fleet.has_room()
    fleet.left(worker)


def test_a_ready_worker_may_have_loaded_more() -> None:
    fleet, (worker,) = fleet_of({("m", 1)})
    fleet.more(worker, {("m", 1), ("m", 2)})
    assert (fleet.serving(M1), fleet.serving(M2)) == ([worker], [worker])
    assert worker.loaded == {M1, M2}


def test_a_worker_that_drains_has_no_more_to_offer() -> None:
    fleet, (worker,) = fleet_of({("m", 1)})
    fleet.drain(worker)
    fleet.more(worker, {("m", 2)})
    assert fleet.serving(M2) == []


def test_serving_is_by_model_version() -> None:
    fleet, (first, second) = fleet_of({("m", 1)}, {("m", 1), ("m", 2)})
    assert set(fleet.serving(M1)) == {first, second}
    assert fleet.serving(M2) == [second]
    fleet.left(second)
    assert (fleet.serving(M1), fleet.serving(M2)) == ([first], [])


def test_workers_max_names_the_same_places_of_the_fleet_after_a_replacement() -> None:
    fleet, _ = fleet_of(*[{("m", 1)}] * 4)
    (only,) = fleet.serving(M1, 1)
    assert only.index == min(range(4), key=lambda index: preference("m", index))
    fleet.left(only)
    (stand_in,) = fleet.serving(M1, 1)
    assert stand_in is not only
    replacement = fleet.joined(99, only.index, [])
    fleet.ready(replacement, {M1})
    assert fleet.serving(M1, 1) == [replacement]
    assert len(fleet.serving(M1, 3)) == 3
    assert len(fleet.serving(M1, 0)) == 4


def test_models_that_may_use_one_worker_are_spread_over_the_fleet() -> None:
    first = [min(range(8), key=lambda index: preference(f"model{i}", index)) for i in range(200)]
    assert min(first.count(index) for index in range(8)) >= 10


def test_credit_must_be_at_least_one() -> None:
    with pytest.raises(ValueError, match="credit_max is 0"):
        Fleet(0)
