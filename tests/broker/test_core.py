"""The core's decisions about batches: what goes where, when, and when to ask again."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker import core
from ringserve.broker.lanes import Lane
from ringserve.broker.messages import Code
from ringserve.broker.placement import Placement, place
from ringserve.broker.policy import LanePolicy
from tests.broker.kit import FRONTEND, MS, NOW, OTHER_FRONTEND, Bench, sent, spec_of, told

US = 1_000


def test_whatever_waits_goes_as_soon_as_a_worker_is_free() -> None:
    bench = Bench()
    turn = bench.submit((1, 1))
    assert sent(turn) == [(10, [(1, 1, 0)])]
    assert sent(bench.submit((2, 1), (3, 2))) == []
    assert sent(bench.submit((4, 1))) == []
    after = bench.done(10, turn.executes[0][1].batch_id)
    assert sent(after) == [(10, [(2, 1, 0), (3, 2, 0), (4, 1, 0)])]
    assert after.executes[0][1].lane_key == bench.key
    assert after.executes[0][1].parts[0] == [FRONTEND, 2, 1, 0, 64]


def test_a_batch_holds_requests_of_several_frontends_of_one_lane_only() -> None:
    bench = Bench()
    bench.core.frontend_joined(OTHER_FRONTEND)
    other_key = bench.lane(spec_of(signature="other"))
    first = bench.submit((1, 1))
    bench.submit((2, 1))
    bench.submit((2, 1), frontend_id=OTHER_FRONTEND)
    bench.submit((3, 1), key=other_key)
    turn = bench.done(10, first.executes[0][1].batch_id)
    (_, execute), *rest = turn.executes
    assert not rest
    lanes = {execute.lane_key: execute.parts}
    (_, execute), *rest = bench.done(10, execute.batch_id).executes
    lanes[execute.lane_key] = execute.parts
    assert {key: [part[:2] for part in parts] for key, parts in lanes.items()} == {
        bench.key: [[FRONTEND, 2], [OTHER_FRONTEND, 2]],
        other_key: [[FRONTEND, 3]],
    }


@pytest.mark.parametrize(
    ("after_ns", "rows", "sent_now"), [(0, 1, False), (4 * MS, 1, False), (5 * MS, 1, True), (0, 7, True)]
)
def test_timeout_batching(after_ns: int, rows: int, sent_now: bool) -> None:
    bench = Bench(batching="timeout", batch_wait_ns_max=5 * MS, batch_rows_max=8)
    first = bench.submit((1, 1))
    assert not first.executes
    assert first.wake_ns == NOW + 5 * MS
    bench.now_ns += after_ns
    turn = bench.submit((2, rows))
    assert bool(turn.executes) == sent_now
    if sent_now:
        assert sent(turn) == [(10, [(1, 1, 0), (2, rows, 0)])]


def test_no_batching() -> None:
    bench = Bench(2, batching="none", credit_max=1, batch_rows_max=8)
    turn = bench.submit((1, 100), (2, 1), (3, 1))
    assert {request for _, parts in sent(turn) for request in parts} == {(1, 100, 0), (2, 1, 0)}
    assert bench.counted("queued") == 1


def test_a_large_request_is_split_over_workers_and_done_when_all_its_parts_are() -> None:
    bench = Bench(3, batch_rows_max=8)
    turn = bench.submit((1, 24))
    assert sorted(parts for _, parts in sent(turn)) == [[(1, 8, 0)], [(1, 8, 8)], [(1, 8, 16)]]
    for number, (worker_id, execute) in enumerate(turn.executes):
        assert (bench.counted("done"), bench.counted("split"), bench.counted("leases")) == (0, 1, 3 - number)
        bench.done(worker_id, execute.batch_id, rows=execute.parts[0][2])
    assert (bench.counted("done"), bench.counted("split")) == (1, 0)


def test_an_unknown_lane_starts_on_one_worker_and_takes_another_when_its_run_takes_long() -> None:
    bench = Bench(2)
    first = bench.submit((1, 1))
    ((home, _),) = first.executes
    second = bench.submit((2, 1))
    assert not second.executes
    assert second.wake_ns == NOW + MS
    assert not bench.turn(MS - 1).executes
    turn = bench.turn(1)
    ((other, _),) = turn.executes
    assert other != home


def test_an_expensive_lane_uses_all_workers_and_a_cheap_one_stays() -> None:
    for run_ns, workers_used in ((100 * US, 1), (20 * MS, 4)):
        bench = Bench(4)
        bench.learn(run_ns)
        used = {worker_id for i in range(8) for worker_id, _ in bench.submit((i, 1)).executes}
        assert len(used) == workers_used


def test_waiting_rows_are_shared_out_when_rows_cost_the_time() -> None:
    bench = Bench(2, batch_enough_ns=0)
    bench.learn(4 * MS, rows=1)
    bench.learn(32 * MS, rows=8)
    assert sorted(len(parts) for _, parts in sent(bench.submit(*((i, 1) for i in range(8))))) == [4, 4]


def test_the_last_used_worker_is_preferred() -> None:
    bench = Bench(3)
    bench.learn(100 * US)
    homes = set()
    for i in range(5):
        ((home, execute),) = bench.submit((i, 1)).executes
        bench.done(home, execute.batch_id)
        homes.add(home)
    assert len(homes) == 1


@pytest.mark.parametrize(("credit_max", "sent_ahead"), [(1, False), (2, True)])
def test_a_full_batch_is_sent_ahead(credit_max: int, sent_ahead: bool) -> None:
    bench = Bench(1, credit_max=credit_max, batch_rows_max=8)
    bench.learn(400 * US, rows=8)
    bench.submit((1, 8))
    assert not bench.submit((2, 7)).executes
    assert bool(bench.submit((3, 1)).executes) == sent_ahead
    assert not bench.submit((4, 8)).executes  # the credit is used up


def test_a_batch_is_sent_ahead_just_before_the_worker_is_free() -> None:
    bench = Bench(1)
    bench.learn(10 * MS)
    bench.submit((1, 1))
    turn = bench.submit((2, 1))
    assert not turn.executes
    assert turn.wake_ns == bench.now_ns + 9 * MS
    bench.submit((3, 1))
    bench.now_ns = turn.wake_ns
    assert sent(bench.turn()) == [(10, [(2, 1, 0), (3, 1, 0)])]


def test_a_lane_that_waits_for_a_worker_is_not_overtaken_by_another_that_could_be_sent_ahead() -> None:
    bench = Bench(1, batch_rows_max=8)
    busy_key = bench.lane(spec_of(signature="busy"))
    for i in range(20):  # learn the other lane's run time, which also makes it the one that had more
        ((_, execute),) = bench.submit((1000 + i, 8), key=busy_key).executes
        bench.now_ns += 4 * MS
        bench.done(10, execute.batch_id, 4 * MS, 8)
    bench.submit((1, 8), key=busy_key)
    assert not bench.submit((2, 1)).executes  # waits: too early to be closed
    assert not bench.submit((3, 8), key=busy_key).executes  # full, and could go ahead; but it is not its turn
    bench.now_ns += 3 * MS
    assert sent(bench.turn()) == [(10, [(2, 1, 0)])]


def test_of_many_lanes_that_wait_only_as_many_are_asked_as_there_are_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn's cost is by workers, not by models; and who was asked in vain has lost no place."""
    bench = Bench(2)
    keys = [bench.lane(spec_of(signature=f"s{number}")) for number in range(50)]
    running = [bench.submit((number, 1), key=key).executes[0] for number, key in enumerate(keys[:2])]
    asked: list[Lane] = []

    def noted(lane: Lane, *rest: Any, **more: Any) -> Placement:
        asked.append(lane)
        return place(lane, *rest, **more)

    monkeypatch.setattr(core, "place", noted)
    for number, key in enumerate(keys[2:], 2):
        assert not bench.submit((number, 1), key=key).executes
        assert len(asked) <= 2
        asked.clear()
    order = []
    while running:
        worker_id, execute = running.pop(0)
        bench.now_ns += MS
        for next_one in bench.done(worker_id, execute.batch_id, MS).executes:
            running.append(next_one)
            order.append(next_one[1].parts[0][1])
        asked.clear()
    assert order == list(range(2, 50))


