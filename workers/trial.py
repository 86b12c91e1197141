"""Signatures on trial: nothing has shown yet whether a row's outputs depend on the other rows of its batch.

The probe at load cannot tell of strings, open axes, branches, loops and TFLite models. Their requests are run one by
one at first, as those of models known to depend, and once more together, which is compared with what each was answered
(`comparing.py`). So no answer is wrong while this goes on, and after a few batches the signature is trusted, or stays
as it is. Answers that are all the same never end it; but requests that are all the same share batches meanwhile.

Nor is trust for ever, for what came first may have been alike in what matters. Of each signature whose requests share
batches, one that the probe has shown to be independent included, a batch now and then is looked at again: some of its
requests are run alone as well, before anybody is answered. A difference puts the signature back on trial.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Final

from ringserve.broker.messages import Dependent, LaneSpec

#: What a signature is trusted for. Answers that are all the same would agree in nearly any model: they count little,
#: and the last point is never theirs.
_POINTS_ENOUGH: Final = 64
_POINTS_SAME: Final = 1
_POINTS_OTHER: Final = 8
#: Of one batch. Rows that come together are alike, so that several batches must agree.
_POINTS_BATCH_MAX: Final = 16
#: Each time that trust was lost, twice as many are needed: what depends now and then only is found in the end.
_POINTS_ENOUGH_MAX: Final = 1024
#: In the first one that differs two scores may have been nearly equal and changed places. Nothing is lost by waiting
#: for a second one: meanwhile each request runs alone.
_DIFFERENCES_MAX: Final = 2
#: Runs together that fail where each part ran alone: some models take one row only.
_FAILURES_MAX: Final = 8
#: Batches that agree before requests that are all the same share one.
_COPIES_ENOUGH: Final = 4

#: Requests of one batch while it goes on: one by one they take long, and nobody may wait for more than these.
PARTS_MAX: Final = 4

#: Of how many batches that are shared one is looked at: at first, and twice as many each time that it agrees. Four more
#: runs in so many are less than a hundredth of the worker's time. Where the answers were the same, which shows little,
#: not so rarely.
_LOOK_FIRST: Final = 4
_LOOK_SAME_MAX: Final = 128
_LOOK_MAX: Final = 512

#: Trials that are kept: one for each choice of outputs, which clients may vary.
_TRIALS_MAX: Final = 1024


class Verdict(Enum):
    """What is known of a signature."""

    ON_TRIAL = "on trial"
    TRUSTED = "trusted"
    DEPENDENT = "dependent"
    ALONE = "alone"  # its requests cannot be run together


class Trial:
    """What batches have said so far of one signature, for one choice of its outputs.

    shown: the load has said that rows are independent. on_dependent: called when batches have said that they are not.
    """

    __slots__ = (
        "_agreed_count",
        "_differences",
        "_failures",
        "_look_after",
        "_look_every",
        "_looking",
        "_on_dependent",
        "_points",
        "_points_enough",
        "looked_count",
        "verdict",
    )

    def __init__(self, *, shown: bool = False, on_dependent: Callable[[], None] = lambda: None) -> None:
        self._on_dependent = on_dependent
        self.verdict = Verdict.TRUSTED if shown else Verdict.ON_TRIAL
        self._points = 0
        self._points_enough = _POINTS_ENOUGH
        self._agreed_count = 0
        self._differences = 0
        self._failures = 0
        self._look_after = self._look_every = _LOOK_FIRST
        self._looking = False
        #: Batches that were looked at.
        self.looked_count = 0

    @property
    def lost_trust(self) -> bool:
        """It was trusted until the last batch differed."""
        return self.verdict is Verdict.ON_TRIAL and self._points_enough > _POINTS_ENOUGH

    @property
    def copies_agree(self) -> bool:
        """Requests that are all the same may share a batch, although it is undecided what others may."""
        return self._agreed_count >= _COPIES_ENOUGH

    def is_due(self, *, unusual: bool = False) -> bool:
        """A batch was run together: is it to be looked at before it is answered? Asked once of each. unusual: it is no
        such batch as those before it."""
        self._look_after -= 1
        if self._look_after > 0 and not unusual:
            return False
        self._look_after = self._look_every
        self.looked_count += 1
        self._looking = True
        return True

    def agreed(self, others: int | None) -> None:
        """A batch said alone what it said together; `others` of its answers were not that of the first part. None:
        all of them are random, so that there is nothing to be known."""
        self._agreed_count += others is not None
        if self._looking:
            self._looking = False
            if others != 0 or self._look_every < _LOOK_SAME_MAX:
                self._look_every = min(2 * self._look_every, _LOOK_MAX)
            self._look_after = self._look_every
        if self.verdict is not Verdict.ON_TRIAL:
            return
        self._points += _POINTS_SAME if not others else min(_POINTS_OTHER * others, _POINTS_BATCH_MAX)
        if others == 0:
            self._points = min(self._points, self._points_enough - 1)
        if self._points >= self._points_enough:
            self.verdict = Verdict.TRUSTED
            self._differences = self._failures = 0
            self._look_after = self._look_every = _LOOK_FIRST

    def differed(self) -> None:
        """It did not, and not by chance."""
        self._looking = False
        self._points = self._agreed_count = 0
        self._differences += 1
        if self.verdict is Verdict.TRUSTED:
            self.verdict = Verdict.ON_TRIAL
            self._points_enough = min(2 * self._points_enough, _POINTS_ENOUGH_MAX)
        elif self._differences >= _DIFFERENCES_MAX:
            self.verdict = Verdict.DEPENDENT
            self._on_dependent()

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
        #: Found here, and not told to other workers yet.
        self.found: list[Dependent] = []

    def of(self, spec: LaneSpec, *, shown: bool = False) -> Trial:
        """The trial that this lane's batches count for. shown: as in Trial, of the whole signature."""
        key = (spec.model, spec.version, spec.signature, frozenset(spec.outputs))
        trial = self._trials.get(key)
        if trial is not None:
            self._trials.move_to_end(key)
        else:
            found = Dependent(spec.model, spec.version, spec.signature, sorted(spec.outputs))
            trial = self._trials[key] = Trial(shown=shown, on_dependent=lambda: self.found.append(found))
            if len(self._trials) > _TRIALS_MAX:
                self._trials.popitem(last=False)
        return trial

    def hear(self, found: Dependent) -> None:
        """Another worker has found this: the same request must not be answered otherwise by chance."""
        spec = LaneSpec(found.name, found.version, found.signature, (), tuple(found.outputs), True)
        self.of(spec).verdict = Verdict.DEPENDENT
