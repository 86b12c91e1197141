"""The gRPC methods of TensorFlow Serving: decode, `client.infer`, encode; and what the catalog alone can answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
)
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.handler import Buffer, Call, Methods, UnaryHandler
from ringserve.frontend.lanes import Lane, LaneTable
from ringserve.frontend.outputs import Output, Reply
from ringserve.frontend.predict_codec import PredictDecoder, PredictEncoder, model_spec_of
from ringserve.frontend.status import grpc_text

PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA: Final = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_MODEL_STATUS: Final = "/tensorflow.serving.ModelService/GetModelStatus"

_SIGNATURE_DEF: Final = "signature_def"
_SIGNATURE_DEF_MAP_URL: Final = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


class InferClient(Protocol):
    """What the methods need of `client.Client`."""

    @property
    def catalog(self) -> Catalog: ...

    def infer(
        self, lane: Lane, rows: int, payloads: Sequence[Buffer | list[bytes]], timeout_ns: int, reply: Reply
    ) -> int: ...

    def cancel(self, request_id: int) -> None: ...


def make_methods(
    client: InferClient,
    *,
    tensor_content: bool = False,
    check_method_name: bool = False,
    tensor_bytes_max: int = 2**30,
) -> Methods:
    """The unary methods, for either gRPC engine.

    tensor_content: answer in TensorProto.tensor_content (enable_serialization_as_tensor_content). check_method_name:
    enable_signature_method_name_check. tensor_bytes_max: largest input tensor; no more than the request ring takes.
    """
    catalog = client.catalog
    return Methods(
        unary={
            PREDICT: _predict(
                client,
                PredictDecoder(
                    catalog, LaneTable(), tensor_bytes_max=tensor_bytes_max, check_method_name=check_method_name
                ),
                PredictEncoder(tensor_content=tensor_content),
            ),
            GET_MODEL_METADATA: _method(GetModelMetadataRequest, lambda proto: _get_model_metadata(catalog, proto)),
            GET_MODEL_STATUS: _method(GetModelStatusRequest, lambda proto: _get_model_status(catalog, proto)),
        }
    )


# ------------------------------------------------------------------------------------------------------------ Predict


class _PredictReply:
    """Who waits for one Predict. It lets go of its call when it is over, so that the two form no cycle of garbage."""

    __slots__ = ("call", "client", "encoder", "lane", "request_id")

    def __init__(self, call: Call, client: InferClient, encoder: PredictEncoder, lane: Lane) -> None:
        self.call: Call | None = call
        self.client = client
        self.encoder = encoder
        self.lane = lane
        self.request_id = -1

    def answer(self, outputs: Sequence[Output], row_first: int, rows: int) -> None:
        call = self.call
        if call is not None:
            self.call = None
            call.finish(self.encoder.encode(self.lane, outputs, row_first, rows))

    def fail(self, code: int, text: str) -> None:
        call = self.call
        if call is not None:
            self.call = None
            call.fail(code, grpc_text(text))

    def cancel(self) -> None:
        """The client of the call has gone."""
        if self.call is not None:
            self.call = None
            self.client.cancel(self.request_id)


def _predict(client: InferClient, decoder: PredictDecoder, encoder: PredictEncoder) -> UnaryHandler:
    decode, infer = decoder.decode, client.infer

    def predict(call: Call, message: Buffer) -> None:
        request = decode(message)
        if isinstance(request, Failure):
            call.fail(request.code, grpc_text(request.text))
            return
        lane, rows, payloads = request
        reply = _PredictReply(call, client, encoder, lane)
        request_id = infer(lane, rows, payloads, call.timeout_ns, reply)
        if request_id >= 0 and reply.call is not None:
            reply.request_id = request_id
            call.on_cancel(reply.cancel)

    return predict


# -------------------------------------------------------------------------------------- answered from the catalog alone


def _method(request_class: Any, respond: Callable[[Any], Any]) -> UnaryHandler:
    """A handler that parses its request and answers at once. `respond` gives a response message or a Failure."""

    def handle(call: Call, message: Buffer) -> None:
        try:
            proto = request_class.FromString(bytes(message))
        except DecodeError:
            name = request_class.DESCRIPTOR.full_name
            call.fail(Code.INTERNAL, f"Error parsing the request message as {name}.")
            return
        response = respond(proto)
        if isinstance(response, Failure):
            call.fail(response.code, grpc_text(response.text))
        else:
            call.finish(response.SerializeToString())

    return handle


def _get_model_status(catalog: Catalog, proto: Any) -> Any:
    if not proto.HasField("model_spec"):
        return Failure(Code.INVALID_ARGUMENT, "Missing ModelSpec")
    name, version, _ = model_spec_of(proto)  # TF Serving ignores a label here
    statuses = catalog.statuses(name, version)
    if isinstance(statuses, Failure):
        return statuses
    response = GetModelStatusResponse()
    for status in statuses:
        added = response.model_version_status.add(version=status.version, state=status.state)
        # Present even when it is OK and empty, as TF Serving's is.
        added.status.SetInParent()
        added.status.error_code = status.error_code
        added.status.error_message = status.error_text
    return response


def _get_model_metadata(catalog: Catalog, proto: Any) -> Any:
    if not proto.HasField("model_spec"):
        return Failure(Code.INVALID_ARGUMENT, "Missing ModelSpec")
    if not proto.metadata_field:
        return Failure(
            Code.INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field"
        )
    for metadata_field in proto.metadata_field:
        if metadata_field != _SIGNATURE_DEF:
            return Failure(Code.INVALID_ARGUMENT, f"Metadata field {metadata_field} is not supported")
    servable = catalog.resolve(*model_spec_of(proto))
    if isinstance(servable, Failure):
        return servable
    response = GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.model_spec.version.SetInParent()
    any_message = response.metadata[_SIGNATURE_DEF]
    any_message.type_url = _SIGNATURE_DEF_MAP_URL
    any_message.value = servable.signature_defs
    return response
