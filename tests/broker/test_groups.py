"""Worker groups: a change concerns the workers of its group, and nobody else's."""

from __future__ import annotations

from ringserve.broker.members import BANKS
from ringserve.broker.messages import Code, VersionState
from tests.broker.life_kit import BROKEN, Life

A = "default"


def two_groups() -> Life:
    """`big` serves b with 1 worker, the default group the others with 2; all serve their version 1."""
    life = Life(2, groups={"big": ("b", 1)}, a="latest", b="latest")
    for name in life.plans:
        life.put(name, 1)
    life.serving()
    return life


def workers(life: Life, group: str) -> list[int]:
    """Those of the generation that serves in this group."""
    (found,) = [each.generations.crew for each in life.groups.groups if each.name == group]
    return [] if found.current is None else [member.worker_id for member in found.current.members.values()]


def test_each_group_loads_its_models_and_no_others() -> None:
    life = two_groups()
    assert [life.orders(pid) for pid in workers(life, A)] == [[("a", 1, False)]] * 2
    assert [life.orders(pid) for pid in workers(life, "big")] == [[("b", 1, False)]]
    assert life.states("a") == life.states("b") == {1: "AVAILABLE"}


def test_indexes_and_seats_are_numbered_through() -> None:
    life = two_groups()
    indexes = [life.plan_of[pid].worker_index for pid in (*workers(life, A), *workers(life, "big"))]
    assert indexes == [0, 1, 2 * BANKS]
    assert sorted(member.seat for member in life.crews.members()) == [0, 1, 2]
    served = {worker_id: seat for moves in life.moves for worker_id, seat, _ in moves.serve}
    assert [served[pid] for pid in workers(life, "big")] == [2]


def test_one_worker_of_each_groups_generation_tells_what_all_do_alike() -> None:
    life = two_groups()
    for _ in range(2):
        for group in (A, "big"):
            assert sum(life.plan_of[pid].first for pid in workers(life, group)) == 1
        life.put("a", 2)
        life.put("b", 2)
        life.load_all()


def test_a_change_in_one_group_leaves_the_others_workers_alone() -> None:
    life = two_groups()
    before, big = workers(life, A), workers(life, "big")
    life.put("b", 2)
    life.load_all()
    assert life.states("b") == {1: "END", 2: "AVAILABLE"}
    assert workers(life, A) == before
    assert workers(life, "big") != big
    life.put("a", 2)
    life.load_all()
    assert not set(workers(life, A)) & set(before)
    assert life.states("a") == {1: "END", 2: "AVAILABLE"}


def test_a_load_that_fails_in_one_group_holds_up_no_other() -> None:
    life = two_groups()
    life.put("b", 2)
    life.put("a", 2)  # a change during a change: the scout of `big` has not loaded anything yet
    life.load_all(b_2=BROKEN)
    assert life.states("a") == {1: "END", 2: "AVAILABLE"}
    assert life.states("b") == {1: "AVAILABLE", 2: "END"}
    assert life.versions.failure(next(key for key in life.versions.known() if key == ("b", 2))) == BROKEN


def test_a_worker_that_dies_is_replaced_in_its_group() -> None:
    life = two_groups()
    (big,) = workers(life, "big")
    before = workers(life, A)
    life.end(big)
    life.turn()
    assert life.state("b", 1) is VersionState.AVAILABLE
    life.load_all()
    assert workers(life, "big") not in ([], [big])
    assert workers(life, A) == before


def test_a_deadly_load_costs_its_own_group_only() -> None:
    life = two_groups()
    before = workers(life, A)
    life.put("b", 2)
    for _ in range(2):
        (scout,) = [member.worker_id for member in life.crews.members() if member.untried]
        life.begin(scout, "b", 2)
        life.end(scout, -6)
        life.turn()
    life.load_all()
    assert life.states("b") == {1: "AVAILABLE", 2: "END"}
    failure = life.versions.failure(next(key for key in life.versions.known() if key == ("b", 2)))
    assert failure.code is Code.INTERNAL
    assert "SIGABRT" in failure.text
    assert workers(life, A) == before


def test_models_added_at_run_time_find_their_group() -> None:
    life = Life(2, groups={"big": ("b", 1)}, a="latest")
    life.put("a", 1)
    life.serving()
    before = workers(life, A)
    assert workers(life, "big") == []
    life.plans["b"] = life.plans["a"]._replace(name="b", base_path="/b")
    life.disk["b"] = {}
    life.configure()
    life.put("b", 1)
    life.load_all()
    assert life.states("b") == {1: "AVAILABLE"}
    assert [life.orders(pid) for pid in workers(life, "big")] == [[("b", 1, False)]]
    assert workers(life, A) == before


def test_a_model_that_changes_its_group_is_never_without_workers() -> None:
    life = two_groups()
    life.groups.regroup(lambda model: A)
    life.turn(1)
    assert life.groups.serves(next(iter(life.groups.groups[1].generations.published())))
    old = workers(life, "big")
    (scout,) = life.young
    assert ("b", 1, False) in life.orders(scout)
    assert workers(life, "big") == old  # as long as it serves nowhere else
    life.load_all()
    assert life.states("b") == {1: "AVAILABLE"}
    assert all(("b", 1, False) in life.orders(pid) for pid in workers(life, A))
    assert workers(life, "big") == []


def test_a_new_broker_adopts_each_groups_workers() -> None:
    life = two_groups()
    heir = Life(2, groups={"big": ("b", 1)}, a="latest", b="latest")
    heir.disk = life.disk
    heir._pid = 1_000
    heir.look()
    told: dict[int, int] = {}
    for member in list(life.crews.members()):
        plan = life.plan_of[member.pid]
        heir.plan_of[member.pid] = plan
        told[plan.worker_index] = member.pid
        heir.crews.worker_joined(member.pid, plan.generation, plan.worker_index, member.pid, heir.now_ns)
        heir.crews.worker_ready(member.pid, frozenset(member.loaded), complete=True)
    heir.crews.pool_joined(told, heir.now_ns)
    heir.turn()
    assert heir.crews.adoption is None
    assert workers(heir, A) == workers(life, A)
    assert workers(heir, "big") == workers(life, "big")
    assert heir.states("a") == heir.states("b") == {1: "AVAILABLE"}
    assert not any(moves.forks for moves in heir.moves)


def test_a_worker_of_no_group_is_told_to_leave() -> None:
    life = two_groups()
    life.crews.worker_joined(999, 7, 500, 999, life.now_ns)
    moves = life.groups.turn(life.now_ns)
    assert moves.stops == [999]

