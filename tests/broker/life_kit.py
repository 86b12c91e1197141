"""One small server's life cycle by hand: say what lies on disk and what workers report, see what is ordered."""

from __future__ import annotations

from typing import Any

from ringserve.broker.aspired import Listing, VersionDirectory, choose
from ringserve.broker.crew import Crew
from ringserve.broker.directories import ModelPlan
from ringserve.broker.generations import Generations
from ringserve.broker.groups import Group, Groups
from ringserve.broker.lifecycle import Lifecycle
from ringserve.broker.messages import Author, Authored, Code, Failure, ModelVersion, VersionState
from ringserve.broker.orders import ForkPlan, Moves, Order
from ringserve.broker.preparation import Authors, Preparation
from ringserve.broker.retries import Retries
from ringserve.broker.stability import FileInfo, Snapshot
from ringserve.broker.versions import Versions

S = 1_000_000_000
START_NS = 1_000 * S
BROKEN = Failure(Code.INVALID_ARGUMENT, "broken")
UNLUCKY = Failure(Code.UNAVAILABLE, "bad luck")


class Life:
    """models: name -> policy, with base path /NAME. Directories are old and complete unless a test says otherwise.

    workers_max: of the default group, which `crew` is of. groups: name -> (its models, its workers) of others.
    preparation: nothing is shared and there is no limit, unless a test says otherwise. authors: those that the pool
    makes now; `answers`: each is over at once, and well. held: ids of weights that the pool has.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        workers_max: int = 0,
        stop_first: bool = False,
        groups: dict[str, tuple[str, int]] | None = None,
        unload_when_empty: bool = False,
        preparation: Preparation | None = None,
        **models: Any,
    ) -> None:
        self.now_ns = START_NS
        self.workers_count = max(workers, workers_max)
        self.crew = Crew(workers, workers_max)
        self.generations = Generations(self.crew, (), 1, stop_first=stop_first)
        named = [Group("default", self.generations)]
        first_seat = self.workers_count
        for name, (_, count) in (groups or {}).items():
            named.append(Group(name, Generations(Crew(count, 0, first_seat), (), 1, stop_first=stop_first)))
            first_seat += count
        of = {model: name for name, (theirs, _) in (groups or {}).items() for model in theirs}
        self.groups = Groups(named, lambda model: of.get(model, "default"))
        self.crews = self.groups.crew
        self.versions = Versions()
        self.lifecycle = Lifecycle(
            self.groups,
            self.versions,
            Retries(2, 60 * S),
            preparation,
            settle_ns=2 * S,
            incomplete_ns=30 * S,
            unload_when_empty=unload_when_empty,
        )
        self.plans = {name: ModelPlan(name, f"/{name}", policy) for name, policy in models.items()}
        self.preparation = self.lifecycle.preparation
        self.checkpoints: dict[str, int] = {}  # by model: bytes of each version's checkpoint, if it has one
        self.authors: dict[int, Author] = {}
        self.answers = True
        self.held: dict[int, Authored] = {}
        self.disk: dict[str, dict[int, int]] = {name: {} for name in models}  # version -> inode
        self.contents: dict[int, int] = {}  # inode -> what tells its files from others, if not the inode
        self.moves: list[Moves] = []
        self.drains_take_long = False
        self.plan_of: dict[int, ForkPlan] = {}  # by process id, which is the worker's id, too
        self.weights_of: dict[int, dict[Order, int]] = {}
        self._pid = 100
        self.configure()

    # -------------------------------------------------------------------------------------------------- the world

    def configure(self) -> None:
        self.lifecycle.configure(self.plans.values(), self.now_ns)

    def put(self, name: str, *versions: int) -> None:
        """These versions lie there now, and have been there for long."""
        for version in versions:
            self._pid += 1
            self.disk[name][version] = self._pid
        self.look()

    def remove(self, name: str, *versions: int) -> None:
        for version in versions:
            del self.disk[name][version]
        self.look()

    def look(self, *, age_ns: int = 3600 * S, error: str = "", missing: bool = False) -> None:
        """The watcher looks at all base paths, twice, with time for everything to settle between."""
        for _ in range(2):
            for name in self.plans:
                look = self.lifecycle.look(name)
                assert look is not None
                found = () if error else self._found(name)
                snapshots = {
                    directory.version: Snapshot(
                        (
                            FileInfo("saved_model.pb", 1, self.contents.get(directory.inode, directory.inode)),
                            *self._variables(name),
                        ),
                        START_NS - age_ns,
                        START_NS,
                    )
                    for directory in choose(found, look.policy)
                    if look.known.get(directory.version) != directory.inode
                }
                listing = Listing(name, look.base_path, error, missing, found, snapshots, {})
                self.lifecycle.listed(listing, self.now_ns)
            self.turn(3 * S)

    def _found(self, name: str) -> tuple[VersionDirectory, ...]:
        base = self.plans[name].base_path
        return tuple(
            VersionDirectory(version, f"{base}/{version}", inode) for version, inode in sorted(self.disk[name].items())
        )

    def _variables(self, name: str) -> tuple[FileInfo, ...]:
        if name not in self.checkpoints:
            return ()
        data = FileInfo("variables/variables.data-00000-of-00001", self.checkpoints[name], 1)
        return (data, FileInfo("variables/variables.index", 1, 1))

    # ------------------------------------------------------------------------------------------------- the workers

    def pool(self) -> None:
        self.lifecycle.supply.pool_joined({}, list(self.held.values()), self.now_ns)
        self.turn()

    def lose_pool(self) -> None:
        """Its workers end with it, and the weights are gone."""
        self.authors.clear()
        self.held.clear()
        self.lifecycle.supply.pool_left(self.now_ns)
        for member in list(self.crews.members()):
            self.crews.worker_left(member.worker_id, self.now_ns)
        self.turn()

    def author(
        self, name: str, version: int = 1, *, status: int = 0, failure: Failure | None = None, **told: Any
    ) -> None:
        """This author ends like that. told: fields of Authored."""
        (author,) = [each for each in self.authors.values() if each.order[:2] == (name, version)]
        self._answer(author, status=status, failure=failure, **told)
        self.turn()

    def _answer(self, author: Author, *, status: int = 0, failure: Failure | None = None, **told: Any) -> None:
        del self.authors[author.weights_id]
        order, good = author.order, status == 0 and failure is None
        error = (int(failure.code), failure.text) if failure is not None else (0, "")
        shared = self.checkpoints[order.name] if good else 0
        authored = Authored(author.weights_id, *order[:3], status, *error, shared, 0, [], 1)._replace(**told)
        if authored.bytes_shared:
            self.held[author.weights_id] = authored
        self.preparation.authored(authored)
        self.lifecycle.touch()

    def turn(self, after_ns: int = 0) -> None:
        """Let time pass, and what is ordered happen at once: forks register, who is to leave leaves."""
        self.now_ns += after_ns
        self.lifecycle.touch()
        for _ in range(20):
            moves = self.lifecycle.turn(self.now_ns)
            if moves is None:
                return
            self.moves.append(moves)
            for plan in moves.forks:
                self.register(plan)
            for worker_id, kept in moves.drain:
                if not kept and not self.drains_take_long:
                    self.crews.worker_drained(worker_id, self.now_ns)
                    self.lifecycle.touch()
            for worker_id in (*moves.stops, *(pid for pid in moves.kills)):
                self.end(worker_id, 0)
            self._supply()

    def _supply(self) -> None:
        for weights_id in self.lifecycle.supply.take_forgets():
            self.authors.pop(weights_id, None)
            self.held.pop(weights_id, None)
        for author in self.lifecycle.supply.take_authors():
            self.authors[author.weights_id] = author
            if self.answers:
                self._answer(author)

    def register(self, plan: ForkPlan) -> None:
        self._pid += 1
        self.plan_of[self._pid] = plan
        self.weights_of[self._pid] = {order: self.preparation.weights_id(order) for order, _ in plan.orders}
        self.crews.worker_joined(self._pid, plan.generation, plan.worker_index, self._pid, self.now_ns)
        self.lifecycle.touch()

    def load(self, pid: int, **outcomes: Failure) -> None:
        """This worker carries out its orders. outcomes: failures by `name_version` (m_1=BROKEN)."""
        succeeded: list[ModelVersion] = []
        for order, fallback in self.plan_of[pid].orders:
            if fallback and any(key.name == order.name for key in succeeded):
                continue
            self.crews.worker_loading(pid, order.key, self.now_ns)
            failure = outcomes.get(f"{order.name}_{order.version}")
            failed = self.crews.worker_loaded(pid, order.key, failure)
            if failed is not None:
                self.lifecycle.load_failed(failed, self.now_ns)
            elif failure is None:
                self.lifecycle.load_succeeded(order.key)
                succeeded.append(order.key)
                self.crews.worker_ready(pid, frozenset(succeeded), complete=False)
            self.turn()
            if self.crews.find(pid) is None:
                return
        self.crews.worker_ready(pid, frozenset(succeeded), complete=True)
        self.turn()

    def begin(self, pid: int, name: str, version: int) -> None:
        self.crews.worker_loading(pid, ModelVersion(name, version), self.now_ns)

    def end(self, pid: int, status: int = -9) -> None:
        """This process ends; status as the pool tells it."""
        member = self.crews.find(pid)
        index = self.plan_of[pid].worker_index
        self.crews.worker_left(pid, self.now_ns)
        for failed in self.crews.worker_exited(index, pid, status, self.now_ns):
            self.lifecycle.load_failed(failed, self.now_ns)
        self.lifecycle.touch()
        assert member is None or member not in self.crews.members()

    def load_all(self, **outcomes: Failure) -> None:
        """All workers that have not, load; also those that are forked because of it."""
        for _ in range(30):
            waiting = [
                member.worker_id
                for generation in self.crews.generations
                for member in generation.members.values()
                if not member.complete
            ]
            if not waiting:
                return
            self.load(waiting[0], **outcomes)

    def serving(self, **outcomes: Failure) -> None:
        """Bring all to rest."""
        self.pool()
        self.load_all(**outcomes)

    # ---------------------------------------------------------------------------------------------------- looking

    @property
    def young(self) -> list[int]:
        """Workers of the following generation."""
        following = self.crew.following
        return [] if following is None else [member.worker_id for member in following.members.values()]

    @property
    def current(self) -> list[int]:
        current = self.crew.current
        return [] if current is None else [member.worker_id for _, member in sorted(current.members.items())]

    @property
    def old(self) -> list[int]:
        return [member.worker_id for member in self.crew.old]

    def orders(self, pid: int) -> list[tuple[str, int, bool]]:
        """(name, version, fallback) in the order of loading."""
        return [(order.name, order.version, fallback) for order, fallback in self.plan_of[pid].orders]

    def state(self, name: str, version: int) -> VersionState:
        return self.versions.state(ModelVersion(name, version))

    def states(self, name: str) -> dict[int, str]:
        return {key.version: self.state(*key).name for key in self.versions.known() if key.name == name}


def sharing(bytes_min: int = 100, at_once_max: int = 2) -> Preparation:
    """Checkpoints from this size on are shared, without a limit."""
    return Preparation(Authors(bytes_min, (0, 1), 1, at_once_max))


def started(workers: int = 2, **models: str | tuple[int, ...]) -> Life:
    """Every model serves its version 1."""
    named: dict[str, Any] = models or {"m": "latest"}
    life = Life(workers, **named)
    for name in life.plans:
        life.put(name, 1)
    life.serving()
    return life
