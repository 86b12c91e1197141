"""The simulated frontends' side of loans: requests that go straight to a worker, and what the broker hears of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ringserve.broker.messages import Execute, Handed, Lend, Recall, Returned
from ringserve.broker.policy import MILLISECOND_NS

if TYPE_CHECKING:
    from tests.sim.world import World

TELL_NS = 2 * MILLISECOND_NS


@dataclass
class SimHanded:
    """A batch that went straight to a worker."""

    worker_id: int
    batch_id: int
    key: bytes
    requests: list[list[int]]
    handed_ns: int
    told: bool = False


@dataclass
class SimLoan:
    lend: Lend
    batch_id: int
    last: SimHanded | None = None
    held: list[list[int]] = field(default_factory=list)
    held_ns: int = 0


class SimLoans:
    """Of all frontends, by frontend and lane. What was handed over is kept beside: it outlives the loan."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._loans: dict[tuple[int, bytes], SimLoan] = {}
        self._handed: dict[int, list[SimHanded]] = {}
        self._gone: set[tuple[int, int]] = set()
        self._arrives_ns: dict[tuple[int, str], int] = {}

    def send(self, frontend_id: int, way: str, action: Callable[[], None]) -> None:
        """What one side sends the other over a cable arrives in order. way: `up` to the broker, `down` from it."""
        world = self.world
        key = (frontend_id, way)
        delay_ns = world.rng.randint(1_000, world.options.link_ns_max)
        arrives_ns = max(world.now_ns + delay_ns, self._arrives_ns.get(key, 0) + 1)
        self._arrives_ns[key] = arrives_ns
        world.at(arrives_ns - world.now_ns, action)

    def on_message(self, frontend_id: int, message: Lend | Recall) -> None:
        if isinstance(message, Lend):
            if (frontend_id, message.worker_id) not in self._gone:
                self._loans[frontend_id, message.lane_key] = SimLoan(message, message.loan_id)
            return
        for (owner, key), loan in list(self._loans.items()):
            if owner == frontend_id and loan.lend.loan_id == message.loan_id:
                self.tell(frontend_id)
                del self._loans[owner, key]
                self._give_back(frontend_id, Returned(message.loan_id, loan.batch_id))
                self._submit(frontend_id, key, loan)

    def _give_back(self, frontend_id: int, returned: Returned) -> None:
        self.send(frontend_id, "up", lambda: self.world.core.returned(*returned))

    def hand(self, frontend_id: int, groups: list[list[Any]]) -> bool:
        """Straight to the worker, if one is lent, takes all of it and does nothing that this frontend knows of; or held
        until it has done it, with chance, so that the broker gets some of those too. What is held goes along."""
        world = self.world
        key, requests = groups[0]
        loan = self._loans.get((frontend_id, key))
        if loan is None or len(groups) > 1:
            return False
        requests = [*loan.held, *requests]
        rows = [request[1] for request in requests]
        most = loan.lend.batch_rows_max if len(rows) > 1 else loan.lend.rows_max
        if sum(rows) > most or max(rows) > loan.lend.rows_max:
            return False
        running = [] if loan.last is None else self._open(frontend_id, loan.last)
        if world.checks.pending(frontend_id) > len(requests) + len(running):
            return False
        if running:
            if not loan.lend.batch_rows_max or loan.last is None or loan.last.told:
                return False
            loan.held, loan.held_ns = requests, loan.held_ns or world.now_ns
            self._look_again(frontend_id, key)
            return True
        loan.held, loan.held_ns = [], 0
        loan.batch_id += 1
        loan.last = SimHanded(loan.lend.worker_id, loan.batch_id, key, requests, world.now_ns)
        self._handed.setdefault(frontend_id, []).append(loan.last)
        parts = [[frontend_id, request_id, rows, 0, offset] for request_id, rows, _, offset in requests]
        execute = Execute(loan.batch_id, key, parts, [[len(parts), 0]])
        world.checks.handed(loan.lend.worker_id, execute)
        world.link(lambda: world.execute(loan.lend.worker_id, execute))
        world.at(TELL_NS, lambda: self.tell(frontend_id))
        return True

    def _look_again(self, frontend_id: int, key: bytes) -> None:
        """What is held goes when the batch before it is answered, or to the broker when that takes too long."""

        def look() -> None:
            loan = self._loans.get((frontend_id, key))
            if loan is None or not loan.held or frontend_id not in self.world.frontends:
                return
            late = self.world.now_ns - loan.held_ns > TELL_NS
            if late or not self.hand(frontend_id, [[key, []]]):
                self.tell(frontend_id)
                self._submit(frontend_id, key, loan)

        self.world.at(50_000, look)

    def give_up_held(self, frontend_id: int) -> None:
        """Something is to be submitted that does not go this way: so is what is held, before it."""
        for (owner, key), loan in self._loans.items():
            if owner == frontend_id:
                self._submit(frontend_id, key, loan)

    def _submit(self, frontend_id: int, key: bytes, loan: SimLoan) -> None:
        held, loan.held, loan.held_ns = loan.held, [], 0
        if held:
            self.send(frontend_id, "up", lambda: self.world.arrive(frontend_id, [[key, held]]))

    def tell(self, frontend_id: int) -> None:
        """Before anything else that the broker must see beside it."""
        open_ones = [one for one in self._handed.get(frontend_id, ()) if self._open(frontend_id, one)]
        self._handed[frontend_id] = open_ones
        for one in open_ones:
            if not one.told:
                one.told = True
                requests = self._open(frontend_id, one)
                handed = Handed(frontend_id, one.worker_id, one.batch_id, one.key, one.handed_ns, requests)
                self.send(frontend_id, "up", lambda handed=handed: self._arrive(handed))  # type: ignore[misc]

    def _arrive(self, handed: Handed) -> None:
        self.world.checks.seen(handed, self.world.now_ns)
        self.world.core.handed(handed, self.world.now_ns)

    def _open(self, frontend_id: int, one: SimHanded) -> list[list[int]]:
        """Its requests that have no answer."""
        watched = self.world.checks.requests
        return [request for request in one.requests if not watched[frontend_id, request[0]].ends]

    def worker_left(self, frontend_id: int, worker_id: int) -> None:
        """The broker says that it is gone."""
        self._gone.add((frontend_id, worker_id))
        loans = self._loans.items()
        keys = [key for key, loan in loans if loan.lend.worker_id == worker_id and key[0] == frontend_id]
        gone = {key: self._loans.pop(key) for key in keys}
        self.tell(frontend_id)
        for key, loan in gone.items():
            self._submit(frontend_id, key[1], loan)


