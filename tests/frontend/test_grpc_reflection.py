"""Server reflection as tools see it, in both versions and through both engines: by the official client library's
database of descriptors, and message by message."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from ringserve.broker.messages import Code
from ringserve.config.protos import PredictRequest
from ringserve.frontend.grpc_api import GrpcSettings
from ringserve.frontend.grpc_protos import REFLECTION
from tests.frontend.fakes import LoopbackClient, catalog_of, float_proto, half_plus_two, version_info
from tests.frontend.grpc_server import ApiServer, serving
from tests.frontend.http2.service import GRPCIO, NATIVE, connect, grpc

V1, V1ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"
SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "tensorflow.ProfilerService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
]


@pytest.fixture(params=[NATIVE, GRPCIO], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    with serving(request.param, LoopbackClient(catalog_of(version_info()), half_plus_two)) as server:
        yield server


@pytest.fixture
def channel(server: ApiServer) -> Iterator[Any]:
    with connect(server.target) as channel:
        yield channel


class Asker:
    """One reflection stream that requests are sent on one after the other."""

    def __init__(self, channel: Any, package: str) -> None:
        request_class, response_class = REFLECTION[package]
        self._request_class = request_class
        self._call = channel.stream_stream(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )

    def __call__(self, *requests: dict[str, Any]) -> list[Any]:
        made = [self._request_class(host="h", **request) for request in requests]
        responses = list(self._call(iter(made), timeout=30))
        assert [each.original_request for each in responses] == made
        assert all(each.valid_host == "h" for each in responses)
        return responses


@pytest.fixture(params=[V1, V1ALPHA])
def ask(request: pytest.FixtureRequest, channel: Any) -> Asker:
    return Asker(channel, request.param)


def files_of(response: Any) -> dict[str, Any]:
    protos = [
        FileDescriptorProto.FromString(each) for each in response.file_descriptor_response.file_descriptor_proto
    ]
    return {each.name: each for each in protos}


def failure_of(response: Any) -> tuple[int, str]:
    assert response.WhichOneof("message_response") == "error_response"
    return response.error_response.error_code, response.error_response.error_message


def test_the_official_client_finds_everything_it_needs(channel: Any) -> None:
    database_module: Any = importlib.import_module("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
    database = database_module.ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == SERVICES
    pool: Any = DescriptorPool(database)
    for service in SERVICES:
        for method in pool.FindServiceByName(service).methods:
            assert method.input_type.full_name
            assert method.output_type.full_name


def test_a_client_without_protos_can_predict(channel: Any) -> None:
    database_module: Any = importlib.import_module("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
    pool: Any = DescriptorPool(database_module.ProtoReflectionDescriptorDatabase(channel))
    method = pool.FindServiceByName("tensorflow.serving.PredictionService").methods_by_name["Predict"]
    request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    assert request_class is not PredictRequest
    request: Any = request_class()
    request.model_spec.name = "default"
    request.inputs["x"].ParseFromString(float_proto([2, 4], [2]).SerializeToString())
    predict = channel.unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    assert list(predict(request, timeout=30).outputs["y"].float_val) == [3, 4]


def test_services(ask: Asker) -> None:
    (response,) = ask({"list_services": "*"})
    assert [each.name for each in response.list_services_response.service] == SERVICES


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("tensorflow.serving.PredictionService", "tensorflow_serving/apis/prediction_service.proto"),
        ("tensorflow.serving.PredictionService.Predict", "tensorflow_serving/apis/prediction_service.proto"),
        ("tensorflow.serving.PredictRequest", "tensorflow_serving/apis/predict.proto"),
        ("tensorflow.serving.PredictRequest.InputsEntry", "tensorflow_serving/apis/predict.proto"),
        ("tensorflow.serving.PredictRequest.inputs", "tensorflow_serving/apis/predict.proto"),
        ("tensorflow.serving.Input.kind", "tensorflow_serving/apis/input.proto"),
        ("tensorflow.TensorProto", "tensorflow/core/framework/tensor.proto"),
        ("tensorflow.DataType", "tensorflow/core/framework/types.proto"),
        ("tensorflow.DT_FLOAT", "tensorflow/core/framework/types.proto"),
        ("tensorflow.serving.ModelVersionStatus.AVAILABLE", "tensorflow_serving/apis/get_model_status.proto"),
        ("grpc.health.v1.Health", "grpc/health/v1/health.proto"),
    ],
)
def test_a_symbol_comes_with_all_that_its_file_imports(ask: Asker, symbol: str, file: str) -> None:
    (response,) = ask({"file_containing_symbol": symbol})
    files = files_of(response)
    assert next(iter(files)) == file
    for each in files.values():
        assert set(each.dependency) <= set(files)


def test_what_was_sent_on_a_stream_is_not_sent_again_unless_asked_for(ask: Asker) -> None:
    name = "tensorflow_serving/apis/predict.proto"
    first, again, other = ask(
        {"file_by_filename": name},
        {"file_by_filename": name},
        {"file_containing_symbol": "tensorflow.serving.PredictionService"},
    )
    assert name in files_of(first)
    assert list(files_of(again)) == [name]
    assert not files_of(other).keys() & files_of(first).keys()
    everything = files_of(first) | files_of(other)
    assert all(set(each.dependency) <= set(everything) for each in everything.values())


@pytest.mark.parametrize(
    "request_fields",
    [
        {"file_by_filename": "nope.proto"},
        {"file_by_filename": "ringserve/raw_examples.proto"},  # ours alone
        {"file_containing_symbol": "nope.Nope"},
        {"file_containing_symbol": "ringserve.RawInput"},
        {"file_containing_symbol": "tensorflow.serving.SessionService"},  # declared, but not served
        {"file_containing_extension": {"containing_type": "nope.Nope", "extension_number": 1}},
        {"file_containing_extension": {"containing_type": "tensorflow.TensorProto", "extension_number": 1000}},
        {"all_extension_numbers_of_type": "nope.Nope"},
    ],
)
def test_what_is_not_there_is_an_error_in_the_answer(ask: Asker, request_fields: dict[str, Any]) -> None:
    refused, served = ask(request_fields, {"list_services": ""})
    code, text = failure_of(refused)
    assert (code, text[:11]) == (Code.NOT_FOUND, "not found: ")
    assert served.list_services_response.service  # the stream goes on


def test_a_request_for_nothing(ask: Asker) -> None:
    (response,) = ask({})
    assert failure_of(response) == (Code.INVALID_ARGUMENT, "the request asks for nothing")


def test_extension_numbers(ask: Asker) -> None:
    (response,) = ask({"all_extension_numbers_of_type": "tensorflow.TensorProto"})
    answer = response.all_extension_numbers_response
    assert (answer.base_type_name, list(answer.extension_number)) == ("tensorflow.TensorProto", [])


def test_what_does_not_parse_ends_the_stream(channel: Any) -> None:
    call = channel.stream_stream(f"/{V1}.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b"\xff"]), timeout=30))
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_an_idle_stream_does_not_hold_up_the_drain(engine: str) -> None:
    with serving(engine, LoopbackClient(catalog_of())) as server, connect(server.target) as channel:
        request_class, _ = REFLECTION[V1]
        call = channel.stream_stream(f"/{V1}.ServerReflection/ServerReflectionInfo")
        responses = call(endless(request_class(list_services="").SerializeToString()), timeout=60)
        assert next(responses)
        server.on_loop(server.api.draining.begin)
        with pytest.raises(grpc.RpcError) as ended:
            next(responses)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        server.call(server.engine.drain(60))  # `call` waits for half of that at most


def endless(message: bytes) -> Iterator[bytes]:
    """One message, and then no end of the stream while the test lasts. (The library's thread for it is a daemon.)"""
    yield message
    threading.Event().wait(30)


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_it_can_be_turned_off(engine: str) -> None:
    settings = GrpcSettings(reflection=False)
    with serving(engine, LoopbackClient(catalog_of()), settings) as server, connect(server.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            Asker(channel, V1)({"list_services": ""})
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_services_that_are_off_are_not_listed(engine: str) -> None:
    settings = GrpcSettings(health=False, profiler=False)
    with serving(engine, LoopbackClient(catalog_of()), settings) as server, connect(server.target) as channel:
        (response,) = Asker(channel, V1)({"list_services": ""})
        assert [each.name for each in response.list_services_response.service] == [
            service for service in SERVICES if "health" not in service and "Profiler" not in service
        ]
