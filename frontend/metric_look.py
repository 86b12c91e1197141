"""What nobody counts and a scrape looks up: states of models, the broker's queues, processes' memory and CPU time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from ringserve import __version__
from ringserve.broker.messages import Code, VersionState
from ringserve.config import metrics
from ringserve.config.metric_family import Family
from ringserve.config.metric_file import Labels
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.metric_processes import ProcessUse, process_uses
from ringserve.frontend.metric_sums import Cell

#: How long a scrape waits for the broker.
_BROKER_S: Final = 1.0
#: Adding up the shares of shared pages takes the kernel 12 ms for each worker: not for every scrape.
_PROPORTIONAL_S: Final = 60.0

#: Client.ask: verb, body, timeout -> code, text, body.
Ask = Callable[[str, bytes, float | None], Awaitable[tuple[int, str, bytes]]]


class Look:
    """Call it for the families of source SCRAPE, as cells by family name."""

    def __init__(self, catalog: Catalog, ask: Ask, uses: Callable[..., list[ProcessUse]] = process_uses) -> None:
        self._catalog = catalog
        self._ask = ask
        self._uses = uses
        self._proportional: dict[str, int] = {}
        self._proportional_at_s = -_PROPORTIONAL_S

    async def __call__(self) -> dict[str, list[Cell]]:
        found: dict[str, list[Cell]] = {}
        _add(found, metrics.BUILD_INFO, (__version__,), 1)
        self._add_models(found)
        await self._add_broker(found)
        await self._add_processes(found)
        return found

    def _add_models(self, found: dict[str, list[Cell]]) -> None:
        for model in self._catalog.names():
            statuses = self._catalog.statuses(model)
            statuses = statuses if isinstance(statuses, list) else []
            ready = any(status.state == VersionState.AVAILABLE for status in statuses)
            _add(found, metrics.MODEL_READY, (model,), int(ready))
            for status in statuses:
                # One that failed or has gone stays in TF Serving's status for ever; here only what is or will be.
                if status.state != VersionState.END or status.error_code != Code.OK:
                    labels = (model, str(status.version), VersionState(status.state).name)
                    _add(found, metrics.VERSION_STATE, labels, 1)

    async def _add_broker(self, found: dict[str, list[Cell]]) -> None:
        code, _, body = await self._ask("metrics", b"", _BROKER_S)
        _add(found, metrics.BROKER_UP, (), int(code == Code.OK))
        if code == Code.OK:
            for name, labels, value in json.loads(body):
                found.setdefault(name, []).append(Cell(tuple(labels), [float(value)]))

    async def _add_processes(self, found: dict[str, list[Cell]]) -> None:
        now_s = asyncio.get_running_loop().time()
        proportional = now_s - self._proportional_at_s >= _PROPORTIONAL_S
        if proportional:
            self._proportional_at_s = now_s
        # In a thread, as the kernel takes its time.
        uses = await asyncio.to_thread(self._uses, proportional=proportional)
        if proportional:
            self._proportional = {use.name: use.proportional_bytes for use in _by_name(uses)}
        for use in _by_name(uses):
            _add(found, metrics.PROCESS_RESIDENT, (use.name,), use.resident_bytes)
            _add(found, metrics.PROCESS_CPU, (use.name,), use.cpu_s)
            _add(found, metrics.PROCESS_START_TIME, (use.name,), use.started_s)
            if use.name in self._proportional:
                _add(found, metrics.PROCESS_PROPORTIONAL, (use.name,), self._proportional[use.name])


def _by_name(uses: Iterable[ProcessUse]) -> list[ProcessUse]:
    """One for each name: while a worker is replaced there may be two of it, which count together."""
    found: dict[str, ProcessUse] = {}
    for use in uses:
        other = found.get(use.name)
        if other is not None:
            sums = (use.proportional_bytes + other.proportional_bytes, use.cpu_s + other.cpu_s)
            resident_bytes, started_s = use.resident_bytes + other.resident_bytes, max(use.started_s, other.started_s)
            use = ProcessUse(use.name, resident_bytes, *sums, started_s)
        found[use.name] = use
    return list(found.values())


def _add(found: dict[str, list[Cell]], family: Family, labels: Labels, value: Any) -> None:
    found.setdefault(family.name, []).append(Cell(labels, [float(value)]))
