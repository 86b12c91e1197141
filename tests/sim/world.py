"""A whole ringserve without processes: the real `Core`, simulated frontends, workers, links and time, from one seed.

Everything that happens is an event on one heap of (time, sequence); time jumps from one to the next. Links delay each
message by a random time, so that a worker's Result, its Done and the news of its death arrive in any order, as they do
from three different sockets. In the first phase faults happen; then they stop, everything that was broken is replaced,
and everything must finish. `checks.py` looks at every message on its way.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ringserve.broker.core import Core
from ringserve.broker.loans import LOAN_ID_FIRST
from ringserve.broker.messages import Done, Execute
from ringserve.broker.policy import MILLISECOND_NS, SECOND_NS, LanePolicy
from tests.sim.checks import Checks
from tests.sim.draw import draw_lanes, draw_options, draw_policy
from tests.sim.failing import Failing
from tests.sim.lending import SimLoans, ask_alone, ask_together

FAULTS_END_NS = 400 * MILLISECOND_NS


@dataclass
class SimWorker:
    worker_id: int
    index: int
    inbox: list[Execute] = field(default_factory=list)
    alive: bool = True
    busy: bool = False
    hung: bool = False


class World:
    """One simulated server. `run` returns when everything has finished; a broken rule raises AssertionError."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.options = draw_options(self.rng)
        self.lanes = draw_lanes(self.rng)
        self.core = Core(lambda key: self.lanes[key].spec, credit_max=self.options.credit_max)
        self.checks = Checks(self.core, self.options.credit_max, self.lanes)
        self.set_policies()
        self.core.set_versions({(kind.spec.model, 1) for kind in self.lanes.values()})
        self.now_ns = SECOND_NS
        self.faults_end_ns = self.now_ns + FAULTS_END_NS
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._ids = 100
        self._request_id = 0
        self._wake_ns = 0
        self.workers: dict[int, SimWorker] = {}
        self.frontends: list[int] = []
        self.poison: set[tuple[int, int]] = set()
        self.loans = SimLoans(self)
        self.failing = Failing(self)

    def set_policies(self) -> None:
        """The lanes' policies as they are now, and how many batches may run at once over all of them."""
        at_once = self.rng.choice((0, 0, 1, 2))
        policies = {kind.spec.model: kind.policy for kind in self.lanes.values()}
        self.core.set_policies(LanePolicy(batches_at_once_max=at_once), policies)
        self.checks.policies_set(at_once)

    def change_policies(self) -> None:
        """An operator changes the rules while lanes hold requests of the old ones."""
        drawn = {kind.spec.model: draw_policy(self.rng) for kind in self.lanes.values()}
        for kind in self.lanes.values():
            kind.policy = drawn[kind.spec.model]
        self.set_policies()

    # -------------------------------------------------------------------------------------------------- engine

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now_ns + delay_ns, self._sequence, action))

    def link(self, action: Callable[[], None]) -> None:
        """Something arrives at the broker or at a peer after a message's time."""
        self.at(self.rng.randint(1_000, self.options.link_ns_max), action)

    def faulty(self, chance: float) -> bool:
        return self.now_ns < self.faults_end_ns and self.rng.random() < chance

    def run(self) -> None:
        for _ in range(self.options.frontends_count):
            self.new_frontend()
        for index in range(self.options.workers_count):
            self.at(self.rng.randint(0, 5 * MILLISECOND_NS), lambda index=index: self.new_worker(index))  # type: ignore[misc]
        for _ in range(self.options.policy_changes):
            self.at(self.rng.randint(0, FAULTS_END_NS), self.change_policies)
        if self.options.lone_chance:
            most = 1 if self.options.lone_chance == 1.0 else 2
            for key in self.rng.sample(list(self.lanes), min(most, len(self.lanes))):
                frontend_id = self.rng.choice(self.frontends)
                if self.rng.random() < 0.5:
                    ask_alone(self, frontend_id, key, 100)
                else:
                    ask_together(self, frontend_id, key, 300, self.rng.choice((2, 6, 20)))
        left = 20 if self.options.lone_chance else self.options.requests_count
        left = 0 if self.options.lone_chance == 1.0 else left
        while left > 0:
            burst = min(left, self.rng.randint(1, self.options.burst_max))
            left -= burst
            self.at(self.rng.randint(0, FAULTS_END_NS), lambda burst=burst: self.submit(burst))  # type: ignore[misc]
        turns_limit = 40 * self.options.requests_count + 30_000
        while self._events:
            self.now_ns, _, action = heapq.heappop(self._events)
            self.checks.now_ns = self.now_ns
            action()
            # Several messages of one loop turn: the core is not always asked before the next arrives.
            near = bool(self._events) and self._events[0][0] - self.now_ns < 20_000
            if not (near and self.rng.random() < 0.5):
                self.turn()
            turns_limit -= 1
            assert turns_limit, "the world does not come to rest"
        self.checks.everything_finished()

    def turn(self) -> None:
        turn = self.core.turn(self.now_ns)
        self.checks.turned(turn, self.now_ns)
        for worker_id, execute in turn.executes:
            self.link(lambda worker_id=worker_id, execute=execute: self.execute(worker_id, execute))  # type: ignore[misc]
        for frontend_id, requests in turn.failed.items():
            for request in requests:
                self.checks.failed(frontend_id, request, self.now_ns)
        for frontend_id, message in turn.loans:
            assert frontend_id in self.frontends
            self.loans.send(
                frontend_id,
                "down",
                lambda frontend_id=frontend_id, message=message: self.loans.on_message(frontend_id, message),  # type: ignore[misc]
            )
        for worker_id in turn.kills:
            self.at(self.rng.randint(0, MILLISECOND_NS), lambda worker_id=worker_id: self.die(worker_id))  # type: ignore[misc]
        for worker_id in turn.drained:
            self.at(1_000, lambda worker_id=worker_id: self.die(worker_id))  # type: ignore[misc]
        if turn.wake_ns not in (0, self._wake_ns):
            self.at(turn.wake_ns - self.now_ns, lambda: None)  # the loop asks the core after every event
        self._wake_ns = turn.wake_ns

    # ----------------------------------------------------------------------------------------------- frontends

    def new_frontend(self) -> None:
        self._ids += 1
        self.frontends.append(self._ids)
        self.core.frontend_joined(self._ids)
        self.checks.frontend_joined(self._ids)

    def submit(self, count: int, frontend_id: int = 0, only: bytes = b"") -> None:
        rng, options = self.rng, self.options
        frontend_id = frontend_id or rng.choice(self.frontends)
        groups: list[list[Any]] = []
        for _ in range(count):
            key = only or rng.choice(list(self.lanes))
            self._request_id += 1
            rows = rng.randint(1, options.rows_max) if self.lanes[key].spec.batchable else 1
            deadline_ns = 0
            if rng.random() < options.deadline_chance:
                deadline_ns = self.now_ns + rng.choice((100_000, 5 * MILLISECOND_NS, 50 * MILLISECOND_NS))
            request = [self._request_id, rows, deadline_ns, 64 * self._request_id]
            self.checks.submitted(frontend_id, key, request)
            if rng.random() < options.poison_chance:
                self.poison.add((frontend_id, self._request_id))
                self.checks.requests[frontend_id, self._request_id].poison = rows == 1
            for group in groups:
                if group[0] == key:
                    group[1].append(request)
                    break
            else:
                groups.append([key, [request]])
            if rng.random() < options.cancel_chance:
                self.at(
                    rng.randint(0, 10 * MILLISECOND_NS),
                    lambda key=key, request_id=self._request_id: self.cancel(frontend_id, key, request_id),  # type: ignore[misc]
                )
        if not self.loans.hand(frontend_id, groups):
            self.loans.tell(frontend_id)
            self.loans.give_up_held(frontend_id)
            self.loans.send(frontend_id, "up", lambda: self.arrive(frontend_id, groups))
        if rng.random() < 0.1:
            self.at(rng.randint(0, 20 * MILLISECOND_NS), lambda: self.resubmit(frontend_id, groups))
        if self.faulty(options.frontend_death_chance):
            self.link(lambda: self.frontend_dies(frontend_id))

    def arrive(self, frontend_id: int, groups: list[list[Any]]) -> None:
        self.checks.arrived(frontend_id, groups, self.now_ns)
        self.core.submit(frontend_id, groups, self.now_ns)

    def resubmit(self, frontend_id: int, groups: list[list[Any]]) -> None:
        """The frontend is not sure that what it has no answer for is still held by anyone."""
        self.loans.tell(frontend_id)

        def arrive() -> None:
            resubmitted = self.checks.resubmitted
            again = [
                [key, [self.again(frontend_id, each) for each in requests if resubmitted(frontend_id, each[0])]]
                for key, requests in groups
            ]
            self.checks.arrived(frontend_id, again, self.now_ns)
            self.core.resubmit(frontend_id, again, self.now_ns)

        self.loans.send(frontend_id, "up", arrive)

    def again(self, frontend_id: int, request: list[int]) -> list[int]:
        """As it is submitted again: one that was cancelled meanwhile as one that is too late."""
        if not self.checks.requests[frontend_id, request[0]].cancelled:
            return request
        return [*request[:2], 1, *request[3:]]

    def cancel(self, frontend_id: int, key: bytes, request_id: int) -> None:
        def deliver() -> None:
            self.checks.cancelled(frontend_id, request_id)
            self.core.cancel(frontend_id, [[key, request_id]], self.now_ns)

        self.loans.tell(frontend_id)
        self.loans.send(frontend_id, "up", deliver)

    def frontend_dies(self, frontend_id: int) -> None:
        if frontend_id in self.frontends:
            self.frontends.remove(frontend_id)
            self.core.frontend_left(frontend_id)
            self.checks.frontend_left(frontend_id)
            self.new_frontend()

    # ------------------------------------------------------------------------------------------------- workers

    def new_worker(self, index: int) -> None:
        self._ids += 1
        worker = self.workers[self._ids] = SimWorker(self._ids, index)
        loaded = {(kind.spec.model, 1) for kind in self.lanes.values()}
        self.core.worker_joined(worker.worker_id, index, loaded)
        self.checks.worker_joined(worker.worker_id)

    def execute(self, worker_id: int, execute: Execute) -> None:
        worker = self.workers[worker_id]
        if worker.alive:
            worker.inbox.append(execute)
            self.work(worker)

    def work(self, worker: SimWorker) -> None:
        if not worker.alive or worker.busy or worker.hung or not worker.inbox:
            return
        execute = worker.inbox.pop(0)
        worker.busy = True
        self.checks.started(worker.worker_id, execute.batch_id)
        if self.faulty(self.options.drain_chance):
            self.link(lambda: self.drain(worker.worker_id))
        if self.faulty(self.options.hang_chance):
            worker.hung = True
            return
        kind = self.lanes[execute.lane_key]
        rows = sum(part[2] for part in execute.parts)
        rows_run = min((size for size in kind.policy.batch_rows_allowed if size >= rows), default=rows)
        run_ns = int((kind.fixed_ns + rows_run * kind.row_ns) * self.rng.uniform(0.7, 1.5))
        poisoned = any((part[0], part[1]) in self.poison for part in execute.parts)
        if poisoned or self.faulty(self.options.death_chance / 2):
            self.at(run_ns // 2, lambda: self.die(worker.worker_id))
        else:
            self.at(run_ns, lambda: self.finish(worker, execute, run_ns, rows))

    def finish(self, worker: SimWorker, execute: Execute, run_ns: int, rows: int) -> None:
        if not worker.alive:
            return
        worker.busy = False
        kept, left, parts_max = self.failing.run(worker.worker_id, execute)
        for part in execute.parts[:kept]:
            self.checks.result(part[0], part[1], part[3], part[2])
        if self.faulty(self.options.death_chance / 2):  # the Results are out, the Done is not
            self.die(worker.worker_id)
            return

        def deliver() -> None:
            settled = self.core.statistics()["dones_ignored"]
            requests = [part[2] for part in execute.parts] if execute.waits else []
            counts = run_ns, rows, 0, left, parts_max
            done = Done(worker.worker_id, execute.batch_id, *counts, requests, execute.waits)
            self.core.done(done, self.now_ns)
            if self.core.statistics()["dones_ignored"] == settled or execute.batch_id > LOAN_ID_FIRST:
                self.checks.settled(execute.batch_id)

        self.loans.send(worker.worker_id, "up", deliver)
        self.work(worker)

    def drain(self, worker_id: int) -> None:
        if worker_id in self.workers and self.workers[worker_id].alive:
            self.core.worker_draining(worker_id, self.now_ns)
            self.checks.drained(worker_id)

    def die(self, worker_id: int) -> None:
        worker = self.workers[worker_id]
        if not worker.alive:
            return
        worker.alive = False

        def deliver() -> None:
            self.checks.worker_left(worker_id)
            self.core.worker_left(worker_id, self.now_ns)
            for frontend_id in self.frontends:
                self.link(lambda frontend_id=frontend_id: self.loans.worker_left(frontend_id, worker_id))  # type: ignore[misc]

        self.link(deliver)
        delay_ns = int(self.options.deaf_seconds * SECOND_NS * self.rng.random())
        self.at(delay_ns + self.options.link_ns_max, lambda: self.new_worker(worker.index))