def ask_alone(world: World, frontend_id: int, key: bytes, left: int, pause_ns: int = 0) -> None:
    """A client that asks again when it has its answer, `left` times; with others beside it now and then."""
    if left and frontend_id in world.frontends:
        if not world.checks.pending(frontend_id):
            world.submit(1, frontend_id, key)
            left, pause_ns = left - 1, 0
            if world.rng.random() > world.options.lone_chance:
                world.submit(world.rng.randint(1, 3))
        pause_ns = min(2 * pause_ns + 50_000, 50 * MILLISECOND_NS)
        world.at(pause_ns, lambda: ask_alone(world, frontend_id, key, left, pause_ns))


def ask_together(
    world: World, frontend_id: int, key: bytes, left: int, in_flight: int, pause_ns: int = 0
) -> None:
    """Clients of one frontend that have up to so many requests of a lane in flight, with others now and then."""
    if left <= 0 or frontend_id not in world.frontends:
        return
    pending = world.checks.pending(frontend_id)
    fresh = in_flight - pending
    if fresh > 0 and (not pending or world.rng.random() < 0.2):  # now and then all of them have their answers
        fresh = min(fresh, left, world.rng.randint(1, in_flight))
        world.submit(fresh, frontend_id, key)
        left, pause_ns = left - fresh, 0
        if world.rng.random() > world.options.lone_chance:
            world.submit(world.rng.randint(1, 3))
    pause_ns = min(2 * pause_ns + 50_000, 50 * MILLISECOND_NS)
    world.at(pause_ns, lambda: ask_together(world, frontend_id, key, left, in_flight, pause_ns))
