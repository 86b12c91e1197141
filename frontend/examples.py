"""Classify and Regress, whatever protocol they came by: serialized Examples to a request, outputs to results.

Pure. What TensorFlow Serving checks of the signature before the run, and of the outputs after it, in its order and
words. A model is fed one string tensor [N] of serialized tensorflow.Example, whatever dtype its signature declares:
signatures are wrong about this so often that only the graph itself is asked (by the worker).

Requests share batches when the signature allows: `inputs` declared as strings of rank 1 or of unknown shape, outputs
with a free axis 0 or of unknown shape. Every row is an example by the API's own definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ringserve.broker.messages import Code, Failure, InputSpec, LaneSpec
from ringserve.config.protos import DataType, SignatureDefMap
from ringserve.frontend.catalog import DEFAULT_SIGNATURE, ServableView, SignatureView
from ringserve.frontend.lanes import Lane, LaneTable, Request, shape_text
from ringserve.frontend.outputs import Output
from ringserve.shm.dtype import FLOAT, STRING
from ringserve.shm.tensor import string_record_bytes

INPUTS: Final = "inputs"
CLASSES: Final = "classes"
SCORES: Final = "scores"
OUTPUTS: Final = "outputs"


class Kind(Enum):
    """The two calls that take Examples. `method_name`: of a SignatureDef made for it. `word`: as texts name it."""

    CLASSIFY = ("tensorflow/serving/classify", "classification")
    REGRESS = ("tensorflow/serving/regress", "regression")

    def __init__(self, method_name: str, word: str) -> None:
        self.method_name = method_name
        self.word = word


# --------------------------------------------------------------------------------------------------- before the run


def find_example_signature(
    servable: ServableView, name: str, kind: Kind, *, check_method_name: bool = False
) -> SignatureView | Failure:
    """The signature that a Classify or Regress means (an empty name: `serving_default`), if it can be used so."""
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        return _invalid(f"No signature was found with the name: {name}")
    if check_method_name and signature.method_name != kind.method_name:
        return _invalid(
            f"Expected {kind.word} signature method_name to be {kind.method_name}. Was: {signature.method_name}"
        )
    return check_signature(servable, signature, kind) or signature


def check_signature(servable: ServableView, signature: SignatureView, kind: Kind) -> Failure | None:
    """Whether a signature has the form that Classify or Regress needs: numbers of tensors, and their aliases."""
    outputs = signature.outputs
    if len(signature.inputs) != 1:
        return _invalid("Expected one input Tensor.")
    if kind is Kind.CLASSIFY and len(outputs) not in (1, 2):
        return _invalid(f"Expected one or two output Tensors, found {len(outputs)}")
    if kind is Kind.REGRESS and len(outputs) != 1:
        return _invalid("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        return _invalid(f"No {kind.word} inputs found in SignatureDef: {_text_of(servable, signature)}")
    if kind is Kind.CLASSIFY and CLASSES not in outputs and SCORES not in outputs:
        return _invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {_text_of(servable, signature)}"
        )
    if kind is Kind.REGRESS and OUTPUTS not in outputs:
        return _invalid(f"No regression outputs found in SignatureDef: {_text_of(servable, signature)}")
    return None


def bind_examples(
    lanes: LaneTable,
    servable: ServableView,
    signature_name: str,
    examples: list[bytes],
    kind: Kind,
    *,
    check_method_name: bool = False,
) -> Request | Failure:
    """A request that feeds `examples` (each a serialized tensorflow.Example, its context in front) to a signature.

    The request's one payload is `examples` itself, not a copy. Its lane's outputs are those that `kind` needs.
    check_method_name: TensorFlow Serving's enable_signature_method_name_check.
    """
    signature = find_example_signature(servable, signature_name, kind, check_method_name=check_method_name)
    if isinstance(signature, Failure):
        return signature
    if not examples:
        return _invalid("Input is empty.")
    wanted = (CLASSES, SCORES) if kind is Kind.CLASSIFY else (OUTPUTS,)
    outputs = tuple(alias for alias in wanted if alias in signature.outputs)
    declared = signature.inputs[INPUTS]
    batchable = (
        declared.dtype == STRING
        and declared.shape in (None, (-1,))
        and all(signature.outputs[alias].shape is None or signature.outputs[alias].has_row_axis for alias in outputs)
    )
    shape = () if batchable else (len(examples),)
    spec = LaneSpec(
        servable.name, servable.version, signature.name, (InputSpec(INPUTS, STRING, shape),), outputs, batchable
    )
    return Request(lanes.intern(spec), len(examples) if batchable else 1, [examples])


def with_context(context: bytes, examples: Sequence[bytes], bytes_max: int) -> list[bytes] | Failure:
    """Each serialized Example with the context in front: as bytes of protobuf this merges the two, the later wins.

    bytes_max: a context comes once and is there for every example; where all of them would make a larger record than
    this they are refused before they are made.
    """
    if not context:
        return list(examples)
    size = string_record_bytes(examples) + len(context) * len(examples)
    if size > bytes_max:
        return Failure(
            Code.RESOURCE_EXHAUSTED,
            f"{len(examples)} examples with a context of {len(context)} bytes would need {size} bytes, more than the "
            f"{bytes_max} that a request may hold; raise request_ring_bytes",
        )
    return [context + example for example in examples]


def _invalid(text: str) -> Failure:
    return Failure(Code.INVALID_ARGUMENT, text)


def _text_of(servable: ServableView, signature: SignatureView) -> str:
    """The SignatureDef in protobuf's text format."""
    return str(SignatureDefMap.FromString(servable.signature_defs).signature_def[signature.name])


