"""One warm-up record -> the runs of the model that it stands for, and whether their outputs would be an answer.

A record is a PredictionLog of which only the request counts. What is checked, and in which words a record is refused,
is what TF Serving does with the same request over the network; model names and versions in it are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from ringserve.broker.messages import Code
from ringserve.shm import dtype as dtypes
from ringserve.workers.failures import RunFailure
from ringserve.workers.tensor_parse import TensorParser

_DEFAULT_SIGNATURE: Final = "serving_default"
_METHODS: Final = {"tensorflow/serving/classify": "classification", "tensorflow/serving/regress": "regression"}

#: Raises RunFailure when these outputs, in the run's order, are no answer.
Check = Callable[[Sequence[Any]], None]


class Feed(NamedTuple):
    """One input of a run. dtype: DataType number as the request gives it."""

    dtype: int
    array: Any


class Run(NamedTuple):
    """One run of a signature."""

    signature: str
    inputs: dict[str, Feed]
    outputs: tuple[str, ...]
    check: Check


def _invalid(text: str) -> RunFailure:
    return RunFailure(Code.INVALID_ARGUMENT, text)


class Reader:
    """Makes runs for one model. signature_defs: its SignatureDefs by name."""

    def __init__(self, signature_defs: Mapping[str, Any], parser: TensorParser) -> None:
        self._signature_defs = signature_defs
        self._parser = parser

    def runs(self, log: Any) -> list[Run]:
        """The runs of a PredictionLog; none when it holds no request at all. Raises RunFailure."""
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            return [self._predict(log.predict_log.request)]
        if kind == "classify_log":
            request = log.classify_log.request
            return [self._of_examples("classification", request.model_spec.signature_name, request.input)]
        if kind == "regress_log":
            request = log.regress_log.request
            return [self._of_examples("regression", request.model_spec.signature_name, request.input)]
        if kind == "multi_inference_log":
            return self._multi(log.multi_inference_log.request)
        if kind is None:
            return []
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise RunFailure(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")

    # ------------------------------------------------------------------------------------------------------ predict

    def _predict(self, request: Any) -> Run:
        name = request.model_spec.signature_name or _DEFAULT_SIGNATURE
        signature = self._signature_defs.get(name)
        if signature is None:
            raise RunFailure(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        _check_names(signature, request.inputs)
        inputs: dict[str, Feed] = {}
        for alias in signature.inputs:
            proto = request.inputs[alias] if alias in request.inputs else signature.defaults[alias]
            inputs[alias] = Feed(proto.dtype, self._parser.parse(proto, alias))
        return Run(name, inputs, _wanted(signature, request.output_filter), lambda outputs: None)

    # ----------------------------------------------------------------------------------------- classify and regress

    def _multi(self, request: Any) -> list[Run]:
        tasks = request.tasks
        if not tasks or not tasks[0].model_spec.name:
            raise _invalid("ModelSpec has no name specified.")
        runs: list[Run] = []
        for task in tasks:
            spec = task.model_spec
            if not spec.name:
                raise _invalid("Found ModelSpec with an empty model name.")
            if spec.name != tasks[0].model_spec.name:
                raise _invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
            name = spec.signature_name or _DEFAULT_SIGNATURE
            if any(run.signature == name for run in runs):
                raise _invalid(f"Duplicate evaluation of signature: {name}")
            if name not in self._signature_defs:
                raise _invalid(f"Requested signature not found in model graph: {name}")
            if task.method_name not in _METHODS:
                raise RunFailure(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
            runs.append(self._of_examples(_METHODS[task.method_name], name, request.input))
        return runs

    def _of_examples(self, word: str, name: str, given: Any) -> Run:
        name = name or _DEFAULT_SIGNATURE
        signature = self._signature_defs.get(name)
        if signature is None:
            raise _invalid(f"No signature was found with the name: {name}")
        outputs = _example_outputs(word, signature)
        examples = _serialized_examples(given)
        array = np.empty(len(examples), object)
        array[:] = examples

        def check(values: Sequence[Any]) -> None:
            if word == "regression":
                _check_regression(values[0], len(examples))
            else:
                _check_classes(dict(zip(outputs, values, strict=True)), len(examples))

        return Run(name, {"inputs": Feed(dtypes.STRING, array)}, outputs, check)


def _check_names(signature: Any, sent: Collection[str]) -> None:
    declared, defaults = set(signature.inputs), set(signature.defaults)
    given = set(sent)
    if len(given) > len(declared) or (len(given) < len(declared) and not defaults):
        raise _invalid(
            f"input size does not match signature: {len(given)}!={len(declared)} "
            f"len({{{_join(given)}}}) != len({{{_join(declared)}}}). Sent extra: {{{_join(given - declared)}}}. "
            f"Missing but required: {{{_join(declared - given)}}}."
        )
    for alias in sorted(declared - given - defaults):
        raise _invalid(
            f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {{{_join(given)}}}, "
            f"or default input alias set: {_join(defaults)}"
        )
    if not given <= declared:
        used = _join(given & declared)
        raise _invalid(f"Inputs contains invalid name. Used request inputs: {used}, request input: {_join(given)}")


def _wanted(signature: Any, output_filter: Sequence[str]) -> tuple[str, ...]:
    """Aliases in the order in which frontends ask for them, so that the calls made here are those used later."""
    for alias in output_filter:
        if alias not in signature.outputs:
            known = _join(signature.outputs)
            raise _invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {{{known}}}."
            )
        if list(output_filter).count(alias) > 1:
            raise _invalid(f"duplicate output tensor alias: {alias}")
    return tuple(sorted(output_filter or signature.outputs))


def _join(names: Collection[str]) -> str:
    return ",".join(sorted(names))


def _example_outputs(word: str, signature: Any) -> tuple[str, ...]:
    """The outputs that this call takes of a signature that has the form for it."""
    inputs, outputs = signature.inputs, signature.outputs
    if len(inputs) != 1:
        raise _invalid("Expected one input Tensor.")
    if word == "classification" and len(outputs) not in (1, 2):
        raise _invalid(f"Expected one or two output Tensors, found {len(outputs)}")
    if word == "regression" and len(outputs) != 1:
        raise _invalid("Expected one output Tensor.")
    if "inputs" not in inputs:
        raise _invalid(f"No {word} inputs found in SignatureDef: {signature}")
    if word == "regression":
        if "outputs" not in outputs:
            raise _invalid(f"No regression outputs found in SignatureDef: {signature}")
        return ("outputs",)
    if "classes" not in outputs and "scores" not in outputs:
        raise _invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return tuple(alias for alias in ("classes", "scores") if alias in outputs)


def _serialized_examples(given: Any) -> list[bytes]:
    """A row each. A context is merged into every example: messages one behind the other are one message."""
    kind = given.WhichOneof("kind")
    examples = getattr(given, kind).examples if kind else ()
    if not examples:
        raise _invalid("Input is empty.")
    has_context = kind == "example_list_with_context"
    context = given.example_list_with_context.context.SerializeToString() if has_context else b""
    return [context + example.SerializeToString() for example in examples]


def _check_classes(outputs: Mapping[str, Any], rows: int) -> None:
    for alias, output in outputs.items():
        dtype = _dtype_of(output)
        wanted = dtypes.STRING if alias == "classes" else dtypes.FLOAT
        if output.ndim != 2:
            raise _invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape_text(output)}")
        if dtype != wanted:
            names = (dtypes.name_of(wanted).upper(), dtypes.name_of(dtype).upper())
            raise _invalid(f"Expected {alias} Tensor of DT_{names[0]}. Got: DT_{names[1]}")
        if len(output) != rows:
            raise _invalid(f"Expected {alias} output batch size of {rows}. Got: {len(output)}")
    if len({output.shape[1] for output in outputs.values()}) > 1:
        classes, scores = outputs["classes"].shape[1], outputs["scores"].shape[1]
        raise _invalid(f"Tensors class and score should match in dim_size(1). Got {classes} vs. {scores}")


def _check_regression(output: Any, rows: int) -> None:
    if output.ndim not in (1, 2) or (output.ndim == 2 and output.shape[1] != 1):
        shape = _shape_text(output)
        raise _invalid(f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {shape}")
    if len(output) != rows:
        raise _invalid(f"Input batch size did not match output batch size: {rows} vs. {len(output)}")
    if _dtype_of(output) != dtypes.FLOAT:
        raise _invalid(f"Expected output Tensor of DT_FLOAT.  Got: DT_{dtypes.name_of(_dtype_of(output)).upper()}")


def _dtype_of(output: Any) -> int:
    return dtypes.dtype_of_numpy(output.dtype).number


def _shape_text(output: Any) -> str:
    return f"[{','.join(map(str, output.shape))}]"
