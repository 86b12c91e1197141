"""What a frontend has for the others, gathered during a turn of the event loop: new requests, cancels, read records.

It leaves at the turn's end, in one Submit, one Cancel, and one Release per worker; but a turn in which many requests
come in is cut: half of what is in flight is sent as soon as it is there, if next to nothing is with the workers. Else
who has 32 calls in flight has them all in one batch, and frontend and worker wait for each other in turns: 30,000 a
second in place of 37,000 (six pairs; at 16 22,000 in place of 26,000, at 128 52,000 in place of 66,000). Where workers
have something to do it would only make their batches smaller: of 30,000 a second that came as they liked a fiftieth
was refused then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sized
from typing import Any, Final

from ringserve.broker import wire
from ringserve.broker.messages import Cancel, Submit
from ringserve.frontend.broker_link import BrokerLink
from ringserve.frontend.direct import Direct
from ringserve.frontend.lanes import Lane
from ringserve.frontend.returns import Returns

#: Requests of a lane for which a message before the turn's end pays.
SUBMIT_MIN: Final = 8
#: Workers have something to do that hold more than that part of what they are to be sent.
_BUSY_PART: Final = 4
#: What is in flight now and then does not change so soon what half of it is: by that part of it a turn.
_LESS_PART: Final = 8


class Outgoing:
    """direct: what requests are offered to before they are submitted. pending: all requests that have no answer yet.

    returns: takes the records that have been read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, link: BrokerLink, direct: Direct, pending: Sized) -> None:
        self.returns = Returns(loop, link, self._plan)
        self._loop = loop
        self._link = link
        self._direct = direct
        direct.resume = self.resume
        self._pending = pending
        self._groups: dict[Lane, list[list[int]]] = {}
        self._cancels: list[list[Any]] = []
        self._is_planned = False
        self._in_flight = 0  # the most that was pending lately

    def submit(self, lane: Lane, request: list[int]) -> None:
        """request: as in Submit; it is pending already."""
        if not self._is_planned:
            self._plan()
        group = self._groups.get(lane)
        if group is None:
            self._groups[lane] = [request]
            return
        group.append(request)
        if len(group) >= SUBMIT_MIN and not self._direct.holds:
            pending_count = len(self._pending)
            if _BUSY_PART * (pending_count - len(group)) <= len(group) and 2 * len(group) >= self._in_flight:
                self._send()

    def submit_all(self, lane: Lane, requests: list[list[int]]) -> None:
        """As `submit`, many at once."""
        *first, last = requests
        if first:
            self._groups.setdefault(lane, []).extend(first)
        self.submit(lane, last)

    def cancel(self, lane: Lane, request_id: int) -> None:
        """Nobody waits for it any more, or for the rest of it."""
        self._cancels.append([lane.key, request_id])
        self._plan()

    def submit_again(self, requests: Iterable[tuple[Lane, list[int]]]) -> None:
        """All that is pending; the broker takes only what it does not hold."""
        self._direct.tell()
        groups: dict[bytes, list[list[int]]] = {}
        for lane, request in requests:
            groups.setdefault(lane.key, []).append(request)
        if groups:
            self._groups.clear()
            self._direct.forget()
            pairs: list[list[Any]] = [[key, group] for key, group in groups.items()]
            self._link.send(wire.pack(Submit(self._link.frontend_id, pairs, True)))

    def resume(self) -> None:
        """What was held back may go now."""
        if self._groups:
            self._send()

    def close(self) -> None:
        """Sends nothing more by the clock."""
        self.returns.close()

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_planned = False
        self._in_flight = max(len(self._pending), self._in_flight - self._in_flight // _LESS_PART - 1)
        self._send()
        if self.returns.is_due:
            self.returns.send()

    def _send(self) -> None:
        link, direct = self._link, self._direct
        cancels = self._cancels
        if cancels:
            # First, so that what is new finds the places that they leave.
            self._cancels = []
            direct.tell()
            link.send(wire.pack(Cancel(link.frontend_id, cancels)))
        # Who was cancelled may be among the others: the broker looks.
        if self._groups and (cancels or not direct.take(self._groups)):
            groups, self._groups = self._groups, {}
            direct.forget()
            # Without a broker nothing is sent: all that is pending is submitted when there is one again.
            direct.tell()
            link.send(wire.pack(Submit(link.frontend_id, [[lane.key, group] for lane, group in groups.items()])))
