"""Requests of a signature on trial, run alone and together: does that make a difference to what they are answered?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Final, NamedTuple

import numpy as np

from ringserve.broker.messages import LaneSpec
from ringserve.workers.agreement import differ, which_differ
from ringserve.workers.failures import RunFailure
from ringserve.workers.feeding import Feeder
from ringserve.workers.gather import FRONTEND, REQUEST, ROW_START, ROWS, Columns, Gatherer, Part
from ringserve.workers.lane import Lane
from ringserve.workers.trial import PARTS_MAX, Trial, Verdict

log = logging.getLogger(__name__)

#: What is compared of an answer, of each output: what depends does so everywhere, and copies of answers must not take
#: much memory. Of a batch there are `trial.PARTS_MAX`.
_ELEMENTS_MAX: Final = 4096
#: Runs that tell what is random from what depends: a coin may well fall the same way a few times.
_RUNS_AGAIN_MAX: Final = 8
#: Where a run takes as long, fewer parts are run again, and less often: a batch's lease is for one run.
LONG_NS: Final = 250_000_000
_PARTS_LONG_MAX: Final = 2
_RUNS_AGAIN_LONG_MAX: Final = 2


class _Sample(NamedTuple):
    """Some elements of an output, enough to compare it. Strings are their hashes."""

    shape: tuple[int, ...]
    elements: Any


def _sample(output: Any) -> _Sample:
    """A copy: outputs may share memory with the feeds, which are a ring's."""
    flat = output.reshape(-1)
    some = flat[:: -(-flat.size // _ELEMENTS_MAX) or 1]
    is_text = some.dtype.kind == "O"
    return _Sample(output.shape, np.array([hash(value) for value in some], np.int64) if is_text else some.copy())


def _differ(one: _Sample, other: _Sample) -> bool:
    return one.shape != other.shape or differ(one.elements, other.elements)


def _is_other(one: _Sample, other: _Sample) -> bool:
    """Whether these are answers to different questions: by more than the number of rows, or rounding."""
    count = min(len(one.elements), len(other.elements))
    return differ(one.elements[:count], other.elements[:count])


#: Of one part alone, padded with copies of its first row up to so many rows, 0: none; its own rows of each output.
Run = Callable[[Columns, int], list[Any]]
Key = tuple[int, int, int]


def _which_differ(pairs: Sequence[tuple[_Sample, _Sample]]) -> list[bool]:
    found = which_differ([one.elements for one, _ in pairs], [other.elements for _, other in pairs])
    return [differs or one.shape != other.shape for differs, (one, other) in zip(found, pairs, strict=True)]


class Answers:
    """What the parts of one batch were answered, each alone. Keeps nothing of a ring."""

    def __init__(self) -> None:
        #: Those that have an answer and are no failure.
        self.parts: list[Part] = []
        self._samples: dict[Key, list[_Sample]] = {}

    def keep(self, part: Part, outputs: Sequence[Any]) -> None:
        """Remember what this part was answered."""
        self.parts.append(part)
        self._samples[_key(part)] = [_sample(output) for output in outputs]

    def judge(
        self,
        trial: Trial,
        groups: Sequence[Columns],
        outputs: Sequence[Any],
        run: Run,
        *,
        rows_fed: int,
        runs_max: int = _RUNS_AGAIN_MAX,
    ) -> list[int]:
        """Compare with the outputs of all parts run together, in the order of `groups`, and tell the trial.

        Parts of which no answer was kept are passed over. rows_fed: of the run together. What differs is looked at
        twice more: an output that is not always the same alone is random, and says nothing; one that is in a run of so
        many rows as together, with nobody else in it, differs by its size, as kernels round. Returns the places of the
        outputs that differed for another reason. Raises RunFailure.
        """
        together: dict[Key, list[_Sample]] = {}
        parts: list[Columns] = []
        first_row = 0
        for group in groups:
            for part in group.parts:
                end_row = first_row + part[ROWS]
                if _key(part) in self._samples:
                    together[_key(part)] = [_sample(output[first_row:end_row]) for output in outputs]
                    parts.append(Columns(group.ring, [part]))
                first_row = end_row
        found = [
            _which_differ([(self._samples[key][at], each[at]) for key, each in together.items()])
            for at in range(len(outputs))
        ]
        differing = {at for at, parts_of in enumerate(found) if any(parts_of)}
        if not differing:
            trial.agreed(self._others(set()))
            return []
        witnesses = [one for one, differs in zip(parts, zip(*found, strict=True), strict=True) if any(differs)]
        chance = self._random(differing, witnesses, run, runs_max)
        if 2 * len(witnesses) <= len(parts):  # where most differ it is more than rounding, if only the rows' number
            chance |= _by_size(differing - chance, witnesses, together, run, rows_fed)
        if differing - chance:
            trial.differed()
        else:
            trial.agreed(self._others(chance))
        return sorted(differing - chance)

    def _random(self, differing: set[int], witnesses: Sequence[Columns], run: Run, runs_max: int) -> set[int]:
        """Those of these outputs that are not always the same alone."""
        random: set[int] = set()
        for witness, _ in zip(cycle(witnesses), range(runs_max), strict=False):
            again = [_sample(output) for output in run(witness, 0)]
            alone = self._samples[_key(witness.parts[0])]
            random |= {at for at in differing if _differ(alone[at], again[at])}
            if random == differing:
                break
        return random

    def _others(self, chance: set[int]) -> int | None:
        """Parts whose answer is not that of the first one, in what is not chance; None where all is."""
        first, *rest = self._samples.values()
        compared = [at for at in range(len(first)) if at not in chance]
        if not compared:
            return None
        return sum(any(_is_other(first[at], each[at]) for at in compared) for each in rest)


def _by_size(
    differing: set[int], witnesses: Sequence[Columns], together: Mapping[Key, list[_Sample]], run: Run, rows_fed: int
) -> set[int]:
    """Those of these outputs that are what they are together in a run of as many rows, too."""
    for witness in witnesses if differing else ():
        sized = [_sample(output) for output in run(witness, rows_fed)]
        differing = {at for at in differing if not _differ(sized[at], together[_key(witness.parts[0])][at])}
    return differing


def try_together(lane: Lane, trial: Trial, feeder: Feeder, answers: Answers, clock_ns: Callable[[], int]) -> int:
    """Run all parts that have an answer once more, in one go, and tell the trial how that came out.

    Returns how long it took; 0 when it failed. That is what the broker is to learn of this batch, as it is what such a
    batch takes once requests share it. By the lone runs it would find that larger batches do not pay, and make none.
    """
    groups = feeder.group(answers.parts)
    rows_count = sum(group.rows_count for group in groups)
    rows_fed = feeder.rows_fed(lane, rows_count)
    run_ns = 0
    differing: list[int] = []
    try:
        started_ns = clock_ns()
        outputs = lane.plan.run(feeder.feeds(lane, groups, rows_count, rows_fed))
        run_ns = clock_ns() - started_ns
        if all(output.ndim and len(output) == rows_fed for output in outputs):
            lane.row_shapes = [output.shape[1:] for output in outputs]
            runs_max = _RUNS_AGAIN_LONG_MAX if run_ns >= LONG_NS else _RUNS_AGAIN_MAX
            run = partial(_run_alone, lane, Gatherer())
            differing = answers.judge(trial, groups, outputs, run, rows_fed=rows_fed, runs_max=runs_max)
        else:
            trial.not_per_row()
    except RunFailure:
        trial.failed()
    _report(trial, lane.spec, differing)
    return run_ns


def are_copies(lane: Lane, feeder: Feeder, parts: list[Part]) -> bool:
    """Whether these requests, of a signature on trial, may share a batch all the same: there are several, all of them
    put in the same, and such have agreed."""
    if lane.trial is None or not lane.trial.copies_agree or len(parts) < 2:
        return False
    rows = parts[0][ROWS]
    if not rows or any(part[ROWS] != rows or part[ROW_START] for part in parts):
        return False
    # Two of them tell nearly always, before all are gathered.
    return _are_same(lane, feeder, parts[:2]) and (len(parts) == 2 or _are_same(lane, feeder, parts))


def _are_same(lane: Lane, feeder: Feeder, parts: list[Part]) -> bool:
    rows_count = parts[0][ROWS] * len(parts)
    try:
        feeds = feeder.feeds(lane, feeder.group(parts), rows_count, rows_count)
    except RunFailure:
        return False
    each = [feed.reshape(len(parts), -1) for feed in feeds if feed.size]
    # Byte by byte: 0.0 is equal to -0.0, and no NaN to any.
    each = [one if one.dtype.kind == "O" else one.view(np.uint8) for one in each]
    return all(bool((one == one[:1]).all()) for one in each)


def may_answer(
    lane: Lane, trial: Trial, feeder: Feeder, groups: Sequence[Columns], outputs: Sequence[Any], run_ns: int
) -> bool:
    """Whether parts that were just run together may be answered by `outputs`.

    Where it is time to look at such a batch, which it always is when its outputs are of another width than before, some
    of its parts are run once more, each alone, and the lane and its trial are told whether that made a difference.
    run_ns: what the run together took.
    """
    if len(groups) == 1 and groups[0].count == 1:
        return True
    if not trial.is_due(unusual=_is_of_other_shapes(lane, outputs)):
        return True
    is_long = run_ns >= LONG_NS
    parts_max = _PARTS_LONG_MAX if is_long else PARTS_MAX
    each = [Columns(group.ring, [part]) for group in groups for part in group.parts]
    step = -(-len(each) // parts_max)
    gatherer = Gatherer()  # what the batch was fed may be part of its outputs

    def run(one: Columns, rows: int) -> list[Any]:
        return _run_alone(lane, gatherer, one, rows or feeder.rows_fed(lane, one.rows_count))

    answers = Answers()
    for one in each[trial.looked_count % step :: step]:
        try:
            answers.keep(one.parts[0], run(one, 0))
        except RunFailure:
            continue  # that says nothing of the others
    if not answers.parts:
        return True
    try:
        runs_max = _RUNS_AGAIN_LONG_MAX if is_long else _RUNS_AGAIN_MAX
        rows_fed = feeder.rows_fed(lane, sum(group.rows_count for group in groups))
        differing = answers.judge(trial, groups, outputs, run, rows_fed=rows_fed, runs_max=runs_max)
    except RunFailure:  # what ran a moment ago: it stays open whether that was chance
        trial.differed()
        differing = list(range(len(outputs)))
    lane.heed(trial)
    if differing:
        _report(trial, lane.spec, differing)
    return not differing


def _is_of_other_shapes(lane: Lane, outputs: Sequence[Any]) -> bool:
    before = lane.row_shapes
    lane.row_shapes = [output.shape[1:] for output in outputs]
    return bool(before) and before != lane.row_shapes


def _run_alone(lane: Lane, gatherer: Gatherer, one: Columns, rows: int) -> list[Any]:
    outputs = lane.plan.run(gatherer.feeds(lane.layouts, [one], one.rows_count, rows))
    if rows <= one.rows_count:
        return outputs  # whole, as it would be answered: one that does not follow the rows is to show
    return [output[: one.rows_count] if output.ndim else output for output in outputs]


def _report(trial: Trial, spec: LaneSpec, differing: Sequence[int]) -> None:
    """Say in the log what became of a signature, where that is worth knowing. differing: places of outputs."""
    who = (spec.model, spec.version, spec.signature)
    names = ", ".join(spec.outputs[at] for at in differing)
    if trial.verdict is Verdict.DEPENDENT:
        log.warning(
            "model %s version %d, signature %s: %s differed between a request run alone and together with others, so "
            'its requests are run one by one from now on (row_independence = "assumed" has them share batches)',
            *who, names,
        )  # fmt: skip
    elif trial.lost_trust and differing:
        log.info(
            "model %s version %d, signature %s: %s differed between a request run alone and in a batch, so its "
            "requests are run one by one until it is known whether that was chance",
            *who, names,
        )  # fmt: skip
    elif trial.verdict is Verdict.ALONE:
        log.info("model %s version %d, signature %s: its requests cannot be run together", *who)
    elif trial.verdict is Verdict.TRUSTED:
        log.debug("model %s version %d, signature %s: its requests share batches from now on", *who)


def _key(part: Part) -> Key:
    return part[FRONTEND], part[REQUEST], part[ROW_START]
