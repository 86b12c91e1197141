"""A quiet world under load: closed-loop clients or open arrivals against the real `Core`, simulated workers and time.

For questions of policy: who gets how much, how long does anyone wait, how many workers does a lane use? There is no
chance in it but a lane's `chance`, from a seed; each link takes `LINK_NS`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ringserve.broker.core import Core
from ringserve.broker.messages import Code, Done, Execute, InputSpec, LaneSpec
from ringserve.broker.policy import MILLISECOND_NS, LanePolicy

LINK_NS = 60_000
START_NS = 1_000 * MILLISECOND_NS


@dataclass
class LoadLane:
    """clients: each sends its next request when it has the answer. interval_ns: open arrivals instead, `burst` each.

    A batch takes fixed_ns + rows * row_ns, rows padded to the policy's allowed sizes; each worker's first batch takes
    cold_ns more. rows: of each request. timeout_ns: every request's deadline after its arrival; 0 = none.
    chance: arrivals are Poisson's, and a batch takes up to a third more or less, one in twenty three times as long.
    model: lanes of different models have different ones.
    """

    name: str
    fixed_ns: int
    row_ns: int
    clients: int = 0
    interval_ns: int = 0
    timeout_ns: int = 0
    batchable: bool = True
    rows: int = 1
    burst: int = 1
    cold_ns: int = 0
    chance: random.Random | None = None
    model: str = "m"
    answered: int = 0
    in_time: int = 0
    expired: int = 0
    batches: int = 0
    busy_ns: int = 0
    wait_ns_max: int = 0
    waits_ns: list[int] = field(default_factory=list)
    answered_at_ns: list[int] = field(default_factory=list)
    refusals_ns: list[int] = field(default_factory=list)
    rows_of_batches: list[int] = field(default_factory=list)
    workers_used: set[int] = field(default_factory=set)

    @property
    def spec(self) -> LaneSpec:
        return LaneSpec(self.model, 1, self.name, (InputSpec("x", 1, (4,)),), ("y",), self.batchable)

    @property
    def late(self) -> int:
        """Let in, and not answered in time."""
        return self.expired + self.answered - self.in_time

    @property
    def refused(self) -> int:
        return len(self.refusals_ns)

    def gap_ns(self) -> int:
        """Until the next arrival."""
        return self.interval_ns if self.chance is None else 1 + int(self.chance.expovariate(1 / self.interval_ns))

    def run_ns(self, rows: int) -> int:
        """What a batch of so many rows takes now."""
        run_ns = self.fixed_ns + self.row_ns * rows
        if self.chance is None:
            return run_ns
        return int(run_ns * (3 if self.chance.random() < 0.05 else self.chance.uniform(0.67, 1.33)))

    def wait_ns(self, part: float) -> int:
        """What this part of the requests waited at most for its answer: 0.5 is the median."""
        return sorted(self.waits_ns)[int(part * (len(self.waits_ns) - 1))]


class Load:
    def __init__(self, lanes: list[LoadLane], workers_count: int, policy: LanePolicy | None = None) -> None:
        self.lanes = {lane.name.encode(): lane for lane in lanes}
        self.policy = policy or LanePolicy()
        self.core = Core(lambda key: self.lanes[key].spec, default_policy=self.policy)
        self.core.frontend_joined(1)
        for index in range(workers_count):
            self.core.worker_joined(10 + index, index, {(lane.model, 1) for lane in lanes})
        self._queues: dict[int, list[Execute]] = {10 + index: [] for index in range(workers_count)}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._requests: dict[int, tuple[bytes, int]] = {}
        self._request_id = 0
        self.now_ns = START_NS

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now_ns + delay_ns, self._sequence, action))

    def run(self, duration_ns: int) -> None:
        for number, (key, lane) in enumerate(self.lanes.items()):
            if lane.interval_ns:
                self.at(number, lambda key=key: self._arrive(key))  # type: ignore[misc]
            else:
                self.at(number, lambda key=key, count=lane.clients: self._send(key, count))  # type: ignore[misc]
        wake_ns = 0
        while self._events and self._events[0][0] < START_NS + duration_ns:
            self.now_ns, _, action = heapq.heappop(self._events)
            action()
            if self._events and self._events[0][0] == self.now_ns:
                continue
            turn = self.core.turn(self.now_ns)
            for worker_id, execute in turn.executes:
                self.at(LINK_NS, lambda worker_id=worker_id, execute=execute: self._execute(worker_id, execute))  # type: ignore[misc]
            for request_id, code, *_ in turn.failed.get(1, []):
                key, sent_ns = self._requests.pop(request_id)
                if code == Code.DEADLINE_EXCEEDED:
                    self.lanes[key].expired += 1
                else:
                    self.lanes[key].refusals_ns.append(self.now_ns - sent_ns)
            if turn.wake_ns not in (0, wake_ns):
                self.at(turn.wake_ns - self.now_ns, lambda: None)
            wake_ns = turn.wake_ns

    def _arrive(self, key: bytes) -> None:
        self._send(key, self.lanes[key].burst)
        self.at(self.lanes[key].gap_ns(), lambda: self._arrive(key))

    def _send(self, key: bytes, count: int) -> None:
        timeout_ns = self.lanes[key].timeout_ns
        requests = []
        for _ in range(count):
            self._request_id += 1
            self._requests[self._request_id] = (key, self.now_ns)
            deadline_ns = self.now_ns + timeout_ns if timeout_ns else 0
            requests.append([self._request_id, self.lanes[key].rows, deadline_ns, 0])
        self.core.submit(1, [[key, requests]], self.now_ns)

    def _execute(self, worker_id: int, execute: Execute) -> None:
        self._queues[worker_id].append(execute)
        if len(self._queues[worker_id]) == 1:
            self._start(worker_id)

    def _start(self, worker_id: int) -> None:
        execute = self._queues[worker_id][0]
        lane = self.lanes[execute.lane_key]
        rows = sum(part[2] for part in execute.parts)
        rows = min((size for size in self.policy.batch_rows_allowed if size >= rows), default=rows)
        run_ns = lane.run_ns(rows)
        if worker_id not in lane.workers_used:
            run_ns += lane.cold_ns
            lane.workers_used.add(worker_id)
        self.at(run_ns, lambda: self._finish(worker_id, run_ns))

    def _finish(self, worker_id: int, run_ns: int) -> None:
        execute = self._queues[worker_id].pop(0)
        if self._queues[worker_id]:
            self._start(worker_id)
        lane = self.lanes[execute.lane_key]
        lane.batches += 1
        lane.busy_ns += run_ns
        lane.rows_of_batches.append(sum(part[2] for part in execute.parts))
        for part in execute.parts:
            _, sent_ns = self._requests.pop(part[1])
            lane.answered += 1
            lane.wait_ns_max = max(lane.wait_ns_max, self.now_ns - sent_ns)
            lane.waits_ns.append(self.now_ns - sent_ns)
            lane.answered_at_ns.append(self.now_ns - START_NS)
            lane.in_time += not lane.timeout_ns or self.now_ns <= sent_ns + lane.timeout_ns
        done = Done(worker_id, execute.batch_id, run_ns, lane.rows_of_batches[-1], 0, 0, 0)
        self.at(LINK_NS, lambda: self.core.done(done, self.now_ns))
        if lane.clients:
            self.at(2 * LINK_NS, lambda: self._send(execute.lane_key, len(execute.parts)))
