"""Leases: whose time runs, who is late, what comes back."""

from __future__ import annotations

import pytest

from ringserve.broker.leases import RUN_TIMES_MAX, Lease, Leases, stopped_ns
from tests.broker.kit import MS, NOW, entry, lane_of

LEASE_NS = 100 * MS


def leases_of(*workers: int) -> tuple[Leases, dict[int, list[Lease]]]:
    leases = Leases()
    return leases, {worker_id: leases.worker_joined(worker_id) for worker_id in workers}


def grant(leases: Leases, worker_id: int, now_ns: int = NOW, expected_ns: int = 0) -> Lease:
    lane = lane_of(lease_ns_max=LEASE_NS)
    return leases.grant(worker_id, lane, [entry(1)], 1, now_ns, expected_ns=expected_ns, solo=False)


def test_only_the_heads_time_runs() -> None:
    leases, held = leases_of(1)
    first, second = grant(leases, 1), grant(leases, 1)
    assert held[1] == [first, second]
    assert (first.started_ns, second.started_ns) == (NOW, 0)
    assert leases.settle(first.batch_id, 1, NOW + 5 * MS) is first
    assert second.started_ns == NOW + 5 * MS
    assert second.deadline_ns == NOW + 5 * MS + LEASE_NS
    assert held[1] == [second]


@pytest.mark.parametrize(("handed_ns", "place"), [(NOW - MS, 0), (NOW + MS, 1), (NOW + 3 * MS, 2)])
def test_what_a_frontend_handed_over_stands_where_the_worker_has_it(handed_ns: int, place: int) -> None:
    leases, held = leases_of(1)
    known = [grant(leases, 1), grant(leases, 1, NOW + 2 * MS)]
    lane = lane_of(lease_ns_max=LEASE_NS)
    lease = Lease(1 << 32, 1, lane, [entry(7)], 1, 0, solo=False)
    leases.handed(lease, handed_ns)
    assert held[1] == [*known[:place], lease, *known[place:]]
    assert [one.started_ns for one in held[1][1:]] == [0, 0]
    assert held[1][0].deadline_ns == min(NOW, handed_ns) + LEASE_NS
    assert (leases.running_count, lane.leases_count) == (1, 1)
    assert leases.settle(held[1][0].batch_id, 1, NOW + 5 * MS) is not None
    assert held[1][0].started_ns == NOW + 5 * MS


@pytest.mark.parametrize(
    ("batch_id_off", "worker_id", "settled"), [(0, 1, True), (0, 2, False), (1, 1, False), (-1, 1, False)]
)
def test_settle_wants_the_batch_and_its_worker(batch_id_off: int, worker_id: int, settled: bool) -> None:
    leases, _ = leases_of(1, 2)
    lease = grant(leases, 1)
    assert (leases.settle(lease.batch_id + batch_id_off, worker_id, NOW) is lease) == settled
    assert len(leases) == (0 if settled else 1)
    assert lease.lane.leases_count == (0 if settled else 1)


@pytest.mark.parametrize(
    ("deadlines_ms", "ends_ms"),
    [([30], 100), ([250], 250), ([250, 150], 250), ([700], 400), ([0], 400), ([250, 0], 400)],
)
def test_a_batch_for_which_somebody_waits_is_no_hang_for_some_time(deadlines_ms: list[int], ends_ms: int) -> None:
    """deadlines_ms: of its requests; 0: none."""
    leases, _ = leases_of(1)
    lane = lane_of(lease_ns_max=LEASE_NS, lease_waits_ns_max=400 * MS)
    entries = [entry(n, deadline_ns=NOW + each * MS if each else 0) for n, each in enumerate(deadlines_ms)]
    leases.grant(1, lane, entries, len(entries), NOW, expected_ns=0, solo=False)
    assert leases.wake_ns() == NOW + LEASE_NS
    late = [at_ms for at_ms in range(0, 500, 10) if leases.expire(NOW + at_ms * MS)]
    assert late[0] == ends_ms


def test_a_lease_settles_once() -> None:
    leases, _ = leases_of(1)
    lease = grant(leases, 1)
    assert leases.settle(lease.batch_id, 1, NOW) is lease
    assert leases.settle(lease.batch_id, 1, NOW) is None


