"""Requests on their way straight to a worker that the broker has lent: what `broker/loans.py` says of a frontend.

    requests ── nothing runs ────────────▶ Execute
             ── a batch runs there ──────▶ held until its answers come, then all in one Execute
             ── others are in the way ───▶ Submit, all of them (with what was handed over made known first)

They go this way when they are all that this process holds, so that there is nobody to be fair to, and as long as one
batch takes them: beyond that the broker decides. What was handed over and has no answer is told to the broker before
anything else that the broker must see beside it, and after `_TELL_NS` at the latest: so that it can find a worker that
hangs. Nor is anything held for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from ringserve.broker import wire
from ringserve.broker.messages import Execute, Handed, Lend, Recall, Result, Returned
from ringserve.frontend.broker_link import BrokerLink
from ringserve.frontend.lanes import Lane

_TELL_NS: Final = 20_000_000
_MILLISECOND_NS: Final = 1_000_000


class _Loan:
    """batch_id: of the last batch that was handed over. unanswered: its requests that have no answer yet. handed: what
    the broker is to be told of it; None when it has been, or when it is over. enters: this way has not been free yet
    since the loan began: what the broker has is on its way out."""

    __slots__ = ("batch_id", "enters", "handed", "lend", "unanswered")

    def __init__(self, lend: Lend) -> None:
        self.lend = lend
        self.batch_id = lend.loan_id
        self.unanswered = 0
        self.handed: Handed | None = None
        self.enters = lend.batch_rows_max > 0

    def takes(self, requests: list[list[int]]) -> bool:
        """Whether one batch of this loan may hold all of these."""
        lend = self.lend
        if len(requests) == 1:
            return requests[0][1] <= lend.rows_max
        rows = [request[1] for request in requests]
        return sum(rows) <= lend.batch_rows_max and max(rows) <= lend.rows_max


class Direct:
    """The workers that this frontend has been lent, by lane.

    pending: the requests that have no answer yet, by id. resume: calls `take` again for what is held.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: BrokerLink,
        pending: Mapping[int, tuple[Any, ...]],
        clock: Callable[[], int],
    ) -> None:
        self.resume: Callable[[], None] = lambda: None
        self._loop = loop
        self._link = link
        self._pending = pending
        self._clock = clock
        self._loans: dict[bytes, _Loan] = {}
        #: Handed over to workers that have left since, and not told to the broker yet.
        self._untold: list[Handed] = []
        #: Of what is held, in order: [requests, since when].
        self._held: list[list[int]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def holds(self) -> bool:
        """Whether `take` has kept back what it was offered."""
        return bool(self._held)

    def take(self, groups: dict[Lane, list[list[int]]]) -> bool:
        """Send what is to be submitted straight to a worker, and empty `groups`, or hold it, and leave it there.

        False: it is not to go this way.
        """
        if len(groups) != 1 or not self._loans:
            self._held.clear()
            return False
        ((lane, requests),) = groups.items()
        loan = self._loans.get(lane.key)
        if loan is None:
            self._held.clear()
            return False
        others = len(self._pending) - len(requests) - loan.unanswered
        takes = loan.takes(requests)
        if takes and not others and not loan.unanswered:
            worker = self._link.workers.get(loan.lend.worker_id)
            if worker is not None and not worker.left:
                loan.enters = False
                groups.clear()
                worker.send(self._execute(loan, lane, requests))
                return True
        elif takes and loan.lend.batch_rows_max and (loan.enters if others else loan.handed is not None):
            self._hold(len(requests))
            return True
        loan.enters = False
        self._held.clear()
        return False

    def _execute(self, loan: _Loan, lane: Lane, requests: list[list[int]]) -> bytes:
        lend, frontend_id, now_ns = loan.lend, self._link.frontend_id, self._clock()
        held, self._held = self._held, []
        waits = [[count, now_ns - since_ns] for count, since_ns in held]
        fresh = len(requests) - sum(count for count, _ in held)
        if fresh:
            waits.append([fresh, 0])
        loan.batch_id += 1
        loan.unanswered = len(requests)
        loan.handed = Handed(frontend_id, lend.worker_id, loan.batch_id, lane.key, now_ns, requests)
        if self._timer is None:
            self._sleep(_TELL_NS)
        parts = [[frontend_id, request[0], request[1], 0, *request[3:]] for request in requests]
        return wire.pack(Execute(loan.batch_id, lane.key, parts, waits))

    def _hold(self, count: int) -> None:
        fresh = count - sum(count for count, _ in self._held)
        if fresh:
            self._held.append([fresh, self._clock()])
        if self._timer is None:
            self._sleep(_TELL_NS)

    def answered(self, result: Result) -> bool:
        """These requests have their answers. True: they were the last of a batch, and others are held for its end."""
        for loan in self._loans.values():
            if loan.batch_id == result.batch_id:
                loan.unanswered -= len(result.answers) + len(result.failures)
                if loan.unanswered <= 0:
                    loan.unanswered = 0
                    loan.handed = None
                    return bool(self._held)
        return False

    def _sleep(self, left_ns: int) -> None:
        # Timers of the loop count whole milliseconds: less than half of one is none, and the loop would not rest.
        self._timer = self._loop.call_later((left_ns // _MILLISECOND_NS + 1) / 1000, self._on_time)

    def _on_time(self) -> None:
        """What is not older than a turn of the timer is told with the next one."""
        self._timer = None
        late_ns = self._clock() - _TELL_NS
        for loan in self._loans.values():
            if loan.handed is not None and loan.handed.handed_ns <= late_ns:
                self._tell(loan)
        if self._held and self._held[0][1] <= late_ns:
            for loan in self._loans.values():
                loan.enters = False
                if loan.handed is not None:
                    self._tell(loan)
            self.resume()
        since_ns = [loan.handed.handed_ns for loan in self._loans.values() if loan.handed is not None]
        since_ns += [at_ns for _, at_ns in self._held[:1]]
        if since_ns and self._timer is None:
            self._sleep(min(since_ns) - late_ns)

    def tell(self) -> None:
        """To be called before the broker is sent anything that it must see beside what was handed over."""
        for loan in self._loans.values():
            if loan.handed is not None:
                self._tell(loan)
        if self._untold:
            untold, self._untold = self._untold, []
            for handed in untold:
                self._send(handed)

    def _tell(self, loan: _Loan) -> None:
        handed, loan.handed = loan.handed, None
        assert handed is not None
        self._send(handed)

    def _send(self, handed: Handed) -> None:
        requests = [request for request in handed.requests if request[0] in self._pending]
        if requests:
            self._link.send(wire.pack(handed._replace(requests=requests)))

    # ------------------------------------------------------------------------------------------------ what comes in

    def on_lend(self, lend: Lend) -> None:
        """A worker is lent to this frontend from now on."""
        self._loans[lend.lane_key] = _Loan(lend)

    def on_recall(self, recall: Recall) -> None:
        """Give it back. One that is not known was of a worker that has left: the broker does not wait for that."""
        for key, loan in self._loans.items():
            if loan.lend.loan_id == recall.loan_id:
                self.tell()
                del self._loans[key]
                self._link.send(wire.pack(Returned(recall.loan_id, loan.batch_id)))
                self.resume()
                return

    def on_worker_left(self, worker_id: int) -> None:
        """What it was handed is told at once, so that the broker has it run elsewhere; but not before its last Results,
        which may lie in the socket yet, have been read."""
        for key, loan in list(self._loans.items()):
            if loan.lend.worker_id == worker_id:
                del self._loans[key]
                if loan.handed is not None:
                    self._untold.append(loan.handed)
        self._loop.call_soon(self._after_left)

    def _after_left(self) -> None:
        self.tell()
        self.resume()

    def forget(self) -> None:
        """All that is pending will be submitted, to this broker or the next."""
        self._held.clear()

    def broker_lost(self) -> None:
        """All that is pending will be submitted to the next one."""
        self._loans.clear()
        self._untold.clear()
        self._held.clear()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
