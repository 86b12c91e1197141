"""Requests with Examples, signatures that take them, a model of fixed answers: for tests of Classify and its like."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringserve.broker.messages import Code
from ringserve.config.protos import (
    ClassificationRequest,
    ClassificationResponse,
    Example,
    ModelSpec,
    MultiInferenceRequest,
    MultiInferenceResponse,
    RegressionRequest,
    RegressionResponse,
)
from ringserve.frontend.grpc_api import CLASSIFY, MULTI_INFERENCE, REGRESS, GrpcSettings, make_methods
from ringserve.frontend.lanes import Lane
from ringserve.frontend.outputs import Output
from ringserve.shm.dtype import FLOAT, STRING
from tests.frontend.fakes import FakeCall, LoopbackClient, catalog_of, make_output, signature_def, version_info

INVALID = Code.INVALID_ARGUMENT
CLASSIFY_NAME = "tensorflow/serving/classify"
REGRESS_NAME = "tensorflow/serving/regress"
EXAMPLES = {"inputs": (STRING, [-1])}
CLASSES = (STRING, [-1, -1])
SCORES = (FLOAT, [-1, -1])
SIGNATURES = {
    "serving_default": signature_def(EXAMPLES, {"classes": CLASSES, "scores": SCORES}, CLASSIFY_NAME),
    "scores": signature_def(EXAMPLES, {"scores": SCORES}, CLASSIFY_NAME),
    "classes": signature_def(EXAMPLES, {"classes": CLASSES}, CLASSIFY_NAME),
    "scores_and_more": signature_def(EXAMPLES, {"scores": SCORES, "more": SCORES}),
    "regress": signature_def(EXAMPLES, {"outputs": (FLOAT, [-1, 1])}, REGRESS_NAME),
    "regress_too": signature_def({"inputs": (STRING, None)}, {"outputs": (FLOAT, None)}, REGRESS_NAME),
    "regress_says_float": signature_def({"inputs": (FLOAT, [])}, {"outputs": (FLOAT, [])}, REGRESS_NAME),
    "two_inputs": signature_def({"inputs": (STRING, [-1]), "b": (STRING, [-1])}, {"outputs": SCORES}),
    "three_outputs": signature_def(EXAMPLES, {"classes": CLASSES, "scores": SCORES, "c": SCORES}),
    "no_outputs": signature_def(EXAMPLES, {}),
    "other_input": signature_def({"examples": (STRING, [-1])}, {"outputs": SCORES}),
    "other_input_scores": signature_def({"examples": (STRING, [-1])}, {"scores": SCORES}),
    "other_output": signature_def(EXAMPLES, {"y": SCORES}),
    "predict": signature_def(EXAMPLES, {"scores": SCORES}, "tensorflow/serving/predict"),
    "predict_outputs": signature_def(EXAMPLES, {"outputs": (FLOAT, [-1])}, "tensorflow/serving/predict"),
}


def example(**features: float) -> Any:
    made = Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


TWO = [example(x=2), example(x=3)]


def classification(*examples: Any, context: Any = None, **spec: Any) -> Any:
    return with_input(ClassificationRequest(model_spec=ModelSpec(name="m", **spec)), examples, context)


def regression(*examples: Any, context: Any = None, **spec: Any) -> Any:
    spec.setdefault("signature_name", "regress")
    return with_input(RegressionRequest(model_spec=ModelSpec(name="m", **spec)), examples, context)


def with_input(request: Any, examples: Any, context: Any) -> Any:
    if context is not None:
        request.input.example_list_with_context.context.CopyFrom(context)
        request.input.example_list_with_context.examples.extend(examples)
    else:
        request.input.example_list.examples.extend(examples)
    return request


def answers(**outputs: tuple[int, tuple[int, ...], Any]) -> Any:
    """A model that gives these outputs, alias = (dtype, shape, data), those that are wanted in the lane's order."""

    def model(lane: Lane, rows: int, payloads: list[Any]) -> list[Output]:
        made = []
        for alias in lane.spec.outputs:
            dtype, shape, data = outputs[alias]
            follows = lane.spec.batchable and bool(shape) and shape[0] == rows
            made.append(make_output(dtype, shape, data, batchable=follows))
        return made

    return model


F4 = np.dtype("<f4")
HALVES = answers(
    classes=(STRING, (2, 2), [[b"a", b"b"], [b"c", b""]]),
    scores=(FLOAT, (2, 2), np.array([[0.5, 0], [-0.0, 1.5]], F4)),
    outputs=(FLOAT, (2, 1), np.array([[3], [0]], F4)),
)


def make_client() -> LoopbackClient:
    """A client whose model answers with HALVES."""
    return LoopbackClient(catalog_of(version_info("m", 7, SIGNATURES), labels={"m": {"stable": 7}}), HALVES)


def call(client: LoopbackClient, method: str, request: Any, **settings: Any) -> FakeCall:
    made = FakeCall()
    message = request if isinstance(request, bytes) else request.SerializeToString()
    make_methods(client, GrpcSettings(**settings)).unary[method](made, message)
    return made


def answered(client: LoopbackClient, method: str, request: Any, **settings: Any) -> Any:
    made = call(client, method, request, **settings)
    assert made.message is not None, made.failure
    response = {CLASSIFY: ClassificationResponse, REGRESS: RegressionResponse, MULTI_INFERENCE: MultiInferenceResponse}
    return response[method].FromString(made.message)


def pairs(result: Any) -> list[list[tuple[str, float]]]:
    return [[(each.label, each.score) for each in one.classes] for one in result.classifications]


def multi(*tasks: tuple[str, str], examples: Any = tuple(TWO), **spec: Any) -> Any:
    """A MultiInferenceRequest. tasks: (signature, method name)."""
    request = MultiInferenceRequest()
    for signature, method_name in tasks:
        task = request.tasks.add(method_name=method_name)
        task.model_spec.CopyFrom(ModelSpec(name="m", signature_name=signature, **spec))
    request.input.example_list.examples.extend(examples)
    return request


BOTH = (("", CLASSIFY_NAME), ("regress", REGRESS_NAME))
