"""Signatures on trial: nothing has shown yet whether a row's outputs depend on the other rows of its batch.

The probe at load cannot tell of strings, open axes, loops and TFLite models. Their requests are run one by one at
first, as those of models known to depend, and once more together, which is compared with what each was answered
(`comparing.py`). So no answer is wrong while this goes on, and after a few batches the signature is trusted, or stays
as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Final

from ringserve.broker.messages import LaneSpec

#: What a signature is trusted for. Answers that are all the same would agree in nearly any model, and so count little.
_POINTS_ENOUGH: Final = 64
_POINTS_SAME: Final = 1
_POINTS_OTHER: Final = 8
#: Of one batch. Rows that come together are alike, so that several batches must agree.
_POINTS_BATCH_MAX: Final = 16
#: In the first one that differs two scores may have been nearly equal and changed places. Nothing is lost by waiting
#: for a second one: meanwhile each request runs alone.
_DIFFERENCES_MAX: Final = 2
#: Runs together that fail where each part ran alone: some models take one row only.
_FAILURES_MAX: Final = 8

#: Requests of one batch while it goes on: one by one they take long, and nobody may wait for more than these.
PARTS_MAX: Final = 4

#: Trials that are kept: one for each choice of outputs, which clients may vary.
_TRIALS_MAX: Final = 1024


class Verdict(Enum):
    """What is known of a signature."""

    ON_TRIAL = "on trial"
    TRUSTED = "trusted"
    DEPENDENT = "dependent"
    ALONE = "alone"  # its requests cannot be run together


class Trial:
    """What batches have said so far of one signature, for one choice of its outputs."""

    __slots__ = ("_differences", "_failures", "_points", "verdict")

    def __init__(self) -> None:
        self.verdict = Verdict.ON_TRIAL
        self._points = 0
        self._differences = 0
        self._failures = 0

    def agreed(self, others: int) -> None:
        """A batch said alone what it said together; `others` of its answers were not that of the first part."""
        self._points += min(_POINTS_OTHER * others, _POINTS_BATCH_MAX) or _POINTS_SAME
        if self._points >= _POINTS_ENOUGH:
            self.verdict = Verdict.TRUSTED

    def differed(self) -> None:
        """It did not, and not by chance."""
        self._points = 0
        self._differences += 1
        if self._differences >= _DIFFERENCES_MAX:
            self.verdict = Verdict.DEPENDENT

    def failed(self) -> None:
        """Together it failed."""
        self._failures += 1
        if self._failures >= _FAILURES_MAX:
            self.verdict = Verdict.ALONE

    def not_per_row(self) -> None:
        """There was not one row for each row put in."""
        self.verdict = Verdict.ALONE


class Trials:
    """Those of one worker. Lanes share them: open axes make many lanes of one signature."""

    def __init__(self) -> None:
        self._trials: OrderedDict[tuple[object, ...], Trial] = OrderedDict()

    def of(self, spec: LaneSpec) -> Trial:
        """The trial that this lane's batches count for."""
        key = (spec.model, spec.version, spec.signature, frozenset(spec.outputs))
        trial = self._trials.get(key)
        if trial is not None:
            self._trials.move_to_end(key)
        else:
            trial = self._trials[key] = Trial()
            if len(self._trials) > _TRIALS_MAX:
                self._trials.popitem(last=False)
        return trial
