"""The rules that every simulated world is held to, at every message.

answered exactly once       at least one end each; a second one only for requests whose worker was lost, or that
                            were submitted again while their answer was on its way
no record read too long     when a request's failure is told, no live lease names it
no request in two leases    nor any of its rows
no batch over its limit     and requests that must run alone do; one admitted under a larger limit may run alone, too
no more batches at once     than there may be: a worker that runs none gets one only while fewer run
no worker over its credit   and none that hangs or is gone is sent anything, nor one that drains while another could
no slot lost                at the end nothing is queued, leased, split or told
the sum holds               submitted = ended + queued + leased + split, after every turn
no late run                 what has expired is not sent to a worker; what waits is told within a sweep's time
no third worker             is given a request that has ended two
no run for nobody           what was cancelled is not sent to a worker, not even when the one that ran it is lost
no busy loop                a wake-up lies in the future
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ringserve.broker.core import Core, Turn
from ringserve.broker.loans import LOAN_ID_FIRST
from ringserve.broker.messages import Code, Execute, Handed, LaneSpec
from ringserve.broker.outcomes import ENDS
from ringserve.broker.policy import MILLISECOND_NS, LanePolicy

Key = tuple[int, int]  # frontend id, request id


class Kind(Protocol):
    """What the rules need to know of a lane."""

    spec: LaneSpec
    policy: LanePolicy


@dataclass
class Watched:
    """One request as its frontend sees it. rows_left: not answered yet, as a set of row numbers."""

    rows: int
    deadline_ns: int
    rows_left: set[int]
    arrived: bool = False
    ends: int = 0
    resubmitted: bool = False
    cancelled: bool = False  # and the broker knows
    leases: set[int] = field(default_factory=set)
    poison: bool = False  # it ends every worker
    workers_lost: int = 0
    blamed: int = 0
    free_since_ns: int = 0  # since when it is not leased


@dataclass
class HeldBatch:
    worker_id: int
    execute: Execute
    unseen: bool = False  # a frontend handed it straight to the worker, and the broker has not heard of it
    handed: bool = False  # likewise, and the broker may have heard


class Checks:
    """Watches one world; every method is told of one thing that happened there."""

    def __init__(self, core: Core, credit_max: int, lanes: Mapping[bytes, Kind]) -> None:
        self.core = core
        self.credit_max = credit_max
        self.lanes = lanes
        self.requests: dict[Key, Watched] = {}
        self.frontends: set[int] = set()
        self.held: dict[int, list[HeldBatch]] = {}
        self.open_to: set[int] = set()
        self.draining: set[int] = set()
        self.killed: set[int] = set()
        self.now_ns = 0
        self.duplicates = 0
        self.wait_ns_max = 0
        self.at_once = 0
        self.policies_count = 0

    # -------------------------------------------------------------------------------------------- what happened

    def policies_set(self, at_once: int) -> None:
        self.at_once = at_once
        self.policies_count += 1

    def frontend_joined(self, frontend_id: int) -> None:
        self.frontends.add(frontend_id)

    def frontend_left(self, frontend_id: int) -> None:
        self.frontends.discard(frontend_id)
        for batches in self.held.values():
            batches[:] = [batch for batch in batches if not (batch.handed and batch.execute.parts[0][0] == frontend_id)]

    def pending(self, frontend_id: int) -> int:
        """Requests of this frontend that have not ended."""
        return sum(owner == frontend_id and not watched.ends for (owner, _), watched in self.requests.items())

    def handed(self, worker_id: int, execute: Execute) -> None:
        """A frontend sends requests straight to a worker that it was lent."""
        for part in execute.parts:
            watched = self.requests[part[0], part[1]]
            assert not watched.leases
            watched.arrived = True
            watched.leases.add(execute.batch_id)
        if worker_id in self.held:
            self.held[worker_id].append(HeldBatch(worker_id, execute, unseen=True, handed=True))
        else:  # it has ended, and the frontend will hear of it
            self._lost(execute, blamed=True)

    def seen(self, handed: Handed, now_ns: int) -> None:
        """The broker hears of it."""
        for batches in self.held.values():
            for batch in batches:
                if batch.execute.batch_id == handed.batch_id:
                    batch.unseen = False
                    return
        for request in handed.requests:
            self.requests[handed.frontend_id, request[0]].free_since_ns = now_ns  # not before

    def worker_joined(self, worker_id: int) -> None:
        self.held[worker_id] = []
        self.open_to.add(worker_id)

    def drained(self, worker_id: int) -> None:
        if worker_id in self.open_to:
            self.open_to.discard(worker_id)
            self.draining.add(worker_id)

    def worker_left(self, worker_id: int) -> None:
        self.open_to.discard(worker_id)
        self.draining.discard(worker_id)
        held = self.held.pop(worker_id)
        # Of what it has not heard of the broker cannot know that it was before others.
        first = next((batch for batch in held if not batch.unseen), None)
        for batch in held:
            self._lost(batch.execute, blamed=batch is first or batch.unseen)

    def _lost(self, execute: Execute, *, blamed: bool) -> None:
        for part in execute.parts:
            watched = self.requests[part[0], part[1]]
            watched.leases.discard(execute.batch_id)
            watched.workers_lost += 1
            watched.blamed += blamed
            watched.free_since_ns = self.now_ns

    def submitted(self, frontend_id: int, key: bytes, request: list[int]) -> None:
        request_id, rows, deadline_ns, _ = request
        self.requests[frontend_id, request_id] = Watched(rows, deadline_ns, set(range(rows)))

    def arrived(self, frontend_id: int, groups: list[list[Any]], now_ns: int) -> None:
        for _, requests in groups:
            for request in requests:
                self.requests[frontend_id, request[0]].arrived = True
                self.requests[frontend_id, request[0]].free_since_ns = now_ns

    def resubmitted(self, frontend_id: int, request_id: int) -> bool:
        """Would the frontend submit this request again? Only one that arrived and is unanswered."""
        watched = self.requests[frontend_id, request_id]
        if watched.ends or not watched.arrived:
            return False
        watched.resubmitted = True
        return True

    def cancelled(self, frontend_id: int, request_id: int) -> None:
        """The broker hears of it. (A Cancel that overtakes its Submit, which no socket lets it do, is not heard.)"""
        watched = self.requests[frontend_id, request_id]
        watched.cancelled = watched.arrived and not watched.ends

    def started(self, worker_id: int, batch_id: int) -> None:
        known = any(batch.execute.batch_id == batch_id for batch in self.held[worker_id])
        assert known or batch_id > LOAN_ID_FIRST  # one that a frontend handed over, which left meanwhile

    def settled(self, batch_id: int) -> None:
        for batches in self.held.values():
            for batch in batches:
                if batch.execute.batch_id == batch_id:
                    for part in batch.execute.parts:
                        self.requests[part[0], part[1]].leases.discard(batch_id)
                        self.requests[part[0], part[1]].free_since_ns = self.now_ns
                    batches.remove(batch)
                    return
        if batch_id > LOAN_ID_FIRST:
            return  # its worker left meanwhile, or its frontend
        raise AssertionError(f"batch {batch_id} was settled and nobody held it")

    def result(self, frontend_id: int, request_id: int, row_start: int, rows: int) -> None:
        """A worker sent rows of this request to its frontend."""
        watched = self.requests[frontend_id, request_id]
        answered = set(range(row_start, row_start + rows))
        assert answered <= set(range(watched.rows))
        if watched.ends and not watched.rows_left:
            self._end(watched)  # all of it was answered before
        elif not answered <= watched.rows_left:
            assert watched.workers_lost or watched.resubmitted, "rows answered twice and no worker was lost"
        watched.rows_left -= answered
        if not watched.rows_left and not watched.ends:
            self._end(watched)

    def failed(self, frontend_id: int, request: list[Any], now_ns: int) -> None:
        request_id, code, text = request
        watched = self.requests[frontend_id, request_id]
        assert frontend_id in self.frontends
        assert not watched.leases, "told of its failure while a worker may still read its records"
        if code == Code.DEADLINE_EXCEEDED and not watched.cancelled:
            assert watched.deadline_ns
            since_ns = max(watched.deadline_ns, watched.free_since_ns)
            late_ns = now_ns - since_ns
            assert late_ns <= 2 * MILLISECOND_NS, f"told {late_ns} ns after its deadline"
        if code == Code.INTERNAL:
            assert watched.blamed >= 2, text
        if code == Code.INVALID_ARGUMENT and self.policies_count == 1:
            assert not watched.workers_lost
            assert "is larger than maximum input batch size" in text
        self._end(watched)

    def _end(self, watched: Watched) -> None:
        watched.ends += 1
        if watched.ends > 1:
            self.duplicates += 1
            assert watched.workers_lost or watched.resubmitted, "ended twice and no worker was lost"

    # ------------------------------------------------------------------------------------------------- the turn

    def turned(self, turn: Turn, now_ns: int) -> None:
        assert turn.wake_ns == 0 or turn.wake_ns > now_ns
        for worker_id in turn.kills:
            assert worker_id not in self.killed
            self.killed.add(worker_id)
            self.open_to.discard(worker_id)
            self.draining.discard(worker_id)
        for worker_id, execute in turn.executes:
            self._sent(worker_id, execute, now_ns)
        for worker_id in turn.drained:
            assert worker_id in self.draining
            self.draining.discard(worker_id)
            assert not self.held[worker_id]
        self._sum_holds()

    def _sent(self, worker_id: int, execute: Execute, now_ns: int) -> None:
        # Every worker here serves every lane, so one that drains is the last resort only when none is ready.
        assert worker_id in (self.open_to or self.draining)
        held = self.held[worker_id]
        if self.at_once and not held:
            assert sum(any(not batch.handed for batch in held) for held in self.held.values()) < self.at_once
        held.append(HeldBatch(worker_id, execute))
        assert sum(not batch.handed for batch in held) <= self.credit_max
        kind = self.lanes[execute.lane_key]
        assert execute.parts
        rows = sum(part[2] for part in execute.parts)
        if kind.policy.batching == "none" or not kind.spec.batchable:
            assert len(execute.parts) == 1
        elif len(execute.parts) > 1 or (self.policies_count == 1 and kind.policy.split):
            assert rows <= kind.policy.batch_rows_max
        elif self.policies_count == 1 and rows > kind.policy.batch_rows_max:
            assert execute.parts[0][3] == 0  # a whole one
        seen: set[tuple[int, int, int]] = set()
        for frontend_id, request_id, part_rows, row_start, *offsets in execute.parts:
            watched = self.requests[frontend_id, request_id]
            assert offsets == [64 * request_id]
            assert watched.deadline_ns == 0 or watched.deadline_ns > now_ns
            assert not watched.cancelled
            assert watched.blamed < 2 or watched.resubmitted or not watched.poison, "it has ended two workers"
            assert part_rows >= 1
            assert 0 <= row_start <= watched.rows - part_rows
            rows_now = {(frontend_id, request_id, row) for row in range(row_start, row_start + part_rows)}
            assert not rows_now & seen
            seen |= rows_now
            for other in [batch for batches in self.held.values() for batch in batches]:
                if other.execute is execute or other.execute.batch_id not in watched.leases:
                    continue
                for part in other.execute.parts:
                    if part[:2] == [frontend_id, request_id]:
                        overlap = range(max(row_start, part[3]), min(row_start + part_rows, part[3] + part[2]))
                        assert not overlap, "the same rows are in two live leases"
        for part in execute.parts:
            self.requests[part[0], part[1]].leases.add(execute.batch_id)

    def _sum_holds(self) -> None:
        counted = self.core.statistics()
        held = counted["queued"] + counted["leased"] + counted["split"]
        assert counted["submitted"] == sum(counted[end] for end in ENDS) + held, counted

    # -------------------------------------------------------------------------------------------------- the end

    def everything_finished(self) -> None:
        counted = self.core.statistics()
        for name in ("queued", "queued_rows", "leased", "split", "leases"):
            assert counted[name] == 0, counted
        for (frontend_id, request_id), watched in self.requests.items():
            if frontend_id in self.frontends and watched.arrived:
                assert watched.ends >= 1, f"request {request_id} of frontend {frontend_id} was never answered"
        for batches in self.held.values():
            assert not batches, "a lease is left and nobody will settle it"
