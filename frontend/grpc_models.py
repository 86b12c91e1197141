"""GetModelStatus and GetModelMetadata: what the catalog alone can answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from ringserve.broker.messages import Code, Failure
from ringserve.config.protos import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
)
from ringserve.frontend.catalog import Catalog
from ringserve.frontend.handler import Buffer, Call, UnaryHandler
from ringserve.frontend.predict_codec import model_spec_of
from ringserve.frontend.status import grpc_text

_SIGNATURE_DEF: Final = "signature_def"
_SIGNATURE_DEF_MAP_URL: Final = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


def parsed(request_class: Any, message: Buffer) -> Any:
    """The request, or the Failure of a message that is none."""
    try:
        return request_class.FromString(bytes(message))
    except DecodeError:
        return unparsable(request_class.DESCRIPTOR.full_name)


def unparsable(full_name: str) -> Failure:
    """The failure of a message that does not parse as this type."""
    return Failure(Code.INTERNAL, f"Error parsing the request message as {full_name}.")


def answered_at_once(request_class: Any, respond: Callable[[Any], Any]) -> UnaryHandler:
    """A handler that parses its request and answers at once. `respond` gives a response message or a Failure."""

    def handle(call: Call, message: Buffer) -> None:
        request = parsed(request_class, message)
        response = request if isinstance(request, Failure) else respond(request)
        if isinstance(response, Failure):
            call.fail(response.code, grpc_text(response.text))
        else:
            call.finish(response.SerializeToString())

    return handle


def status_method(catalog: Catalog) -> UnaryHandler:
    """The handler of GetModelStatus."""
    return answered_at_once(GetModelStatusRequest, lambda request: _status(catalog, request))


def metadata_method(catalog: Catalog) -> UnaryHandler:
    """The handler of GetModelMetadata."""
    return answered_at_once(GetModelMetadataRequest, lambda request: _metadata(catalog, request))


def _status(catalog: Catalog, request: Any) -> Any:
    if not request.HasField("model_spec"):
        return Failure(Code.INVALID_ARGUMENT, "Missing ModelSpec")
    name, version, _ = model_spec_of(request)  # TF Serving ignores a label here
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


def _metadata(catalog: Catalog, request: Any) -> Any:
    if not request.HasField("model_spec"):
        return Failure(Code.INVALID_ARGUMENT, "Missing ModelSpec")
    if not request.metadata_field:
        return Failure(
            Code.INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field"
        )
    for metadata_field in request.metadata_field:
        if metadata_field != _SIGNATURE_DEF:
            return Failure(Code.INVALID_ARGUMENT, f"Metadata field {metadata_field} is not supported")
    servable = catalog.resolve(*model_spec_of(request))
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
