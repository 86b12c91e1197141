"""Calls to a server's gRPC API: signatures, Predict. With grpcio and message classes alone, no generated stubs."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import grpc

from ringserve.broker.messages import Failure
from ringserve.commands.console import Failed, Status
from ringserve.config.protos import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    PredictRequest,
    PredictResponse,
    SignatureDefMap,
    TensorProto,
)
from ringserve.frontend.catalog import ServableView, servable_view
from ringserve.frontend.tensor_proto import Tensor, decode, encode

PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
METADATA: Final = "/tensorflow.serving.PredictionService/GetModelMetadata"
#: Messages of any size, as the server's own limits are what counts; and straight to the server.
OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
_BYTES_MAX: Final = 2**40
#: grpcio's own words when nobody answers; a server that says UNAVAILABLE has others.
_UNREACHED: Final = re.compile("failed to connect|DNS resolution failed|onnections to all|Socket closed|Connection re")


class Answer(NamedTuple):
    """version: the one that answered."""

    version: int
    outputs: dict[str, Tensor]


class GrpcClient:
    """A connection to a server. Use it as a context manager."""

    def __init__(self, target: str, timeout_s: float, ca_path: str | None = None) -> None:
        self._target = target
        self._timeout_s = timeout_s
        if ca_path is None:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(Path(ca_path).read_bytes())
            self._channel = grpc.secure_channel(target, credentials, options=OPTIONS)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def signatures(self, model: str, version: int | None, label: str | None) -> ServableView:
        """What can be asked of it, by GetModelMetadata. Raises Failed."""
        request = GetModelMetadataRequest()
        set_spec(request.model_spec, model, version, label)
        request.metadata_field.append("signature_def")
        told = self._call(METADATA, request, GetModelMetadataResponse)
        found = SignatureDefMap()
        told.metadata["signature_def"].Unpack(found)
        return servable_view(model, told.model_spec.version.value, found.SerializeToString())

    def predict(
        self,
        model: str,
        version: int | None,
        label: str | None,
        signature: str,
        tensors: dict[str, Tensor],
        outputs: tuple[str, ...] = (),
    ) -> Answer:
        """One Predict. Raises Failed."""
        request = predict_request(model, version, label, signature, tensors, outputs)
        response = self._call(PREDICT, request, PredictResponse)
        found = {}
        for alias, proto in response.outputs.items():
            tensor = decode(proto, alias, _BYTES_MAX)
            if isinstance(tensor, Failure):
                raise Failed(f"the answer cannot be read: {tensor.text}")
            found[alias] = tensor
        return Answer(int(response.model_spec.version.value), found)

    def _call(self, method: str, request: Any, response_class: Any) -> Any:
        call = self._channel.unary_unary(
            method, request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_class.FromString,
        )  # fmt: skip
        try:
            return call(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            status = Status.UNREACHABLE if _UNREACHED.search(text) else Status.FAILED
            raise Failed(f"{self._target}: {code.name}: {text}", status) from error


def predict_request(
    model: str,
    version: int | None,
    label: str | None,
    signature: str,
    tensors: dict[str, Tensor],
    outputs: tuple[str, ...] = (),
) -> Any:
    """The PredictRequest."""
    request = PredictRequest()
    set_spec(request.model_spec, model, version, label)
    request.model_spec.signature_name = signature
    request.output_filter.extend(outputs)
    for alias, tensor in tensors.items():
        request.inputs[alias].CopyFrom(TensorProto.FromString(encode(tensor, tensor_content=True)))
    return request


def set_spec(spec: Any, model: str, version: int | None, label: str | None) -> None:
    """Fill a ModelSpec in."""
    spec.name = model
    if version is not None:
        spec.version.value = version
    elif label is not None:
        spec.version_label = label
