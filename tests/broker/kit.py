"""Short ways to say a lane, a worker that holds something, and a core with peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ringserve.broker.core import Core, Turn
from ringserve.broker.fleet import Worker
from ringserve.broker.lanes import Entry, Lane, Split
from ringserve.broker.leases import Lease
from ringserve.broker.messages import Done, InputSpec, LaneSpec
from ringserve.broker.policy import MILLISECOND_NS, LanePolicy

MS = MILLISECOND_NS
NOW = 1_000 * MS
FRONTEND, OTHER_FRONTEND = 1, 2


def spec_of(model: str = "m", version: int = 1, signature: str = "s", *, batchable: bool = True) -> LaneSpec:
    return LaneSpec(model, version, signature, (InputSpec("x", 1, (4,)),), ("y",), batchable)


def key_of(spec: LaneSpec) -> bytes:
    return repr(spec).encode()


def entry(request_id: int, rows: int = 1, deadline_ns: int = 0, arrived_ns: int = NOW, row_start: int = 0) -> Entry:
    return ([FRONTEND, request_id, rows, row_start, 64 * request_id], deadline_ns, arrived_ns)


def lane_of(*entries: Entry, batchable: bool = True, run_ns: int = 0, **policy: Any) -> Lane:
    """A lane in which `entries` wait. run_ns: learned run time per row, from batches of 1 and 8; 0 = nothing known."""
    lane = Lane(b"k", spec_of(batchable=batchable), LanePolicy(**policy))
    lane.queue.extend(entries)
    lane.rows_queued = sum(part[2] for part, _, _ in entries)
    lane.deadline_min_ns = min((deadline_ns for _, deadline_ns, _ in entries if deadline_ns), default=0)
    for part, _, _ in entries:
        if part[2] > lane.rows_max and lane.policy.split:
            lane.splits[part[0], part[1]] = Split()
    if run_ns:
        for rows in (1, 8) * 2:
            lane.times.observe(rows, run_ns * rows, run_ns * rows)
    return lane


def worker_of(worker_id: int, *leases: Lease) -> Worker:
    return Worker(worker_id, worker_id, list(leases))


def lease_of(lane: Lane, *, ran_ns: int, expected_ns: int, solo: bool = False) -> Lease:
    """A head lease that has run for `ran_ns` at NOW."""
    lease = Lease(1, 1, lane, [], 1, expected_ns, solo)
    lease.started_ns = NOW - ran_ns
    lane.leases_count += 1
    return lease


def ids(entries: list[Entry]) -> list[int]:
    return [part[1] for part, _, _ in entries]


class Bench:
    """A core with one frontend and `workers` workers (ids 10, 11, ...) that serve model m version 1; time by hand."""

    def __init__(self, workers: int = 1, *, credit_max: int = 2, **policy: Any) -> None:
        self.specs: dict[bytes, LaneSpec] = {}
        self.core = Core(self.specs.__getitem__, default_policy=LanePolicy(**policy), credit_max=credit_max)
        self.now_ns = NOW
        self.key = self.lane(spec_of())
        self.core.frontend_joined(FRONTEND)
        for index in range(workers):
            self.core.worker_joined(10 + index, index, {("m", 1)})

    def lane(self, spec: LaneSpec) -> bytes:
        key = key_of(spec)
        self.specs[key] = spec
        return key

    def submit(
        self, *requests: tuple[int, int] | tuple[int, int, int], key: bytes | None = None, frontend_id: int = FRONTEND
    ) -> Turn:
        """requests: (id, rows) or (id, rows, deadline_ns). Returns the turn after it."""
        items = [[request[0], request[1], request[2] if len(request) == 3 else 0, 64] for request in requests]
        self.core.submit(frontend_id, [[key or self.key, items]], self.now_ns)
        return self.turn()

    def turn(self, after_ns: int = 0) -> Turn:
        self.now_ns += after_ns
        return self.core.turn(self.now_ns)

    def done(
        self,
        worker_id: int,
        batch_id: int,
        run_ns: int = 100_000,
        rows: int = 1,
        waited_ns: int = 0,
        parts_left: int = 0,
        parts_max: int = 0,
        requests: Sequence[int] = (),
        waits: Sequence[list[int]] = (),
    ) -> Turn:
        counts = run_ns, rows, waited_ns, parts_left, parts_max
        done = Done(worker_id, batch_id, *counts, [*requests], [*waits])
        self.core.done(done, self.now_ns)
        return self.turn()

    def left(self, worker_id: int, *, blameless: bool = False) -> Turn:
        self.core.worker_left(worker_id, self.now_ns, blameless=blameless)
        return self.turn()

    def learn(self, run_ns: int, rows: int = 1, *, times: int = 20) -> None:
        """Let the lane's run time be known: some batches of `rows` that took `run_ns`."""
        for number in range(times):
            ((worker_id, execute),) = self.submit((900_000 + number, rows)).executes
            self.now_ns += run_ns
            self.done(worker_id, execute.batch_id, run_ns, rows)

    def counted(self, name: str) -> int:
        return self.core.statistics()[name]


def sent(turn: Turn) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """[(worker id, [(request id, rows, row_start), ...]), ...]"""
    return [(worker_id, [(p[1], p[2], p[3]) for p in execute.parts]) for worker_id, execute in turn.executes]


def told(turn: Turn, frontend_id: int = FRONTEND) -> list[tuple[int, int]]:
    """[(request id, code), ...]"""
    return [(request_id, code) for request_id, code, _ in turn.failed.get(frontend_id, [])]
