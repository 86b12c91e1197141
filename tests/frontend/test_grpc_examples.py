"""Classify and Regress: section 4.3 of TensorFlow Serving's behaviour, rule by rule.

The requests and answers are the official classes'; only the model is a stand-in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.messages import Code, InputSpec
from ringserve.config.protos import Example, ModelSpec, MultiInferenceRequest, RegressionRequest, RegressionResponse
from ringserve.frontend.grpc_api import CLASSIFY, MULTI_INFERENCE, REGRESS, GrpcSettings, make_methods
from ringserve.frontend.grpc_examples import examples_of
from ringserve.frontend.grpc_protos import RawExampleRequest
from ringserve.shm.dtype import DOUBLE, FLOAT, INT64, STRING
from tests.frontend.fakes import FakeCall, LoopbackClient, make_output
from tests.frontend.grpc_kit import (
    F4,
    INVALID,
    TWO,
    answered,
    answers,
    call,
    classification,
    example,
    make_client,
    pairs,
    regression,
    with_input,
)


@pytest.fixture
def client() -> LoopbackClient:
    return make_client()


# ------------------------------------------------------------------------------------------------------------- answers


def test_grpc_4_3_classify(client: LoopbackClient) -> None:
    response = answered(client, CLASSIFY, classification(*TWO))
    assert pairs(response.result) == [[("a", 0.5), ("b", 0)], [("c", -0.0), ("", 1.5)]]
    assert np.signbit(response.result.classifications[1].classes[0].score)
    lane, rows, payloads, _, _ = client.requests[0]
    assert payloads == [[each.SerializeToString() for each in TWO]]
    assert (rows, lane.spec.inputs) == (2, (InputSpec("inputs", STRING, ()),))


def test_what_is_encoded_by_hand_is_what_protobuf_encodes(client: LoopbackClient) -> None:
    for method, request in [(CLASSIFY, classification(*TWO)), (REGRESS, regression(*TWO))]:
        made = call(client, method, request)
        assert made.message == answered(client, method, request).SerializeToString()


def test_grpc_4_3_classify_with_scores_only(client: LoopbackClient) -> None:
    response = answered(client, CLASSIFY, classification(*TWO, signature_name="scores"))
    assert pairs(response.result) == [[("", 0.5), ("", 0)], [("", -0.0), ("", 1.5)]]
    assert client.requests[0][0].spec.outputs == ("scores",)


def test_grpc_4_3_classify_with_classes_only(client: LoopbackClient) -> None:
    response = answered(client, CLASSIFY, classification(*TWO, signature_name="classes"))
    assert pairs(response.result) == [[("a", 0), ("b", 0)], [("c", 0), ("", 0)]]


def test_grpc_4_3_classify_fetches_no_output_that_it_does_not_need(client: LoopbackClient) -> None:
    response = answered(client, CLASSIFY, classification(*TWO, signature_name="scores_and_more"))
    assert len(response.result.classifications) == 2
    assert client.requests[0][0].spec.outputs == ("scores",)


def test_grpc_4_3_classify_without_any_class(client: LoopbackClient) -> None:
    client.model = answers(scores=(FLOAT, (2, 0), np.zeros((2, 0), F4)))
    response = answered(client, CLASSIFY, classification(*TWO, signature_name="scores"))
    assert pairs(response.result) == [[], []]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_grpc_4_3_regress(client: LoopbackClient, shape: tuple[int, ...]) -> None:
    client.model = answers(outputs=(FLOAT, shape, np.array([3, 0], F4)))
    response = answered(client, REGRESS, regression(*TWO))
    assert [each.value for each in response.result.regressions] == [3, 0]


def test_grpc_4_3_regress_feeds_strings_whatever_the_signature_says(client: LoopbackClient) -> None:
    """As TensorFlow Serving's half_plus_three: a float scalar is declared, and the tensor takes strings."""
    client.model = answers(outputs=(FLOAT, (2, 1), np.array([3, 3.5], F4)))
    response = answered(client, REGRESS, regression(*TWO, signature_name="regress_says_float"))
    assert [each.value for each in response.result.regressions] == [3, 3.5]
    lane, rows, _, _, _ = client.requests[0]
    assert (lane.spec.batchable, lane.spec.inputs, rows) == (False, (InputSpec("inputs", STRING, (2,)),), 1)


