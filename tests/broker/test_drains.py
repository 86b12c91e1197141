"""Workers that are to go: what each still takes, how long it stays for what only it has, what it is kept for."""

from __future__ import annotations

from ringserve.broker.drains import QUIET_NS
from ringserve.broker.messages import Code
from tests.broker.kit import MS, Bench, sent, spec_of, told


def test_the_last_resort_serves_until_nothing_comes_any_more() -> None:
    """A frontend that has not heard of the new catalog yet still submits for the version that goes."""
    bench = Bench()
    bench.core.worker_draining(10, bench.now_ns)
    assert bench.turn().drained == []
    turn = bench.submit((1, 1))
    assert sent(turn) == [(10, [(1, 1, 0)])]
    bench.now_ns += 100 * MS
    turn = bench.done(10, turn.executes[0][1].batch_id)
    assert turn.drained == []
    assert turn.wake_ns == bench.now_ns - 100 * MS + QUIET_NS
    assert bench.turn(QUIET_NS - 100 * MS - 1).drained == []
    assert bench.turn(1).drained == [10]


def test_each_batch_begins_the_wait_anew() -> None:
    bench = Bench()
    bench.core.worker_draining(10, bench.now_ns)
    for number in range(5):
        turn = bench.submit((number, 1))
        bench.now_ns += QUIET_NS - 1
        assert bench.done(10, turn.executes[0][1].batch_id).drained == []
    assert bench.turn(1).drained == [10]


def test_after_that_requests_are_told_or_wait_like_any_without_a_worker() -> None:
    bench = Bench()
    bench.core.worker_draining(10, bench.now_ns)
    assert bench.turn(QUIET_NS).drained == [10]
    bench.core.set_versions([])
    bench.left(10)
    bench.core.set_versions([])
    assert told(bench.submit((1, 1))) == [(1, Code.NOT_FOUND)]


def test_one_that_has_nothing_of_its_own_goes_at_once() -> None:
    bench = Bench(2)
    bench.core.worker_draining(10, bench.now_ns)
    assert bench.turn().drained == [10]


def test_a_kept_worker_stays_and_serves_until_it_is_kept_for_nothing() -> None:
    bench = Bench()
    bench.core.worker_draining(10, bench.now_ns, {("m", 1)})
    assert bench.turn(100 * QUIET_NS).drained == []
    turn = bench.submit((1, 1))
    assert sent(turn) == [(10, [(1, 1, 0)])]
    bench.done(10, turn.executes[0][1].batch_id)
    bench.core.worker_draining(10, bench.now_ns)
    assert bench.turn().drained == []
    assert bench.turn(QUIET_NS).drained == [10]


def test_what_waits_goes_to_the_last_resort_when_the_ready_worker_dies() -> None:
    bench = Bench(2, workers_max=0)
    bench.core.worker_draining(10, bench.now_ns, {("m", 1)})
    ((ready, _),) = bench.submit((1, 1)).executes
    assert ready == 11
    turn = bench.left(11)
    assert sent(turn) == [(10, [(1, 1, 0)])]


def test_a_worker_that_hangs_while_it_drains_is_ended_and_no_resort() -> None:
    bench = Bench(lease_ns_max=50 * MS)
    bench.core.worker_draining(10, bench.now_ns, {("m", 1)})
    bench.submit((1, 1))
    assert bench.turn(50 * MS).kills == [10]
    assert bench.submit((2, 1)).executes == []
    bench.core.worker_draining(10, bench.now_ns)  # the life cycle may not have heard of it yet
    assert bench.turn(2 * QUIET_NS).drained == []


def test_a_worker_that_has_loaded_more_gets_what_waited_for_it() -> None:
    bench = Bench()
    other = bench.lane(spec_of(version=2))
    bench.core.set_versions([("m", 1), ("m", 2)])
    assert not bench.submit((1, 1), key=other).executes
    bench.core.worker_joined(10, 0, {("m", 1), ("m", 2)})
    assert sent(bench.turn()) == [(10, [(1, 1, 0)])]


def test_before_it_is_known_what_serves_every_request_waits() -> None:
    """A broker that follows another hears of requests before it has heard of workers."""
    bench = Bench(0)
    bench.core.set_versions(None)
    assert told(bench.submit((1, 1))) == []
    bench.core.worker_joined(10, 0, {("m", 1)})
    assert sent(bench.turn()) == [(10, [(1, 1, 0)])]


def test_what_waited_for_a_version_that_does_not_come_back_may_be_tried_again() -> None:
    """Its workers died with the broker before; by now another version has come."""
    bench = Bench(0)
    bench.core.set_versions(None)
    bench.submit((1, 1))
    bench.core.set_versions([("m", 2)])
    assert told(bench.turn()) == [(1, Code.UNAVAILABLE)]
    assert told(bench.submit((2, 1), key=bench.lane(spec_of("another")))) == [(2, Code.NOT_FOUND)]


def test_the_only_worker_makes_room_at_once_and_what_comes_waits_for_the_next() -> None:
    bench = Bench()
    running = bench.submit((1, 1)).executes[0][1].batch_id
    bench.core.worker_draining(10, bench.now_ns, None)
    assert sent(bench.submit((2, 1))) == []
    turn = bench.done(10, running)
    assert (turn.drained, sent(turn), told(turn)) == ([10], [], [])
    bench.left(10)
    bench.core.worker_joined(11, 0, {("m", 1)})
    assert sent(bench.turn()) == [(11, [(2, 1, 0)])]


def test_one_that_makes_room_goes_at_once_where_others_serve() -> None:
    bench = Bench(2)
    bench.core.worker_draining(10, bench.now_ns, None)
    assert bench.turn().drained == [10]
    assert [worker for worker, _ in sent(bench.submit((1, 1)))] == [11]


def test_what_waits_for_a_version_that_goes_may_be_tried_again() -> None:
    bench = Bench()
    bench.core.set_versions([("m", 1)])
    bench.core.worker_draining(10, bench.now_ns, None)
    assert bench.turn().drained == [10]
    assert told(bench.submit((1, 1))) == []
    bench.left(10)
    bench.core.set_versions([("m", 2)])
    assert told(bench.turn()) == [(1, Code.UNAVAILABLE)]
    assert told(bench.submit((2, 1))) == [(2, Code.UNAVAILABLE)]  # its frontend has not heard of it yet


def test_what_never_served_is_not_found_all_the_same() -> None:
    bench = Bench()
    bench.core.worker_draining(10, bench.now_ns)
    assert bench.turn(QUIET_NS).drained == [10]
    bench.core.set_versions([("m", 2)])
    bench.left(10)
    bench.core.set_versions([("m", 2)])
    assert told(bench.submit((2, 1))) == [(2, Code.NOT_FOUND)]
