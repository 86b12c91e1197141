"""The two metrics pages: TF Serving's, byte for byte as it writes it, and the whole one in Prometheus's text format.

A page of 100 models has some 20,000 lines and takes tens of milliseconds to write, so it is written in pieces between
which the event loop serves requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from ringserve.config import metrics
from ringserve.config.metric_family import COUNTER, HISTOGRAM, Family
from ringserve.frontend.ledger import open_items
from ringserve.frontend.metric_scope import MetricScope
from ringserve.frontend.metric_sums import Cell, MetricSums
from ringserve.frontend.tally import Tally

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: Lines written at a stretch: about half a millisecond.
_PIECE_LINES: Final = 1_000

#: What is looked up at a scrape: cells by family.
Found = dict[str, list[Cell]]


class Exposition:
    """Writes the pages of all processes' metrics.

    tally: this process's own counts, flushed before they are read. look: what is not counted but looked up at a
    scrape (families of source SCRAPE, and this process's gauges, which it may set now).
    """

    def __init__(
        self,
        sums: MetricSums,
        tally: Tally,
        *,
        scope: MetricScope | None = None,
        look: Callable[[], Awaitable[Found]] | None = None,
    ) -> None:
        self._sums = sums
        self._tally = tally
        self._scope = scope or MetricScope()
        self._look = look

    async def render_tfs(self) -> bytes:
        """TF Serving's page: its families only, without HELP, always with braces."""
        await self._read()
        return await _written(self._pieces(metrics.TFS, {}, _TfsStyle()))

    async def render(self) -> tuple[bytes, str]:
        """Every family, and the content type."""
        found = await self._look() if self._look is not None else {}
        await self._read()
        found[metrics.CALLS_IN_FLIGHT.name] = self._in_flight()
        page = await _written(self._pieces((*metrics.OWN, *metrics.TFS), found, _Style()))
        return page, CONTENT_TYPE

    async def cells(self, families: Iterable[Family]) -> Found:
        """Every cell of these families, by the family's name."""
        found = await self._look() if self._look is not None else {}
        await self._read()
        return {family.name: list(self._cells(family, found)) for family in families}

    async def _read(self) -> None:
        while self._tally.flush_some():
            await asyncio.sleep(0)
        self._sums.read()

    def _in_flight(self) -> list[Cell]:
        received, ended = (
            {cell.labels: cell.values[0] for cell in self._sums.cells(family)}
            for family in (metrics.CALLS_RECEIVED, metrics.CALLS_ENDED)
        )
        return [Cell(labels, [count]) for labels, count in open_items(received, ended).items()]

    def _pieces(self, families: Iterable[Family], found: Found, style: _Style) -> Iterator[list[str]]:
        for family in families:
            lines = style.head(family)
            for cell in self._cells(family, found):
                lines += style.lines(family, cell)
                if len(lines) >= _PIECE_LINES:
                    yield lines
                    lines = []
            yield lines

    def _cells(self, family: Family, found: Found) -> Iterator[Cell]:
        yield from found.get(family.name, ())
        for cell in self._sums.cells(family):
            if not self._scope.is_gone(family, cell.labels):
                yield cell


async def _written(pieces: Iterator[list[str]]) -> bytes:
    written = []
    fresh = 0
    for lines in pieces:
        written += lines
        fresh += len(lines)
        if fresh >= _PIECE_LINES:
            fresh = 0
            await asyncio.sleep(0)
    written.append("")
    return "\n".join(written).encode()


class _Style:
    """Prometheus's text format. Made for one page, as it keeps what it wrote of a family's limits."""

    def __init__(self) -> None:
        self._limits: dict[str, list[str]] = {}

    def head(self, family: Family) -> list[str]:
        """What stands before a family's samples."""
        why = family.why.replace("\\", "\\\\").replace("\n", "\\n")
        return [f"# HELP {family.exposed} {why}", f"# TYPE {family.exposed} {family.kind}"]

    def lines(self, family: Family, cell: Cell) -> list[str]:
        """A cell's samples."""
        name, values = family.exposed, cell.values
        labels = ",".join(
            [f'{label}="{self.escape(value)}"' for label, value in zip(family.labels, cell.labels, strict=True)]
        )
        tail = self.tail(labels)
        if family.kind == COUNTER and family.of_tfs:
            return [f"{name}{tail}{int(values[0])}"]  # an integer, which is written whole
        if family.kind != HISTOGRAM:
            return [f"{name}{tail}{self.number(values[0])}"]
        bucket = f"{name}_bucket{{{labels}{',' if labels else ''}"
        counts = list(accumulate(map(int, values[:-1])))
        written = [f"{bucket}{limit}{count}" for limit, count in zip(self.limits(family), counts, strict=True)]
        written += (f"{name}_sum{tail}{self.number(values[-1])}", f"{name}_count{tail}{counts[-1]}")
        return written

    def limits(self, family: Family) -> list[str]:
        """The end of each bucket's labels."""
        limits = self._limits.get(family.name)
        if limits is None:
            # A series has the same labels on both pages.
            number = _six_digits if family.of_tfs else self.number
            limits = [*(f'le="{number(limit)}"}} ' for limit in family.limits), 'le="+Inf"} ']
            self._limits[family.name] = limits
        return limits

    def tail(self, labels: str) -> str:
        """What stands between a sample's name and its value."""
        return f"{{{labels}}} " if labels else " "

    def escape(self, value: str) -> str:
        """A label's value between its quotes."""
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    def number(self, value: float) -> str:
        """A sample's value."""
        return str(int(value)) if value == int(value) else repr(value)


class _TfsStyle(_Style):
    """TF Serving's: no line for help, always braces, numbers of six digits, a newline in a label's value stays one."""

    def head(self, family: Family) -> list[str]:
        return [f"# TYPE {family.exposed} {family.kind}"]

    def tail(self, labels: str) -> str:
        return f"{{{labels}}} "

    def escape(self, value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"')

    def number(self, value: float) -> str:
        return _six_digits(value)


def _six_digits(value: float) -> str:
    return f"{value:g}"
