"""Lone requests on their way straight to a worker that the broker has lent: what `broker/loans.py` says of a frontend.

A request goes this way when it is the only one that this process holds, so that there is nothing to put into a batch
with it, and nobody to be fair to. What was handed over and has no answer is told to the broker before anything else
that the broker must see beside it, and after `_TELL_NS` at the latest: so that it can find a worker that hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from ringserve.broker import wire
from ringserve.broker.messages import Execute, Handed, Lend, Recall, Returned
from ringserve.frontend.broker_link import BrokerLink
from ringserve.frontend.lanes import Lane

_TELL_NS: Final = 20_000_000
_MILLISECOND_NS: Final = 1_000_000


class _Loan:
    """batch_id: of the last batch that was handed over."""

    __slots__ = ("batch_id", "lend")

    def __init__(self, lend: Lend) -> None:
        self.lend = lend
        self.batch_id = lend.loan_id


class Direct:
    """The workers that this frontend has been lent, by lane.

    pending: by id, the requests that have no answer yet; the first field of each is None when nobody waits for it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: BrokerLink,
        pending: Mapping[int, tuple[Any, ...]],
        clock: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._link = link
        self._pending = pending
        self._clock = clock
        self._loans: dict[bytes, _Loan] = {}
        #: Handed over, and not told to the broker: Handed, in order. They outlive their loans.
        self._untold: list[Handed] = []
        self._timer: asyncio.TimerHandle | None = None

    def take(self, groups: dict[Lane, list[list[int]]]) -> bool:
        """Send what is to be submitted straight to a worker, and empty `groups`; False: it is not to go this way."""
        if len(self._pending) != 1 or not self._loans:
            return False
        ((lane, (request,)),) = groups.items()
        loan = self._loans.get(lane.key)
        if loan is None or request[1] > loan.lend.rows_max or self._pending[request[0]][0] is None:
            return False
        worker = self._link.workers.get(loan.lend.worker_id)
        if worker is None or worker.left:
            return False
        groups.clear()
        loan.batch_id += 1
        frontend_id = self._link.frontend_id
        part = [frontend_id, request[0], request[1], 0, *request[3:]]
        worker.send(wire.pack(Execute(loan.batch_id, lane.key, [part])))
        now_ns = self._clock()
        self._untold.append(Handed(frontend_id, loan.lend.worker_id, loan.batch_id, lane.key, now_ns, request))
        if self._timer is None:
            self._sleep(_TELL_NS)
        return True

    def _sleep(self, left_ns: int) -> None:
        # Timers of the loop count whole milliseconds: less than half of one is none, and the loop would not rest.
        self._timer = self._loop.call_later((left_ns // _MILLISECOND_NS + 1) / 1000, self._on_time)

    def _on_time(self) -> None:
        """What is not older than a turn of the timer is told with the next one."""
        self._timer = None
        now_ns = self._clock()
        late = [handed for handed in self._untold if handed.handed_ns + _TELL_NS <= now_ns]
        self._tell(late)
        self._untold = [handed for handed in self._untold[len(late) :] if handed.request[0] in self._pending]
        if self._untold:
            self._sleep(self._untold[0].handed_ns + _TELL_NS - now_ns)

    def tell(self) -> None:
        """To be called before the broker is sent anything that it must see beside what was handed over."""
        if self._untold:
            untold, self._untold = self._untold, []
            self._tell(untold)

    def _tell(self, untold: list[Handed]) -> None:
        for handed in untold:
            if handed.request[0] in self._pending:
                self._link.send(wire.pack(handed))

    # ------------------------------------------------------------------------------------------------ what comes in

    def on_lend(self, lend: Lend) -> None:
        """A worker is lent to this frontend from now on."""
        self._loans[lend.lane_key] = _Loan(lend)

    def on_recall(self, recall: Recall) -> None:
        """Give it back. One that is not known was of a worker that has left: the broker does not wait for that."""
        for key, loan in self._loans.items():
            if loan.lend.loan_id == recall.loan_id:
                del self._loans[key]
                self.tell()
                self._link.send(wire.pack(Returned(recall.loan_id, loan.batch_id)))
                return

    def on_worker_left(self, worker_id: int) -> None:
        """What it was handed is told at once, so that the broker has it run elsewhere; but not before its last Results,
        which may lie in the socket yet, have been read."""
        self._loans = {key: loan for key, loan in self._loans.items() if loan.lend.worker_id != worker_id}
        self._loop.call_soon(self.tell)

    def forget(self) -> None:
        """The broker is lost, and all that is pending will be submitted to the next one."""
        self._loans.clear()
        self._untold.clear()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