# ---------------------------------------------------------------------------------------------------- after the run


class Classes(NamedTuple):
    """What a Classify answers: `examples` rows of `width` classes each.

    labels: row-major, examples * width of them; None when the model gives none (then every label is empty).
    scores: float32 [examples, width], a view of the result record; None when the model gives none (then they are 0).
    """

    examples: int
    width: int
    labels: list[bytes] | None
    scores: npt.NDArray[np.float32] | None


def examples_count(lane: Lane, rows: int) -> int:
    """How many examples a request of `bind_examples` holds."""
    spec = lane.spec
    return rows if spec.batchable else spec.inputs[0].shape[0]


def classes_of(lane: Lane, outputs: Sequence[Output], row_first: int, rows: int) -> Classes | Failure:
    """The result of a Classify, from what `Reply.answer` gets; valid as long as that call runs. Checks the outputs."""
    examples = examples_count(lane, rows)
    labels: list[bytes] | None = None
    scores: npt.NDArray[np.float32] | None = None
    widths: list[int] = []
    for alias, output in zip(lane.spec.outputs, outputs, strict=True):
        shape = output.shape_of(rows)
        expected = STRING if alias == CLASSES else FLOAT
        if len(shape) != 2:
            return _invalid(f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(shape)}")
        if output.dtype != expected:
            return _invalid(f"Expected {alias} Tensor of {_enum(expected)}. Got: {_enum(output.dtype)}")
        if shape[0] != examples:
            return _invalid(f"Expected {alias} output batch size of {examples}. Got: {shape[0]}")
        widths.append(shape[1])
        if alias == CLASSES:
            labels = output.strings(row_first, rows)
        else:
            scores = np.frombuffer(output.raw(row_first, rows), np.dtype("<f4")).reshape(shape)
    if widths[0] != widths[-1]:
        return _invalid(f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}")
    return Classes(examples, widths[0], labels, scores)


def classifications(
    lane: Lane, outputs: Sequence[Output], row_first: int, rows: int
) -> list[list[tuple[bytes, float]]] | Failure:
    """As `classes_of`, as plain values: of each example its (label, score) pairs. Scores are exact float32 values."""
    classes = classes_of(lane, outputs, row_first, rows)
    if isinstance(classes, Failure):
        return classes
    count = classes.examples * classes.width
    labels = classes.labels if classes.labels is not None else [b""] * count
    scores = classes.scores.ravel().tolist() if classes.scores is not None else [0.0] * count
    pairs = list(zip(labels, scores, strict=True))
    width = classes.width
    return [pairs[index * width : (index + 1) * width] for index in range(classes.examples)]


def regressions(
    lane: Lane, outputs: Sequence[Output], row_first: int, rows: int
) -> npt.NDArray[np.float32] | Failure:
    """The result of a Regress: float32 [examples], a view valid as long as `Reply.answer` runs. Checks the output."""
    examples = examples_count(lane, rows)
    output = outputs[0]
    shape = output.shape_of(rows)
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        return _invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got " + shape_text(shape)
        )
    if shape[0] != examples:
        return _invalid(f"Input batch size did not match output batch size: {examples} vs. {shape[0]}")
    if output.dtype != FLOAT:
        return _invalid(f"Expected output Tensor of {_enum(FLOAT)}.  Got: {_enum(output.dtype)}")
    return np.frombuffer(output.raw(row_first, rows), np.dtype("<f4"))


def _enum(dtype: int) -> str:
    """`DT_FLOAT`."""
    number: Any = dtype
    return str(DataType.Name(number))
