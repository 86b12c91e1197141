"""The simulated frontends' side of loans: requests that go straight to a worker, and what the broker hears of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringserve.broker.messages import Execute, Handed, Lend, Recall, Returned
from ringserve.broker.policy import MILLISECOND_NS

if TYPE_CHECKING:
    from tests.sim.world import World

TELL_NS = 2 * MILLISECOND_NS


@dataclass
class SimHanded:
    """A request that went straight to a worker."""

    worker_id: int
    batch_id: int
    key: bytes
    request: list[int]
    handed_ns: int
    told: bool = False


@dataclass
class SimLoan:
    lend: Lend
    batch_id: int
    last: SimHanded | None = None


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

    def _give_back(self, frontend_id: int, returned: Returned) -> None:
        self.send(frontend_id, "up", lambda: self.world.core.returned(*returned))

    def hand(self, frontend_id: int, key: bytes, request: list[int]) -> bool:
        """Straight to the worker, if one is lent and does nothing that this frontend knows of."""
        world = self.world
        loan = self._loans.get((frontend_id, key))
        if loan is None or request[1] > loan.lend.rows_max:
            return False
        if loan.last is not None and not self._is_over(frontend_id, loan.last):
            return False
        loan.batch_id += 1
        loan.last = SimHanded(loan.lend.worker_id, loan.batch_id, key, request, world.now_ns)
        self._handed.setdefault(frontend_id, []).append(loan.last)
        request_id, rows, _, offset = request
        execute = Execute(loan.batch_id, key, [[frontend_id, request_id, rows, 0, offset]])
        world.checks.handed(loan.lend.worker_id, execute)
        world.link(lambda: world.execute(loan.lend.worker_id, execute))
        world.at(TELL_NS, lambda: self.tell(frontend_id))
        return True

    def tell(self, frontend_id: int) -> None:
        """Before anything else that the broker must see beside it."""
        open_ones = [one for one in self._handed.get(frontend_id, ()) if not self._is_over(frontend_id, one)]
        self._handed[frontend_id] = open_ones
        for one in open_ones:
            if not one.told:
                one.told = True
                handed = Handed(frontend_id, one.worker_id, one.batch_id, one.key, one.handed_ns, one.request)
                self.send(frontend_id, "up", lambda handed=handed: self._arrive(handed))  # type: ignore[misc]

    def _arrive(self, handed: Handed) -> None:
        self.world.checks.seen(handed, self.world.now_ns)
        self.world.core.handed(handed, self.world.now_ns)

    def _is_over(self, frontend_id: int, one: SimHanded) -> bool:
        return self.world.checks.requests[frontend_id, one.request[0]].ends > 0

    def worker_left(self, frontend_id: int, worker_id: int) -> None:
        """The broker says that it is gone."""
        self._gone.add((frontend_id, worker_id))
        for key in [key for key, loan in self._loans.items() if loan.lend.worker_id == worker_id]:
            if key[0] == frontend_id:
                del self._loans[key]
        self.tell(frontend_id)


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
