"""Pure: which worker holds which batch, since when and until when. Grant, settle, expire, revoke.

A worker holds its leases in the order in which it was sent them and runs the first (its *head*). Only the head's time
runs: a lease behind it starts when it becomes the head, so that a batch is not blamed for the one before it.

Time counts only as far as the broker saw it pass (as in `ringserve/hangs.py`): one that was itself stopped, with its
machine or its control group, cannot tell a worker that hung from one that was stopped with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ringserve.broker.lanes import Entry, Lane

#: A lease lasts at least this many times the learned run time, whatever the policy's limit.
RUN_TIMES_MAX = 10
#: Who comes so much later than planned was stopped; less may be a busy host, for which leases are long enough.
_STOPPED_NS = 1_000_000_000


def stopped_ns(planned_ns: int, now_ns: int) -> int:
    """How long this process was stopped when it was to wake at `planned_ns` at the latest; 0: it was not."""
    late_ns = now_ns - planned_ns
    return late_ns if late_ns > _STOPPED_NS else 0


class Lease:
    """One batch of one lane, granted to one worker.

    granted_ns: when it was sent to its worker. started_ns: when it became its worker's head; 0 while it waits behind
    another. expected_ns: predicted run time when it was granted, 0 = unknown. charged_ns: what the fair order charged
    the lane for it. solo: the worker must hold nothing else, so that a death is this request's and nobody else's.
    has_parts: some entries are parts of a Split.
    """

    __slots__ = (
        "batch_id",
        "charged_ns",
        "deadline_ns",
        "entries",
        "expected_ns",
        "granted_ns",
        "has_parts",
        "lane",
        "rows",
        "solo",
        "started_ns",
        "worker_id",
    )

    def __init__(
        self, batch_id: int, worker_id: int, lane: Lane, entries: list[Entry], rows: int, expected_ns: int, solo: bool
    ) -> None:
        self.batch_id = batch_id
        self.worker_id = worker_id
        self.lane = lane
        self.entries = entries
        self.rows = rows
        self.expected_ns = expected_ns
        self.solo = solo
        self.charged_ns = 0
        self.has_parts = False
        self.granted_ns = 0
        self.started_ns = 0
        self.deadline_ns = 0

    def run_ns_max(self) -> int:
        """How long this batch may be the head before it is taken for hung."""
        return max(self.lane.policy.lease_ns_max, RUN_TIMES_MAX * self.expected_ns)

    def waited_for_until_ns(self) -> int:
        """Until when a client waits for it that has said so, or may: such a batch runs for long, and does not hang."""
        latest_ns = self.started_ns + self.lane.policy.lease_waits_ns_max
        deadlines_ns = [deadline_ns for _, deadline_ns, _ in self.entries]
        return min(latest_ns, max(deadlines_ns)) if all(deadlines_ns) else latest_ns


class Leases:
    """All leases, by batch id and by worker. A worker's list may be read by others, and is changed only here.

    running_count: batches that run now; each worker runs one at a time, so it is the number of workers with a lease.
    """

    def __init__(self) -> None:
        self._by_batch: dict[int, Lease] = {}
        self._by_worker: dict[int, list[Lease]] = {}
        self._batch_id_last = 0
        self._deadline_min_ns = 0
        self._resumed_ns = 0  # when time last went on after a stop
        self._busy_ns: dict[int, int] = {}
        self.running_count = 0

    def __len__(self) -> int:
        return len(self._by_batch)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_batch.values())

    def worker_joined(self, worker_id: int) -> list[Lease]:
        """The worker's (empty) list of leases, which this object keeps up to date until `revoke`."""
        held: list[Lease] = []
        self._by_worker[worker_id] = held
        self._busy_ns[worker_id] = 0
        return held

    def grant(
        self,
        worker_id: int,
        lane: Lane,
        entries: list[Entry],
        rows: int,
        now_ns: int,
        *,
        expected_ns: int,
        solo: bool,
    ) -> Lease:
        """Lease `entries` to the worker."""
        self._batch_id_last += 1
        lease = Lease(self._batch_id_last, worker_id, lane, entries, rows, expected_ns, solo)
        self._by_batch[lease.batch_id] = lease
        held = self._by_worker[worker_id]
        held.append(lease)
        lane.leases_count += 1
        lease.granted_ns = now_ns
        if len(held) == 1:
            self.running_count += 1
            self._start(lease, now_ns)
        return lease

    def handed(self, lease: Lease, handed_ns: int) -> None:
        """The lent worker was handed this batch at that time (see `loans.py`)."""
        self._by_batch[lease.batch_id] = lease
        held, lane = self._by_worker[lease.worker_id], lease.lane
        lane.leases_count += 1
        lease.granted_ns = handed_ns
        position = sum(other.granted_ns <= handed_ns for other in held)
        held.insert(position, lease)
        if position == 0:
            if len(held) == 1:
                self.running_count += 1
            else:
                held[1].started_ns = 0
            # What is told of a time before a stop was stopped, too.
            self._start(lease, max(handed_ns, self._resumed_ns))

    def ran_unseen(self, worker_id: int, run_ns: int) -> None:
        """The lent worker ran a batch that was never leased."""
        self._busy_ns[worker_id] += run_ns

    def settle(self, batch_id: int, worker_id: int, now_ns: int) -> Lease | None:
        """The worker says the batch is over. None when it holds no such lease (it was revoked, or never was)."""
        lease = self._by_batch.get(batch_id)
        if lease is None or lease.worker_id != worker_id:
            return None
        del self._by_batch[batch_id]
        held = self._by_worker[worker_id]
        held.remove(lease)
        if lease.started_ns:
            self._busy_ns[worker_id] += now_ns - lease.started_ns
        lease.lane.leases_count -= 1
        if not held:
            self.running_count -= 1
        elif not held[0].started_ns:
            self._start(held[0], now_ns)
        return lease

    def expire(self, now_ns: int, late_ns: int = 0) -> list[int]:
        """The workers whose head has run too long. They are named again on every later call until they are revoked.

        late_ns: see `stopped_ns`; nothing has run in that time.
        """
        if late_ns:
            self._resume(now_ns, late_ns)
        if not self._deadline_min_ns or now_ns < self._deadline_min_ns:
            return []
        heads = [held[0] for held in self._by_worker.values() if held]
        for lease in heads:
            if lease.deadline_ns <= now_ns:
                lease.deadline_ns = max(lease.deadline_ns, lease.waited_for_until_ns())
        late = [lease.worker_id for lease in heads if lease.deadline_ns <= now_ns]
        self._deadline_min_ns = min((lease.deadline_ns for lease in heads if lease.deadline_ns > now_ns), default=0)
        return late

    def _resume(self, now_ns: int, late_ns: int) -> None:
        self._resumed_ns = now_ns
        for held in self._by_worker.values():
            for lease in held[:1]:
                lease.started_ns = min(lease.started_ns + late_ns, now_ns)
                lease.deadline_ns += late_ns
        if self._deadline_min_ns:
            self._deadline_min_ns += late_ns

    def revoke(self, worker_id: int) -> list[Lease]:
        """The worker is gone: its leases, in the order in which it held them, are nobody's now."""
        held = self._by_worker.pop(worker_id, [])
        self._busy_ns.pop(worker_id, None)
        self.running_count -= bool(held)
        for lease in held:
            del self._by_batch[lease.batch_id]
            lease.lane.leases_count -= 1
        return held

    def requests_of(self, lane: Lane, frontend_id: int) -> set[int]:
        """Ids of this frontend's requests that a worker holds."""
        leases = [lease for lease in self if lease.lane is lane]
        return {part[1] for lease in leases for part, _, _ in lease.entries if part[0] == frontend_id}

    def busy_workers(self) -> list[int]:
        """Ids of the workers that hold a lease."""
        return [worker_id for worker_id, held in self._by_worker.items() if held]

    def busy_ns(self, now_ns: int) -> dict[int, int]:
        """How long each worker has been running batches since it joined, by id."""
        heads = {worker_id: now_ns - held[0].started_ns for worker_id, held in self._by_worker.items() if held}
        return {worker_id: busy_ns + heads.get(worker_id, 0) for worker_id, busy_ns in self._busy_ns.items()}

    def wake_ns(self) -> int:
        """No lease expires before this; 0 = none can."""
        return self._deadline_min_ns

    def _start(self, lease: Lease, now_ns: int) -> None:
        lease.started_ns = now_ns
        lease.deadline_ns = now_ns + lease.run_ns_max()
        if not self._deadline_min_ns or lease.deadline_ns < self._deadline_min_ns:
            self._deadline_min_ns = lease.deadline_ns
