"""The rules that every simulated life of models is held to.

never without               a model that serves goes on serving as long as nobody dies, whatever is copied, broken,
                            removed or configured (but when it is taken out, or unloading the empty was asked for)
weights                     are there when a worker needs them (`authors.py`), and go with the last that maps them
two generations             of workers at most, beside those kept for what nobody can load any more
the end is right            when it is quiet every good version that is asked for serves, every bad one has ended with
                            its error, nothing drains or loads any more, and every place has its worker
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringserve.broker.aspired import VersionDirectory, choose
from ringserve.broker.messages import Code, ModelVersion, VersionState

if TYPE_CHECKING:
    from tests.sim.life import LifeWorld

#: A place that lost its workers is filled again within this time: back-offs, loads and the pool's return included.
_REPLACED_NS = 100_000_000_000


class Rules:
    """Looks at a world after each turn, and at its end."""

    def __init__(self, world: LifeWorld) -> None:
        self._world = world
        self._available: dict[str, bool] = {}

    def forget(self, name: str) -> None:
        """This model was taken out: it may go."""
        self._available.pop(name, None)

    def check(self) -> None:
        world = self._world
        crew = world.crew
        if not world.deaths:
            old = {member.pid for member in crew.old}
            ending = {member.pid for member in crew.members() if member.killed}
            # A scout that was given up may not have heard of it.
            assert len(world.workers.keys() - old - ending) <= 2 * world.workers_count + 1, "too many workers"
        published = {key.name for key in world.generations.published()}
        serving = {key.name for key in world.versions.known() if self._state(key) is VersionState.AVAILABLE}
        for name in world.lifecycle.names():
            available = name in serving
            assert available == (name in published)
            if self._available.get(name) and not available:
                empty = world.unload_when_empty and not self._aspired(name)
                replaced = world.now_ns - world.lost_ns < _REPLACED_NS or crew.adoption is not None
                assert empty or replaced, f"{name} served and does not, and nobody died"
            self._available[name] = available

    def finished(self) -> None:
        world = self._world
        crew = world.crew
        assert crew.adoption is None
        assert not [member for member in crew.old if not member.kept], "a worker drains for ever"
        assert crew.following is None, "a change goes on for ever"
        for name in world.plans:
            self._model_finished(name)
        if crew.current is not None and crew.current.plan():
            assert len(world.workers) >= world.workers_count
            assert all(member.complete for member in crew.current.members.values())
        assert VersionState.UNLOADING not in {self._state(key) for key in world.versions.known()}
        self._weights_finished()

    def _weights_finished(self) -> None:
        world = self._world
        preparation = world.lifecycle.preparation
        assert not world.authors.running, "an author goes on for ever"
        ids = {entry.weights_id for entry in preparation.entries() if entry.weights_id}
        assert world.authors.held.keys() == ids, "the pool holds what the broker does not know of, or the reverse"
        needed = set(world.generations.published().values())
        for member in world.crew.members():  # one that is kept for another version maps them yet
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
        return (world.deaths and code is Code.INTERNAL) or (name, version) in world.unseen

    def _state(self, key: ModelVersion) -> VersionState:
        return self._world.versions.state(key)

    def _aspired(self, name: str) -> list[int]:
        plan = self._world.plans[name]
        directories = [VersionDirectory(version, "") for version in sorted(self._world.disk.at(plan.base_path))]
        return [directory.version for directory in choose(directories, plan.versions)]