@pytest.mark.parametrize(
    ("after_ns", "expected_ns", "late"),
    [
        (LEASE_NS - 1, 0, []),
        (LEASE_NS, 0, [1]),
        (LEASE_NS, 50 * MS, []),  # slow by nature, not hung
        (RUN_TIMES_MAX * 50 * MS, 50 * MS, [1]),
    ],
)
def test_expire(after_ns: int, expected_ns: int, late: list[int]) -> None:
    leases, _ = leases_of(1, 2)
    grant(leases, 1, expected_ns=expected_ns)
    grant(leases, 2, NOW + 600 * MS)
    assert leases.expire(NOW + after_ns) == late
    assert leases.wake_ns() > NOW + after_ns or not late


def test_wake_ns_is_a_lower_bound_that_expire_makes_exact() -> None:
    leases, _ = leases_of(1, 2)
    lease = grant(leases, 1)
    grant(leases, 2, NOW + 10 * MS)
    leases.settle(lease.batch_id, 1, NOW + MS)
    assert leases.wake_ns() == NOW + LEASE_NS
    assert leases.expire(NOW + LEASE_NS) == []
    assert leases.wake_ns() == NOW + 10 * MS + LEASE_NS


def test_revoke_gives_all_back_in_order_and_knows_the_worker_no_more() -> None:
    leases, _ = leases_of(1, 2)
    first, second, other = grant(leases, 1), grant(leases, 1), grant(leases, 2)
    assert leases.revoke(1) == [first, second]
    assert list(leases) == [other]
    assert leases.settle(first.batch_id, 1, NOW) is None
    assert leases.revoke(1) == []


def test_busy_time_is_that_of_the_heads() -> None:
    leases, _ = leases_of(1, 2)
    first, second = grant(leases, 1), grant(leases, 1)
    assert leases.busy_ns(NOW + 3 * MS) == {1: 3 * MS, 2: 0}
    leases.settle(first.batch_id, 1, NOW + 5 * MS)
    assert leases.busy_ns(NOW + 6 * MS) == {1: 6 * MS, 2: 0}
    leases.settle(second.batch_id, 1, NOW + 7 * MS)
    assert leases.busy_ns(NOW + 70 * MS) == {1: 7 * MS, 2: 0}
    third = grant(leases, 1, NOW + 80 * MS)
    leases.settle(third.batch_id, 1, NOW + 81 * MS)
    assert leases.busy_ns(NOW + 90 * MS) == {1: 8 * MS, 2: 0}
    leases.revoke(1)
    assert leases.busy_ns(NOW) == {2: 0}


SECOND = 1000 * MS


@pytest.mark.parametrize(("late_ms", "told_ms"), [(-500, 0), (0, 0), (900, 0), (40_000, 40_000)])
def test_who_wakes_much_later_than_planned_was_stopped(late_ms: int, told_ms: int) -> None:
    assert stopped_ns(NOW, NOW + late_ms * MS) == told_ms * MS


def test_time_in_which_nothing_ran_is_nobodys() -> None:
    """A paused container: its workers were stopped in the middle of their batches, along with the broker."""
    leases, held = leases_of(1, 2)
    first, second = grant(leases, 1), grant(leases, 1)
    other = grant(leases, 2, NOW + 50 * MS)
    back_ns = NOW + 60 * MS + 40 * SECOND
    assert leases.expire(back_ns, 40 * SECOND) == []
    assert leases.wake_ns() == first.deadline_ns == NOW + 40 * SECOND + LEASE_NS
    assert second.started_ns == second.deadline_ns == 0
    assert leases.busy_ns(back_ns) == {1: 60 * MS, 2: 10 * MS}
    assert leases.expire(NOW + 40 * SECOND + LEASE_NS) == [1]
    assert leases.expire(NOW + 40 * SECOND + LEASE_NS + 50 * MS) == [1, 2]
    assert held[2] == [other]


def test_a_request_that_was_handed_over_before_a_stop_has_its_whole_time_after_it() -> None:
    leases, _ = leases_of(1)
    leases.expire(NOW + 40 * SECOND, 40 * SECOND)
    lease = Lease(1 << 32, 1, lane_of(lease_ns_max=LEASE_NS), [entry(7)], 1, 0, solo=False)
    leases.handed(lease, NOW - MS)
    assert lease.deadline_ns == NOW + 40 * SECOND + LEASE_NS
    assert leases.expire(NOW + 40 * SECOND + MS) == []


def test_what_was_granted_in_the_turn_that_comes_late_has_not_run_yet() -> None:
    leases, _ = leases_of(1)
    lease = grant(leases, 1, NOW + 40 * SECOND)
    assert leases.expire(NOW + 40 * SECOND, 40 * SECOND) == []
    assert lease.started_ns == NOW + 40 * SECOND
