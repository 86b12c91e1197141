"""One lane: the requests that may share a batch and wait for a worker, in order of arrival.

    solo ──────────▶ one at a time ─┐
    queue ─────────▶ batches ───────┴▶ leases
      ▲ submit            ▲ back to the front when a worker died

A waiting request is an `Entry`: the part it will be in an Execute, ready to send, beside its deadline and arrival.
Entries are tuples and parts are lists, not objects: at 80,000 requests a second an object each costs more than
everything that is decided about it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from ringserve.broker.messages import Failure, LaneSpec, ModelVersion
from ringserve.broker.pace import Pace
from ringserve.broker.policy import ROWS_ANY, LanePolicy
from ringserve.broker.row_bytes import row_bytes
from ringserve.broker.runtimes import RunTimes

#: (part as Execute carries it: [frontend_id, request_id, rows, row_start, offset, ...], deadline_ns, arrived_ns)
Entry = tuple[list[int], int, int]


def whole(frontend_id: int, request: Sequence[int], arrived_ns: int) -> Entry:
    """The entry of a whole request, which is as in Submit."""
    request_id, rows, deadline_ns, *offsets = request
    return [frontend_id, request_id, rows, 0, *offsets], deadline_ns, arrived_ns


class Split:
    """A request too large for one batch, between its first part and its end.

    failure: decided while parts of it run; the frontend is told when none reads its records any more. done: (worker id,
    first row, rows) of parts that are over. lost: (first row, rows) of those whose worker has left since, perhaps
    before it had sent their Result.
    """

    __slots__ = ("done", "end", "failure", "lost", "parts_leased", "parts_queued")

    def __init__(self) -> None:
        self.parts_queued = 1
        self.parts_leased = 0
        self.failure: Failure | None = None
        self.end = ""  # with failure: which way of ending it counts as
        self.done: list[tuple[int, int, int]] = []
        self.lost: list[tuple[int, int]] = []

    def worker_left(self, worker_id: int) -> None:
        self.lost += [(row_start, rows) for worker, row_start, rows in self.done if worker == worker_id]
        self.done = [part for part in self.done if part[0] != worker_id]


class Lane:
    """Requests of one LaneSpec that wait, and what was learned about running them.

    single: every request runs by itself. parts_max: requests of one batch; 0: any number.
    rows_max: largest batch (ROWS_ANY when single); requests with more are cut.
    rows_best: largest batch that is made when more waits: `rows_max`, or less where a larger one only takes longer.
    knows_best: that was found out, and is no guess for want of runs to compare.
    rows_counted_max: rows that a request counts for, at most, where rows stand for time: no more than a batch has when
    it runs by itself for being larger, and one when all do.
    queue_rows_max: rows that may wait, by the policy's own limit and its limit in bytes. queue_rows_of_bytes: by the
    latter, which counts all rows of a request. A `single` lane has only that one.
    rows_allowed: sizes up to which the worker pads a batch's rows.
    deadline_min_ns: no deadline in here is earlier; 0 = no deadline in here. A lower bound, so that taking requests out
    costs nothing; `sweep` makes it exact again.
    attained_ns: service received so far, in the fair order's own time. listed: stands in the fair order.
    place: where it last stood there among those that are as far.
    alone_min: so many requests in a row must be alone before a worker is lent for them again (see `loans.py`).
    recent: ids of workers, the most recently used first. leases_count: batches that run now.
    """

    __slots__ = (
        "_open_batches",
        "_rows_beyond",
        "alone_min",
        "attained_ns",
        "deadline_min_ns",
        "key",
        "knows_best",
        "leases_count",
        "listed",
        "pace",
        "parts_max",
        "place",
        "policy",
        "queue",
        "queue_rows_max",
        "queue_rows_of_bytes",
        "recent",
        "rows_allowed",
        "rows_best",
        "rows_counted_max",
        "rows_max",
        "rows_queued",
        "servable",
        "single",
        "solo",
        "spec",
        "splits",
        "times",
        "used_ns",
    )

    def __init__(self, key: bytes, spec: LaneSpec, policy: LanePolicy) -> None:
        self.key = key
        self.spec = spec
        self.servable = ModelVersion(spec.model, spec.version)
        self.queue: deque[Entry] = deque()
        self.solo: deque[Entry] = deque()
        self.rows_queued = 0
        self.deadline_min_ns = 0
        self.splits: dict[tuple[int, int], Split] = {}
        self.times = RunTimes()
        self.pace = Pace()
        self.attained_ns = 0
        self.listed = False
        self.place = 0
        self.recent: list[int] = []
        self.leases_count = 0
        self.alone_min = 0
        self.used_ns = 0
        self._open_batches: deque[int] | None = None
        self._rows_beyond: int | None = 0
        self.set_policy(policy)

    def set_policy(self, policy: LanePolicy) -> None:
        """Follow this policy from now on. What waits stays admitted, and runs by the new rules."""
        self.policy = policy
        self.single = policy.batching == "none" or not self.spec.batchable
        self.parts_max = 1 if self.single else 0
        self.rows_max = ROWS_ANY if self.single else policy.batch_rows_max
        self.rows_allowed = policy.batch_rows_allowed if self.spec.batchable else ()
        self.rows_counted_max = 1 if self.single else ROWS_ANY if policy.split else self.rows_max
        self._open_batches = self._rows_beyond = None
        self.queue_rows_of_bytes = ROWS_ANY
        if policy.queue_bytes_max:
            self.queue_rows_of_bytes = max(1, policy.queue_bytes_max // max(1, row_bytes(self.spec)))
        self.queue_rows_max = min(self.queue_rows_of_bytes, ROWS_ANY if self.single else policy.queue_rows_max)
        self._choose_best()

    def limit_parts(self, parts_max: int) -> None:
        """A worker says how many requests it takes of a batch, see `Done.parts_max`; 0: any number."""
        self.parts_max = 1 if self.single else parts_max

    # ------------------------------------------------------------------------------------------------ run times

    def rows_run(self, rows: int) -> int:
        """Rows that the worker runs for a batch of `rows`: the next allowed size; `rows` itself above all of them."""
        for allowed in self.rows_allowed:
            if allowed >= rows:
                return allowed
        return rows

    def predict(self, rows: int) -> int:
        """Predicted run time of a batch of `rows` in ns; 0 when nothing is known."""
        return self.times.predict(self.rows_run(rows) if self.rows_allowed else rows)

    def learn(self, rows: int, run_ns: int, held_ns: int, waited_ns: int = 0) -> None:
        """A batch of `rows` ran `run_ns` inside TensorFlow; its worker was held by it for `held_ns`, `waited_ns` of
        them by those who read its answers."""
        self.times.observe(self.rows_run(rows) if self.rows_allowed else rows, run_ns, held_ns - waited_ns)
        if waited_ns:
            self.pace.stood(waited_ns)
        if run_ns >= self.policy.batch_enough_ns or self.knows_best:
            self._choose_best()

    def _choose_best(self) -> None:
        policy = self.policy
        self.rows_best, self.knows_best = self.rows_max, False
        if policy.batching == "adaptive" and policy.batch_enough_ns and not self.single:
            rows_enough = self.times.rows_enough(policy.batch_enough_ns)
            self.rows_best, self.knows_best = min(self.rows_max, self.rows_run(rows_enough)), rows_enough < ROWS_ANY

    @property
    def waiting(self) -> bool:
        return bool(self.queue or self.solo)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs: the lane may be forgotten."""
        return not (self.queue or self.solo or self.leases_count)

    # ------------------------------------------------------------------------------------------------ taking

    def take(self, rows_max: int, now_ns: int, late_ns: int) -> tuple[list[Entry], int, list[Entry]]:
        """The next batch: (entries, rows, entries that are too late and must be answered instead).

        rows_max: at most the lane's own, less when the waiting rows are shared out. Whole requests in order; one that
        does not fit ends the batch. Only a request larger than the lane's limit is cut, and fills the batch's rest.
        late_ns: deadlines up to here are too late: those up to `now_ns` for certain, later ones by prediction. If the
        prediction leaves nobody, it is not believed: someone must run for predictions to stay true. Nor is it held
        against a request of which a part may have run already.
        """
        queue = self.queue
        certain = not self.deadline_min_ns or self.deadline_min_ns > late_ns
        if self.rows_queued <= rows_max and certain and not self.parts_max:
            entries, rows = list(queue), self.rows_queued
            queue.clear()
            self.rows_queued = 0
            if self._open_batches:
                self._open_batches.clear()
            self._rows_beyond = 0
            if not self.solo:
                self.deadline_min_ns = 0
            return entries, rows, []
        entries, rows, late = [], 0, []
        while queue:
            entry = queue[0]
            part, deadline_ns, _ = entry
            if 0 < deadline_ns <= late_ns and (deadline_ns <= now_ns or (part[0], part[1]) not in self.splits):
                late.append(queue.popleft())
                self.rows_queued -= part[2]
                continue
            if rows + part[2] <= rows_max:
                entries.append(queue.popleft())
                rows += part[2]
                if len(entries) == self.parts_max:
                    break
            elif part[2] > self.rows_max and rows < rows_max and self._may_cut(part):
                entries.append(self._cut(entry, rows_max - rows))
                rows = rows_max
                break
            else:
                if not entries:  # larger than its share, or admitted under a larger limit: it runs alone
                    entries.append(queue.popleft())
                    rows = part[2]
                break
        self.rows_queued -= rows
        self._taken(rows, whole=not late)
        if self._rows_beyond and not self.single:
            most = self.rows_counted_max
            self._rows_beyond -= sum([part[2] - most for part, _, _ in entries + late if part[2] > most])
        if not entries and late_ns > now_ns:
            self.put_back([entry for entry in late if entry[1] > now_ns], solo=False)
            entries, rows, _ = self.take(rows_max, now_ns, now_ns)
            late = [entry for entry in late if entry[1] <= now_ns]
        if not queue and not self.solo:
            self.deadline_min_ns = 0
        return entries, rows, late

    def _may_cut(self, part: list[int]) -> bool:
        """A request that was begun in parts ends in parts, whatever the policy says by now."""
        return self.policy.split or (part[0], part[1]) in self.splits

    def _cut(self, entry: Entry, rows: int) -> Entry:
        """Cut the first `rows` rows off the request at the front; the rest stays there."""
        part, deadline_ns, arrived_ns = entry
        key = (part[0], part[1])
        if key not in self.splits:  # it was admitted under a larger limit
            self.splits[key] = Split()
        self.queue[0] = (
            [part[0], part[1], part[2] - rows, part[3] + rows, *part[4:]],
            deadline_ns,
            arrived_ns,
        )
        self.splits[key].parts_queued += 1
        self._rows_beyond = None
        return ([part[0], part[1], rows, *part[3:]], deadline_ns, arrived_ns)

    def granted(self, worker_id: int, entries: list[Entry]) -> bool:
        """A worker was given these entries. True when some are parts of a split request."""
        if not self.recent or self.recent[0] != worker_id:
            self.recent = [worker_id, *(other for other in self.recent if other != worker_id)]
        has_parts = False
        if self.splits:
            for part, _, _ in entries:
                split = self.splits.get((part[0], part[1]))
                if split is not None:
                    split.parts_queued -= 1
                    split.parts_leased += 1
                    has_parts = True
        return has_parts

    def put_back(self, entries: list[Entry], *, solo: bool) -> None:
        """Put a revoked batch back in front of all others of its kind, in its own order."""
        if solo:
            self.solo.extendleft(reversed(entries))
        else:
            self.queue.extendleft(reversed(entries))
            self.rows_queued += sum(part[2] for part, _, _ in entries)
            self._open_batches = self._rows_beyond = None
        self._lower_deadline(entries)

    def ask_again(self, frontend_id: int, requests: Iterable[Sequence[int]], now_ns: int) -> bool:
        """Put back what these requests of a frontend, as in Submit, have lost with workers. True: there was some."""
        lost: list[Entry] = []
        for request_id, _, deadline_ns, *offsets in requests:
            split = self.splits.get((frontend_id, request_id))
            if split is not None and split.failure is None:
                for row_start, rows in split.lost:
                    lost.append(([frontend_id, request_id, rows, row_start, *offsets], deadline_ns, now_ns))
                split.parts_queued += len(split.lost)
                split.lost.clear()
        self.put_back(lost, solo=False)
        return bool(lost)

    # ------------------------------------------------------------------------------- TF Serving's count of batches

    def open_batches(self) -> deque[int]:
        """Rows of each batch that what waits would make, if whole requests filled one batch after the other.

        A request that does not fit the last one closes it and opens another. Whoever queues a request keeps this up to
        date; it is counted anew only after something else than the first of these batches was taken out.
        """
        if self._open_batches is None:
            batches = self._open_batches = deque()
            for part, _, _ in self.queue:
                if batches and batches[-1] + part[2] <= self.rows_max:
                    batches[-1] += part[2]
                else:
                    batches.append(part[2])
        return self._open_batches

    # ------------------------------------------------------------------------------------------- rows that count

    @property
    def rows_beyond(self) -> int:
        """Rows of waiting requests beyond `rows_counted_max` each."""
        if self.single:
            return self.rows_queued - len(self.queue)
        most = self.rows_counted_max
        if most == ROWS_ANY:
            return 0
        if self._rows_beyond is None:
            self._rows_beyond = sum([part[2] - most for part, _, _ in self.queue if part[2] > most])
        return self._rows_beyond

    @rows_beyond.setter
    def rows_beyond(self, rows: int) -> None:
        self._rows_beyond = rows

    def _taken(self, rows: int, *, whole: bool) -> None:
        batches = self._open_batches
        if batches:
            if whole and batches[0] == rows:
                batches.popleft()
            else:
                self._open_batches = None

    # ---------------------------------------------------------------------------------------------- removing

    def remove(self, unwanted: Callable[[Entry], bool]) -> list[Entry]:
        """Take out every waiting entry for which `unwanted` holds, and return them in order. One pass."""
        removed: list[Entry] = []
        for name in ("solo", "queue"):
            entries: deque[Entry] = getattr(self, name)
            out = [entry for entry in entries if unwanted(entry)]
            if out:
                gone = {id(entry) for entry in out}
                setattr(self, name, deque(entry for entry in entries if id(entry) not in gone))
                if name == "queue":
                    self.rows_queued -= sum(part[2] for part, _, _ in out)
                    self._open_batches = self._rows_beyond = None
                removed += out
        if removed and not self.waiting:
            self.deadline_min_ns = 0
        return removed

    def requests_of(self, frontend_id: int) -> set[int]:
        """Ids of this frontend's requests that wait."""
        return {part[1] for source in (self.queue, self.solo) for part, _, _ in source if part[0] == frontend_id}

    def remove_requests(self, frontend_id: int, request_ids: set[int]) -> list[Entry]:
        return self.remove(lambda entry: entry[0][0] == frontend_id and entry[0][1] in request_ids)

    def sweep(self, now_ns: int) -> list[Entry]:
        """Take out what has expired, and make the deadlines' lower bound exact."""
        expired = self.remove(lambda entry: 0 < entry[1] <= now_ns)
        self.deadline_min_ns = 0
        self._lower_deadline(self.solo)
        self._lower_deadline(self.queue)
        return expired

    def _lower_deadline(self, entries: Iterable[Entry]) -> None:
        earliest = min((deadline_ns for _, deadline_ns, _ in entries if deadline_ns), default=0)
        if earliest and (not self.deadline_min_ns or earliest < self.deadline_min_ns):
            self.deadline_min_ns = earliest
