"""One frontend's metrics, put together: what is counted, what is watched, and the pages that tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from ringserve.config import metrics
from ringserve.config.metric_file import MetricFile
from ringserve.frontend.client import Client
from ringserve.frontend.console_failures import RecentFailures
from ringserve.frontend.exposition import Exposition, Found
from ringserve.frontend.ledger import Books
from ringserve.frontend.metric_gauges import Gauges
from ringserve.frontend.metric_look import Look
from ringserve.frontend.metric_scope import MetricScope
from ringserve.frontend.metric_sums import MetricSums
from ringserve.frontend.tally import Tally


class FrontendMetrics:
    """Everything about metrics that one frontend process holds. Lives on its event loop.

    process: its name (`frontend-0`). connections: open client connections by protocol. refusals: clients refused or cut
    off, by protocol and reason. books: by protocol.
    tally: give it to the APIs. exposition: writes the pages.
    """

    def __init__(
        self,
        client: Client,
        *,
        run_dir: str,
        process: str,
        connections: Callable[[], Mapping[str, int]],
        refusals: Callable[[], Mapping[str, Mapping[str, int]]] = dict,
        books: Callable[[], Mapping[str, Sequence[Books]]] = dict,
    ) -> None:
        self._file = MetricFile(run_dir, process)
        self._process = process
        self._file.add(metrics.PROCESS_STARTS, (process,))
        scope = MetricScope(client.catalog)
        sums = MetricSums(run_dir)
        later = asyncio.get_running_loop().call_later
        self.tally = Tally(self._file, scope, later, sums, RecentFailures(run_dir, process, later))
        self.exposition = Exposition(sums, self.tally, scope=scope, look=self._look)
        self._gauges = Gauges(self._file, process, client, connections, self.tally.clock_ns, refusals, books)
        self._lookup = Look(client.catalog, client.ask)

    def certificate(self, end_s: float) -> None:
        """The certificate that TLS uses from now on ends then (seconds since 1970 began)."""
        self._file.set(metrics.CERTIFICATE_END, (self._process,), end_s)

    def access_log(self, end: str, count: int) -> None:
        """So many lines of the access log have ended so."""
        self._file.add(metrics.ACCESS_LOG_LINES, (self._process, end), count)

    def refused(self, reason: str) -> None:
        """Access control has refused a request."""
        self._file.add(metrics.ACCESS_REFUSED, (reason,))

    async def _look(self) -> Found:
        self._gauges.update()
        return await self._lookup()

    def close(self) -> None:
        """Put down what was counted last, and stop."""
        self._gauges.close()
        self.tally.flush()
        self._file.close()
