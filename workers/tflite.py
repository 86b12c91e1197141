"""A version's model.tflite behind the same interface as a SavedModel: TFLite's interpreter, resized to each request.

The interpreter comes from the package ai-edge-litert (the extra `tflite`) or from TensorFlow, where it still has one.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from tensorflow_serving.apis import get_model_metadata_pb2

from ringserve.broker.messages import Code, InputSpec, LaneSpec
from ringserve.shm import dtype as dtypes
from ringserve.workers import signature, tflite_signatures
from ringserve.workers.failures import LoadError, RunFailure
from ringserve.workers.interface import Independence
from ringserve.workers.tflite_signatures import TensorDetail, plain_name

#: (module, attribute) of the interpreter's class, the first that can be imported counts.
_INTERPRETERS: Final = (
    ("ai_edge_litert.interpreter", "Interpreter"),
    ("tensorflow.lite.python.interpreter", "Interpreter"),
)

#: A run of these is not the same twice: they keep something from one run to the next.
_CHANGING_OPS: Final = frozenset({"ASSIGN_VARIABLE"})
#: These keep state from one run to the next of a sequence; requests are no sequence.
_SEQUENCE_OPS: Final = frozenset({"LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN"})
_LOOP_OPS: Final = frozenset({"WHILE"})
#: Ops that take an array of any rank, see the list of the same name in `graph.py`.
_ANY_SHAPE_OPS: Final = frozenset(
    {
        *("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "NEG", "ABS", "SQUARE", "SQRT", "EXP", "LOG", "LOGISTIC"),
        *("TANH", "RELU", "RELU6", "CAST", "DELEGATE"),
    }
)


def model_file(directory: Path) -> Path:
    """Where a version's TFLite model would be."""
    return directory / "model.tflite"


def available() -> bool:
    """Whether there is an interpreter."""
    return _interpreter_class() is not None


def _interpreter_class() -> Any:
    for module, attribute in _INTERPRETERS:
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
    return None


class TflitePlan:
    """How the requests of one lane are run, an `interface.ModelPlan`."""

    #: Only a run shows whether outputs follow the rows; the executor watches that.
    per_row = True
    independence = Independence.UNKNOWN

    def __init__(
        self, model: TfliteModel, spec: LaneSpec, wiring: signature.Wiring, output_dtypes: tuple[int, ...]
    ) -> None:
        self._model = model
        self._spec = spec
        self._wiring = wiring
        self.output_dtypes = output_dtypes
        self.changes_state = model.changes_state

    def run(self, feeds: Sequence[Any]) -> list[Any]:
        """As `interface.ModelPlan.run`. Raises RunFailure."""
        wiring = self._wiring
        for first, second in wiring.same:
            if not np.array_equal(feeds[first], feeds[second]):
                a, b = self._spec.inputs[first].alias, self._spec.inputs[second].alias
                text = f'Inputs "{a}" and "{b}" are the same tensor of the model and must be equal.'
                raise RunFailure(Code.INVALID_ARGUMENT, text)
        fetched = self._model.run(
            {name: feeds[i] for name, i in zip(wiring.feeds, wiring.feed_of, strict=True)}, wiring.fetches
        )
        return [fetched[source] if source >= 0 else feeds[-1 - source] for source in wiring.sources]


