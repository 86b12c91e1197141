"""Pure: messages that need not be read while their lane is full: all of their bytes but the payload are known.

A call that is refused because its lane has too long a queue (`shedding.py`) costs almost what an answer costs: it was
decoded to find its lane. Clients that send much send alike, so the next ones are known by the template of that message
(`predict_templates.py`), and an engine can refuse those that lie one behind another in a read without opening them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf
from typing import Final

from ringserve.broker.messages import Code
from ringserve.frontend.handler import Buffer, Crowd
from ringserve.frontend.lanes import Lane
from ringserve.frontend.predict_templates import TemplateTable
from ringserve.frontend.status import grpc_text
from ringserve.frontend.tally import GRPC, Tally

#: Of one length; each costs a comparison.
_ALIKE_MAX: Final = 8
_LENGTHS_MAX: Final = 64


class _Crowd:
    """`handler.Crowd` of one template. rows: of each message."""

    __slots__ = ("_clock_ns", "_lane", "_rows", "_tally", "path", "prefix", "suffix")

    def __init__(self, path: str, prefix: bytes, suffix: bytes, lane: Lane, rows: int, tally: Tally) -> None:
        self.path = path
        self.prefix = prefix
        self.suffix = suffix
        self._lane = lane
        self._rows = rows
        self._tally = tally
        self._clock_ns: Callable[[], int] = tally.clock_ns

    def room(self, timeout_ns: int) -> float:
        room = self._lane.pressure.room(timeout_ns, self._clock_ns())
        return room if room == inf else max(0, ceil(room / self._rows))

    def comes(self, change: int) -> None:
        self._lane.pressure.coming += change * self._rows

    def refuse(self, count: int) -> tuple[int, str, int]:
        pressure, code = self._lane.pressure, int(Code.RESOURCE_EXHAUSTED)
        api = self.path.rpartition("/")[2]
        self._tally.refused(GRPC, api, self._lane.spec.model, code, pressure.text, self._lane, count)
        return code, grpc_text(pressure.text), pressure.retry_ms(code, self._clock_ns())


class Crowds:
    """Those of one method. by_size: by the length of the message; empty while no lane is full."""

    def __init__(self, path: str, templates: TemplateTable, tally: Tally) -> None:
        self.by_size: dict[int, list[Crowd]] = {}
        self._path = path
        self._templates = templates
        self._tally = tally

    def saw(self, message: Buffer, lane: Lane, rows: int) -> None:
        """This message was refused: was it because its lane is full, then others like it are, too."""
        if not lane.pressure.is_crowded(self._tally.clock_ns()):
            return
        template = self._templates.plain(message)
        if template is None:
            return
        constants = template.prefix, template.suffix
        if len(self.by_size) >= _LENGTHS_MAX:
            self.by_size.clear()
        alike = self.by_size.setdefault(len(message), [])
        if len(alike) < _ALIKE_MAX and all((each.prefix, each.suffix) != constants for each in alike):
            alike.append(_Crowd(self._path, *constants, lane, rows, self._tally))
