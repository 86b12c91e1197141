"""The rules that every simulated life of models is held to.

never without               a model that serves goes on serving as long as nobody dies, whatever is copied, broken,
                            removed or configured (but when it is taken out, or unloading the empty was asked for)
no stranger                 what serves under a name never was taken out since it was configured, but from the same path
nothing forgotten           what a broker found to serve goes on when it has taken that over, whoever died meanwhile
weights                     are there when a worker needs them (`authors.py`), and go with the last that maps them
somebody serves it          whatever is published, but in a group of one place whose worker stops first
two generations             of workers at most, beside those kept for what nobody can load any more
one copy                    of what holds state: requests go to the same worker as long as that lives
the end is right            when it is quiet every good version that is asked for serves, every bad one has ended with
                            its error, nothing drains or loads any more, and every place has its worker
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringserve.broker.aspired import VersionDirectory, choose
from ringserve.broker.fleet import preference
from ringserve.broker.generations import Generations
from ringserve.broker.messages import Code, ModelVersion, VersionState
from ringserve.broker.orders import Order

if TYPE_CHECKING:
    from tests.sim.life import LifeWorld

#: A place that lost its workers is filled again within this time: back-offs, loads and the pool's return included.
_REPLACED_NS = 100_000_000_000


class Rules:
    """Looks at a world after each turn, and at its end."""

    def __init__(self, world: LifeWorld) -> None:
        self._world = world
        self._available: dict[str, bool] = {}
        self._bases: dict[str, set[str]] = {}  # base paths of each model since it was put in
        self._holder: dict[int, dict[Order, int]] = {}  # by group: who has the state
        self._heir: object = None
        self._adoptions_count = 0
        self._found: dict[ModelVersion, str] = {}  # by the broker that takes over: base paths

    def forget(self, name: str) -> None:
        """This model was taken out: it may go, and not serve for another one."""
        self._bases.pop(name, None)
        self._available.pop(name, None)

    def check(self) -> None:
        world = self._world
        self._check_taken_over()
        if not world.deaths and "deadly" not in world.kinds:
            for number, group in enumerate(world.groups.groups):
                self._check_group(group.generations, stop_first=world.layout.stop_first[number])
        if not world.deaths:
            old = {member.pid for crew in world.crews.crews for member in crew.old}
            ending = {member.pid for member in world.crews.members() if member.killed}
            # A scout that was given up may not have heard of it.
            most = 2 * world.layout.places_count + len(world.groups.groups)
            assert len(world.workers.keys() - old - ending) <= most, "too many workers"
        budget = world.lifecycle.preparation.budget
        if budget.limits.host_bytes and not world.deaths:
            assert budget.used_bytes <= budget.limits.host_bytes, "more was loaded than there is room for"
        orders = world.lifecycle._published()  # without what is another model's that had the name
        published = {key.name for key in orders}
        for name, plan in world.plans.items():
            self._bases.setdefault(name, set()).add(plan.base_path)
        for order in orders.values():
            at = order.path.rpartition("/")[0]
            assert not at or at in self._bases[order.name], f"{order} serves, and was taken out"
        serving = {key.name for key in world.versions.known() if self._state(key) is VersionState.AVAILABLE}
        for name in world.lifecycle.names():
            available = name in serving
            assert available == (name in published)
            if self._available.get(name) and not available:
                empty = world.unload_when_empty and not self._aspired(name)
                replaced = world.now_ns - world.lost_ns < _REPLACED_NS or world.crews.adoption is not None
                # The only worker made room for the next, and then the files were removed.
                home = world.layout.home(name)
                crew = world.crews.crews[home]
                gap = world.layout.stop_first[home] and crew.current is not None and len(crew.current.places) == 1
                assert empty or replaced or gap, f"{name} served and does not, and nobody died"
            self._available[name] = available

    def _check_taken_over(self) -> None:
        world = self._world
        adoptions = [crew.adoption for crew in world.crews.crews if crew.adoption is not None]
        if self._heir is not world.lifecycle:
            self._heir = world.lifecycle
            self._found.clear()
        elif len(adoptions) < self._adoptions_count:
            published = world.groups.published()
            names = {key.name for key in published}
            # A scout of another generation may have died, whose version comes with the next.
            full = any(len(each.members) == len(each.places) for each in world.crews.generations)
            for key, base in self._found.items() if not full else ():
                plan = world.plans.get(key.name)
                if plan is None or plan.base_path != base or key.version not in self._aspired(key.name):
                    continue
                if world.lifecycle._bases[key.name].has(key.version):  # and the broker has seen it there, too
                    assert key in published or key.name in names, f"{key} was forgotten with its workers"
            self._found.clear()
        self._adoptions_count = len(adoptions)
        found = [key for adoption in adoptions for key in adoption.loaded() if key.name in world.plans]
        self._found.update({key: world.plans[key.name].base_path for key in found})

    def _check_group(self, generations: Generations, *, stop_first: bool) -> None:
        """Where nobody dies."""
        crew = generations.crew
        members = [member for member in crew.members() if not (member.stopped_ns or member.killed)]
        published = generations.published()
        gap = stop_first and crew.current is not None and len(crew.current.places) == 1
        for key in published if not gap else ():
            assert any(key in member.serves for member in members), f"nobody serves {key}"
        # In another group it begins anew.
        known = self._holder.get(crew.first_seat, {})
        known = {order: worker for order, worker in known.items() if order in published.values()}
        self._holder[crew.first_seat] = known
        for key in [key for key in self._world.lifecycle.singles if key in published and not gap]:
            holders = [member for member in members if key in member.serves]
            # As the fleet does: ready ones before those that drain.
            holder = min(holders, key=lambda m: (m.told is not None, preference(key.name, m.seat), m.worker_id))
            before = known.get(published[key], holder.worker_id)
            assert before == holder.worker_id, f"{key} moved from worker {before} to {holder.worker_id}"
            if generations.settled:
                known[published[key]] = before

    def finished(self) -> None:
        world = self._world
        assert world.crews.adoption is None
        for crew in world.crews.crews:
            assert not [member for member in crew.old if not member.kept], "a worker drains for ever"
            assert crew.following is None, "a change goes on for ever"
            if crew.current is not None and crew.current.plan():
                assert len(crew.current.members) == len(crew.current.places) >= crew.workers_min
                assert all(member.complete for member in crew.current.members.values())
        for name in world.plans:
            self._model_finished(name)
        assert VersionState.UNLOADING not in {self._state(key) for key in world.versions.known()}
        self._weights_finished()

    def _weights_finished(self) -> None:
        world = self._world
        preparation = world.lifecycle.preparation
        assert not world.authors.running, "an author goes on for ever"
        for order, need in preparation.refused():
            assert preparation.budget.refusal(order, need) is not None, f"there is room for {order}, and nobody tries"
        ids = {entry.weights_id for entry in preparation.entries() if entry.weights_id}
        assert world.authors.held.keys() == ids, "the pool holds what the broker does not know of, or the reverse"
        needed = set(world.groups.published().values())
        for member in world.crews.members():  # one that is kept for another version maps them yet
            needed.update(member.loaded.values())
        unknown = {order.key for order in needed if not order.path}  # of an earlier broker's workers
        held = {entry.order for entry in preparation.entries() if entry.weights_id and entry.order.key not in unknown}
        assert held <= needed, f"weights of {held - needed} are kept for ever"

    def _model_finished(self, name: str) -> None:
        world = self._world
        found = world.disk.at(world.plans[name].base_path)
        aspired = self._aspired(name)
        state = {key.version: self._state(key) for key in world.versions.known() if key.name == name}
        serving = [version for version in state if state[version] is VersionState.AVAILABLE]
        good = [version for version in aspired if found[version].kind == "good"]
        excused = {version for version in good if self._excused(name, version)}
        for version in good:
            assert version in serving or version in excused, f"{name} {version}: {state.get(version)}"
        for version in aspired:
            if found[version].kind in ("broken", "deadly") and version not in serving:
                assert state[version] is VersionState.END, f"{name} {version}: {state[version]}"
                assert world.versions.failure(ModelVersion(name, version)).code is not Code.OK
        if good and not excused and not world.deaths:
            assert set(serving) <= set(aspired), f"{name}: {serving} serve, {aspired} are asked for"

    def _excused(self, name: str, version: int) -> bool:
        """Killed twice while it was loaded, by chance; or its files were away just when it was loaded."""
        world = self._world
        code = world.versions.failure(ModelVersion(name, version)).code
        if code is Code.RESOURCE_EXHAUSTED and world.authors.limit_bytes:
            return True  # and `_weights_finished` looks whether there is no room indeed
        return (world.deaths and code is Code.INTERNAL) or (name, version) in world.unseen

    def _state(self, key: ModelVersion) -> VersionState:
        return self._world.versions.state(key)

    def _aspired(self, name: str) -> list[int]:
        plan = self._world.plans[name]
        directories = [VersionDirectory(version, "") for version in sorted(self._world.disk.at(plan.base_path))]
        return [directory.version for directory in choose(directories, plan.versions)]
