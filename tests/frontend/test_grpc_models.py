"""GetModelStatus and GetModelMetadata: section 4.5 of TensorFlow Serving's behaviour, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.messages import Code
from ringserve.config.protos import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelSpec,
    SignatureDefMap,
)
from ringserve.frontend.grpc_api import GET_MODEL_METADATA, GET_MODEL_STATUS, make_methods
from tests.frontend.fakes import HALF_PLUS_TWO, FakeCall, LoopbackClient, usual_catalog


@pytest.fixture
def client() -> LoopbackClient:
    return LoopbackClient(usual_catalog())


def call(client: LoopbackClient, method: str, request: Any) -> FakeCall:
    made = FakeCall()
    make_methods(client).unary[method](made, request if isinstance(request, bytes) else request.SerializeToString())
    return made


def status_of(client: LoopbackClient, **spec: Any) -> Any:
    made = call(client, GET_MODEL_STATUS, GetModelStatusRequest(model_spec=ModelSpec(**spec)))
    assert made.message is not None, made.failure
    return GetModelStatusResponse.FromString(made.message)


def metadata_of(client: LoopbackClient, **spec: Any) -> Any:
    request = GetModelMetadataRequest(model_spec=ModelSpec(**spec), metadata_field=["signature_def"])
    made = call(client, GET_MODEL_METADATA, request)
    assert made.message is not None, made.failure
    return GetModelMetadataResponse.FromString(made.message)


def test_4_5_status_of_all_versions_newest_first(client: LoopbackClient) -> None:
    response = status_of(client, name="default")
    assert [
        (each.version, each.state, each.status.error_code, each.status.error_message)
        for each in response.model_version_status
    ] == [(124, 50, 3, "bad"), (123, 30, 0, "")]
    assert all(each.HasField("status") for each in response.model_version_status)


def test_4_5_status_of_one_version(client: LoopbackClient) -> None:
    response = status_of(client, name="default", version={"value": 123})
    assert [each.version for each in response.model_version_status] == [123]


def test_4_5_status_ignores_a_label(client: LoopbackClient) -> None:
    assert len(status_of(client, name="default", version_label="nope").model_version_status) == 2


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        pytest.param(None, Code.INVALID_ARGUMENT, "Missing ModelSpec", id="no spec"),
        pytest.param(
            {"name": "default", "version": {"value": 9}},
            Code.NOT_FOUND,
            "Could not find version 9 of model default",
            id="unknown version",
        ),
        pytest.param(
            {"name": "nope"}, Code.NOT_FOUND, "Could not find any versions of model nope", id="unknown model"
        ),
        pytest.param({}, Code.NOT_FOUND, "Could not find any versions of model ", id="no name"),
    ],
)
def test_4_5_status_refusals(client: LoopbackClient, spec: Any, code: Code, text: str) -> None:
    request = GetModelStatusRequest(model_spec=None if spec is None else ModelSpec(**spec))
    assert call(client, GET_MODEL_STATUS, request).failure == (code, text)


def test_4_5_metadata(client: LoopbackClient) -> None:
    response = metadata_of(client, name="default")
    assert list(response.metadata) == ["signature_def"]
    assert response.metadata["signature_def"].type_url == (
        "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    )
    signatures = SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures == SignatureDefMap(signature_def={"serving_default": HALF_PLUS_TWO})


@pytest.mark.parametrize("spec", [{}, {"version_label": "stable"}, {"version": {"value": 123}}])
def test_2_6_metadata_names_model_and_version_only(client: LoopbackClient, spec: Any) -> None:
    answered = metadata_of(client, name="default", signature_name="ignored", **spec).model_spec
    assert answered == ModelSpec(name="default", version={"value": 123})


@pytest.mark.parametrize(
    ("fields", "spec", "code", "text"),
    [
        pytest.param([], None, Code.INVALID_ARGUMENT, "Missing ModelSpec", id="no spec"),
        pytest.param(
            [],
            {"name": "nope"},
            Code.INVALID_ARGUMENT,
            "GetModelMetadataRequest must specify at least one metadata_field",
            id="no field, which is looked at before the model",
        ),
        pytest.param(
            ["signature_def", "x"],
            {"name": "nope"},
            Code.INVALID_ARGUMENT,
            "Metadata field x is not supported",
            id="unknown field, which is looked at before the model",
        ),
        pytest.param(
            ["signature_def"],
            {"name": "nope"},
            Code.NOT_FOUND,
            "Servable not found for request: Latest(nope)",
            id="unknown model",
        ),
        pytest.param(
            ["signature_def"],
            {"name": "default", "version": {"value": 124}},
            Code.NOT_FOUND,
            "Servable not found for request: Specific(default, 124)",
            id="a version that failed to load",
        ),
        pytest.param(
            ["signature_def"],
            {"name": "default", "version_label": "L"},
            Code.INVALID_ARGUMENT,
            "Unrecognized servable version label: L",
            id="unknown label",
        ),
    ],
)
def test_4_5_metadata_refusals(client: LoopbackClient, fields: Any, spec: Any, code: Code, text: str) -> None:
    request = GetModelMetadataRequest(
        model_spec=None if spec is None else ModelSpec(**spec), metadata_field=fields
    )
    assert call(client, GET_MODEL_METADATA, request).failure == (code, text)


@pytest.mark.parametrize(
    ("method", "name"), [(GET_MODEL_STATUS, "GetModelStatusRequest"), (GET_MODEL_METADATA, "GetModelMetadataRequest")]
)
def test_what_does_not_parse_is_internal(client: LoopbackClient, method: str, name: str) -> None:
    text = f"Error parsing the request message as tensorflow.serving.{name}."
    assert call(client, method, b"\xff").failure == (Code.INTERNAL, text)
