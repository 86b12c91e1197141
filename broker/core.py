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
from ringserve.broker.lane_table import LaneTable
from ringserve.broker.lanes import Lane
from ringserve.broker.leases import Leases
from ringserve.broker.messages import Done, Execute, Failure, LaneSpec, ModelVersion
from ringserve.broker.neighbours import Neighbours, runs
from ringserve.broker.observer import Observer
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
    observer: told of every batch; may be set later.
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
        self._orphans: dict[Lane, None] = {}  # lanes with requests waiting and no worker; never in the order as well
        self._outcomes = Outcomes()
        #: By model, version, why and where: requests given up since the last call.
        self.take_given_up = self._outcomes.take_given_up
        self._fleet = Fleet(credit_max)
        self._leases = Leases()
        self._drains = Drains(self._fleet)
        self._servables = Servables()
        #: Whether anybody asked for a version that was replaced, since the last call.
        self.take_asked_late = self._servables.take_asked_late
        self._expiry = Expiry()
        self._neighbours = Neighbours()
        self._waits: dict[int, dict[bytes, int]] = {}
        self.ran_last = -1  # the worker whose batch ended last
        self._counters = dict.fromkeys(
            ("submitted", "batches", "rows", "kills", "dones_ignored", "submits_ignored", "resubmits_known"), 0
        )

    # ------------------------------------------------------------------------------------------------ membership

    def set_policies(self, default: LanePolicy, by_model: dict[str, LanePolicy]) -> None:
        """From now on lanes of a model follow `by_model[name]`, or `default`. What waits already stays admitted."""
        self._lanes.set_policies(default, by_model)
        self._running_max = default.batches_at_once_max

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
        for lane in [lane for lane in self._orphans if lane.servable in worker.loaded]:
            del self._orphans[lane]
            self._order.add(lane)

    def worker_draining(self, worker_id: int, now_ns: int, kept: Iterable[tuple[str, int]] | None = ()) -> None:
        """Send it only what no other has loaded; `Turn.drained` will name it when it has finished what it holds and
        nothing more comes. kept: it stays for these, until this is called without. None: send it nothing more."""
        worker = self._fleet.workers.get(worker_id)
        if worker is not None and not worker.retired:
            wanted = frozenset(ModelVersion(*version) for version in kept or ())
            self._drains.start(worker, wanted, now_ns, at_once=kept is None)
            self._note_orphans(worker.loaded if kept is None else (), now_ns)

    def worker_left(self, worker_id: int, now_ns: int, *, blameless: bool = False) -> None:
        """Its process is gone, however that came. One that never took batches is ignored.

        blameless: something else ended it, not what it ran.
        """
        worker = self._fleet.workers.get(worker_id)
        if worker is None:
            return
        self._fleet.left(worker)
        self._drains.left(worker_id)
        # The last lease first: each goes to the very front of its lane.
        for position, lease in reversed(list(enumerate(self._leases.revoke(worker_id)))):
            self._outcomes.take_back(lease, blamed=position == 0 and not blameless)
            self._list(lease.lane, now_ns)
        self._lanes.worker_left(worker_id)
        self._note_orphans(worker.loaded, now_ns)

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
            refusal = None if workers else self._unserved(lane, now_ns)
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
            self._list(lane, now_ns)

    def resubmit(self, frontend_id: int, groups: Sequence[Sequence[Any]], now_ns: int) -> None:
        """Requests that may have been submitted before: only those neither queued nor leased are taken."""
        fresh = []
        for key, requests in groups:
            lane = self._lanes.get(key)
            if lane is not None:
                entries = [entry for source in (lane.queue, lane.solo) for entry in source]
                entries += [entry for lease in self._leases if lease.lane is lane for entry in lease.entries]
                held = {part[1] for part, _, _ in entries if part[0] == frontend_id}
                taken = [request for request in requests if request[0] not in held]
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
        if lease is None:
            self._counters["dones_ignored"] += 1
            return
        lane = lease.lane
        if done.run_ns > 0:
            # What a batch that waited behind another was held for is known from when it became the head.
            lane.learn(lease.rows, done.run_ns, now_ns - (lease.started_ns or now_ns))
            lane.attained_ns += done.run_ns - lease.charged_ns
        self.ran_last = done.worker_id
        if self.observer is not None:
            self.observer.batch_done(lane.spec, lease.rows, done.run_ns)
        self._outcomes.settle(lease)

    # ------------------------------------------------------------------------------------------------------ turn

    def turn(self, now_ns: int) -> Turn:
        """Decide all that can be decided now."""
        expiry = self._expiry
        if expiry.look_ns and now_ns >= expiry.look_ns:
            expiry.look([*self._order.lanes(), *self._orphans], self._orphans, self._outcomes, now_ns)
        kills = [worker_id for worker_id in self._leases.expire(now_ns) if self._hung(worker_id, now_ns)]
        wake_ns = self._expire_orphans(now_ns) if self._orphans else 0
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
        waits, self._waits = self._waits, {}
        return Turn(executes, self._outcomes.take_told(), kills, wake_ns, drained, waits)

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
        lane.pace.granted(rows, now_ns, leaves_some=bool(lane.queue))
        worker.quiet_since_ns = now_ns
        counters = self._counters
        counters["batches"] += 1
        counters["rows"] += rows
        parts = [part for part, _, _ in entries]
        if self.observer is not None:
            waits_ns = [now_ns - arrived_ns for _, _, arrived_ns in entries]
            self.observer.batch_granted(lane.spec, rows, lane.rows_run(rows), parts, waits_ns)
        return (worker.worker_id, Execute(lease.batch_id, lane.key, parts)), 0

    # ------------------------------------------------------------------------------------------- lanes and workers

    def _list(self, lane: Lane, now_ns: int) -> None:
        """See to it that what a lane has waiting is thought of in every turn, and when its first deadline comes."""
        if lane.deadline_min_ns:
            self._expiry.by(lane.deadline_min_ns)
        if lane.listed or not lane.waiting:
            return
        if self._fleet.serving(lane.servable):
            self._order.add(lane)
        else:
            self._orphans[lane] = None
            self._servables.orphaned(lane.servable, now_ns)

    def _unserved(self, lane: Lane, now_ns: int) -> Failure | None:
        """What a request is told that no worker can run now; None = it may wait for one."""
        return self._servables.unserved(lane.servable, lane.policy.no_worker_ns_max, now_ns)

    def _note_orphans(self, servables: Iterable[ModelVersion], now_ns: int) -> None:
        """A worker stopped serving these: set apart the lanes that have none left."""
        lost = {servable for servable in servables if not self._fleet.serving(servable)}
        for servable in lost:
            self._servables.orphaned(servable, now_ns)
        if lost:
            self._orphans.update(dict.fromkeys(self._order.remove(lambda lane: lane.servable in lost)))

    def _expire_orphans(self, now_ns: int) -> int:
        """Fail what has waited too long for any worker at all; return when the next will have, 0 = none."""
        wake_ns = 0
        for lane in list(self._orphans):
            failure = self._unserved(lane, now_ns)
            if failure is not None:
                self._outcomes.fail(lane, lane.remove(lambda _: True), failure, "failed")
            if not lane.waiting:
                del self._orphans[lane]
            else:
                ends_ns = self._servables.ends_waiting_ns(lane.servable, lane.policy.no_worker_ns_max)
                wake_ns = earliest(wake_ns, ends_ns)
        return wake_ns

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
        self._drains.left(worker_id)
        self._note_orphans(worker.loaded, now_ns)
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
        }

    def usage(self, now_ns: int) -> Usage:
        """How busy workers were, and what waits."""
        return usage(self._lanes, self._leases, now_ns)

    def queues(self, now_ns: int) -> list[Queue]:
        """Every lane that has something waiting or running."""
        return queues(self._lanes, now_ns)
