"""Predict against sections 4.1 and 4.2 of TensorFlow Serving's behaviour: a table row for each rule, in check order."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.messages import Code, VersionState
from ringserve.config.protos import ModelSpec, PredictRequest, PredictResponse, TensorProto
from ringserve.frontend.grpc_api import PREDICT, GrpcSettings, make_methods
from ringserve.shm.dtype import FLOAT, INT32, STRING
from tests.frontend.fakes import (
    FakeCall,
    LoopbackClient,
    catalog_of,
    float_proto,
    half_plus_two,
    signature_def,
    version_info,
)

A_AND_B = {"a": (FLOAT, [-1]), "b": (FLOAT, [-1])}
OUTPUTS = {"y": (FLOAT, [-1]), "z": (FLOAT, [-1])}
SIGNATURES = {
    "serving_default": signature_def({"x": (FLOAT, [-1])}, {"y": (FLOAT, [-1])}),
    "two": signature_def(A_AND_B, OUTPUTS),
    "defaults": signature_def(A_AND_B, OUTPUTS, defaults={"b": float_proto([7, 7], [2])}),
    "matrix": signature_def({"x": (FLOAT, [-1, 3])}, {"y": (FLOAT, [-1])}),
    "lies": signature_def({"x": (FLOAT, [])}, {"y": (FLOAT, [])}),
    "odd": signature_def({"x": (FLOAT, [-1])}, {"y": (FLOAT, [-1])}, method_name="odd"),
}
ONE = float_proto([1], [1])
SHORT_CONTENT = TensorProto(dtype=FLOAT, tensor_content=bytes(8))
SHORT_CONTENT.tensor_shape.dim.add(size=3)


@pytest.fixture
def client() -> LoopbackClient:
    catalog = catalog_of(
        version_info("m", 1, SIGNATURES),
        version_info("m", 2, state=VersionState.LOADING),
        version_info("m", 3, state=VersionState.END, error=(3, "bad")),
        version_info("loading", 1, state=VersionState.LOADING),
        version_info("failed", 1, state=VersionState.END, error=(3, "bad")),
        labels={"m": {"stable": 1, "next": 2}},
    )
    return LoopbackClient(catalog, half_plus_two)


def predict(client: LoopbackClient, request: Any, **settings: Any) -> FakeCall:
    made = FakeCall()
    make_methods(client, GrpcSettings(**settings)).unary[PREDICT](made, request.SerializeToString())
    return made


def request_of(signature: str = "", outputs: tuple[str, ...] = (), model: str = "m", **inputs: Any) -> Any:
    request = PredictRequest(model_spec=ModelSpec(name=model, signature_name=signature), output_filter=outputs)
    for alias, proto in inputs.items():
        request.inputs[alias].CopyFrom(proto)
    return request


def spec(**fields: Any) -> Any:
    return PredictRequest(model_spec=ModelSpec(**fields), inputs={"x": ONE})


INVALID = Code.INVALID_ARGUMENT
SIZES = (
    "input size does not match signature: {}!={} len({{{}}}) != len({{{}}}). Sent extra: {{{}}}. "
    "Missing but required: {{{}}}."
)
ABSENT = (
    "Signature input alias: {}(feed name: {}:0) not found in request and no default value provided. "
    "Inputs expected to be in the request {{{}}}, or default input alias set: {}"
)


@pytest.mark.parametrize(
    ("request_message", "code", "text"),
    [
        pytest.param(PredictRequest(), INVALID, "Missing ModelSpec", id="no spec"),
        pytest.param(spec(), INVALID, "ModelSpec has no name specified.", id="no name"),
        pytest.param(
            spec(name="m", version_label="L"), INVALID, "Unrecognized servable version label: L", id="unknown label"
        ),
        pytest.param(
            spec(name="m", version_label=""), INVALID, "Unrecognized servable version label: ", id="empty label"
        ),
        pytest.param(
            spec(name="nope", version_label="L"),
            INVALID,
            "Unrecognized servable version label: L",
            id="label of an unknown model",
        ),
        pytest.param(
            spec(name="nope"), Code.NOT_FOUND, "Servable not found for request: Latest(nope)", id="unknown model"
        ),
        pytest.param(
            spec(name="loading"), Code.NOT_FOUND, "Servable not found for request: Latest(loading)", id="not loaded yet"
        ),
        pytest.param(
            spec(name="failed"), Code.NOT_FOUND, "Servable not found for request: Latest(failed)", id="failed"
        ),
        pytest.param(
            spec(name="m", version={"value": 5}),
            Code.NOT_FOUND,
            "Servable not found for request: Specific(m, 5)",
            id="unknown version",
        ),
        pytest.param(
            spec(name="m", version={}),
            Code.NOT_FOUND,
            "Servable not found for request: Specific(m, 0)",
            id="version 0 is a version",
        ),
        pytest.param(
            spec(name="m", version_label="next"),
            Code.NOT_FOUND,
            "Servable not found for request: Specific(m, 2)",
            id="a label's version is not available",
        ),
    ],
)
def test_grpc_4_1_resolution(client: LoopbackClient, request_message: Any, code: Code, text: str) -> None:
    assert predict(client, request_message).failure == (code, text)
    assert not client.requests


def test_grpc_4_1_latest_is_the_highest_available_version(client: LoopbackClient) -> None:
    client.catalog.update([version_info("m", 1, SIGNATURES), version_info("m", 4, SIGNATURES)])
    made = predict(client, spec(name="m"))
    assert made.message is not None
    assert PredictResponse.FromString(made.message).model_spec.version.value == 4


@pytest.mark.parametrize(
    ("request_message", "code", "text"),
    [
        pytest.param(
            request_of("s", x=ONE),
            Code.FAILED_PRECONDITION,
            'Serving signature key "s" not found.',
            id="signature missing",
        ),
        pytest.param(
            request_of(x=ONE, z=ONE), INVALID, SIZES.format(2, 1, "x,z", "x", "z", ""), id="more inputs than declared"
        ),
        pytest.param(request_of(), INVALID, SIZES.format(0, 1, "", "x", "", "x"), id="fewer inputs, no defaults"),
        pytest.param(
            request_of("defaults", a=ONE, b=ONE, c=ONE),
            INVALID,
            SIZES.format(3, 2, "a,b,c", "a,b", "c", ""),
            id="more inputs than declared, with defaults",
        ),
        pytest.param(
            request_of("two", b=ONE, z=ONE), INVALID, ABSENT.format("a", "a", "b,z", ""), id="absent, no default"
        ),
        pytest.param(
            request_of("defaults", b=ONE), INVALID, ABSENT.format("a", "a", "b", "b"), id="absent, default of another"
        ),
        pytest.param(request_of(x=SHORT_CONTENT), INVALID, "tensor parsing error: x", id="undecodable"),
        pytest.param(request_of(x=TensorProto()), INVALID, "tensor parsing error: x", id="undecodable: no dtype"),
        pytest.param(
            request_of("defaults", a=SHORT_CONTENT, q=ONE),
            INVALID,
            "tensor parsing error: a",
            id="undecodable comes before surplus",
        ),
        pytest.param(
            request_of("defaults", a=ONE, q=ONE),
            INVALID,
            "Inputs contains invalid name. Used request inputs: a, request input: a,q",
            id="surplus where a default fills the gap",
        ),
        pytest.param(
            request_of("two", ("y", "k"), a=ONE, b=ONE),
            INVALID,
            "output tensor alias not found in signature: k Outputs expected to be in the set {y,z}.",
            id="output_filter unknown",
        ),
        pytest.param(
            request_of("two", ("y", "y"), a=ONE, b=ONE),
            INVALID,
            "duplicate output tensor alias: y",
            id="output_filter duplicate: acceptance fact 13",
        ),
        pytest.param(
            request_of("", ("k",), x=SHORT_CONTENT),
            INVALID,
            "tensor parsing error: x",
            id="undecodable comes before output_filter",
        ),
        pytest.param(
            request_of("", ("k",), x=TensorProto(dtype=INT32, int_val=[1])),
            INVALID,
            "output tensor alias not found in signature: k Outputs expected to be in the set {y}.",
            id="output_filter comes before dtype",
        ),
        pytest.param(
            request_of(x=TensorProto(dtype=INT32, int_val=[1])),
            INVALID,
            "Expects arg[0] to be float but int32 is provided (input: x)",
            id="wrong dtype",
        ),
        pytest.param(
            request_of("two", a=ONE, b=TensorProto(dtype=INT32, int_val=[1])),
            INVALID,
            "Expects arg[1] to be float but int32 is provided (input: b)",
            id="wrong dtype of the second",
        ),
        pytest.param(
            request_of("matrix", x=float_proto([0] * 8, [2, 4])),
            INVALID,
            "input x has an incompatible shape: expected [-1,3], got [2,4]",
            id="wrong shape",
        ),
    ],
)
def test_grpc_4_2_refusals(client: LoopbackClient, request_message: Any, code: Code, text: str) -> None:
    assert predict(client, request_message).failure == (code, text)
    assert not client.requests


def test_grpc_4_2_what_does_not_parse_is_internal(client: LoopbackClient) -> None:
    made = FakeCall()
    make_methods(client).unary[PREDICT](made, b"\xff")
    text = "Error parsing the request message as tensorflow.serving.PredictRequest."
    assert made.failure == (Code.INTERNAL, text)


def test_grpc_4_2_the_method_name_is_checked_when_asked_for(client: LoopbackClient) -> None:
    assert predict(client, request_of("odd", x=ONE)).failure is None
    assert predict(client, request_of("odd", x=ONE), check_method_name=True).failure == (
        Code.INTERNAL,
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: odd",
    )


@pytest.mark.parametrize("method_name", ["predict", "classify", "regress"])
def test_grpc_4_2_method_names_that_predict_takes(client: LoopbackClient, method_name: str) -> None:
    signature = signature_def({"x": (FLOAT, [-1])}, {"y": (FLOAT, [-1])}, f"tensorflow/serving/{method_name}")
    client.catalog.update([version_info("m", 1, {"serving_default": signature})])
    assert predict(client, request_of(x=ONE), check_method_name=True).failure is None


def test_grpc_4_2_the_method_name_comes_before_the_inputs(client: LoopbackClient) -> None:
    failure = predict(client, request_of("odd"), check_method_name=True).failure
    assert failure is not None
    assert failure[0] == Code.INTERNAL


def test_grpc_4_2_missing_inputs_are_filled_from_defaults(client: LoopbackClient) -> None:
    client.model = None
    predict(client, request_of("defaults", a=float_proto([1, 2], [2])))
    lane, rows, payloads, _, _ = client.requests[0]
    assert [each.alias for each in lane.spec.inputs] == ["a", "b"]
    assert (rows, payloads[1]) == (2, float_proto([7, 7], [2], content=True).tensor_content)


def test_grpc_4_2_only_the_outputs_asked_for_are_computed_and_returned(client: LoopbackClient) -> None:
    client.model = lambda lane, rows, payloads: half_plus_two(lane, rows, payloads) * len(lane.spec.outputs)
    for outputs, answered in [(("z",), {"z"}), ((), {"y", "z"}), (("z", "y"), {"y", "z"})]:
        made = predict(client, request_of("two", outputs, a=ONE, b=ONE))
        assert made.message is not None
        assert set(PredictResponse.FromString(made.message).outputs) == answered
        assert set(client.requests[-1][0].spec.outputs) == answered


@pytest.mark.parametrize(
    ("signature", "x"),
    [
        pytest.param("", float_proto([1, 2, 3, 4], [2, 2]), id="a higher rank"),
        pytest.param("", float_proto([1], []), id="a scalar"),
        pytest.param("matrix", float_proto([1, 2, 3], [3]), id="a lower rank"),
        pytest.param("lies", float_proto([1, 2, 3], [3]), id="where a scalar is declared"),
        pytest.param("", float_proto([], [0]), id="no rows"),
        pytest.param("", TensorProto(dtype=STRING, string_val=[b"a"]), id="strings where floats are declared"),
    ],
)
def test_grpc_4_2_shapes_that_the_signature_does_not_say_reach_the_model_alone(
    client: LoopbackClient, signature: str, x: Any
) -> None:
    client.model = None
    assert predict(client, request_of(signature, x=x)).failure is None
    lane, rows, _, _, _ = client.requests[0]
    assert (lane.spec.batchable, rows) == (False, 1)
    assert lane.spec.inputs[0].shape == tuple(dim.size for dim in x.tensor_shape.dim)


def test_grpc_4_2_options_that_are_ignored(client: LoopbackClient) -> None:
    request = request_of(x=ONE)
    request.client_id = b"id"
    request.request_options.client_id = b"id"
    request.predict_streamed_options.return_single_response = True
    assert predict(client, request).failure is None


def test_grpc_4_2_a_deadline_in_the_run_is_told_in_its_words(client: LoopbackClient) -> None:
    client.model = lambda lane, rows, payloads: (Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
    failure = predict(client, request_of(x=ONE)).failure
    assert failure == (Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