@pytest.mark.parametrize("signature", ["regress", "regress_too"])
def test_examples_are_rows_and_share_batches(client: LoopbackClient, signature: str) -> None:
    """Whether the signature declares the shapes or not: each example is a row by the API's definition."""
    client.model = None
    made = call(client, REGRESS, regression(*TWO, signature_name=signature))
    lane, rows, _, _, reply = client.requests[0]
    assert (lane.spec.batchable, rows) == (True, 2)
    # rows 3 and 4 of a record that holds others' rows, too
    reply.answer([make_output(FLOAT, (6, 1), np.arange(6, dtype=F4), batchable=True)], 3, 2)
    assert made.message is not None
    assert [each.value for each in RegressionResponse.FromString(made.message).result.regressions] == [3, 4]


@pytest.mark.parametrize("spec", [{}, {"version_label": "stable"}, {"version": {"value": 7}}])
def test_2_6_the_answer_says_what_ran(client: LoopbackClient, spec: Any) -> None:
    ran = {"name": "m", "version": {"value": 7}}
    classified = answered(client, CLASSIFY, classification(*TWO, **spec))
    assert classified.model_spec == ModelSpec(signature_name="serving_default", **ran)
    regressed = answered(client, REGRESS, regression(*TWO, **spec))
    assert regressed.model_spec == ModelSpec(signature_name="regress", **ran)


def test_grpc_4_3_the_context_stands_before_each_example(client: LoopbackClient) -> None:
    context = example(x=9, y=8)
    answered(client, REGRESS, regression(*TWO, context=context))
    fed = [Example.FromString(each) for each in client.requests[0][2][0]]
    assert fed == [example(x=2, y=8), example(x=3, y=8)]  # the example's own feature wins


def test_grpc_4_3_an_empty_context_changes_nothing(client: LoopbackClient) -> None:
    answered(client, REGRESS, regression(*TWO, context=Example()))
    assert client.requests[0][2] == [[each.SerializeToString() for each in TWO]]


def test_pieces_of_an_input_are_merged_as_protobuf_merges_them(client: LoopbackClient) -> None:
    """Serialized messages one behind the other are one message: lists grow, contexts merge, the last kind counts."""
    first = regression(TWO[0], context=example(y=1)).SerializeToString()
    second = regression(TWO[1], context=example(z=2)).SerializeToString()
    call(client, REGRESS, first + second)
    fed = [Example.FromString(each) for each in client.requests[0][2][0]]
    assert fed == [example(x=2, y=1, z=2), example(x=3, y=1, z=2)]
    call(client, REGRESS, first + regression(*TWO).SerializeToString())
    assert client.requests[1][2] == [[each.SerializeToString() for each in TWO]]


PIECES = [
    RegressionRequest(model_spec=ModelSpec(name="m", signature_name="regress")),
    regression(example(x=1)),
    regression(*TWO),
    regression(example(y=4), context=example(z=1)),
    regression(context=example(w=5)),
    regression(),
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=5))
def test_raw_examples_are_those_that_the_official_classes_see(pieces: list[Any]) -> None:
    """Whatever pieces a message is made of. (The official classes merge contexts; here their bytes are joined.)"""
    joined = b"".join(piece.SerializeToString() for piece in pieces)
    official = RegressionRequest.FromString(joined).input
    raw = examples_of(RawExampleRequest.FromString(joined).input, 2**20)
    assert isinstance(raw, list)
    ours = [Example.FromString(each) for each in raw]
    held = getattr(official, official.WhichOneof("kind") or "example_list")
    expected = []
    for each in held.examples:
        merged = Example()
        merged.MergeFrom(getattr(held, "context", Example()))
        merged.MergeFrom(each)
        expected.append(merged)
    assert ours == expected


def test_an_example_that_is_none_is_the_models_business(client: LoopbackClient) -> None:
    request = regression(example())
    message = request.SerializeToString() + b"\x12\x05\x0a\x03\x0a\x01\xff"
    call(client, REGRESS, message)
    assert client.requests[0][2] == [[b"", b"\xff"]]


