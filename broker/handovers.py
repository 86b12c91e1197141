"""Pure: batches that frontends sent straight to workers that they were lent (`loans.py`), as the broker hears of them.

One that is told of while it runs (Handed) is leased as all others are; one of a worker that has left meanwhile is taken
back as if it had been leased, with its blame. Of all others the Done is all that is ever heard.
"""

from __future__ import annotations

from ringserve.broker.batcher import FairOrder
from ringserve.broker.fleet import Fleet, Worker
from ringserve.broker.lane_table import LaneTable
from ringserve.broker.lanes import Entry, Lane, whole
from ringserve.broker.leases import Lease, Leases
from ringserve.broker.loans import Loan, Loans
from ringserve.broker.messages import Done, Handed
from ringserve.broker.neighbours import Neighbours
from ringserve.broker.orphans import Orphans
from ringserve.broker.outcomes import Outcomes


class Handovers:
    """The core's parts that must know of them. counters: the core's."""

    def __init__(
        self,
        lanes: LaneTable,
        fleet: Fleet,
        leases: Leases,
        loans: Loans,
        order: FairOrder,
        outcomes: Outcomes,
        orphans: Orphans,
        neighbours: Neighbours,
        counters: dict[str, int],
    ) -> None:
        self._lanes = lanes
        self._fleet = fleet
        self._leases = leases
        self._loans = loans
        self._order = order
        self._outcomes = outcomes
        self._orphans = orphans
        self._neighbours = neighbours
        self._counters = counters

    def handed(self, handed: Handed, now_ns: int) -> None:
        """These requests went straight to the worker that their frontend was lent, and are not answered yet."""
        lane = self._lanes.get(handed.lane_key) or self._lanes.open(handed.lane_key)
        if lane is None or handed.frontend_id not in self._outcomes.frontends or not handed.requests:
            return
        entries = [whole(handed.frontend_id, request, handed.handed_ns) for request in handed.requests]
        worker = self._fleet.workers.get(handed.worker_id)
        if self._loans.is_over(handed.batch_id):
            left = self._loans.take_left(handed.batch_id)
            if left:
                self._saw(lane, worker, len(entries[-left:]), now_ns)
                self._wait_again(lane, entries[-left:], now_ns)
            return
        self._saw(lane, worker, len(entries), now_ns)
        rows = sum(part[2] for part, _, _ in entries)
        expected_ns = lane.predict(rows)
        lease = Lease(handed.batch_id, handed.worker_id, lane, entries, rows, expected_ns, solo=False)
        if worker is None:  # which one of them may have ended
            self._outcomes.take_back(lease, blamed=self._loans.blames(handed.worker_id))
            self._orphans.list(lane, now_ns)
            return
        self._leases.handed(lease, handed.handed_ns)
        lease.charged_ns = self._order.charge(lane, expected_ns)

    def unseen(self, loan: Loan, done: Done, now_ns: int) -> Lease:
        """A batch of which nobody told before it was over: as what it would have been leased."""
        lane = loan.lane
        entries = _entries(loan.frontend_id, done, now_ns)
        if done.parts_left:
            # They are known as soon as the frontend gives the worker back, for which it has been asked.
            loan.left[done.batch_id] = done.parts_left
            del entries[-done.parts_left :]
        rows = sum(part[2] for part, _, _ in entries)
        lease = Lease(done.batch_id, done.worker_id, lane, entries, rows, 0, solo=False)
        # Nobody knows since when the worker had it: as long before as it is on an average.
        lease.started_ns = now_ns - done.run_ns - int(lane.times.turnaround_ns)
        lease.granted_ns = now_ns
        lease.charged_ns = self._order.charge(lane, done.run_ns)
        self._leases.ran_unseen(done.worker_id, done.run_ns)
        self._saw(lane, loan.worker, len(entries), now_ns)
        return lease

    def _wait_again(self, lane: Lane, entries: list[Entry], now_ns: int) -> None:
        lane.put_back(entries, solo=False)
        self._orphans.list(lane, now_ns)

    def _saw(self, lane: Lane, worker: Worker | None, requests: int, now_ns: int) -> None:
        lane.used_ns = now_ns
        if worker is not None:
            worker.quiet_since_ns = now_ns
            lane.granted(worker.worker_id, [])
        self._neighbours.saw(lane, now_ns)
        self._counters["submitted"] += requests
        self._counters["handed"] += requests


def _entries(frontend_id: int, done: Done, now_ns: int) -> list[Entry]:
    """Of each request, as far as the Done tells: its rows, and how long it had waited."""
    arrived_ns = [now_ns - wait_ns for count, wait_ns in done.waits for _ in range(count)]
    requests = done.requests or [done.rows]
    arrived_ns += [now_ns] * (len(requests) - len(arrived_ns))
    return [whole(frontend_id, (0, rows, 0), at) for rows, at in zip(requests, arrived_ns, strict=False)]
