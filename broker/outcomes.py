"""Pure: how each request ends, and the count of every way to end.

    waiting or leased ──▶ done        its batch is settled (all its parts are, when it was split)
                      ──▶ refused     never entered a lane: too large, lane full, nobody serves it, ...
                      ──▶ expired     its deadline came while it waited
                      ──▶ cancelled   its client went while it waited
                      ──▶ failed      it ended two workers, or no worker came for it
                      ──▶ dropped     its frontend went

Each request ends exactly once: at any moment `submitted` is the sum of these six and of what waits, what is leased and
what is split (tests hold the core to it). Everything but done and dropped is told to the frontend.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from ringserve.broker import failures
from ringserve.broker.lanes import Entry, Lane
from ringserve.broker.leases import Lease
from ringserve.broker.messages import Failure

#: A request that was the one being run when this many workers ended is not tried again.
WORKERS_ENDED_MAX = 2

ENDS = ("done", "refused", "expired", "cancelled", "failed", "dropped")

#: Where a request was when its time was over or its client went: not queued yet, waiting, waiting for its model (no
#: worker serves it yet), with a worker.
ARRIVING, QUEUED, LOADING, RUNNING = "arriving", "queued", "loading", "running"
#: (model, version, `expired` or `cancelled`, where) -> requests.
GivenUp = dict[tuple[str, str, str, str], int]


class Outcomes:
    """The frontends that may be told something, what they are to be told, and the counters of `ENDS`.

    retried: requests (or parts) that went back to their lane because their worker was gone.
    unwanted: those that a worker holds although nobody waits for them. They end as they would have, but when their
    worker is gone they do not run again.
    """

    def __init__(self) -> None:
        self.frontends: set[int] = set()
        self.ended = dict.fromkeys(ENDS, 0)
        self.retried_count = 0
        self._to_tell: dict[int, list[list[Any]]] = {}
        self._workers_ended: dict[tuple[int, int], int] = {}  # (frontend id, request id) -> count
        self._unwanted: set[tuple[int, int]] = set()
        self._given_up: GivenUp = {}

    def tell(self, frontend_id: int, request_id: int, failure: Failure, end: str) -> None:
        """This request ends here, and its frontend is told with the next turn."""
        self.ended[end] += 1
        self._to_tell.setdefault(frontend_id, []).append([request_id, int(failure.code), failure.text])

    def refuse(self, lane: Lane, frontend_id: int, request_id: int, failure: Failure) -> None:
        """This request does not enter its lane."""
        is_late = failure is failures.DEADLINE_PASSED
        if is_late:
            self._give_up(lane, "expired", ARRIVING, 1)
        self.tell(frontend_id, request_id, failure, "expired" if is_late else "refused")

    def unwanted(self, lease: Lease, frontend_id: int, request_ids: Container[int], now_ns: int) -> None:
        """Nobody waits for these any more; those of them that are in the lease run nevertheless."""
        for part, deadline_ns, _ in lease.entries:
            key = (part[0], part[1])
            if key[0] == frontend_id and key[1] in request_ids and key not in self._unwanted:
                self._unwanted.add(key)
                why = "expired" if 0 < deadline_ns <= now_ns else "cancelled"
                self._give_up(lease.lane, why, RUNNING, 1)

    def take_given_up(self) -> GivenUp:
        """The requests that nobody waited for any more since the last call."""
        given_up, self._given_up = self._given_up, {}
        return given_up

    def _give_up(self, lane: Lane, why: str, where: str, count: int) -> None:
        key = (lane.servable.name, str(lane.servable.version), why, where)
        self._given_up[key] = self._given_up.get(key, 0) + count

    def take_told(self) -> dict[int, list[list[Any]]]:
        """What is to be told since the last call, by frontend."""
        if not self._to_tell:
            return {}
        told, self._to_tell = self._to_tell, {}
        return told

    def frontend_left(self, frontend_id: int, lanes: Iterable[Lane]) -> None:
        self.frontends.discard(frontend_id)
        self._to_tell.pop(frontend_id, None)
        for key in [key for key in self._workers_ended if key[0] == frontend_id]:
            del self._workers_ended[key]
        self._unwanted = {key for key in self._unwanted if key[0] != frontend_id}
        for lane in lanes:
            for key in _keys(lane.remove(lambda entry: entry[0][0] == frontend_id)):
                split = lane.splits.get(key)
                if split is None:
                    self.ended["dropped"] += 1
                else:
                    split.parts_queued = 0
                    self._close_split(lane, key)

    def fail(self, lane: Lane, entries: list[Entry], failure: Failure, end: str, where: str = "") -> None:
        """End the requests of these entries, which were just taken out of the lane. where: of those given up.

        A split request is told only when no part of it runs any more: until then workers may read its records.
        """
        keys = _keys(entries)
        if where and keys:
            self._give_up(lane, end, where, len(keys))
        for key in keys:
            split = lane.splits.get(key)
            if split is None:
                self._workers_ended.pop(key, None)
                self.tell(*key, failure, end)
                continue
            lane.remove_requests(key[0], {key[1]})
            split.parts_queued = 0
            if split.failure is None:
                split.failure, split.end = failure, end
            self._close_split(lane, key)

    def settle(self, lease: Lease, parts_left: int = 0) -> None:
        """The lease's batch is over and answered by its worker, but for so many parts at its end, which wait again."""
        if parts_left:
            self._give_back(lease, parts_left)
        if self._unwanted:
            self._unwanted.difference_update(key for key in _keys(lease.entries) if key not in lease.lane.splits)
        if self._workers_ended:
            for part, _, _ in lease.entries:
                self._workers_ended.pop((part[0], part[1]), None)
        if not lease.has_parts:
            self.ended["done"] += len(lease.entries)
            return
        lane = lease.lane
        for part, _, _ in lease.entries:
            split = lane.splits.get((part[0], part[1]))
            if split is None:
                self.ended["done"] += 1
            else:
                split.parts_leased -= 1
                split.done.append((lease.worker_id, part[3], part[2]))
                self._close_split(lane, (part[0], part[1]))

    def take_back(self, lease: Lease, *, blamed: bool) -> None:
        """The lease's worker is gone. blamed: this was the batch it ran.

        The requests go back to the front of their lane in their order; those of a blamed batch, to be run one by one,
        so that the one to blame is found and the others are not ended with it.
        """
        lane = lease.lane
        again: list[Entry] = []
        given_up: list[Entry] = []
        unwanted: list[Entry] = []
        keys = _keys(lease.entries)
        if blamed:
            for key in keys:
                self._workers_ended[key] = self._workers_ended.get(key, 0) + 1
        for entry in lease.entries:
            key = (entry[0][0], entry[0][1])
            split = lane.splits.get(key)
            if split is not None:
                split.parts_leased -= 1
            if key[0] not in self.frontends:
                self._workers_ended.pop(key, None)
                if split is None:
                    self.ended["dropped"] += 1
            elif split is not None and split.failure is not None:
                self._workers_ended.pop(key, None)
            elif key in self._unwanted:
                unwanted.append(entry)
            elif self._workers_ended.get(key, 0) >= WORKERS_ENDED_MAX:
                given_up.append(entry)
            else:
                again.append(entry)
                if split is not None:
                    split.parts_queued += 1
        lane.put_back(again, solo=blamed)
        self.retried_count += len(again)
        self.fail(lane, given_up, failures.ENDED_TWO_WORKERS, "failed")
        self.fail(lane, unwanted, failures.CANCELLED_RUNNING, "cancelled")
        self._unwanted.difference_update(key for key in keys if key not in lane.splits)
        if lease.has_parts:
            for key in keys:
                if key in lane.splits:
                    self._close_split(lane, key)

    def _give_back(self, lease: Lease, parts: int) -> None:
        entries = lease.entries[-parts:]
        rows = sum(part[2] for part, _, _ in entries)
        left = Lease(lease.batch_id, lease.worker_id, lease.lane, entries, rows, 0, solo=False)
        left.has_parts = lease.has_parts
        del lease.entries[-parts:]
        lease.rows -= rows
        most = lease.lane.rows_counted_max
        lease.lane.pace.returned(min(lease.rows + rows, most) - min(lease.rows, most))
        retried = self.retried_count
        self.take_back(left, blamed=False)
        self.retried_count = retried

    def _close_split(self, lane: Lane, key: tuple[int, int]) -> None:
        """End a split request if no part of it waits or runs any more."""
        split = lane.splits[key]
        if split.parts_queued or split.parts_leased:
            return
        del lane.splits[key]
        self._workers_ended.pop(key, None)
        self._unwanted.discard(key)
        if key[0] not in self.frontends:
            self.ended["dropped"] += 1
        elif split.failure is not None:
            self.tell(*key, split.failure, split.end)
        else:
            self.ended["done"] += 1


def _keys(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    """(frontend id, request id) of the entries, each once, in order."""
    return list(dict.fromkeys((part[0], part[1]) for part, _, _ in entries))
