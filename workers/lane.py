"""What the executor knows of a lane: how to read its inputs, how to run it, and whether its requests share batches."""

from __future__ import annotations

from ringserve.broker.messages import LaneSpec
from ringserve.workers.gather import layout_of
from ringserve.workers.interface import Independence, Model, ModelPlan
from ringserve.workers.trial import PARTS_MAX, Trial, Trials, Verdict


def runs_alone(plan: ModelPlan, *, assumed: bool) -> bool:
    """Whether requests of this plan must not share a run: outputs do not follow the rows, a second run would not give
    the same, or rows depend on each other, or may and no trial would tell, unless they are assumed not to."""
    depends = plan.independence in (Independence.REFUTED, Independence.DOUBTFUL)
    return not plan.per_row or plan.changes_state or (depends and not assumed)


class Lane:
    """A lane of a model that is loaded. pads: it leaves axes open. Raises RunFailure for one that cannot run.

    assumed: rows are taken to be independent, whatever was seen. So they are in a lane that pads: there an answer
    depends on the others' widths anyway, and an operator has asked for it.
    """

    __slots__ = ("layouts", "lone", "model", "pads", "plan", "row_shapes", "spec", "trial")

    def __init__(self, spec: LaneSpec, model: Model, trials: Trials, *, assumed: bool) -> None:
        self.spec = spec
        self.model = spec.model
        self.layouts = [layout_of(i) for i in spec.inputs]
        self.pads = spec.batchable and any(layout.is_open for layout in self.layouts)
        self.plan = model.plan(spec)
        #: Each part runs by itself, and is not padded.
        self.lone = not spec.batchable or runs_alone(self.plan, assumed=assumed)
        #: Of the outputs of the last batch that was run together. As all inputs have theirs, only values change them.
        self.row_shapes: list[tuple[int, ...]] = []
        #: What decides about that, as long as anything may change it; while it is undecided, they do so, too.
        self.trial: Trial | None = None
        if not (self.lone or assumed or self.pads):
            self.trial = trials.of(spec, shown=self.plan.independence is Independence.SHOWN)
            self.heed(self.trial)

    @property
    def parts_max(self) -> int:
        """Requests of one batch, where each of them is run by itself for what the model is; 0: any number."""
        return 0 if not (self.lone and self.spec.batchable) else 1 if self.trial is None else PARTS_MAX

    @property
    def batchable(self) -> bool:
        return self.spec.batchable

    def heed(self, trial: Trial) -> None:
        """Follow what is decided by now. Batches of other lanes count as well."""
        self.lone = trial.verdict is not Verdict.TRUSTED
        if trial.verdict in (Verdict.DEPENDENT, Verdict.ALONE):
            self.trial = None

    def run_alone(self) -> None:
        """From now on, whatever trials say."""
        self.lone = True
        self.trial = None
