"""What a metric family is, and how a number finds its bucket in several of them at once."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Final

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"

#: Who sets a family's values: a frontend or the broker as things happen, or whoever answers a scrape, by looking.
FRONTEND: Final = "frontend"
BROKER: Final = "broker"
SCRAPE: Final = "scrape"


@dataclass(frozen=True)
class Family:
    """One family. limits: a histogram's upper bounds, ascending, in the family's unit, without the +Inf.

    scale: how many of what is recorded (nanoseconds; rows) are one of the family's unit. source: who sets it.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    why: str
    source: str
    limits: tuple[float, ...] = ()
    scale: int = 1

    @property
    def of_tfs(self) -> bool:
        """Whether it is one of TensorFlow Serving's."""
        return self.name.startswith("/")

    @functools.cached_property
    def exposed(self) -> str:
        """The name on a page: TF Serving's way to make one of an internal name."""
        name = re.sub(r"[^A-Za-z0-9_]", ":", self.name)
        return f"_{name}" if name[0].isdigit() else name

    @functools.cached_property
    def edges(self) -> list[int]:
        """The recorded values at which a bucket ends and the next begins (that value is the next one's).

        TF Serving's upper bounds are exclusive, Prometheus's inclusive; both are exact, as recorded values are
        integers.
        """
        scaled = [round(limit * self.scale, 6) for limit in self.limits]  # 0.0001 s are 100,000 ns, not a bit more
        return [ceil(value) if self.of_tfs else floor(value) + 1 for value in scaled]


class Ladder:
    """One search for the bucket of a value in several histograms.

    Count into a list of `size` numbers at `bisect_right(edges, value)`; `split` tells what that is in each family.
    """

    def __init__(self, *families: Family) -> None:
        self.families = families
        self.edges = sorted({edge for family in families for edge in family.edges})
        self.size = len(self.edges) + 1
        lowest = [-1, *self.edges]
        self._buckets = [[bisect_right(family.edges, value) for value in lowest] for family in families]

    def split(self, counts: Sequence[int]) -> list[list[tuple[int, int]]]:
        """For each family the (bucket, count) pairs of what was counted, without zeros. Reads `size` numbers."""
        taken = [(step, counts[step]) for step in range(self.size) if counts[step]]
        split = []
        for buckets in self._buckets:
            sums: dict[int, int] = {}
            for step, count in taken:
                bucket = buckets[step]
                sums[bucket] = sums.get(bucket, 0) + count
            split.append(list(sums.items()))
        return split


def exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """TF Serving's bucket limits: scale, scale · growth, ... `count` of them."""
    return tuple(scale * growth**power for power in range(count))