class TfliteModel:
    """One loaded model.tflite, an `interface.Model`."""

    def __init__(self, name: str, version: int, interpreter: Any, signature_defs: dict[str, Any]) -> None:
        """Use `load`."""
        self.name = name
        self.version = version
        self._interpreter = interpreter
        self._inputs = tflite_signatures.details(interpreter.get_input_details())
        self._outputs = tflite_signatures.details(interpreter.get_output_details())
        if not signature_defs:
            signature_defs = tflite_signatures.made_up(self._inputs, self._outputs)
        message = get_model_metadata_pb2.SignatureDefMap()
        self.signatures: dict[str, signature.Signature] = {}
        for key, stored in signature_defs.items():
            message.signature_def[key].CopyFrom(stored)
            self.signatures[key] = signature.Signature(
                key,
                {alias: info.name for alias, info in stored.inputs.items()},
                {alias: info.name for alias, info in stored.outputs.items()},
            )
        self.signature_defs: bytes = message.SerializeToString(deterministic=True)
        ops = {str(op["op_name"]) for op in interpreter._get_ops_details()}
        self.changes_state = not ops.isdisjoint(_CHANGING_OPS)
        self._loops = not ops.isdisjoint(_LOOP_OPS)
        self._resets = not ops.isdisjoint(_SEQUENCE_OPS)
        self._takes_any_shape = ops <= _ANY_SHAPE_OPS
        #: The shapes that the interpreter's tensors have now; empty when that is not known.
        self._shapes: dict[str, tuple[int, ...]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str, version: int, *, threads: int = 1) -> TfliteModel:
        """Load `path`/model.tflite. Raises LoadError."""
        file = model_file(Path(path))
        interpreter_class = _interpreter_class()
        if interpreter_class is None:
            raise LoadError(
                Code.FAILED_PRECONDITION,
                f"{file} needs TFLite's interpreter, which is not installed: install ringserve[tflite].",
            )
        try:
            content = file.read_bytes()
        except OSError as error:
            raise LoadError(Code.UNAVAILABLE, f"Cannot read {file}: {error}") from error
        try:
            interpreter = interpreter_class(model_content=content, num_threads=threads)
        except ValueError as error:
            text = f"{file} is no TFLite model, or is truncated ({error}). Copy it again."
            raise LoadError(Code.DATA_LOSS, text) from error
        try:
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            text = f"TFLite's interpreter cannot run {file}: {_one_line(error)}"
            raise LoadError(Code.UNIMPLEMENTED, text) from error
        model = cls(name, version, interpreter, tflite_signatures.stored(content))
        model._check_signatures(file)
        return model

    def _check_signatures(self, file: Path) -> None:
        for key, entry in self.signatures.items():
            for tensors, known in ((entry.inputs, self._inputs), (entry.outputs, self._outputs)):
                for tensor_name in tensors.values():
                    if plain_name(tensor_name) not in known:
                        text = f'Signature "{key}" of {file} names tensor {tensor_name}, which the model does not have.'
                        raise LoadError(Code.INVALID_ARGUMENT, text)

    def plan(self, spec: LaneSpec) -> TflitePlan:
        """How to run this lane. Raises RunFailure."""
        wiring = signature.wire_lane(self.signatures, spec)
        entry = self.signatures[spec.signature]
        for position, given in enumerate(spec.inputs):
            detail = self._inputs[plain_name(entry.inputs[given.alias])]
            if given.dtype != detail.dtype:
                wanted, got = dtypes.name_of(detail.dtype), dtypes.name_of(given.dtype)
                text = f'Expects arg[{position}] to be {wanted} but {got} is provided (input "{given.alias}").'
                raise RunFailure(Code.INVALID_ARGUMENT, text)
            rank = len(given.shape) + spec.batchable
            if rank != len(detail.shape) and not self._takes_any_shape:
                text = f'Input "{given.alias}" must have rank {len(detail.shape)}, not {rank}.'
                raise RunFailure(Code.INVALID_ARGUMENT, text)
        output_dtypes = tuple(self._output(entry.outputs[alias]).dtype for alias in spec.outputs)
        return TflitePlan(self, spec, wiring, output_dtypes)

    def run(self, feeds: dict[str, Any], fetches: Sequence[str]) -> list[Any]:
        """One run: arrays by tensor name in, arrays out. Raises RunFailure."""
        interpreter = self._interpreter
        shapes = self._shapes
        # Until all has gone well the tensors' shapes are unknown: after a refused one every tensor is set anew.
        self._shapes = {}
        try:
            resized = False
            for name, array in feeds.items():
                if shapes.get(name) != array.shape:
                    interpreter.resize_tensor_input(self._index(name), list(array.shape), strict=False)
                    resized = True
            if resized or not shapes:
                interpreter.allocate_tensors()
            for name, array in feeds.items():
                interpreter.set_tensor(self._index(name), array)
            if self._resets:
                interpreter.reset_all_variables()
            interpreter.invoke()
            outputs = [interpreter.get_tensor(self._output(name).number) for name in fetches]
        except (RuntimeError, ValueError) as error:
            raise RunFailure(Code.INVALID_ARGUMENT, _one_line(error)) from None
        except MemoryError:
            raise RunFailure(Code.RESOURCE_EXHAUSTED, "Out of memory while the model ran.") from None
        self._shapes = {**shapes, **{name: array.shape for name, array in feeds.items()}}
        return outputs

    def _index(self, tensor_name: str) -> int:
        return self._inputs[plain_name(tensor_name)].number

    def _output(self, tensor_name: str) -> TensorDetail:
        return self._outputs[plain_name(tensor_name)]

    def why_not_try(self, signature: str) -> str:
        """As `interface.Model.why_not_try`."""
        return "changes the model" if self.changes_state else "may loop for long" if self._loops else ""

    def shape(self, tensor_name: str) -> tuple[int | None, ...] | None:
        """As `interface.Model.shape`."""
        name = plain_name(tensor_name)
        shape = (self._inputs.get(name) or self._outputs[name]).shape
        return tuple(None if size < 0 else size for size in shape)

    def input_spec(self, entry: signature.Signature, alias: str, shape: tuple[int, ...]) -> InputSpec:
        """As `interface.Model.input_spec`."""
        return InputSpec(alias, self._inputs[plain_name(entry.inputs[alias])].dtype, shape)

    def close(self) -> None:
        """Free the model."""
        self._interpreter = None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
