"""The parts of a batch -> what its run is fed, as its model's options say. Between the executor and the gatherer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ringserve.broker.messages import ModelOptions
from ringserve.workers.gather import FRONTEND, OFFSETS, ROWS, Columns, Gatherer, Part
from ringserve.workers.lane import Lane
from ringserve.workers.padding import is_piece, padded_feeds


class Feeder:
    """Of one worker. rings: a live view of the request rings. allowed_batch_rows: by model, as the executor says."""

    def __init__(self, rings: Mapping[int, memoryview], allowed_batch_rows: Mapping[str, Sequence[int]]) -> None:
        self._rings = rings
        self._allowed_batch_rows = dict(allowed_batch_rows)
        self._pads_with_first: set[str] = set()
        self._gatherer = Gatherer()

    def set_options(self, name: str, options: ModelOptions) -> None:
        """How the model `name` is fed from now on."""
        self._allowed_batch_rows[name] = tuple(options.batch_rows_allowed)
        if options.pad_with_first:
            self._pads_with_first.add(name)
        else:
            self._pads_with_first.discard(name)

    def feeds(self, lane: Lane, groups: list[Columns], rows_count: int, rows_fed: int) -> list[Any]:
        """One array per input of the lane, see `Gatherer.feeds`. Raises RunFailure."""
        if not lane.pads:
            return self._gatherer.feeds(lane.layouts, groups, rows_count, rows_fed)
        with_first = lane.model in self._pads_with_first
        return padded_feeds(self._gatherer, lane.layouts, groups, rows_count, rows_fed, with_first=with_first)

    def is_piece(self, lane: Lane, part: Part) -> bool:
        """Whether this part, of a lane that pads, is a piece of a larger request."""
        return is_piece(lane.layouts, self._rings[part[FRONTEND]], part[ROWS], part[OFFSETS:])

    def group(self, parts: list[Part]) -> list[Columns]:
        """The parts by frontend, in the order in which each frontend comes first: rows of one lie side by side."""
        first = parts[0][FRONTEND]
        if all(part[FRONTEND] == first for part in parts):
            return [Columns(self._rings[first], parts)]
        by_frontend: dict[int, list[Part]] = {}
        for part in parts:
            by_frontend.setdefault(part[FRONTEND], []).append(part)
        return [Columns(self._rings[frontend_id], own) for frontend_id, own in by_frontend.items()]

    def rows_fed(self, lane: Lane, rows_count: int) -> int:
        """`rows_count` rounded up to an allowed size; as it is when there is none, or when it is above all of them."""
        for rows in self._allowed_batch_rows.get(lane.model, ()):
            if rows >= rows_count:
                return rows
        return rows_count
