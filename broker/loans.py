"""Pure: workers that are lent to frontends, so that requests go straight to one and none waits for the broker.

    broker ── Lend ──▶ frontend ── Execute ──▶ worker ── Result ──▶ frontend
       ▲  ▲                │                     └── Done ──▶ broker: others came and were answered
       │  └── Handed ──────┤ no answer yet: after some ms, or before a Submit, a Cancel, Returned
       └───── Returned ────┘ after a Recall

Where one request is in flight at a time, waking the broker to hear "the idle one" takes a fifth of the request's time.
So a frontend that had `LanePolicy.lend_after_requests` batches in a row to itself, one request each, is lent the worker
that ran them; and so is one that had four times as many in a row, of however many requests, of a lane whose batches are
short: all that the broker would decide there is that what waits goes when the worker is done. The broker goes on to use
the worker as if it were idle, which costs who comes then the rest of one batch, at most. The loan is recalled when
others come, when runs get longer, or when its frontend holds more than a batch more often than not: calls that come by
chance meet now and then, and each would pay for the broker until there is a new row.

What nobody told of is known by its Done. A batch that is known (Handed) is leased as all others are, so that hangs,
deaths and cancels are no special cases (`handovers.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence

from ringserve.broker.fleet import Worker, WorkerState
from ringserve.broker.lanes import Lane
from ringserve.broker.leases import Lease
from ringserve.broker.messages import Done, Lend, Recall
from ringserve.broker.policy import ROWS_ANY

#: Loans are numbered in steps of this, so that batch ids of one never meet another's.
LOAN_IDS = 1 << 32
#: The first one's number. The broker's own batches come to it after nine hundred years at 10,000 a second.
LOAN_ID_FIRST = 1 << 48
#: A loan that was used less often than this was not worth its messages: the lane's next row must be twice as long.
_WORTH_USES = 4
_ALONE_MIN_MAX = 1_024
#: A loan stays while it is used at least as often as its frontend has company; so many uses are kept for later.
_SPARE_USES_MAX = 3
#: A row of batches of several requests is so many times as long as one of lone requests.
_ROW_TIMES = 4
#: Batches that frontends may make run for so many times `spread_ns` at most; a lane with one that ran for so many times
#: as long is none for it.
_SHORT_TIMES = 2
_LONG_TIMES = 4
#: Of so many workers that left it is remembered how: what was handed to them is told within moments.
_ENDED_KEPT = 1_000


def batch_rows_max(lane: Lane) -> int:
    """Rows of the batches that a frontend may make of this lane's requests; 0: none, as there is something to decide.

    No more than run for a moment: behind what takes longer another worker may be better, and whoever comes waits
    for the rest of it.
    """
    policy = lane.policy
    if lane.single or policy.batching != "adaptive" or lane.rows_allowed or lane.parts_max:
        return 0
    rows = min(lane.rows_best, lane.queue_rows_max, policy.queue_requests_max)
    while rows > 1 and not 0 < lane.predict(rows) <= _SHORT_TIMES * policy.spread_ns:
        rows //= 2
    return rows if rows > 1 else 0


class Loan:
    """One worker lent to one frontend for one lane.

    batch_id_done: the last batch of it that is over. batch_id_last: the last that was used; -1 until it is returned.
    left: of batches of which nobody told before they were over, how many requests at their end were not run.
    """

    __slots__ = (
        "_uses_counted", "_uses_spare", "batch_id_done", "batch_id_last", "batch_rows_max", "frontend_id", "lane",
        "left", "loan_id", "recalled", "worker",
    )  # fmt: skip

    def __init__(self, loan_id: int, frontend_id: int, lane: Lane, worker: Worker) -> None:
        self.loan_id = loan_id
        self.frontend_id = frontend_id
        self.lane = lane
        self.worker = worker
        self.batch_rows_max = batch_rows_max(lane)
        self.batch_id_done = loan_id
        self.batch_id_last = -1
        self.left: dict[int, int] = {}
        self.recalled = False
        self._uses_counted = loan_id  # up to that batch
        # What is on its way to the broker while the loan is on its way to the frontend is no company yet.
        self._uses_spare = _SPARE_USES_MAX if self.batch_rows_max else 0

    def outlasts_company(self) -> bool:
        """Requests of its frontend had to be put into a batch, as there was more than one. False: that was once too
        often for what it is used."""
        uses = self.batch_id_done - self._uses_counted
        self._uses_counted = self.batch_id_done
        self._uses_spare = min(self._uses_spare + uses, _SPARE_USES_MAX) - 1
        return self._uses_spare >= 0

    def suits(self, done: Done) -> bool:
        """Whether this batch of it was as they are to be: short, and run as a whole."""
        is_long = len(done.requests) > 1 and done.run_ns > _LONG_TIMES * self.lane.policy.spread_ns
        return not (is_long or done.parts_left)


class Loans:
    """All loans, what frontends are to be told of them, and who may be lent a worker next."""

    def __init__(self) -> None:
        self._by_id: dict[int, Loan] = {}
        self._ended: dict[int, int] = {}  # of workers that left lately: loan id -> its last batch that was done
        self._blameless: deque[int] = deque(maxlen=_ENDED_KEPT)
        self._last_id = LOAN_ID_FIRST - LOAN_IDS
        self._to_tell: list[tuple[int, Lend | Recall]] = []
        #: Batches in a row: (their lane, their frontend, how many of them, how many lone ones, the last one's id).
        self._row: tuple[Lane, int, int, int, int] | None = None
        self._candidate: Lease | None = None
        self._is_lone = False

    def __len__(self) -> int:
        return len(self._by_id)

    # ---------------------------------------------------------------------------------------------------- lending

    def ran(self, lease: Lease, *, alone: bool) -> None:
        """This batch of the broker's own is over. alone: and it holds nothing else now."""
        lane, entries, row = lease.lane, lease.entries, self._row
        self._row = self._candidate = None
        lend_after = lane.policy.lend_after_requests if lane.policy.batching != "timeout" else 0
        if not lend_after or not entries or lease.solo or lease.has_parts:
            return
        frontend_id = entries[0][0][0]
        if len(entries) > 1 and any(part[0] != frontend_id for part, _, _ in entries):
            return
        # The broker numbers its batches one by one: any other in between breaks the row.
        follows = row is not None and row[0] is lane and row[1] == frontend_id and row[4] + 1 == lease.batch_id
        count, lone_count = (row[2] + 1, row[3] + 1) if follows and row is not None else (1, 1)
        if not alone or len(entries) > 1:
            lone_count = 0
        self._row = (lane, frontend_id, count, lone_count, lease.batch_id)
        needed = max(lend_after, lane.alone_min)
        self._is_lone = lone_count >= needed
        if self._is_lone or count >= _ROW_TIMES * needed:
            self._candidate = lease

    def lend(self, workers: Mapping[int, Worker], frontends: Container[int], *, calm: bool, waits: bool) -> None:
        """At the end of a turn: lend who ran the last of a row of batches, if there is such a row.

        workers, frontends: those that are there. calm: nothing waits and nothing runs. waits: something waits.
        """
        if self._candidate is None:
            return
        lease, self._candidate = self._candidate, None
        lane, frontend_id = lease.lane, lease.entries[0][0][0]
        worker = workers.get(lease.worker_id)
        if worker is None or worker.state is not WorkerState.READY or worker.lent_for is not None:
            return
        if not (calm and self._is_lone):
            others = lane.leases_count != len(worker.leases)
            if waits or others or not batch_rows_max(lane):
                return
        has_one = any(loan.lane is lane and loan.frontend_id == frontend_id for loan in self._by_id.values())
        if has_one or frontend_id not in frontends:
            return
        self._row = None
        self._last_id += LOAN_IDS
        loan = self._by_id[self._last_id] = Loan(self._last_id, frontend_id, lane, worker)
        worker.lent_for = lane
        rows_max = min(lane.rows_max, lane.policy.request_rows_max or ROWS_ANY)
        lend = Lend(loan.loan_id, lane.key, worker.worker_id, rows_max, loan.batch_rows_max)
        self._to_tell.append((frontend_id, lend))

    def granted(self, lane: Lane, worker: Worker, parts: Sequence[Sequence[int]]) -> None:
        """The worker is given a batch of that lane: parts, as in Execute.

        A loan of it, or of the lane, ends when others' requests are in it: they are not to wait for what nobody tells
        of. Its frontend's own never do: before it submits them it tells what it has handed over.
        """
        frontend_ids = {part[0] for part in parts}
        for loan in self._by_id.values():
            is_own = frontend_ids == {loan.frontend_id}
            if (loan.worker is worker or loan.lane is lane) and not (is_own and loan.outlasts_company()):
                self.recall(loan.worker)

    def recall(self, worker: Worker) -> None:
        """The worker is wanted for something else. Does nothing when it is not lent, or recalled already."""
        if worker.lent_for is not None:
            for loan in self._by_id.values():
                if loan.worker is worker and not loan.recalled:
                    loan.recalled = True
                    self._to_tell.append((loan.frontend_id, Recall(loan.loan_id)))

    def recall_all(self) -> None:
        """The rules change."""
        self._row = self._candidate = None
        for loan in list(self._by_id.values()):
            self.recall(loan.worker)

    def take_told(self) -> list[tuple[int, Lend | Recall]]:
        """What frontends are to be told since the last call, in order."""
        told, self._to_tell = self._to_tell, []
        return told

    # --------------------------------------------------------------------------------------------- what comes back

    def done(self, done: Done) -> Loan | None:
        """A batch with such an id is over. Its loan; None when that is over, too, because one of both parties left."""
        loan = self._by_id.get(done.batch_id // LOAN_IDS * LOAN_IDS)
        if loan is not None:
            loan.batch_id_done = done.batch_id
            if not loan.suits(done):
                self.recall(loan.worker)
            self._end(loan)
        return loan

    def is_over(self, batch_id: int) -> bool:
        """Whether the worker has said that this batch is done."""
        loan_id = batch_id // LOAN_IDS * LOAN_IDS
        loan = self._by_id.get(loan_id)
        return batch_id <= (loan.batch_id_done if loan is not None else self._ended.get(loan_id, 0))

    def take_left(self, batch_id: int) -> int:
        """How many requests at the end of that batch, which is over, were not run and are not known."""
        loan = self._by_id.get(batch_id // LOAN_IDS * LOAN_IDS)
        return loan.left.pop(batch_id, 0) if loan is not None else 0

    def returned(self, loan_id: int, batch_id_last: int) -> None:
        """The frontend uses the loan no more. What is still to come of it is known by the last batch's id."""
        loan = self._by_id.get(loan_id)
        if loan is not None:
            loan.batch_id_last = batch_id_last
            self._end(loan)

    def frontend_left(self, frontend_id: int) -> None:
        if self._row is not None and self._row[1] == frontend_id:
            self._row = self._candidate = None
        self._to_tell = [told for told in self._to_tell if told[0] != frontend_id]
        self._drop(lambda loan: loan.frontend_id == frontend_id)

    def worker_left(self, worker: Worker, *, blameless: bool) -> None:
        """blameless: something else ended it, not what it ran."""
        if blameless:
            self._blameless.append(worker.worker_id)
        for loan in self._drop(lambda loan: loan.worker is worker):
            self._ended[loan.loan_id] = loan.batch_id_done
            if len(self._ended) > _ENDED_KEPT:
                del self._ended[next(iter(self._ended))]

    def blames(self, worker_id: int) -> bool:
        """Whether what was handed to this worker, which has left, may have ended it."""
        return worker_id not in self._blameless

    def _end(self, loan: Loan) -> None:
        if loan.batch_id_done == loan.batch_id_last:
            lane, uses = loan.lane, loan.batch_id_last - loan.loan_id
            longer = 2 * max(lane.policy.lend_after_requests, lane.alone_min)
            lane.alone_min = 0 if uses >= _WORTH_USES else min(longer, _ALONE_MIN_MAX)
            del self._by_id[loan.loan_id]
            loan.worker.lent_for = None

    def _drop(self, unwanted: Callable[[Loan], bool]) -> list[Loan]:
        dropped = [loan for loan in self._by_id.values() if unwanted(loan)]
        for loan in dropped:
            del self._by_id[loan.loan_id]
            loan.worker.lent_for = None
        return dropped
