"""Pure: who runs what, and when. Messages and the time go in; batches, refusals and a time to wake come out.

    submit ──▶ admission ──▶ lane ──▶ order ▸ placement ──▶ lease ──▶ done
                  │ refused    │ expired, cancelled           │ worker left: back to the front of the lane
                  ▼            ▼                              ▼ second worker it ended: failed
                                  Turn.failed

No clock, no I/O: `now_ns` is an argument, `turn` says everything that is to be sent. Calls between two turns only
change the state; the turn after them decides, once, for all that arrived.

A request is answered by its worker (the lease is settled by Done) or here (Turn.failed), and its frontend may see an
answer twice only after a worker's death, when the first worker's Result was sent and its Done was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ringserve.broker import failures
from ringserve.broker.admission import admit, promised_ns
from ringserve.broker.batcher import FairOrder, due_ns
from ringserve.broker.drains import Drains
from ringserve.broker.expiry import Expiry, cancel, expire
from ringserve.broker.fleet import Fleet, WorkerState
from ringserve.broker.handovers import Handovers
from ringserve.broker.lane_table import LaneTable
from ringserve.broker.lanes import Lane
from ringserve.broker.leases import Lease, Leases
from ringserve.broker.loans import LOAN_ID_FIRST, Loans
from ringserve.broker.messages import Done, Execute, LaneSpec, ModelVersion
from ringserve.broker.neighbours import Neighbours, runs
from ringserve.broker.observer import Observer
from ringserve.broker.orphans import Orphans
from ringserve.broker.outcomes import Outcomes
from ringserve.broker.placement import earliest, late_by_prediction, place, soonest_answer
from ringserve.broker.policy import LanePolicy
from ringserve.broker.servables import Servables
from ringserve.broker.sizes import rows_fitting, rows_in_time
from ringserve.broker.statistics import Queue, Usage, held, queues, usage
from ringserve.broker.turn import Turn as Turn

_AGAIN = -1


class Core:
    """The broker's decisions. `unpack_lane` tells what a lane key means; it is called once for every new key.

    credit_max: batches that a worker may hold at once. lanes_max: lanes remembered; idle ones beyond are forgotten.
    observer: told of every batch.
    """

    def __init__(
        self,
        unpack_lane: Callable[[bytes], LaneSpec],
        *,
        default_policy: LanePolicy | None = None,
        credit_max: int = 2,
        lanes_max: int = 1_024,
        observer: Observer | None = None,
    ) -> None:
        default_policy = default_policy or LanePolicy()
        self.observer = observer
        self._lanes = LaneTable(unpack_lane, default_policy, lanes_max)
        self._running_max = default_policy.batches_at_once_max
        self._order = FairOrder()
        self._outcomes = Outcomes()
        #: By model, version, why and where: requests given up since the last call.
        self.take_given_up = self._outcomes.take_given_up
        self._fleet = Fleet(credit_max)
        self._leases = Leases()
        self._loans = Loans()
        #: A frontend gives a loan back: (its id, the last batch's id).
        self.returned = self._loans.returned
        self._drains = Drains(self._fleet)
        self._servables = Servables()
        #: Whether anybody asked for a version that was replaced, since the last call.
        self.take_asked_late = self._servables.take_asked_late
        self._expiry = Expiry()
        self._orphans = Orphans(self._order, self._fleet, self._servables, self._outcomes, self._expiry)
        self._neighbours = Neighbours()
        self._waits: dict[int, dict[bytes, int]] = {}
        self.ran_last = -1  # the worker whose batch ended last
        counted = "submitted", "submits_ignored", "resubmits_known", "handed", "batches", "rows", "kills"
        self._counters = dict.fromkeys((*counted, "dones_ignored"), 0)
        self._handovers = Handovers(
            self._lanes, self._fleet, self._leases, self._loans, self._order, self._outcomes, self._orphans,
            self._neighbours, self._counters,
        )  # fmt: skip
        #: A frontend says what it sent straight to a worker: (the message Handed, now_ns).
        self.handed = self._handovers.handed

    # ------------------------------------------------------------------------------------------------ membership

    def set_policies(self, default: LanePolicy, by_model: dict[str, LanePolicy]) -> None:
        """From now on lanes of a model follow `by_model[name]`, or `default`. What waits already stays admitted."""
        self._lanes.set_policies(default, by_model)
        self._running_max = default.batches_at_once_max
        self._loans.recall_all()

    def set_versions(self, versions: Iterable[tuple[str, int]] | None) -> None:
        """Which model versions are to be served; None: that is not known yet, so requests for any may wait. Requests
        for others, that no worker serves, are told NOT_FOUND.

        Optional: a version that a worker has ever served counts as known until the next call of this.
        """
        served = {servable for worker in self._fleet.workers.values() for servable in worker.loaded}
        self._servables.expect(versions, served)

    def frontend_joined(self, frontend_id: int) -> None:
        self._outcomes.frontends.add(frontend_id)

    def frontend_left(self, frontend_id: int) -> None:
        """What it has waiting vanishes; what runs is left to run, and is not tried again."""
        self._loans.frontend_left(frontend_id)
        self._outcomes.frontend_left(frontend_id, self._lanes)

    def worker_joined(self, worker_id: int, index: int, loaded: Iterable[tuple[str, int]]) -> None:
        """A worker at this place in the fleet has loaded these (name, version); said again, it has loaded more."""
        worker = self._fleet.workers.get(worker_id)
        if worker is None:
            worker = self._fleet.joined(worker_id, index, self._leases.worker_joined(worker_id))
            self._fleet.ready(worker, loaded)
        else:
            self._fleet.more(worker, loaded)
        self._servables.gained(worker.loaded)
        self._orphans.found(worker.loaded)

    def worker_draining(self, worker_id: int, now_ns: int, kept: Iterable[tuple[str, int]] | None = ()) -> None:
        """Send it only what no other has loaded; `Turn.drained` will name it when it has finished what it holds and
        nothing more comes. kept: it stays for these, until this is called without. None: send it nothing more."""
        worker = self._fleet.workers.get(worker_id)
        if worker is not None and not worker.retired:
            self._loans.recall(worker)
            wanted = frozenset(ModelVersion(*version) for version in kept or ())
            self._drains.start(worker, wanted, now_ns, at_once=kept is None)
            self._orphans.lost(worker.loaded if kept is None else (), now_ns)

    def worker_left(self, worker_id: int, now_ns: int, *, blameless: bool = False) -> None:
        """Its process is gone, however that came. One that never took batches is ignored. blameless: something else
        ended it, not what it ran."""
        worker = self._fleet.workers.get(worker_id)
        if worker is None:
            return
        blameless = blameless and not worker.killed  # for the lease that ran out
        self._fleet.left(worker)
        self._drains.left(worker_id)
        self._loans.worker_left(worker, blameless=blameless)
        # The last lease first: each goes to the very front of its lane.
        for position, lease in reversed(list(enumerate(self._leases.revoke(worker_id)))):
            self._outcomes.take_back(lease, blamed=position == 0 and not blameless)
            self._orphans.list(lease.lane, now_ns)
        self._lanes.worker_left(worker_id)
        self._orphans.lost(worker.loaded, now_ns)

    # -------------------------------------------------------------------------------------------------- requests

    def submit(self, frontend_id: int, groups: Sequence[Sequence[Any]], now_ns: int) -> None:
        """New requests, as in the message Submit."""
        outcomes = self._outcomes
        if frontend_id not in outcomes.frontends:
            self._counters["submits_ignored"] += 1
            return
        for key, requests in groups:
            self._counters["submitted"] += len(requests)
            lane = self._lanes.get(key) or self._lanes.open(key)
            if lane is None:
                for request in requests:
                    outcomes.tell(frontend_id, request[0], failures.TOO_MANY_LANES, "refused")
                continue
            workers = self._fleet.serving(lane.servable, lane.policy.workers_max)
            refusal = None if workers else self._orphans.told(lane, now_ns)
            if refusal is not None:
                for request in requests:
                    outcomes.tell(frontend_id, request[0], refusal, "refused")
                continue
            self._neighbours.saw(lane, now_ns)
            # A request that finds nothing waiting is tried, whatever is predicted: so predictions correct themselves.
            soonest = soonest_answer(lane, workers, now_ns) if lane.queue or len(requests) > 1 else (0, 0.0)
            refused = admit(lane, frontend_id, requests, soonest, now_ns)
            for request_id, failure in refused:
                outcomes.refuse(lane, frontend_id, request_id, failure)
            if refused and soonest[0]:
                self._waits.setdefault(frontend_id, {})[lane.key] = promised_ns(lane, soonest) - now_ns
            self._orphans.list(lane, now_ns)

    def resubmit(self, frontend_id: int, groups: Sequence[Sequence[Any]], now_ns: int) -> None:
        """Requests that may have been submitted before: only those neither queued nor leased are taken, and of a split
        one what ran on workers that left since: its frontend may not have it."""
        fresh = []
        for key, requests in groups:
            lane = self._lanes.get(key)
            if lane is not None:
                held = self._leases.requests_of(lane, frontend_id) | lane.requests_of(frontend_id)
                taken = [request for request in requests if request[0] not in held]
                if lane.splits and lane.ask_again(frontend_id, requests, now_ns):
                    self._orphans.list(lane, now_ns)
                self._counters["resubmits_known"] += len(requests) - len(taken)
                requests = taken
            if requests:
                fresh.append([key, requests])
        self.submit(frontend_id, fresh, now_ns)

    def cancel(self, frontend_id: int, requests: Sequence[Sequence[Any]], now_ns: int) -> None:
        """The clients of these are gone: [[lane_key, request_id], ...]. Those that run are left to run."""
        cancel(self._lanes, self._orphans, self._leases, self._outcomes, frontend_id, requests, now_ns)

    def done(self, done: Done, now_ns: int) -> None:
        """A batch is over. One that was revoked, or is not known, is counted and otherwise ignored."""
        lease = self._leases.settle(done.batch_id, done.worker_id, now_ns)
        loan = self._loans.done(done) if done.batch_id > LOAN_ID_FIRST else None
        if lease is not None:
            lane = lease.lane
            self._outcomes.settle(lease, done.parts_left)
            if done.parts_left:
                self._orphans.list(lane, now_ns)
        elif loan is not None:
            lane = loan.lane
            lease = self._handovers.unseen(loan, done, now_ns)
            self._outcomes.settle(lease)
        else:
            self._counters["dones_ignored"] += 1
            return
        lane.limit_parts(done.parts_max)
        if done.run_ns > 0:
            if lease.entries:  # else it failed, perhaps at once. It was held from when it became the head.
                lane.learn(lease.rows, done.run_ns, now_ns - (lease.started_ns or now_ns), done.waited_ns)
            lane.attained_ns += done.run_ns - lease.charged_ns
        self.ran_last = done.worker_id
        self._count(lease, done.run_ns)
        if loan is None:
            self._loans.ran(lease, alone=not (self._leases or self._order))

    def _count(self, lease: Lease, run_ns: int) -> None:
        """A batch is over, less what its worker left of it: a request counts once, with the batch that answers it."""
        lane, rows, entries = lease.lane, lease.rows, lease.entries
        self._counters["batches"] += bool(entries)
        self._counters["rows"] += rows
        if self.observer is not None:
            parts, waits_ns = [entry[0] for entry in entries], [lease.granted_ns - entry[2] for entry in entries]
            self.observer.batch_done(lane.spec, rows, lane.rows_run(rows), parts, waits_ns, run_ns)

    # ------------------------------------------------------------------------------------------------------ turn

    def turn(self, now_ns: int, late_ns: int = 0) -> Turn:
        """Decide all that can be decided now. late_ns: for how long nothing has run (`leases.stopped_ns`)."""
        expiry = self._expiry
        if expiry.look_ns and now_ns >= expiry.look_ns:
            expiry.look([*self._order.lanes(), *self._orphans], self._orphans, self._outcomes, now_ns)
        kills = [worker_id for worker_id in self._leases.expire(now_ns, late_ns) if self._hung(worker_id, now_ns)]
        wake_ns = self._orphans.expire(now_ns) if self._orphans else 0
        executes: list[tuple[int, Execute]] = []
        order = self._order
        declined: list[Lane] = []
        taken: set[int] = set()
        while order and self._fleet.has_room(taken):
            lane = order.pop()
            if lane is None:
                break
            execute, ask_ns = self._grant(lane, now_ns, taken)
            if execute is not None:
                executes.append(execute)
            if not lane.waiting:
                continue
            if execute is not None or ask_ns == _AGAIN:
                order.put_back(lane)
            else:
                declined.append(lane)
                wake_ns = earliest(wake_ns, ask_ns)
        for lane in declined:
            order.return_to_place(lane)
        wake_ns = earliest(earliest(wake_ns, expiry.look_ns), self._leases.wake_ns())
        drained: list[int] = []
        if self._drains:
            drained, drains_wake_ns = self._drains.look(self._lanes, now_ns)
            wake_ns = earliest(wake_ns, drains_wake_ns)
        promised, self._waits = self._waits, {}
        waits = bool(declined or self._order or self._orphans or self._running_max)
        calm = not (waits or executes or self._leases)
        self._loans.lend(self._fleet.workers, self._outcomes.frontends, calm=calm, waits=waits)
        return Turn(executes, self._outcomes.take_told(), kills, wake_ns, drained, promised, self._loans.take_told())

    def _grant(self, lane: Lane, now_ns: int, taken: set[int]) -> tuple[tuple[int, Execute] | None, int]:
        """One batch of `lane`, if it is due and a worker is to be had: (what to send or None, when to ask again).

        taken: ids of busy workers that lanes before this one wait for. _AGAIN: all that was to be sent was too late.
        """
        due = due_ns(lane)
        if due > now_ns:
            return None, due
        policy = lane.policy
        workers = self._fleet.serving(lane.servable, policy.workers_max)
        if taken:
            workers = [worker for worker in workers if worker.worker_id not in taken or not worker.leases]
        at_limit = self._running_max and self._leases.running_count >= self._running_max
        if at_limit:  # none may start on an idle worker, and nobody may be sent ahead of who waits to
            workers = [worker for worker in workers if worker.leases]
        keep_off_ns = self._neighbours.keeps_off(lane, workers, now_ns)
        if keep_off_ns:
            workers = [worker for worker in workers if runs(worker, lane.servable.name)]
        placement = place(lane, workers, now_ns, credit_max=self._fleet.credit_max, lanes_waiting=len(self._order) + 1)
        worker = placement.worker
        if worker is None:
            taken.update(waited_for.worker_id for waited_for in placement.waits_for)
            if at_limit:
                taken.update(self._leases.busy_workers())
            if lane.solo:  # it waits for one that does nothing for certain
                for lent in workers:
                    self._loans.recall(lent)
            return None, earliest(placement.ask_ns, keep_off_ns)
        solo = bool(lane.solo)
        if solo:
            entries, late = [lane.solo.popleft()], []
            rows = entries[0][0][2]
            if 0 < entries[0][1] <= now_ns:
                entries, late = [], entries
        else:
            rows_max = rows_in_time(lane, placement.rows_max)
            if lane.rows_allowed:
                rows_max = rows_fitting(lane, rows_max)
            late_ns = late_by_prediction(lane, worker, rows_max, now_ns) if lane.deadline_min_ns else now_ns
            entries, rows, late = lane.take(rows_max, now_ns, late_ns)
        if late:
            expire(lane, late, self._outcomes)
        if not entries:
            return None, _AGAIN
        expected_ns = lane.predict(rows)
        lease = self._leases.grant(worker.worker_id, lane, entries, rows, now_ns, expected_ns=expected_ns, solo=solo)
        lease.charged_ns = self._order.charge(lane, expected_ns)
        lease.has_parts = lane.granted(worker.worker_id, entries)
        lane.pace.granted(min(rows, lane.rows_counted_max), now_ns, leaves_some=bool(lane.queue))
        worker.quiet_since_ns = now_ns
        parts = [part for part, _, _ in entries]
        if self._loans:
            self._loans.granted(lane, worker, parts)
        return (worker.worker_id, Execute(lease.batch_id, lane.key, parts)), 0

    def _hung(self, worker_id: int, now_ns: int) -> bool:
        """This worker let a lease run out. True the first time: it is to be ended."""
        worker = self._fleet.workers[worker_id]
        if worker.killed:
            return False
        worker.killed = True
        self._counters["kills"] += 1
        if worker.state is WorkerState.READY:
            self._fleet.drain(worker)
        self._fleet.retire(worker)
        self._loans.recall(worker)
        self._drains.left(worker_id)
        self._orphans.lost(worker.loaded, now_ns)
        return True

    # ------------------------------------------------------------------------------------------------- statistics

    def ends(self) -> dict[str, int]:
        """Counters since the start: requests by how they ended (`outcomes.ENDS`), and `retried`."""
        return {**self._outcomes.ended, "retried": self._outcomes.retried_count}

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what is held now (`statistics.held`)."""
        return {
            **self._counters,
            **self.ends(),
            **held(self._lanes, self._leases),
            "workers": len(self._fleet.workers),
            "frontends": len(self._outcomes.frontends),
            "loans": len(self._loans),
        }

    def usage(self, now_ns: int) -> Usage:
        """How busy workers were, and what waits."""
        return usage(self._lanes, self._leases, now_ns)

    def queues(self, now_ns: int) -> list[Queue]:
        """Every lane that has something waiting or running."""
        return queues(self._lanes, now_ns)