def test_workers_max_keeps_a_model_on_one_worker() -> None:
    bench = Bench(4, workers_max=1)
    bench.learn(20 * MS)
    assert len({worker_id for i in range(4) for worker_id, _ in bench.submit((i, 1)).executes}) == 1


def test_lanes_are_bounded_and_idle_ones_forgotten() -> None:
    bench = Bench(1)
    bench.core._lanes._lanes_max = 8
    keys = [bench.lane(spec_of(signature=f"s{i}")) for i in range(30)]
    for i, key in enumerate(keys[:20]):
        ((_, execute),) = bench.submit((i, 1), key=key).executes
        bench.done(10, execute.batch_id)
        assert bench.counted("lanes") <= 8
    for i, key in enumerate(keys[20:28]):  # these stay in use: one runs, seven wait
        assert not told(bench.submit((100 + i, 1), key=key))
    assert told(bench.submit((200, 1), key=keys[28])) == [(200, Code.RESOURCE_EXHAUSTED)]


def test_policies_can_change_and_are_by_model() -> None:
    bench = Bench(1, request_rows_max=8)
    assert told(bench.submit((1, 9))) == [(1, Code.INVALID_ARGUMENT)]
    bench.core.set_policies(LanePolicy(request_rows_max=8), {"m": LanePolicy(request_rows_max=16)})
    assert sent(bench.submit((2, 9))) == [(10, [(2, 9, 0)])]


