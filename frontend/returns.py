"""Result records on their way back to the workers that wrote them: large ones now, small ones soon and together.

Each message wakes a worker. A worker never waits for small records, of which its ring holds thousands; it may wait for
a large one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from ringserve.broker import wire
from ringserve.broker.messages import Release
from ringserve.frontend.broker_link import BrokerLink
from ringserve.frontend.outputs import Output

#: Which records are given back together, and when at the latest.
_LATER_BYTES_MAX: Final = 65_536
_LATER_COUNT_MAX: Final = 16
_LATER_S: Final = 0.005


class Returns:
    """is_due: `send` is to be called at the end of the loop's turn, which `plan` has been asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: BrokerLink, plan: Callable[[], None]) -> None:
        self.is_due = False
        self._loop = loop
        self._link = link
        self._plan = plan
        self._records: dict[int, list[int]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, worker_id: int, record_id: int, outputs: Sequence[Output] | None) -> None:
        """All of this record has been read. outputs: what it holds; None when nobody looked."""
        record_ids = self._records.setdefault(worker_id, [])
        record_ids.append(record_id)
        small = outputs is not None and sum(output.whole_bytes for output in outputs) <= _LATER_BYTES_MAX
        if not small or len(record_ids) >= _LATER_COUNT_MAX:
            self.is_due = True
            self._plan()
        elif self._timer is None:
            self._timer = self._loop.call_later(_LATER_S, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.is_due = True
        self._plan()

    def send(self) -> None:
        """Give everything back, in one message for each worker."""
        self.is_due = False
        records, self._records = self._records, {}
        for worker_id, record_ids in records.items():
            worker = self._link.workers.get(worker_id)
            if worker is not None:
                worker.send(wire.pack(Release(self._link.frontend_id, record_ids)))

    def close(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()