# ----------------------------------------------------------------------------------------- refused before and after run


@pytest.mark.parametrize(
    ("method", "spec", "code", "text"),
    [
        (CLASSIFY, {"signature_name": "s"}, INVALID, "No signature was found with the name: s"),
        (REGRESS, {"signature_name": "s"}, INVALID, "No signature was found with the name: s"),
        (CLASSIFY, {"signature_name": "two_inputs"}, INVALID, "Expected one input Tensor."),
        (REGRESS, {"signature_name": "two_inputs"}, INVALID, "Expected one input Tensor."),
        (CLASSIFY, {"signature_name": "three_outputs"}, INVALID, "Expected one or two output Tensors, found 3"),
        (CLASSIFY, {"signature_name": "no_outputs"}, INVALID, "Expected one or two output Tensors, found 0"),
        (REGRESS, {"signature_name": ""}, INVALID, "Expected one output Tensor."),
        (CLASSIFY, {"version_label": "L"}, INVALID, "Unrecognized servable version label: L"),
        (
            REGRESS,
            {"version": {"value": 5}},
            Code.NOT_FOUND,
            "Servable not found for request: Specific(m, 5)",
        ),
    ],
)
def test_grpc_4_3_refusals(client: LoopbackClient, method: str, spec: Any, code: Code, text: str) -> None:
    make = classification if method == CLASSIFY else regression
    assert call(client, method, make(*TWO, **spec)).failure == (code, text)
    assert not client.requests


@pytest.mark.parametrize(
    ("method", "signature", "start"),
    [
        (CLASSIFY, "other_input_scores", "No classification inputs found in SignatureDef: "),
        (REGRESS, "other_input", "No regression inputs found in SignatureDef: "),
        (
            CLASSIFY,
            "other_output",
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            "Signature was: ",
        ),
        (REGRESS, "other_output", "No regression outputs found in SignatureDef: "),
    ],
)
def test_grpc_4_3_refusals_that_show_the_signature(
    client: LoopbackClient, method: str, signature: str, start: str
) -> None:
    make = classification if method == CLASSIFY else regression
    failure = call(client, method, make(*TWO, signature_name=signature)).failure
    assert failure is not None
    assert failure[0] == INVALID
    assert failure[1].startswith(start)
    assert "method_name" in failure[1]


@pytest.mark.parametrize("method", [CLASSIFY, REGRESS])
def test_grpc_4_3_no_examples(client: LoopbackClient, method: str) -> None:
    spec = ModelSpec(name="m", signature_name="scores" if method == CLASSIFY else "regress")
    for request in (
        RegressionRequest(model_spec=spec),
        with_input(RegressionRequest(model_spec=spec), [], None),
        with_input(RegressionRequest(model_spec=spec), [], example(x=1)),
    ):
        assert call(client, method, request).failure == (INVALID, "Input is empty.")


@pytest.mark.parametrize("method", [CLASSIFY, REGRESS])
def test_grpc_4_1_refusals(client: LoopbackClient, method: str) -> None:
    assert call(client, method, b"").failure == (INVALID, "Missing ModelSpec")
    empty = RegressionRequest(model_spec=ModelSpec())
    assert call(client, method, empty).failure == (INVALID, "ModelSpec has no name specified.")
    failure = call(client, method, b"\xff").failure
    assert failure is not None
    assert failure[0] == Code.INTERNAL


@pytest.mark.parametrize(
    ("method", "request_message", "word", "kind", "was"),
    [
        (CLASSIFY, classification(*TWO, signature_name="predict"), "classification", "classify", "predict"),
        (REGRESS, regression(*TWO, signature_name="predict_outputs"), "regression", "regress", "predict"),
        (CLASSIFY, classification(*TWO, signature_name="regress"), "classification", "classify", "regress"),
    ],
)
def test_grpc_4_3_the_method_name_is_checked_when_asked_for(
    client: LoopbackClient, method: str, request_message: Any, word: str, kind: str, was: str
) -> None:
    assert call(client, method, request_message, check_method_name=True).failure == (
        INVALID,
        f"Expected {word} signature method_name to be tensorflow/serving/{kind}. Was: tensorflow/serving/{was}",
    )
    if was == "predict":  # off by default: exports of TensorFlow 2 have no other name
        assert call(client, method, request_message).failure is None


