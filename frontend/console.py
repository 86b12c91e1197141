"""The console: a page for browsers that shows what a server does, and the JSON that it is drawn from.

    GET /                        the page; with /console.css, /console.js, /console_charts.js, /console.svg
    GET /ringserve/v1/overview   models, processes, lanes, failures, memory, and some metrics as they are counted

Only where operators are let in (`admin_port`, the operators' socket). The page itself is public text: it shows nothing
before its script has asked for the overview, with a key where there is access control. It loads nothing from anywhere
else, which its Content-Security-Policy also forbids, so that a mistake in it could neither run foreign code nor tell
anybody what it shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import orjson

from ringserve import __version__
from ringserve.broker.messages import Code
from ringserve.config import metrics
from ringserve.config.memory import usable_memory
from ringserve.config.metric_family import Family
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.console_failures import recent_failures
from ringserve.frontend.metric_sums import Cell
from ringserve.frontend.rest_status import models_found
from ringserve.shm.dtype import name_of

_BROKER_S: Final = 1.0
#: Lanes shown: those that wait longest.
_LANES_MAX: Final = 100

_CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
#: Header lines of the page and of all that belongs to it.
PAGE_HEADERS: Final = (
    f"Content-Security-Policy: {_CONTENT_POLICY}\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "X-Frame-Options: DENY\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cross-Origin-Opener-Policy: same-origin\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Cache-Control: no-cache\r\n"
).encode()
#: Header lines of the overview.
DATA_HEADERS: Final = (
    b"X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-store\r\n"
)

_TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_FOLDER: Final = Path(__file__).with_name("console_page")

#: The metrics in the overview.
_FAMILIES: Final = (
    metrics.REQUESTS,
    metrics.REQUEST_DURATION,
    metrics.QUEUE_DURATION,
    metrics.RUN_DURATION,
    metrics.BATCH_ROWS,
    metrics.PADDING_ROWS,
    metrics.BROKER_REQUESTS,
    metrics.BROKER_RETRIES,
    metrics.ACCESS_REFUSED,
    metrics.REFUSALS,
    metrics.PENDING,
    metrics.CONNECTIONS,
    metrics.RING_CAPACITY,
    metrics.RING_USED,
    metrics.PROCESS_STARTS,
    metrics.PROCESS_START_TIME,
    metrics.PROCESS_RESIDENT,
    metrics.PROCESS_PROPORTIONAL,
    metrics.PROCESS_CPU,
)


class Asset(NamedTuple):
    """One file of the page."""

    body: bytes
    content_type: bytes


class MetricCells(Protocol):
    """Tells what all processes have counted (`exposition.Exposition`)."""

    async def cells(self, families: Iterable[Family]) -> dict[str, list[Cell]]: ...


class Host(NamedTuple):
    """Memory that the server may use, and how much of the host's is free; 0: nobody knows."""

    usable_bytes: int
    source: str
    available_bytes: int


def assets() -> dict[str, Asset]:
    """The page's files by their paths."""
    found = {}
    for file in sorted(_FOLDER.iterdir()):
        if file.suffix in _TYPES:
            path = "/" if file.name == "console.html" else f"/{file.name}"
            found[path] = Asset(file.read_bytes(), _TYPES[file.suffix])
    return found


class Overview:
    """Writes the overview. run_dir: where the frontends keep what failed. ask: `Client.ask`."""

    def __init__(
        self,
        run_dir: str,
        catalog: Catalog,
        ask: Callable[[str, bytes, float | None], Awaitable[tuple[int, str, bytes]]],
        cells: MetricCells,
    ) -> None:
        self._run_dir = run_dir
        self._catalog = catalog
        self._ask = ask
        self._cells = cells

    async def write(self) -> bytes:
        """As it is now. `broker` and what it knows are null while there is none."""
        code, _, body = await self._ask("state", b"", _BROKER_S)
        state = orjson.loads(body) if code == Code.OK else None
        cells = await self._cells.cells(_FAMILIES)
        failures, host = await asyncio.to_thread(lambda: (recent_failures(self._run_dir), _host()))
        return orjson.dumps(
            {
                "version": __version__,
                "now_s": time.time(),
                "models": models_found(self._catalog),
                "broker": state and _of_broker(state),
                "failures": failures,
                "host": host._asdict(),
                "metrics": {family.name: _family(family, cells.get(family.name, [])) for family in _FAMILIES},
            }
        )


def _of_broker(state: dict[str, Any]) -> dict[str, Any]:
    lanes = sorted(state["lanes"], key=lambda lane: -lane["oldest_s"])[:_LANES_MAX]
    for lane in lanes:
        lane["inputs"] = [f"{alias} {name_of(dtype)}{shape}" for alias, dtype, shape in lane["inputs"]]
    kept = ("generation", "groups", "workers", "weights", "memory", "requests")
    return {**{name: state[name] for name in kept}, "lanes": lanes, "lanes_shown_max": _LANES_MAX}


def _family(family: Family, cells: list[Cell]) -> dict[str, Any]:
    """cells: labels, and a number, or of a histogram the count in each bucket and then the sum."""
    return {
        "kind": family.kind,
        "labels": family.labels,
        "limits": family.limits,
        "cells": [[cell.labels, cell.values] for cell in cells],
    }


def _host() -> Host:
    usable = usable_memory()
    available = 0
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    return Host(usable.count_bytes, usable.source, available)
