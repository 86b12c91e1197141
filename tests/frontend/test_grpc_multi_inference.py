"""MultiInference: section 4.4 of TensorFlow Serving's behaviour, rule by rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from ringserve.config.protos import ModelSpec, MultiInferenceRequest, MultiInferenceResponse
from ringserve.frontend.grpc_api import CLASSIFY, MULTI_INFERENCE, REGRESS, make_methods
from ringserve.shm.dtype import FLOAT
from tests.frontend.fakes import FakeCall, LoopbackClient, assert_leaves_no_cycle, make_output, version_info
from tests.frontend.grpc_kit import (
    BOTH,
    CLASSIFY_NAME,
    F4,
    INVALID,
    REGRESS_NAME,
    SIGNATURES,
    TWO,
    answered,
    answers,
    call,
    classification,
    make_client,
    multi,
    pairs,
    regression,
)


@pytest.fixture
def client() -> LoopbackClient:
    return make_client()


def test_grpc_4_4_results_of_all_tasks_in_their_order(client: LoopbackClient) -> None:
    response = answered(client, MULTI_INFERENCE, multi(*BOTH))
    first, second = response.results
    assert pairs(first.classification_result)[0] == [("a", 0.5), ("b", 0)]
    assert [each.value for each in second.regression_result.regressions] == [3, 0]
    assert first.model_spec == ModelSpec(name="m", version={"value": 7}, signature_name="serving_default")
    assert second.model_spec == ModelSpec(name="m", version={"value": 7}, signature_name="regress")
    assert call(client, MULTI_INFERENCE, multi(*BOTH)).message == response.SerializeToString()


def test_grpc_4_4_the_last_answer_completes_it(client: LoopbackClient) -> None:
    client.model = None
    made = call(client, MULTI_INFERENCE, multi(("scores", CLASSIFY_NAME), ("regress", REGRESS_NAME)))
    (_, _, _, _, classify), (_, _, _, _, regress) = client.requests
    regress.answer([make_output(FLOAT, (2,), np.array([1, 2], F4), batchable=True)], 0, 2)
    unanswered = made.message is None
    assert unanswered
    classify.answer([make_output(FLOAT, (2, 1), np.array([3, 4], F4), batchable=True)], 0, 2)
    assert made.message is not None
    response = MultiInferenceResponse.FromString(made.message)
    assert pairs(response.results[0].classification_result) == [[("", 3)], [("", 4)]]
    assert [each.value for each in response.results[1].regression_result.regressions] == [1, 2]


def test_grpc_4_4_one_task_that_fails_fails_all(client: LoopbackClient) -> None:
    client.model = None
    made = call(client, MULTI_INFERENCE, multi(*BOTH))
    client.requests[1][4].fail(Code.UNAVAILABLE, "no worker")
    assert made.failure == (Code.UNAVAILABLE, "no worker")
    assert set(client.cancelled) == {1, 2}
    client.requests[0][4].fail(Code.CANCELLED, "late")  # and nobody hears it


def test_grpc_4_4_a_task_with_wrong_outputs_fails_all(client: LoopbackClient) -> None:
    client.model = answers(outputs=(FLOAT, (3,), np.zeros(3, F4)), scores=(FLOAT, (2, 1), np.zeros(2, F4)))
    request = multi(("scores", CLASSIFY_NAME), ("regress", REGRESS_NAME))
    text = "Input batch size did not match output batch size: 2 vs. 3"
    assert call(client, MULTI_INFERENCE, request).failure == (INVALID, text)


def test_grpc_4_4_a_task_that_is_refused_at_once_cancels_those_before_it(client: LoopbackClient) -> None:
    client.model = None
    made = FakeCall()
    infer = client.infer

    def full_at_the_second(lane: Any, rows: int, payloads: Any, timeout_ns: int, reply: Any) -> int:
        if client.requests:
            reply.fail(Code.RESOURCE_EXHAUSTED, "full")
            return -1
        return infer(lane, rows, payloads, timeout_ns, reply)

    client.infer = full_at_the_second  # type: ignore[method-assign]
    make_methods(client).unary[MULTI_INFERENCE](made, multi(*BOTH).SerializeToString())
    assert made.failure == (Code.RESOURCE_EXHAUSTED, "full")
    assert client.cancelled == [1]


def test_grpc_4_4_cancel(client: LoopbackClient) -> None:
    client.model = None
    made = call(client, MULTI_INFERENCE, multi(*BOTH))
    assert made.cancel is not None
    made.cancel()
    assert client.cancelled == [1, 2]
    made.cancel()
    assert client.cancelled == [1, 2]


def test_grpc_4_4_the_first_task_says_the_version(client: LoopbackClient) -> None:
    client.catalog.update([version_info("m", 7, SIGNATURES), version_info("m", 8, SIGNATURES)])
    request = multi(*BOTH)
    request.tasks[0].model_spec.version.value = 7
    request.tasks[1].model_spec.version.value = 99
    response = answered(client, MULTI_INFERENCE, request)
    assert [each.model_spec.version.value for each in response.results] == [7, 7]


def without_name(request: Any) -> Any:
    request.tasks[1].model_spec.name = ""
    return request


def with_another_name(request: Any) -> Any:
    request.tasks[1].model_spec.name = "other"
    return request


@pytest.mark.parametrize(
    ("request_message", "code", "text"),
    [
        (MultiInferenceRequest(), INVALID, "ModelSpec has no name specified."),
        (multi(*BOTH, version={"value": 5}), Code.NOT_FOUND, "Servable not found for request: Specific(m, 5)"),
        (without_name(multi(*BOTH)), INVALID, "Found ModelSpec with an empty model name."),
        (
            with_another_name(multi(*BOTH)),
            INVALID,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            multi(("", CLASSIFY_NAME), ("serving_default", CLASSIFY_NAME)),
            INVALID,
            "Duplicate evaluation of signature: serving_default",
        ),
        (multi(("s", REGRESS_NAME)), INVALID, "Requested signature not found in model graph: s"),
        (
            multi(("", "tensorflow/serving/predict")),
            Code.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (multi(("two_inputs", REGRESS_NAME)), INVALID, "Expected one input Tensor."),
        (multi(*BOTH, examples=()), INVALID, "Input is empty."),
    ],
)
def test_grpc_4_4_refusals(client: LoopbackClient, request_message: Any, code: Code, text: str) -> None:
    assert call(client, MULTI_INFERENCE, request_message).failure == (code, text)
    assert not client.requests


def test_grpc_4_4_the_method_name_is_checked_when_asked_for(client: LoopbackClient) -> None:
    request = multi(("predict", CLASSIFY_NAME))
    assert call(client, MULTI_INFERENCE, request).failure is None
    failure = call(client, MULTI_INFERENCE, request, check_method_name=True).failure
    assert failure is not None
    assert failure[1].endswith("Was: tensorflow/serving/predict")


@pytest.mark.parametrize("method", [CLASSIFY, REGRESS, MULTI_INFERENCE])
def test_a_finished_call_leaves_no_cycle(client: LoopbackClient, method: str) -> None:
    """The frontends run without the cyclic collector: what a call leaves behind must die by itself."""
    client.model = None
    request = {CLASSIFY: classification(*TWO), REGRESS: regression(*TWO), MULTI_INFERENCE: multi(*BOTH)}[method]
    assert_leaves_no_cycle(client, lambda: call(client, method, request))