I8 = np.dtype("<i8")


@pytest.mark.parametrize(
    ("signature", "outputs", "text"),
    [
        (
            "scores",
            {"scores": (FLOAT, (2,), np.zeros(2, F4))},
            "Expected Tensor shape: [batch_size num_classes] but got [2]",
        ),
        (
            "classes",
            {"classes": (STRING, (2, 1, 1), [b"a", b"b"])},
            "Expected Tensor shape: [batch_size num_classes] but got [2,1,1]",
        ),
        (
            "classes",
            {"classes": (INT64, (2, 1), np.zeros(2, I8))},
            "Expected classes Tensor of DT_STRING. Got: DT_INT64",
        ),
        (
            "scores",
            {"scores": (DOUBLE, (2, 1), np.zeros(2, "<f8"))},
            "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE",
        ),
        (
            "classes",
            {"classes": (STRING, (3, 1), [b"a", b"b", b"c"])},
            "Expected classes output batch size of 2. Got: 3",
        ),
        ("scores", {"scores": (FLOAT, (1, 2), np.zeros(2, F4))}, "Expected scores output batch size of 2. Got: 1"),
        (
            "",
            {"classes": (STRING, (2, 1), [b"a", b"b"]), "scores": (FLOAT, (2, 3), np.zeros(6, F4))},
            "Tensors class and score should match in dim_size(1). Got 1 vs. 3",
        ),
    ],
)
def test_grpc_4_3_classify_outputs(client: LoopbackClient, signature: str, outputs: Any, text: str) -> None:
    client.model = answers(**outputs)
    request = classification(*TWO, signature_name=signature)
    assert call(client, CLASSIFY, request).failure == (INVALID, text)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            (FLOAT, (2, 2), np.zeros(4, F4)),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
        ),
        (
            (FLOAT, (), np.zeros((), F4)),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []",
        ),
        ((FLOAT, (3,), np.zeros(3, F4)), "Input batch size did not match output batch size: 2 vs. 3"),
        ((DOUBLE, (2,), np.zeros(2, "<f8")), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)
@pytest.mark.parametrize("signature", ["regress", "regress_says_float"])
def test_grpc_4_3_regress_outputs(client: LoopbackClient, signature: str, output: Any, text: str) -> None:
    client.model = answers(outputs=output)
    assert call(client, REGRESS, regression(*TWO, signature_name=signature)).failure == (INVALID, text)


def test_what_the_model_says_is_passed_on(client: LoopbackClient) -> None:
    client.model = lambda lane, rows, payloads: (INVALID, "Could not parse example input, value: " + "x" * 5000)
    failure = call(client, REGRESS, regression(*TWO)).failure
    assert failure is not None
    assert failure[0] == INVALID
    assert failure[1].endswith("...TRUNCATED")
    assert len(failure[1]) == 1024 + len("...TRUNCATED")


@pytest.mark.parametrize("path", [CLASSIFY, REGRESS, MULTI_INFERENCE])
def test_calls_without_a_deadline_have_the_servers(client: LoopbackClient, path: str) -> None:
    client.model = None
    methods = make_methods(client, GrpcSettings(timeout_ms=7)).unary
    request: Any = {CLASSIFY: classification, REGRESS: regression}.get(path, regression)(*TWO)
    if path == MULTI_INFERENCE:
        request = MultiInferenceRequest(input=request.input)
        request.tasks.add(method_name="tensorflow/serving/regress").model_spec.CopyFrom(regression(*TWO).model_spec)
    for timeout_ns in (0, 5_000_000):
        methods[path](FakeCall(timeout_ns=timeout_ns), request.SerializeToString())
    assert [each[3] for each in client.requests] == [7_000_000, 5_000_000]


def test_cancel_and_deadline(client: LoopbackClient) -> None:
    client.model = None
    made = FakeCall(timeout_ns=5_000_000)
    make_methods(client).unary[CLASSIFY](made, classification(*TWO).SerializeToString())
    assert client.requests[0][3] == 5_000_000
    assert made.cancel is not None
    made.cancel()
    assert client.cancelled == [1]
