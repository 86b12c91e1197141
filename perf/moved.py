"""Has a figure moved, by a handful of pairs of measurements? Pure arithmetic; `compare.py` measures.

The statement is about the median of the ratios after/before, one ratio for each pair of neighbouring measurements:
what drifts slowly (another guest of the host, a warm processor) is in both of a pair and leaves their ratio.

Its interval goes from the k-th smallest to the k-th largest ratio. It holds the true median with a probability that is
exact whatever the noise looks like: it is wrong only if nearly all pairs happened to fall on one side of the median,
as a coin does. A t interval would trust that latencies' tails are normal. A bootstrap of five ratios draws the same
five again and again, and its intervals are known to be too narrow. The price: five pairs say nothing beyond 94 %
(all five on one side: 2 in 32), so of sixteen figures that did not move one seems to. Therefore `verdict` wants two
sets: what seems to have moved is measured again in pairs that had no part in choosing it, and counts when these
agree; for a figure that did not move both happen together once in 500 times (2/32 · 1/32).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: The interval is the narrowest of those that hold the median at least so surely; 5 pairs reach 0.9375, and 8 reach
#: 0.9297 without their outermost.
COVERAGE_LEAST = 0.92
PAIRS_LEAST = 5
_RATIO_MAX = 1e9  # in place of infinity, which JSON does not know


@dataclass(frozen=True)
class Interval:
    """Of the median ratio. coverage: how surely it holds the true median."""

    low: float
    high: float
    coverage: float


def ratios(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """after / before, pair by pair. A value of 0 (no tick of processor time) is as good as a very small one."""
    found = []
    for one, other in zip(before, after, strict=True):
        if one == other:
            found.append(1.0)
        else:
            found.append(min(max(other / one if one > 0 else math.inf, 1 / _RATIO_MAX), _RATIO_MAX))
    return found


def median_ratio(values: Sequence[float]) -> float:
    """Of an even number, the geometric middle of the two in the middle: a ratio and its inverse are alike."""
    return math.exp(statistics.median(math.log(value) for value in values))


def coverage(pairs: int, rank: int) -> float:
    """Of the interval from the rank-th smallest to the rank-th largest of so many: 1 - P(fewer than rank are below
    the median, or above it)."""
    return 1.0 - 2.0 * sum(math.comb(pairs, below) for below in range(rank)) / 2.0**pairs


def interval(values: Sequence[float]) -> Interval:
    """The narrowest that is sure enough; that of all values where there are too few for it."""
    ranked, rank = sorted(values), 1
    while rank + 1 <= len(ranked) // 2 and coverage(len(ranked), rank + 1) >= COVERAGE_LEAST:
        rank += 1
    return Interval(ranked[rank - 1], ranked[-rank], coverage(len(ranked), rank))


def direction(values: Sequence[float], least: float) -> int:
    """1: the ratio has grown, -1: it has shrunk, 0: neither can be said. least: changes below are nobody's concern,
    as a share."""
    if len(values) < PAIRS_LEAST:
        return 0
    bounds, middle = interval(values), median_ratio(values)
    if abs(math.log(middle)) < math.log1p(least):
        return 0
    return 1 if bounds.low > 1.0 else -1 if bounds.high < 1.0 else 0


NO_CHANGE, BETTER, WORSE = "no change seen", "better", "worse"
NOT_CONFIRMED, TOO_FEW = "not confirmed", "too few pairs"


def verdict(first: Sequence[float], second: Sequence[float] | None, more_is_better: bool, least: float) -> str:
    """What to say of a figure. second: the ratios of the second set; None: there was none, so `perhaps` is said."""
    if len(first) < PAIRS_LEAST:
        return TOO_FEW
    seen = direction(first, least)
    if not seen:
        return NO_CHANGE
    word = BETTER if (seen > 0) == more_is_better else WORSE
    if second is None:
        return f"perhaps {word}"
    return word if direction(second, least) == seen else NOT_CONFIRMED
