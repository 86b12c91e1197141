"""What the executor, the warm-up and the loop need of a loaded model, whatever runs it.

`servable.py` runs SavedModels with TensorFlow, `tflite.py` runs model.tflite with TFLite's interpreter. One thread at a
time uses a model: the loader's until it has handed it over, then the serving one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from ringserve.broker.messages import InputSpec, LaneSpec
from ringserve.workers.signature import Signature


class Independence(Enum):
    """Whether a row's outputs are what they are whatever the other rows of its batch, as far as is known at load."""

    SHOWN = "shown"
    REFUTED = "refuted"
    #: An output has a size that comes from what the inputs hold: rows of a batch share it, and those that happen to be
    #: as long as each other do not show it.
    DOUBTFUL = "doubtful"
    UNKNOWN = "unknown"


class ModelPlan(Protocol):
    """How the requests of one lane are run."""

    @property
    def output_dtypes(self) -> tuple[int, ...]:
        """TensorFlow's DataType number of each output, in the lane's order."""

    @property
    def per_row(self) -> bool:
        """False: outputs were seen that do not have one row for each row put in."""

    @property
    def independence(self) -> Independence:
        """Whether rows were seen to depend on each other, or not to."""

    @property
    def changes_state(self) -> bool:
        """Whether a run may change what later runs answer."""

    def run(self, feeds: Sequence[Any]) -> list[Any]:
        """`feeds` in the lane's input order -> arrays in its output order. Raises RunFailure.

        The arrays may share memory with the feeds and with each other: copy what must live longer than the feeds.
        """


class Model(Protocol):
    """A loaded model version."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def signature_defs(self) -> bytes:
        """A serialized tensorflow.serving.SignatureDefMap."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What can be run, by name."""

    @property
    def changes_state(self) -> bool:
        """Whether any signature's run may change what later runs answer: such a model must not have two copies."""

    def plan(self, spec: LaneSpec) -> ModelPlan:
        """How to run this lane. Raises RunFailure for a lane that the model cannot run."""

    def why_not_try(self, signature: str) -> str:
        """Why this signature must not be run on made-up values, in words; empty when that is harmless."""

    def shape(self, tensor_name: str) -> tuple[int | None, ...] | None:
        """The shape known of a tensor, None for an axis or a rank that is not. Raises KeyError, ValueError."""

    def input_spec(self, entry: Signature, alias: str, shape: tuple[int, ...]) -> InputSpec:
        """An input of this shape and of the type that the model expects. Raises KeyError, ValueError."""

    def close(self) -> None:
        """Free the model. Its plans must not be run any more."""
