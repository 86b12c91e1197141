"""Groups whose old workers stop before new ones start: one place at a time, and what fails brings the old back."""

from __future__ import annotations

from ringserve.broker.messages import ModelVersion
from tests.broker.life_kit import BROKEN, UNLUCKY, Life, S


def started(workers: int, **models: str) -> Life:
    life = Life(workers, stop_first=True, **(models or {"m": "latest"}))  # type: ignore[arg-type]
    for name in life.plans:
        life.put(name, 1)
    life.serving()
    return life


def drains(life: Life) -> list[tuple[int, frozenset[ModelVersion] | None]]:
    return [drain for moves in life.moves for drain in moves.drain]


def processes(life: Life) -> int:
    return len(list(life.crews.members()))


def test_the_only_worker_leaves_before_the_next_is_forked() -> None:
    life = started(1)
    (old,) = life.current
    life.moves.clear()
    life.put("m", 2)
    assert drains(life) == [(old, None)]  # nothing more is sent to it, or it would never be idle
    assert life.current == []
    assert life.states("m") == {1: "AVAILABLE", 2: "LOADING"}  # requests wait
    assert processes(life) == 1
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}
    assert processes(life) == 1


def test_as_long_as_the_old_one_drains_nothing_is_forked() -> None:
    life = started(1)
    (old,) = life.current
    life.drains_take_long = True
    life.put("m", 2)
    life.turn(3 * S)
    assert [member.kept for member in life.crew.old] == [frozenset()]
    assert life.young == []
    life.drains_take_long = False
    life.crews.worker_left(old, life.now_ns)
    life.turn()
    assert len(life.young) == 1


def test_several_places_are_replaced_one_by_one() -> None:
    life = started(3)
    before = life.current
    life.put("m", 2)
    assert processes(life) == 3
    assert len(life.current) == 2  # these serve meanwhile
    serving = []
    for _ in range(3):
        (loading,) = [member.worker_id for member in life.crews.members() if not member.complete]
        life.load(loading)
        assert processes(life) == 3
        serving.append(sum(bool(member.serves) for member in life.crews.members()))
    assert serving == [2, 2, 3]
    assert not set(life.current) & set(before)
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_a_failing_load_brings_the_old_version_back_in_the_same_worker() -> None:
    life = started(1)
    life.put("m", 2)
    life.load_all(m_2=BROKEN)
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    assert [life.orders(pid) for pid in life.current] == [[("m", 2, False), ("m", 1, True)]]
    assert processes(life) == 1


def test_a_failing_load_costs_the_others_nothing() -> None:
    life = started(3)
    before = set(life.current)
    life.put("m", 2)
    life.load_all(m_2=BROKEN)
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    assert len(before & set(life.current)) == 2
    assert len(life.current) == 3


def test_a_scout_that_dies_over_and_over_brings_the_old_version_back() -> None:
    life = started(1)
    life.put("m", 2)
    for _ in range(2):
        (scout,) = life.young
        life.begin(scout, "m", 2)
        life.end(scout, -6)
        life.turn(S)
    life.load_all()
    assert life.states("m") == {1: "AVAILABLE", 2: "END"}
    assert processes(life) == 1


def test_a_retry_is_another_change() -> None:
    life = started(1)
    life.put("m", 2)
    life.load_all(m_2=UNLUCKY)
    assert life.states("m") == {1: "AVAILABLE", 2: "LOADING"}
    life.turn(60 * S)
    life.load_all()
    assert life.states("m") == {1: "END", 2: "AVAILABLE"}


def test_what_nobody_can_load_again_is_kept() -> None:
    life = started(1, m="latest", n="latest")
    (old,) = life.current
    life.remove("n", 1)
    life.put("m", 2)
    life.load_all()
    assert life.states("m")[2] == "AVAILABLE"
    assert life.states("n") == {1: "AVAILABLE"}
    assert life.old == [old]
    assert life.crews.phase_of(life.crew.old[0]) == "kept"


def test_state_stays_in_its_worker() -> None:
    life = started(3, m="latest", n="latest")
    life.lifecycle.singles.add(ModelVersion("n", 1))
    before = set(life.current)
    life.put("m", 2)
    life.load_all()
    assert life.states("m")[2] == "AVAILABLE"
    (keeper,) = life.old
    assert keeper in before
    assert life.crew.old[0].kept == frozenset({ModelVersion("n", 1)})
    assert all(("n", 1, False) not in life.orders(pid) for pid in life.current)
    # The one that keeps it was the last to drain: until then the fleet might have sent its requests to others.
    told = [worker for worker, _ in drains(life)]
    assert told[-1] == keeper


def test_renewal_goes_place_by_place_too() -> None:
    life = started(2)
    before = set(life.current)
    life.generations.renew("age")
    life.turn()
    assert processes(life) == 2
    assert len(life.current) == 1
    life.load_all()
    assert not before & set(life.current)
    assert len(life.current) == 2
    assert life.generations.begun == ["start", "age"]