def test_a_large_request_that_must_not_be_split_runs_whole_and_alone() -> None:
    """Its rows may depend on each other, and those of others are none of its."""
    bench = Bench(1, credit_max=1, batch_rows_max=8, split=False)
    executes = bench.submit((1, 1)).executes
    bench.submit((2, 3), (3, 20), (4, 4), (5, 5))
    batches = []
    while executes:
        ((_, execute),) = executes
        executes = bench.done(10, execute.batch_id).executes
        batches += [[(part[1], part[2], part[3]) for part in execute.parts] for _, execute in executes]
    assert batches == [[(2, 3, 0)], [(3, 20, 0)], [(4, 4, 0)], [(5, 5, 0)]]
    assert (bench.counted("done"), bench.counted("split")) == (5, 0)


def test_a_done_of_a_batch_nobody_holds_is_counted_and_ignored() -> None:
    bench = Bench()
    bench.submit((1, 1))
    bench.done(10, 77)
    bench.done(11, 1)
    assert (bench.counted("dones_ignored"), bench.counted("leases")) == (2, 1)


def test_an_idle_core_needs_no_waking() -> None:
    bench = Bench()
    assert bench.turn() == ([], {}, [], 0, [], {}, [])
    ((_, execute),) = bench.submit((1, 1)).executes
    bench.done(10, execute.batch_id)
    bench.turn(60_000 * MS)  # the lease's time passes
    assert bench.turn() == ([], {}, [], 0, [], {}, [])


def test_what_a_worker_leaves_of_a_batch_goes_on_in_front_and_few_come_with_it() -> None:
    """The worker has found that it runs this lane's requests one by one; nobody hears of a death."""
    bench = Bench()
    first = bench.submit((1, 1))
    bench.submit((2, 1), (3, 2), (4, 1))
    ((_, execute),) = bench.done(10, first.executes[0][1].batch_id).executes
    bench.submit((5, 1))
    turn = bench.done(10, execute.batch_id, rows=1, parts_left=2, parts_max=1)
    assert sent(turn) == [(10, [(3, 2, 0)])]
    assert not told(turn)
    for request_id in (4, 5):
        turn = bench.done(10, turn.executes[0][1].batch_id, parts_max=1)
        assert sent(turn) == [(10, [(request_id, 1, 0)])]
    bench.submit((6, 1), (7, 1), (8, 1))
    turn = bench.done(10, turn.executes[0][1].batch_id, parts_max=0)
    assert sent(turn) == [(10, [(6, 1, 0), (7, 1, 0), (8, 1, 0)])]
    bench.done(10, turn.executes[0][1].batch_id)
    assert [bench.counted(name) for name in ("done", "retried", "queued", "leased")] == [8, 0, 0, 0]


def test_what_is_left_of_a_batch_and_nobody_waits_for_is_not_run() -> None:
    bench = Bench()
    first = bench.submit((1, 1))
    bench.submit((2, 1), (3, 1), (4, 1, NOW + 5 * MS))
    ((_, execute),) = bench.done(10, first.executes[0][1].batch_id).executes
    bench.core.cancel(FRONTEND, [[bench.key, 3]], bench.now_ns)
    bench.now_ns += 6 * MS
    turn = bench.done(10, execute.batch_id, parts_left=2, parts_max=1)
    assert sent(turn) == []
    assert {request_id for request_id, *_ in told(turn)} == {3, 4}
    assert [bench.counted(name) for name in ("done", "cancelled", "expired", "queued", "leased")] == [2, 1, 1, 0, 0]
