"""Generations that grow and shrink, and that are renewed with what they serve."""

from __future__ import annotations

from ringserve.broker.elastic import Elastic
from ringserve.broker.messages import ModelVersion
from ringserve.broker.renewal import Renewal
from ringserve.broker.statistics import Usage
from ringserve.broker.tending import Tended, Tending
from tests.broker.life_kit import BROKEN, Life, S

MIB = 1 << 20


def started(workers: int, workers_max: int, **models: str) -> Life:
    life = Life(workers, workers_max=workers_max, **(models or {"m": "latest"}))  # type: ignore[arg-type]
    for name in life.plans:
        life.put(name, 1)
    life.serving()
    return life


def grow(life: Life) -> None:
    assert life.generations.resize(1)
    life.turn()
    life.load_all()


def test_it_begins_with_the_smallest_number() -> None:
    life = started(1, 3)
    assert len(life.current) == 1
    assert (life.generations.wanted, life.generations.active) == (1, 1)


def test_one_more_loads_the_same_and_serves() -> None:
    life = started(1, 3)
    (first,) = life.current
    grow(life)
    assert len(life.current) == 2
    assert first in life.current
    assert life.generations.active == 2
    assert life.generations.begun == ["start"]
    assert len({life.plan_of[pid].worker_index for pid in life.current}) == 2


def test_no_change_of_size_while_another_is_under_way() -> None:
    life = started(1, 3)
    assert life.generations.resize(1)
    life.turn()
    assert not life.generations.resize(1)
    life.load_all()
    life.put("m", 2)
    assert not life.generations.resize(1)
    assert not life.generations.resize(-1)
    life.load_all()
    assert life.generations.resize(1)


def test_it_stays_within_its_bounds() -> None:
    life = started(1, 2)
    assert not life.generations.resize(-1)
    grow(life)
    assert not life.generations.resize(1)


def test_one_less_drains_and_leaves() -> None:
    life = started(1, 3)
    grow(life)
    grow(life)
    life.moves.clear()
    assert life.generations.resize(-1)
    life.turn()
    assert len(life.current) == 2
    assert [kept for moves in life.moves for _, kept in moves.drain] == [frozenset()]
    assert not any(moves.forks for moves in life.moves)
    assert life.old == []


def test_the_next_generation_has_the_size_of_the_one_before() -> None:
    life = started(1, 3)
    grow(life)
    life.put("m", 2)
    life.load_all()
    assert len(life.current) == 2
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_a_worker_that_was_added_is_replaced_when_it_dies() -> None:
    life = started(1, 2)
    grow(life)
    life.end(life.current[1])
    life.turn()
    life.load_all()
    assert len(life.current) == 2


def test_state_is_neither_copied_nor_dropped() -> None:
    life = started(1, 4, m="latest", n="latest")
    life.lifecycle.singles.add(ModelVersion("n", 1))
    life.turn()
    (holder,) = life.current
    for _ in range(3):
        grow(life)
    assert [life.orders(pid) for pid in life.current if pid != holder] == [[("m", 1, False)]] * 3
    for _ in range(3):
        assert life.generations.resize(-1)
        life.turn()
    assert life.current == [holder]
    assert not life.generations.resize(-1)


def test_renewal_serves_the_same_from_new_workers() -> None:
    life = started(2, 2)
    before = set(life.current)
    life.generations.renew("memory")
    life.turn()
    assert set(life.current) == before  # until the new ones are ready
    life.load_all()
    assert not before & set(life.current)
    assert len(life.current) == 2
    assert life.states("m") == {1: "AVAILABLE"}
    assert life.generations.begun == ["start", "memory"]
    life.turn(3_600 * S)
    assert life.generations.begun == ["start", "memory"]


def test_a_renewal_that_cannot_load_what_serves_changes_nothing() -> None:
    life = started(2, 2)
    before = set(life.current)
    life.generations.renew("age")
    life.turn()
    life.load_all(m_1=BROKEN)
    assert set(life.current) == before
    assert life.states("m") == {1: "AVAILABLE"}


def test_a_new_broker_keeps_the_size() -> None:
    life = started(1, 3)
    grow(life)
    heir = Life(1, workers_max=3, m="latest")
    heir.disk = life.disk
    heir.look()
    for member in list(life.crews.members()):
        plan = heir.plan_of[member.pid] = life.plan_of[member.pid]
        heir.crews.worker_joined(member.pid, plan.generation, plan.worker_index, member.pid, heir.now_ns)
        heir.crews.worker_ready(member.pid, frozenset(member.loaded), complete=True)
    heir.crews.pool_joined({heir.plan_of[pid].worker_index: pid for pid in life.current}, heir.now_ns)
    heir.turn()
    assert heir.current == life.current
    assert heir.generations.wanted == 2
    assert not any(moves.forks for moves in heir.moves)


def test_tending_grows_by_load_and_renews_by_memory() -> None:
    life = started(1, 2)
    busy = {life.current[0]: 0}
    waiting: frozenset[str] = frozenset({"m"})
    private: dict[int, int] = {}
    tending = Tending(
        life.groups,
        [
            Tended(
                life.groups.groups[0],
                Elastic(1, 2, grow_ns=2 * S, shrink_ns=60 * S),
                Renewal("default", bytes_max=10 * MIB, age_ns_max=0),
            )
        ],
        usage=lambda _: Usage(busy, waiting),
        private_bytes=lambda pid: private.get(pid, MIB),
    )
    for _ in range(50):
        if len(life.current) == 2:
            break
        life.now_ns += 100_000_000
        busy[life.current[0]] += 100_000_000
        assert tending.wake_ns
        if tending.turn(life.now_ns):
            life.turn()
            life.load_all()
    assert len(life.current) == 2
    before = set(life.current)
    private[life.current[1]] = 20 * MIB
    waiting = frozenset()
    for _ in range(50):
        life.now_ns += 100_000_000
        if tending.turn(life.now_ns):
            life.turn()
            life.load_all()
    assert not before & set(life.current)
    assert len(life.current) == 2


def test_tending_a_group_of_one_size_without_limits_costs_nothing() -> None:
    life = started(2, 2)
    tended = [Tended(life.groups.groups[0], None, None)]
    tending = Tending(life.groups, tended, usage=lambda _: Usage({}, frozenset()), private_bytes=None)
    assert tending.wake_ns == 0
    assert not tending.turn(life.now_ns)
